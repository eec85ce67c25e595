//! A server on the demo models, a host for images, and what answers are held against.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use base64::Engine;
use clap::Parser;
use groundling::commands::serve::state;
use groundling::config::Cli;
use groundling::http::{AppState, router};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::brush_decoder;

pub const SHAPES: &[u8] = include_bytes!("../../examples/images/shapes.png");

/// The seed's labeling config with labels the demo model knows.
pub const SHAPES_CONFIG: &str = r#"<View>
  <Image name="image" value="$image"/>
  <View className="prompt">
    <TextArea name="prompt" toName="image" editable="true" rows="2" maxSubmissions="1" showSubmitButton="true"/>
  </View>
  <Header>Rectangle Labels</Header>
  <RectangleLabels name="label" toName="image">
    <Label value="Red Circle" background="orange"/><Label value="Blue Star" background="purple"/>
  </RectangleLabels>
  <Header>Brush Labels</Header>
  <BrushLabels name="label2" toName="image">
    <Label value="Red Circle" background="orange"/><Label value="Blue Star" background="purple"/>
  </BrushLabels>
</View>"#;

/// A path of the repository.
pub fn repository(relative: &str) -> std::path::PathBuf {
    std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// The files below a folder; of a file itself.
pub fn sources(path: &std::path::Path) -> Vec<std::path::PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = std::fs::read_dir(path).unwrap();
    let entries = entries.map(|entry| entry.unwrap().path());
    entries.flat_map(|entry| sources(&entry)).collect()
}

/// What was recorded of Label Studio under a name.
pub fn recorded(name: &str) -> Value {
    let file = repository(&format!("tests/integration/payloads/{name}.json"));
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// The body of a recorded request of Label Studio.
pub fn payload(name: &str) -> Value {
    recorded(name)["request"]["body"].clone()
}

/// An image as a data URI.
pub fn data_uri(bytes: &[u8]) -> String {
    let data = base64::engine::general_purpose::STANDARD.encode(bytes);
    format!("data:image/png;base64,{data}")
}

/// A folder that this run of the tests may write to.
pub fn scratch() -> &'static std::path::Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::tempdir().unwrap()).path()
}

/// The server's state with these flags, on the demo models unless they name others; what it remembers goes to a folder of its own unless they name one.
pub fn state_with(flags: &[&str]) -> AppState {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::SeqCst);
    let folder = scratch().join(format!("models-{number}"));
    let mut all = [&["groundling"], flags].concat();
    if !flags.contains(&"--model-dir") {
        all.extend(["--model-dir", folder.to_str().unwrap()]);
    }
    for model in ["--detector", "--segmenter"] {
        if !flags.contains(&model) {
            all.extend([model, "demo"]);
        }
    }
    let cli = Cli::try_parse_from(all).unwrap();
    state(cli.serve).unwrap()
}

/// The server with these flags and models of its own.
pub fn app_with(flags: &[&str]) -> Router {
    router(state_with(flags))
}

/// A server on the demo models that all tests share.
pub fn app() -> Router {
    static STATE: OnceLock<AppState> = OnceLock::new();
    router(STATE.get_or_init(|| state_with(&[])).clone())
}

