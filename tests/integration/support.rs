//! A server on the demo models, a host for images, and what answers are held against.

use std::sync::OnceLock;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::get;
use base64::Engine;
use clap::Parser;
use groundling::commands::serve::state;
use groundling::config::Cli;
use groundling::http::{AppState, router};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

pub const SHAPES: &[u8] = include_bytes!("../../examples/images/shapes.png");

/// The token that [`image_host`] wants.
pub const TOKEN: &str = "0123456789abcdef0123456789abcdef01234567";

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

/// A recorded request of Label Studio.
pub fn payload(name: &str) -> Value {
    let file = repository(&format!("tests/integration/payloads/{name}.json"));
    let recorded: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    recorded["request"]["body"].clone()
}

/// An image as a data URI.
pub fn data_uri(bytes: &[u8]) -> String {
    let data = base64::engine::general_purpose::STANDARD.encode(bytes);
    format!("data:image/png;base64,{data}")
}

/// The server's state with these flags.
pub fn state_with(flags: &[&str]) -> AppState {
    let cli = Cli::try_parse_from([&["groundling"], flags].concat()).unwrap();
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

pub async fn get_json(app: &Router, path: &str) -> (StatusCode, Value) {
    call(app, "GET", path, &Value::Null).await
}

pub async fn post(app: &Router, path: &str, body: &Value) -> (StatusCode, Value) {
    call(app, "POST", path, body).await
}

/// An interactive request as the page makes it, after a prompt was typed.
pub fn prompt_request(config: &str, image: &str, prompt: &str) -> Value {
    let mut body = payload("predict_interactive_prompt");
    body["label_config"] = json!(config);
    body["tasks"][0]["data"]["image"] = json!(image);
    body["params"]["context"]["result"][0]["value"]["text"] = json!([prompt]);
    body
}

/// A host with images: `/data/upload/1/shapes.png` and `/data/local-files/?d=shapes.png`
/// for those with the token, `/open.png` for those who do not bring it, `/text.png` that is no image,
/// `/data/upload/1/moved.png` that leads to `/open.png` of another host (`localhost`).
/// Returns its address.
pub async fn image_host() -> String {
    let png = || ([("content-type", "image/png")], SHAPES);
    let with_token = move |headers: HeaderMap| {
        let sent = headers.get("authorization").and_then(|v| v.to_str().ok());
        if sent == Some(&format!("Token {TOKEN}")) {
            png().into_response()
        } else {
            (StatusCode::UNAUTHORIZED, "{\"detail\": \"Invalid token.\"}").into_response()
        }
    };
    let local_files = move |uri: Uri, headers: HeaderMap| async move {
        match uri.query() {
            Some("d=shapes.png") => with_token(headers),
            _ => StatusCode::NOT_FOUND.into_response(),
        }
    };
    let echo_token = |headers: HeaderMap| async move {
        // an image only for those who do not bring a token where it does not belong
        match headers.contains_key("authorization") {
            true => StatusCode::IM_A_TEAPOT.into_response(),
            false => ([("content-type", "image/png")], SHAPES).into_response(),
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let moved = format!("http://localhost:{}/open.png", address.port());
    let routes = Router::new()
        .route(
            "/data/upload/1/moved.png",
            get(|| async move { axum::response::Redirect::temporary(&moved) }),
        )
        .route("/open.png", get(echo_token))
        .route(
            "/data/upload/1/shapes.png",
            get(move |h: HeaderMap| async move { with_token(h) }),
        )
        .route("/data/local-files/", get(local_files))
        .route("/text.png", get(|| async { "this is no image" }));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    format!("http://{address}")
}

/// Decodes Label Studio's brush RLE, by its description and not by our encoder.
pub fn decode_rle(bytes: &[u8]) -> Vec<u8> {
    let mut at = 0;
    let mut take = |count: usize| {
        let mut value = 0usize;
        for _ in 0..count {
            let bit = bytes[at / 8] >> (7 - at % 8) & 1;
            value = value << 1 | usize::from(bit);
            at += 1;
        }
        value
    };
    let count = take(32);
    let word = take(5) + 1;
    let sizes: Vec<usize> = (0..4).map(|_| take(4) + 1).collect();
    let mut values = vec![];
    while values.len() < count {
        let is_run = take(1) == 1;
        let size = sizes[take(2)];
        let length = take(size) + 1;
        if is_run {
            let value = take(word) as u8;
            values.extend(std::iter::repeat_n(value, length));
        } else {
            values.extend((0..length).map(|_| take(word) as u8));
        }
    }
    assert_eq!(values.len(), count, "a run reaches over the end");
    values
}

/// Holds regions against what Label Studio's editor needs of them.
pub fn check_regions(regions: &Value, width: usize, height: usize, labels: &[&str]) {
    let mut ids = vec![];
    for region in regions.as_array().unwrap() {
        ids.push(region["id"].as_str().unwrap());
        assert_eq!(region["to_name"], "image");
        assert_eq!(region["original_width"], width);
        assert_eq!(region["original_height"], height);
        let score = region["score"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&score), "{score}");
        let value = &region["value"];
        let kind = region["type"].as_str().unwrap();
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
                let values = decode_rle(&rle);
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
