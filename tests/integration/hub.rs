//! Models from a hub: fetched, resumed, checked, shared, and told about when they cannot be had.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
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

use crate::cli::command;
use crate::support::{app_with, get_json, repository};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// What the stand-in publishes.
const ID: &str = "someone/shapes-sam";
const WEIGHTS: &str = "model.safetensors";

/// A stand-in for the hub, on the demo segmenter.
#[derive(Debug, Default)]
struct Files {
    /// Names and contents.
    files: HashMap<String, Vec<u8>>,
    /// Told instead of the right one.
    etag: Option<String>,
    /// Told instead of the right one.
    commit: Option<&'static str>,
    /// The next answers with weights break off after so many bytes; where 0, they are a 503.
    breaks: Mutex<Vec<usize>>,
    /// Where each answer with weights began.
    starts: Mutex<Vec<usize>>,
    /// The tokens that came, at this host and at the other one.
    tokens: Mutex<Vec<(bool, String)>>,
    /// Only this token may read.
    token: Option<&'static str>,
    /// Weights are sent on to this host.
    elsewhere: Option<String>,
    /// Before an answer with weights.
    delay: Duration,
}

struct Hub {
    endpoint: String,
    files: Arc<Files>,
    /// The cache, apart from every other.
    home: tempfile::TempDir,
}

