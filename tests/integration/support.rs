//! Helpers that most tests use: servers with the demo models, requests as Label Studio sends them, and checks of
//! regions.

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
use groundling::preannotation::protocol::ProtocolRequest;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::brush_rle_decoder;

/// A picture of coloured shapes with 640x480 pixels, in which the demo models find a red circle and a blue star.
pub const SHAPES: &[u8] = include_bytes!("../../examples/images/shapes.png");

/// A labeling config with a prompt, rectangles and masks for two labels that the demo models know.
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

/// A path in the repository.
pub fn repository(relative: &str) -> std::path::PathBuf {
    std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// All files in a folder and its subfolders; for a file, the file itself.
pub fn files_below(path: &std::path::Path) -> Vec<std::path::PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = std::fs::read_dir(path).unwrap();
    let entries = entries.map(|entry| entry.unwrap().path());
    entries.flat_map(|entry| files_below(&entry)).collect()
}

/// A recorded exchange with Label Studio 1.23.2: its request, and what Label Studio showed. The recordings are in
/// `payloads`.
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

/// A temporary folder for this run of the tests.
pub fn scratch() -> &'static std::path::Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::tempdir().unwrap()).path()
}

/// The state of a server with these flags. By default it has the demo models, and a new `MODEL_DIR` so that it shares no
/// remembered prompts with other servers.
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

/// A new server with these flags; see [`state_with`].
pub fn app_with(flags: &[&str]) -> Router {
    router(state_with(flags))
}

/// A server with the demo models that all tests share. Only for tests that neither count anything nor change settings.
pub fn app() -> Router {
    static STATE: OnceLock<AppState> = OnceLock::new();
    router(STATE.get_or_init(|| state_with(&[])).clone())
}

/// Sends a request with a JSON body, or without a body if it is null. Returns the status and the JSON of the response.
pub async fn send_json(
    app: &Router,
    method: &str,
    path: &str,
    body: &Value,
) -> (StatusCode, Value) {
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

/// Writes a response of `/predict` to the folder `GROUNDLING_ANSWERS`, if that is set.
/// `tests/label_studio/validate_answers.py` then validates it with Label Studio's SDK.
fn record_answer(request: &Value, answer: &Value) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let Some(folder) = std::env::var_os("GROUNDLING_ANSWERS") else {
        return;
    };
    if ProtocolRequest::parse(&request["params"]["context"]).is_some() {
        // these answers are no predictions
        return;
    }
    let record = json!({
        "label_config": request["label_config"],
        "interactive": request["params"]["context"]["result"].is_array(),
        "results": answer["results"],
    });
    let number = COUNT.fetch_add(1, Ordering::SeqCst);
    let file = std::path::Path::new(&folder).join(format!("{}-{number}.json", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(file, record.to_string()).unwrap();
}

/// Sends a GET request. Returns the status and the JSON of the response.
pub async fn get_json(app: &Router, path: &str) -> (StatusCode, Value) {
    send_json(app, "GET", path, &Value::Null).await
}

/// Sends a POST request with a JSON body. Returns the status and the JSON of the response.
pub async fn post(app: &Router, path: &str, body: &Value) -> (StatusCode, Value) {
    let answer = send_json(app, "POST", path, body).await;
    if path == "/predict" && answer.0.is_success() {
        record_answer(body, &answer.1);
    }
    answer
}

/// The interactive request that Label Studio's page sends after a prompt was typed. Its only task has id 71.
pub fn prompt_request(config: &str, image: &str, prompt: &str) -> Value {
    let mut body = payload("predict_interactive_prompt");
    body["label_config"] = json!(config);
    body["tasks"][0]["data"]["image"] = json!(image);
    body["params"]["context"]["result"][0]["value"]["text"] = json!([prompt]);
    body
}

/// The regions of a successful response for one task.
pub fn regions(answer: &(StatusCode, Value)) -> &Value {
    let (status, body) = answer;
    assert_eq!(*status, StatusCode::OK, "{body}");
    assert_eq!(body["results"].as_array().unwrap().len(), 1);
    let result = &body["results"][0];
    assert!(result["model_version"].is_string());
    &result["result"]
}

/// The type and label of each region, sorted. The label is empty if the region has none.
pub fn types_and_labels(regions: &Value) -> Vec<(String, String)> {
    let mut pairs: Vec<(String, String)> = regions
        .as_array()
        .unwrap()
        .iter()
        .map(|region| {
            let kind = region["type"].as_str().unwrap().to_owned();
            let label = region["value"][&kind][0].as_str().unwrap_or("").to_owned();
            (kind, label)
        })
        .collect();
    pairs.sort();
    pairs
}

/// What [`types_and_labels`] returns for a rectangle and a mask of each label.
pub fn rectangle_and_mask_of(labels: &[&str]) -> Vec<(String, String)> {
    let mut pairs: Vec<_> = labels
        .iter()
        .flat_map(|label| {
            ["rectanglelabels", "brushlabels"].map(|kind| (kind.to_owned(), (*label).to_owned()))
        })
        .collect();
    pairs.sort();
    pairs
}

/// Sends a request to `/predict` that must fail. Returns the status and the error. The server must still be healthy
/// afterwards.
pub async fn predict_error(app: &Router, request: &Value) -> (u16, String) {
    let (status, body) = post(app, "/predict", request).await;
    assert!(!status.is_success(), "{body}");
    let (health, _) = get_json(app, "/health").await;
    assert_eq!(health, StatusCode::OK);
    (status.as_u16(), body["error"].as_str().unwrap().to_owned())
}

/// A batch request for a labeling config, with one task per image, in a new project without a typed prompt.
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

/// Checks that Label Studio's editor can show these regions of an image with [`SHAPES_CONFIG`] or a config with the same
/// names.
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
        assert!((0.0..=1.0).contains(&score), "score {score}");
        if let Some(given) = value.get(kind) {
            let [label] = given.as_array().unwrap().as_slice() else {
                panic!("a region must have one label, not {given}");
            };
            let label = label.as_str().unwrap();
            assert!(labels.contains(&label), "unexpected label {label}");
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
                let values = brush_rle_decoder::decode(&rle);
                assert_eq!(values.len(), width * height * 4);
                assert!(values.iter().all(|v| [0, 255].contains(v)));
                assert!(values.contains(&255), "the mask is empty");
            }
            other => panic!("unexpected type {other}"),
        }
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "two regions have the same id");
}
