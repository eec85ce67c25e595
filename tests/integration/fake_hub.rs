//! A fake hub that publishes the demo segmenter as `someone/shapes-sam`.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::response::Builder;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde_json::{Value, json};

use crate::command::{command, text};
use crate::support::repository;

/// The commit that `main` names.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The repository of the hub.
pub const ID: &str = "someone/shapes-sam";
/// Its large file.
pub const WEIGHTS: &str = "model.safetensors";

/// How a fake hub behaves. By default all its responses are right.
#[derive(Debug, Default)]
pub struct HubOptions {
    /// An etag to send in place of the SHA-256 of a file.
    pub etag: Option<String>,
    /// A commit to send in place of [`COMMIT`].
    pub commit: Option<&'static str>,
    /// For each of the next downloads of the weights: the number of bytes after which it breaks off, or 0 for a
    /// response with status 503.
    pub breaks: Vec<usize>,
    /// The only token that may read the repository.
    pub token: Option<&'static str>,
    /// Whether the weights are redirected to another origin, as on the real hub.
    pub redirects_weights: bool,
    /// Time before each download of the weights.
    pub delay: Duration,
}

/// A running fake hub.
pub struct FakeHub {
    pub endpoint: String,
    /// `HF_HOME`: an empty cache for this hub.
    pub home: tempfile::TempDir,
    state: Arc<HubState>,
}

#[derive(Debug)]
struct HubState {
    options: HubOptions,
    /// Names and contents of the published files.
    files: HashMap<String, Vec<u8>>,
    /// The origin to which weights are redirected.
    other_origin: String,
    breaks: Mutex<Vec<usize>>,
    /// The byte at which each download of the weights started.
    download_starts: Mutex<Vec<usize>>,
    /// The tokens of all requests, each with whether it came to the hub itself and not to the other origin.
    tokens: Mutex<Vec<(bool, String)>>,
}

impl FakeHub {
    /// Starts a hub on a free port.
    pub async fn start(options: HubOptions) -> Self {
        let files = fs::read_dir(repository("models/demo/segmenter")).unwrap();
        let files = files.map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read(path).unwrap())
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(HubState {
            files: files.collect(),
            // the same server under another name is another origin
            other_origin: format!("http://localhost:{}", address.port()),
            breaks: Mutex::new(options.breaks.clone()),
            download_starts: Mutex::default(),
            tokens: Mutex::default(),
            options,
        });
        let router = Router::new()
            .route(&format!("/{ID}/resolve/{{revision}}/{{file}}"), get(file))
            .route("/storage/{file}", get(file_in_storage))
            .route(
                &format!("/api/models/{ID}/revision/{{revision}}"),
                get(list),
            )
            .with_state(Arc::clone(&state));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            endpoint: format!("http://{address}"),
            home: tempfile::tempdir().unwrap(),
            state,
        }
    }

    /// Runs a command with this hub and its cache.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = command(arguments);
        command
            .env("HF_ENDPOINT", &self.endpoint)
            .env("HF_HOME", self.home.path());
        tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap()
    }

    /// Runs a command that must succeed.
    pub async fn run_successfully(&self, arguments: &[&str]) {
        let output = self.run(arguments).await;
        assert!(output.status.success(), "{output:?}");
    }

    /// Runs a command that must end with exit code 1 and returns its standard error.
    pub async fn failure(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        text(&output.stderr)
    }

    /// The folder of the repository in the cache.
    pub fn cached_repository(&self) -> PathBuf {
        self.home.path().join("hub/models--someone--shapes-sam")
    }

    /// The folder of the commit in the cache.
    pub fn snapshot(&self) -> PathBuf {
        self.cached_repository().join("snapshots").join(COMMIT)
    }

    /// The byte at which each download of the weights started.
    pub fn download_starts(&self) -> Vec<usize> {
        self.state.download_starts.lock().unwrap().clone()
    }

    /// The tokens of all requests, each with whether it came to the hub itself and not to the other origin.
    pub fn tokens(&self) -> Vec<(bool, String)> {
        self.state.tokens.lock().unwrap().clone()
    }
}