async fn start(mut files: Files) -> Hub {
    for entry in fs::read_dir(repository("models/demo/segmenter")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        files.files.insert(name, fs::read(path).unwrap());
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    if files.elsewhere.is_some() {
        // the same server by another name: another origin
        files.elsewhere = Some(format!("http://localhost:{}", address.port()));
    }
    let files = Arc::new(files);
    let router = Router::new()
        .route(
            "/someone/shapes-sam/resolve/{revision}/{file}",
            get(resolve),
        )
        .route("/storage/{file}", get(storage))
        .route(
            "/api/models/someone/shapes-sam/revision/{revision}",
            get(list),
        )
        .with_state(Arc::clone(&files));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Hub {
        endpoint: format!("http://{address}"),
        files,
        home: tempfile::tempdir().unwrap(),
    }
}

/// Notes the token of a request, and whether it may read.
fn may_read(files: &Files, headers: &HeaderMap, is_hub: bool) -> bool {
    let sent = headers.get("authorization").and_then(|v| v.to_str().ok());
    let mut tokens = files.tokens.lock().unwrap();
    tokens.extend(sent.map(|sent| (is_hub, sent.to_owned())));
    let fits = |token: &str| sent == Some(&format!("Bearer {token}"));
    !is_hub || files.token.is_none_or(fits)
}

async fn list(State(files): State<Arc<Files>>, headers: HeaderMap) -> Response {
    if !may_read(&files, &headers, true) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let mut names: Vec<&str> = files.files.keys().map(String::as_str).collect();
    // what leads out of the cache is none of a repository's files
    names.extend(["../../../../../escaped.safetensors", "/escaped.pth"]);
    let siblings: Vec<Value> = names.iter().map(|f| json!({ "rfilename": f })).collect();
    Json(json!({ "siblings": siblings, "sha": COMMIT })).into_response()
}

async fn resolve(
    State(files): State<Arc<Files>>,
    UrlPath((_, file)): UrlPath<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    if !may_read(&files, &headers, true) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Some(bytes) = files.files.get(&file) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let etag = files.etag.clone().unwrap_or_else(|| sha256(bytes));
    let response = Response::builder()
        .header("x-repo-commit", files.commit.unwrap_or(COMMIT))
        .header("x-linked-etag", format!("\"{etag}\""))
        .header("x-linked-size", bytes.len());
    if let Some(elsewhere) = files.elsewhere.as_ref().filter(|_| file == WEIGHTS) {
        let response = response.status(StatusCode::FOUND);
        let place = format!("{elsewhere}/storage/{file}");
        return response
            .header("location", place)
            .body(Body::empty())
            .unwrap();
    }
    if method == Method::HEAD {
        return response.body(Body::empty()).unwrap();
    }
    content(&files, &file, &headers, response).await
}

/// Where the hub keeps what is large.
async fn storage(
    State(files): State<Arc<Files>>,
    UrlPath(file): UrlPath<String>,
    headers: HeaderMap,
) -> Response {
    may_read(&files, &headers, false);
    content(&files, &file, &headers, Response::builder()).await
}

async fn content(files: &Files, file: &str, headers: &HeaderMap, response: Builder) -> Response {
    let bytes = &files.files[file];
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
    tokio::time::sleep(files.delay).await;
    let mut breaks = files.breaks.lock().unwrap();
    let breaks = if breaks.is_empty() {
        None
    } else {
        Some(breaks.remove(0))
    };
    if breaks == Some(0) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    files.starts.lock().unwrap().push(start.unwrap_or(0));
    match breaks {
        Some(after) => {
            let length = part.len();
            let pieces: Vec<Result<Vec<u8>, std::io::Error>> = vec![
                Ok(part[..after].to_vec()),
                Err(std::io::Error::other("broken off")),
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

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

impl Hub {
    /// Runs a command against it.
    async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = command(arguments);
        command
            .env("HF_ENDPOINT", &self.endpoint)
            .env("HF_HOME", self.home.path());
        tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap()
    }

    async fn error(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn repository(&self) -> PathBuf {
        self.home.path().join("hub/models--someone--shapes-sam")
    }

    fn weights_begun_at(&self) -> Vec<usize> {
        self.files.starts.lock().unwrap().clone()
    }

    fn snapshot(&self) -> PathBuf {
        self.repository().join("snapshots").join(COMMIT)
    }
}

const PREDICT: [&str; 6] = [
    "predict",
    "examples/images/shapes.png",
    "--prompt",
    "star",
    "--segmenter",
    ID,
];

fn success(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fetched_once_into_the_hubs_own_layout() {
    let hub = start(Files::default()).await;
    let output = hub.run(&PREDICT).await;
    success(&output);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        report["results"][0]["detections"][0]["mask"].is_object(),
        "{report}"
    );
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("downloading model.safetensors"), "{error}");

    let reference = fs::read_to_string(hub.repository().join("refs/main")).unwrap();
    assert_eq!(reference, COMMIT);
    let link = fs::read_link(hub.snapshot().join(WEIGHTS)).unwrap();
    let published = repository("models/demo/segmenter/model.safetensors");
    let etag = sha256(&fs::read(published).unwrap());
    assert_eq!(link, Path::new("../../blobs").join(&etag));

    // again, without a network
    for arguments in [&PREDICT[..], &["download", ID]] {
        let mut offline = command(arguments);
        offline
            .env("HF_HOME", hub.home.path())
            .env("HF_HUB_OFFLINE", "1");
        success(&offline.output().unwrap());
    }
    assert_eq!(hub.weights_begun_at(), [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_line_is_taken_up_again() {
    let hub = start(Files {
        breaks: Mutex::new(vec![1_000_000, 0, 500_000]),
        ..Files::default()
    })
    .await;
    success(&hub.run(&["download", ID]).await);
    assert_eq!(hub.weights_begun_at(), [0, 1_000_000, 1_500_000]);

    // and where all tries failed, by the next command
    let hub = start(Files {
        breaks: Mutex::new(vec![1_000_000, 0, 0, 0, 0]),
        ..Files::default()
    })
    .await;
    let error = hub.error(&["download", ID]).await;
    assert!(
        error.contains(WEIGHTS) && error.contains(&hub.endpoint) && error.contains("503"),
        "{error}"
    );
    success(&hub.run(&["download", ID]).await);
    assert_eq!(hub.weights_begun_at(), [0, 1_000_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_do_not_fight() {
    let hub = start(Files {
        delay: Duration::from_millis(700),
        ..Files::default()
    })
    .await;
    let (one, other) = tokio::join!(hub.run(&PREDICT), hub.run(&PREDICT));
    success(&one);
    success(&other);
    assert_eq!(hub.weights_begun_at(), [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_was_published_is_removed() {
    let wrong = "f".repeat(64);
    let hub = start(Files {
        etag: Some(wrong.clone()),
        ..Files::default()
    })
    .await;
    let error = hub.error(&PREDICT).await;
    assert!(
        error.contains("checksum") && error.contains(&wrong) && error.contains(".json"),
        "{error}"
    );
    assert_eq!(
        fs::read_dir(hub.repository().join("blobs"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_damaged_later_is_fetched_again() {
    let hub = start(Files::default()).await;
    success(&hub.run(&["download", ID]).await);
    let weights = hub.snapshot().join(WEIGHTS);
    let blob = weights.canonicalize().unwrap();
    let mut bytes = fs::read(&blob).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    for damaged in [&bytes[..last], &bytes] {
        fs::write(&blob, damaged).unwrap();
        let mut offline = command(&PREDICT);
        offline
            .env("HF_HOME", hub.home.path())
            .env("HF_HUB_OFFLINE", "1");
        let output = offline.output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains(WEIGHTS) && error.contains("is damaged"),
            "{error}"
        );
        success(&hub.run(&PREDICT).await);
        assert_eq!(
            sha256(&fs::read(&blob).unwrap()),
            blob.file_name().unwrap().to_str().unwrap()
        );
    }
    fs::write(&blob, &bytes).unwrap();
    success(&hub.run(&["download", ID]).await);
    // other tools leave files out that they do not need
    fs::remove_file(hub.snapshot().join("preprocessor_config.json")).unwrap();
    success(&hub.run(&PREDICT).await);
    assert_eq!(hub.weights_begun_at(), [0; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_means_harm() {
    let outside = tempfile::tempdir().unwrap();
    let place = outside.path().join("escaped").display().to_string();
    let hub = start(Files {
        etag: Some(place),
        ..Files::default()
    })
    .await;
    let error = hub.error(&["download", ID]).await;
    assert!(error.contains("no usable etag"), "{error}");
    let hub = start(Files {
        commit: Some("../../../escaped"),
        ..Files::default()
    })
    .await;
    let error = hub.error(&["download", ID]).await;
    assert!(error.contains("no commit"), "{error}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_stays_at_the_hub() {
    let hub = start(Files {
        token: Some("hf_secret"),
        elsewhere: Some(String::new()),
        breaks: Mutex::new(vec![1_000_000]),
        ..Files::default()
    })
    .await;
    let output = hub.run(&["download", ID, "--hf-token", "hf_secret"]).await;
    success(&output);
    assert_eq!(hub.weights_begun_at(), [0, 1_000_000]);
    let tokens = hub.files.tokens.lock().unwrap();
    assert!(
        tokens.len() > 4 && tokens.iter().all(|(is_hub, _)| *is_hub),
        "{tokens:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_read_is_told_of_the_token() {
    let hub = start(Files {
        token: Some("hf_secret"),
        ..Files::default()
    })
    .await;
    let error = hub.error(&["download", ID]).await;
    assert!(
        error.contains("401") && error.contains("HF_TOKEN"),
        "{error}"
    );
    let error = hub.error(&["download", ID, "--hf-token", "hf_other"]).await;
    assert!(
        error.contains("401") && !error.contains("hf_other"),
        "{error}"
    );
    success(&hub.run(&["download", ID, "--hf-token", "hf_secret"]).await);
    // the file that the hub's own tools write
    let folder = hub.home.path().to_owned();
    fs::remove_dir_all(folder.join("hub")).unwrap();
    fs::write(folder.join("token"), "hf_secret\n").unwrap();
    success(&hub.run(&["download", ID]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_hub_does_not_have() {
    let hub = start(Files::default()).await;
    let error = hub.error(&["download", "someone/nothing"]).await;
    assert!(
        error.contains("someone/nothing") && error.contains(&hub.endpoint),
        "{error}"
    );
    let error = hub.error(&["download", "nothing"]).await;
    assert!(
        error.contains("\"nothing\"") && error.contains("grounding-dino-tiny"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk() {
    let hub = start(Files::default()).await;
    let blobs = hub.repository().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    // every write to this device fails as on a full disk
    let weights = fs::read(repository("models/demo/segmenter/model.safetensors")).unwrap();
    let part = blobs.join(format!("{}.incomplete", sha256(&weights)));
    std::os::unix::fs::symlink("/dev/full", part).unwrap();
    let error = hub.error(&["download", ID]).await;
    assert!(
        error.contains("model.safetensors")
            && error.contains("No space left")
            && error.contains("HF_HOME"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_cannot_be_reached() {
    let output = command(&PREDICT).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("http://127.0.0.1:1") && error.contains(ID),
        "{error}"
    );
    let offline = [&PREDICT[..], &["--hf-hub-offline"]].concat();
    let output = command(&offline).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("HF_HUB_OFFLINE") && error.contains(ID),
        "{error}"
    );

    // the server lives, and says why it is not ready
    let app = app_with(&["--segmenter", ID, "--hf-endpoint", "http://127.0.0.1:1"]);
    let reason = loop {
        let (status, body) = get_json(&app, "/ready").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body["ready"], json!(false));
        let reason = body["reason"].as_str().unwrap().to_owned();
        if reason.contains("could not be loaded") {
            break reason;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(reason.contains("http://127.0.0.1:1"), "{reason}");
    let (status, _) = get_json(&app, "/health").await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn carried_to_a_machine_without_a_network() {
    let hub = start(Files::default()).await;
    let carried = tempfile::tempdir().unwrap();
    let folder = carried.path().to_str().unwrap();
    success(&hub.run(&["download", ID, "--output", folder]).await);
    let weights = carried.path().join(ID).join("model.safetensors");
    assert!(!weights.is_symlink() && weights.is_file());
    let mut there = command(&PREDICT);
    there.env("HF_HUB_OFFLINE", "1").env("MODEL_DIR", folder);
    success(&there.output().unwrap());
}

#[test]
fn the_list_of_models() {
    let models = tempfile::tempdir().unwrap();
    let folder = models.path().join("sam-vit-base");
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(repository("models/demo/segmenter")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let run = |flags: &[&str]| {
        let arguments = [
            &[
                "models",
                "--json",
                "--model-dir",
                models.path().to_str().unwrap(),
            ],
            flags,
        ];
        let output = command(&arguments.concat()).output().unwrap();
        let list: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), list)
    };
    let (code, list) = run(&[]);
    assert_eq!(code, Some(0));
    let named = |list: &[Value], name: &str| {
        let entry = list.iter().find(|entry| entry["name"] == name);
        entry.cloned().unwrap_or_else(|| panic!("no {name}"))
    };
    assert_eq!(named(&list, "grounding-dino-tiny")["path"], Value::Null);
    assert_eq!(named(&list, "mobile-sam")["licence"], "Apache-2.0");
    let path = named(&list, "sam-vit-base")["path"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(Path::new(&path), folder.join("model.safetensors"));
    // it is the demo model in truth
    let (code, list) = run(&["--verify"]);
    assert_eq!(code, Some(1));
    let damage = named(&list, "sam-vit-base")["damaged"].to_string();
    assert!(damage.contains("SHA-256"), "{damage}");
}

#[test]
fn files_of_the_python_backends_have_our_names() {
    let models = tempfile::tempdir().unwrap();
    let folder = models.path();
    let copy = |from: &str, to: &str| fs::copy(repository(from), folder.join(to)).unwrap();
    copy(
        "tests/reference/segmenter/plain/original.pth",
        "mobile_sam.pt",
    );
    // begun and never finished
    fs::create_dir(folder.join("mobile-sam")).unwrap();
    let arguments = ["models", "--json", "--model-dir", folder.to_str().unwrap()];
    let output = command(&arguments).output().unwrap();
    success(&output);
    let list: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let entry = list
        .iter()
        .find(|entry| entry["name"] == "mobile-sam")
        .unwrap();
    assert!(
        entry["path"].as_str().unwrap().ends_with("mobile_sam.pt"),
        "{entry}"
    );
    // a name in a role that it does not have is refused before anything is fetched
    let wrong = [
        "predict",
        PREDICT[1],
        "--prompt",
        "star",
        "--detector",
        "Mobile-SAM",
    ];
    let error = crate::cli::failure(&wrong);
    assert!(error.contains("mobile-sam is a segmenter"), "{error}");
}
