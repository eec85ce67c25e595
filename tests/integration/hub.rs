//! Models from a hub: fetched, resumed, checked, shared, and told about when they cannot be had.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde_json::{Value, json};

use crate::cli::command;
use crate::support::{app_with, get_json, repository};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// What the stand-in publishes.
const ID: &str = "someone/shapes-sam";

/// A stand-in for the hub, on the demo segmenter.
#[derive(Debug, Default)]
struct Files {
    /// Names and contents.
    files: HashMap<String, Vec<u8>>,
    /// The etag that is told instead of the right one.
    wrong_etag: Option<String>,
    /// The next so many answers end after half of what they promised.
    cut: Mutex<usize>,
    /// Where each request for more than one byte began, and of which file.
    starts: Mutex<Vec<(String, usize)>>,
    /// Only this token may read.
    token: Option<&'static str>,
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
    let files = Arc::new(files);
    let router = Router::new()
        .route(
            "/someone/shapes-sam/resolve/{revision}/{file}",
            get(resolve),
        )
        .route(
            "/api/models/someone/shapes-sam/revision/{revision}",
            get(list),
        )
        .with_state(Arc::clone(&files));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Hub {
        endpoint,
        files,
        home: tempfile::tempdir().unwrap(),
    }
}

fn may_read(files: &Files, headers: &HeaderMap) -> bool {
    files.token.is_none_or(|token| {
        let sent = headers.get("authorization").and_then(|v| v.to_str().ok());
        sent == Some(&format!("Bearer {token}"))
    })
}

async fn list(State(files): State<Arc<Files>>, headers: HeaderMap) -> Response {
    if !may_read(&files, &headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let siblings: Vec<Value> = files
        .files
        .keys()
        .map(|f| json!({ "rfilename": f }))
        .collect();
    Json(json!({ "siblings": siblings, "sha": COMMIT })).into_response()
}

async fn resolve(
    State(files): State<Arc<Files>>,
    UrlPath((_, file)): UrlPath<(String, String)>,
    headers: HeaderMap,
) -> Response {
    if !may_read(&files, &headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Some(bytes) = files.files.get(&file) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = headers["range"]
        .to_str()
        .unwrap()
        .strip_prefix("bytes=")
        .unwrap();
    let (start, end) = range.split_once('-').unwrap();
    let start: usize = start.parse().unwrap();
    let end = end.parse().map_or(bytes.len(), |last: usize| last + 1);
    let part = bytes[start.min(bytes.len())..end].to_vec();
    let etag = files.wrong_etag.clone().unwrap_or_else(|| sha256(bytes));
    let response = Response::builder()
        .status(StatusCode::PARTIAL_CONTENT)
        .header("x-repo-commit", COMMIT)
        .header("etag", format!("\"{etag}\""))
        .header(
            "content-range",
            format!("bytes {start}-{}/{}", end - 1, bytes.len()),
        );
    if part.len() > 1 {
        files.starts.lock().unwrap().push((file, start));
        let mut cut = files.cut.lock().unwrap();
        if *cut > 0 && part.len() > 10_000 {
            *cut -= 1;
            let half: Vec<Result<Vec<u8>, std::io::Error>> = vec![
                Ok(part[..part.len() / 2].to_vec()),
                Err(std::io::Error::other("cut")),
            ];
            let body = Body::from_stream(futures_util::stream::iter(half));
            let length = part.len();
            return response
                .header("content-length", length)
                .body(body)
                .unwrap();
        }
    }
    response.body(Body::from(part)).unwrap()
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
        let starts = self.files.starts.lock().unwrap();
        let weights = starts
            .iter()
            .filter(|(file, _)| file == "model.safetensors");
        weights.map(|(_, start)| *start).collect()
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
    assert!(error.contains("fetching model.safetensors"), "{error}");

    let reference = fs::read_to_string(hub.repository().join("refs/main")).unwrap();
    assert_eq!(reference, COMMIT);
    let snapshot = hub.repository().join("snapshots").join(COMMIT);
    let link = fs::read_link(snapshot.join("model.safetensors")).unwrap();
    let published = repository("models/demo/segmenter/model.safetensors");
    let etag = sha256(&fs::read(published).unwrap());
    assert_eq!(link, Path::new("../../blobs").join(&etag));

    // again, without a network
    let mut offline = command(&PREDICT);
    offline
        .env("HF_HOME", hub.home.path())
        .env("HF_HUB_OFFLINE", "1");
    success(&offline.output().unwrap());
    assert_eq!(hub.weights_begun_at(), [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_line_is_taken_up_again() {
    let hub = start(Files {
        cut: Mutex::new(1),
        ..Files::default()
    })
    .await;
    success(&hub.run(&["download", ID]).await);
    let starts = hub.weights_begun_at();
    assert!(
        starts.len() == 2 && starts[0] == 0 && starts[1] > 0,
        "{starts:?}"
    );

    // and where all tries failed, by the next command
    let hub = start(Files {
        cut: Mutex::new(4),
        ..Files::default()
    })
    .await;
    let error = hub.error(&["download", ID]).await;
    assert!(
        error.contains("model.safetensors") && error.contains(&hub.endpoint),
        "{error}"
    );
    success(&hub.run(&["download", ID]).await);
    let starts = hub.weights_begun_at();
    assert!(starts.last().is_some_and(|start| *start > 0), "{starts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_do_not_fight() {
    let hub = start(Files::default()).await;
    let (one, other) = tokio::join!(hub.run(&PREDICT), hub.run(&PREDICT));
    success(&one);
    success(&other);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_was_published_is_removed() {
    let wrong = "f".repeat(64);
    let hub = start(Files {
        wrong_etag: Some(wrong.clone()),
        ..Files::default()
    })
    .await;
    let error = hub.error(&PREDICT).await;
    assert!(
        error.contains("SHA-256") && error.contains(&wrong) && error.contains(".json"),
        "{error}"
    );
    assert!(!hub.repository().join("blobs").join(&wrong).exists());
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
    let part = blobs.join(sha256(&weights)).with_extension("part");
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