type SharedState = State<Arc<HubState>>;

impl HubState {
    /// Records the token of a request, and says whether it may read the repository.
    fn is_authorized(&self, headers: &HeaderMap, is_hub: bool) -> bool {
        let header = headers.get("authorization").and_then(|v| v.to_str().ok());
        let mut tokens = self.tokens.lock().unwrap();
        tokens.extend(header.map(|header| (is_hub, header.to_owned())));
        let is_right = |token: &str| header == Some(&format!("Bearer {token}"));
        !is_hub || self.options.token.is_none_or(is_right)
    }
}

async fn list(State(hub): SharedState, headers: HeaderMap) -> Response {
    if !hub.is_authorized(&headers, true) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let mut names: Vec<&str> = hub.files.keys().map(String::as_str).collect();
    // names that lead out of the cache, which must be ignored
    names.extend(["../../../../../escaped.safetensors", "/escaped.pth"]);
    let siblings: Vec<Value> = names.iter().map(|f| json!({ "rfilename": f })).collect();
    Json(json!({ "siblings": siblings, "sha": COMMIT })).into_response()
}

async fn file(
    State(hub): SharedState,
    UrlPath((_, file)): UrlPath<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    if !hub.is_authorized(&headers, true) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Some(bytes) = hub.files.get(&file) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let etag = hub.options.etag.clone().unwrap_or_else(|| sha256(bytes));
    let response = Response::builder()
        .header("x-repo-commit", hub.options.commit.unwrap_or(COMMIT))
        .header("x-linked-etag", format!("\"{etag}\""))
        .header("x-linked-size", bytes.len());
    if hub.options.redirects_weights && file == WEIGHTS {
        let location = format!("{}/storage/{file}", hub.other_origin);
        return response
            .status(StatusCode::FOUND)
            .header("location", location)
            .body(Body::empty())
            .unwrap();
    }
    if method == Method::HEAD {
        return response.body(Body::empty()).unwrap();
    }
    content(&hub, &file, &headers, response).await
}

/// The other origin, where the hub stores large files.
async fn file_in_storage(
    State(hub): SharedState,
    UrlPath(file): UrlPath<String>,
    headers: HeaderMap,
) -> Response {
    hub.is_authorized(&headers, false);
    content(&hub, &file, &headers, Response::builder()).await
}

/// The bytes of a file from the start of the requested range.
async fn content(hub: &HubState, file: &str, headers: &HeaderMap, response: Builder) -> Response {
    let bytes = &hub.files[file];
    let range = headers.get("range").map(|range| range.to_str().unwrap());
    let start = range.map(|range| range.strip_prefix("bytes=").unwrap().strip_suffix('-'));
    let start: Option<usize> = start.map(|start| start.unwrap().parse().unwrap());
    let (response, part) = match start {
        Some(start) => {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            let response = response.status(StatusCode::PARTIAL_CONTENT);
            (
                response.header("content-range", range),
                bytes[start..].to_vec(),
            )
        }
        None => (response, bytes.clone()),
    };
    if file != WEIGHTS {
        return response.body(Body::from(part)).unwrap();
    }
    tokio::time::sleep(hub.options.delay).await;
    let mut breaks = hub.breaks.lock().unwrap();
    let break_after = (!breaks.is_empty()).then(|| breaks.remove(0));
    if break_after == Some(0) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    hub.download_starts.lock().unwrap().push(start.unwrap_or(0));
    match break_after {
        Some(after) => {
            let length = part.len();
            let pieces: Vec<Result<Vec<u8>, std::io::Error>> = vec![
                Ok(part[..after].to_vec()),
                Err(std::io::Error::other("the connection is closed")),
            ];
            let body = Body::from_stream(futures_util::stream::iter(pieces));
            response
                .header("content-length", length)
                .body(body)
                .unwrap()
        }
        None => response.body(Body::from(part)).unwrap(),
    }
}

/// The SHA-256 of bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}