/// Sends a request; the status and the JSON of the answer.
pub async fn call(app: &Router, method: &str, path: &str, body: &Value) -> (StatusCode, Value) {
    let body = if body.is_null() {
        Body::empty()
    } else {
        Body::from(body.to_string())
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(body)
        .unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let json = serde_json::from_slice(&bytes)
        .unwrap_or_else(|e| panic!("{path}: {e}: {}", String::from_utf8_lossy(&bytes)));
    (status, json)
}

/// Keeps an answer to `/predict` in the folder that `GROUNDLING_ANSWERS` names, for
/// `tests/label_studio/validate_answers.py`, which holds it against Label Studio's own SDK.
fn keep_answer(request: &Value, answer: &Value) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let Some(folder) = std::env::var_os("GROUNDLING_ANSWERS") else {
        return;
    };
    let kept = json!({
        "label_config": request["label_config"],
        "interactive": request["params"]["context"]["result"].is_array(),
        "results": answer["results"],
    });
    let number = COUNT.fetch_add(1, Ordering::SeqCst);
    let file = std::path::Path::new(&folder).join(format!("{}-{number}.json", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(file, kept.to_string()).unwrap();
}

pub async fn get_json(app: &Router, path: &str) -> (StatusCode, Value) {
    call(app, "GET", path, &Value::Null).await
}

pub async fn post(app: &Router, path: &str, body: &Value) -> (StatusCode, Value) {
    let answer = call(app, "POST", path, body).await;
    if path == "/predict" && answer.0.is_success() {
        keep_answer(body, &answer.1);
    }
    answer
}

/// An interactive request as the page makes it, after a prompt was typed.
pub fn prompt_request(config: &str, image: &str, prompt: &str) -> Value {
    let mut body = payload("predict_interactive_prompt");
    body["label_config"] = json!(config);
    body["tasks"][0]["data"]["image"] = json!(image);
    body["params"]["context"]["result"][0]["value"]["text"] = json!([prompt]);
    body
}

/// The regions of an answer to one task.
pub fn regions(answer: &(StatusCode, Value)) -> &Value {
    let (status, body) = answer;
    assert_eq!(*status, StatusCode::OK, "{body}");
    assert_eq!(body["results"].as_array().unwrap().len(), 1);
    let result = &body["results"][0];
    assert!(result["model_version"].is_string());
    &result["result"]
}

/// Types and labels of regions, sorted.
pub fn kinds(regions: &Value) -> Vec<(String, String)> {
    let mut kinds: Vec<(String, String)> = regions
        .as_array()
        .unwrap()
        .iter()
        .map(|region| {
            let kind = region["type"].as_str().unwrap().to_owned();
            let label = region["value"][&kind][0].as_str().unwrap_or("").to_owned();
            (kind, label)
        })
        .collect();
    kinds.sort();
    kinds
}

/// A rectangle and a mask of each label, as [`kinds`] tells them.
pub fn both_of(labels: &[&str]) -> Vec<(String, String)> {
    let mut kinds: Vec<_> = labels
        .iter()
        .flat_map(|label| {
            ["rectanglelabels", "brushlabels"].map(|kind| (kind.to_owned(), (*label).to_owned()))
        })
        .collect();
    kinds.sort();
    kinds
}

/// The error of a bad request; after it the server still serves.
pub async fn refused(app: &Router, request: &Value) -> (u16, String) {
    let (status, body) = post(app, "/predict", request).await;
    assert!(!status.is_success(), "{body}");
    let (health, _) = get_json(app, "/health").await;
    assert_eq!(health, StatusCode::OK);
    (status.as_u16(), body["error"].as_str().unwrap().to_owned())
}

/// A batch for a labeling config: a task per image, in a project where nobody typed a prompt yet.
pub fn batch_request(config: &str, images: &[&str]) -> Value {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let mut request = payload("predict_batch");
    let number = 9000 + COUNT.fetch_add(1, Ordering::SeqCst);
    request["project"] = json!(format!("{number}.1795353181"));
    request["label_config"] = json!(config);
    let template = request["tasks"][0].clone();
    let tasks = images.iter().enumerate().map(|(i, image)| {
        let mut task = template.clone();
        task["id"] = json!(1000 + i);
        task["data"] = json!({ "image": image });
        task
    });
    request["tasks"] = tasks.collect();
    request
}

/// Holds regions against what Label Studio's editor needs of them.
pub fn check_regions(regions: &Value, width: usize, height: usize, labels: &[&str]) {
    let mut ids = vec![];
    for region in regions.as_array().unwrap() {
        ids.push(region["id"].as_str().unwrap());
        assert_eq!(region["to_name"], "image");
        assert_eq!(region["original_width"], width);
        assert_eq!(region["original_height"], height);
        let value = &region["value"];
        let kind = region["type"].as_str().unwrap();
        if kind == "textarea" {
            assert_eq!(region["from_name"], "prompt");
            assert!(value["text"][0].is_string());
            continue;
        }
        let score = region["score"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&score), "{score}");
        if let Some(given) = value.get(kind) {
            let [label] = given.as_array().unwrap().as_slice() else {
                panic!("{given} is not one label");
            };
            assert!(labels.contains(&label.as_str().unwrap()), "{label}");
        }
        match kind {
            "rectanglelabels" => {
                assert_eq!(region["from_name"], "label");
                let number = |key: &str| value[key].as_f64().unwrap();
                for (start, extent) in [("x", "width"), ("y", "height")] {
                    assert!(number(start) >= 0.0 && number(extent) > 0.0, "{value}");
                    assert!(number(start) + number(extent) <= 100.0 + 1e-6, "{value}");
                }
            }
            "brushlabels" => {
                assert_eq!(region["from_name"], "label2");
                assert_eq!(value["format"], "rle");
                let rle: Vec<u8> = serde_json::from_value(value["rle"].clone()).unwrap();
                let values = brush_decoder::decode(&rle);
                assert_eq!(values.len(), width * height * 4);
                assert!(values.iter().all(|v| [0, 255].contains(v)));
                assert!(values.contains(&255));
            }
            other => panic!("type {other}"),
        }
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "ids are not unique");
}
