//! Routes other than `/predict`: health, readiness, setup, credentials, compression, metrics and unknown routes.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{
    SHAPES, SHAPES_CONFIG, app, app_with, data_uri, get_json, payload, post, prompt_request,
    regions, send_json,
};

/// Sends a request with these headers.
async fn send(
    app: &Router,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Response<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body)).unwrap();
    app.clone().oneshot(request).await.unwrap()
}

/// The body of a response.
async fn bytes(response: Response<Body>) -> Vec<u8> {
    response
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes()
        .to_vec()
}

/// Waits until the models are loaded.
async fn wait_until_ready(app: &Router) {
    let start = Instant::now();
    while get_json(app, "/ready").await.0 != StatusCode::OK {
        assert!(start.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn health_is_up_before_the_models_are_loaded() {
    let app = app_with(&[]);
    for path in ["/health", "/"] {
        let (status, body) = get_json(&app, path).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(body["status"], "UP");
        assert!(body["model_class"].is_string());
    }
}

#[tokio::test]
async fn setup_returns_the_model_version_even_for_an_unusable_config() {
    let app = app_with(&[]);
    let (status, body) = post(&app, "/setup", &payload("setup")).await;
    assert_eq!(status, StatusCode::OK);
    let version = body["model_version"].as_str().unwrap().to_owned();
    assert!(!version.is_empty());
    // without a known project, the version has the models and thresholds only
    let (_, body) = get_json(&app, "/versions").await;
    let plain = body["versions"][0].clone();
    assert!(version.starts_with(plain.as_str().unwrap()), "{version}");
    for unusable in [
        json!({}),
        json!({"schema": "<View"}),
        json!({"schema": null, "project": 7, "extra_params": [1]}),
    ] {
        let (status, body) = post(&app, "/setup", &unusable).await;
        assert_eq!((status, &body["model_version"]), (StatusCode::OK, &plain));
    }
}

#[tokio::test]
async fn setup_with_a_body_of_the_wrong_form_is_an_error_that_names_the_field() {
    let app = app();
    for (invalid, expected) in [
        (json!([1]), "an object"),
        (json!(["79.1", "<View/>", null, null, null]), "an object"),
        (Value::Null, "not JSON"),
        (json!({"schema": 5}), "schema: "),
        (json!({"project": {"id": 1}}), "project: "),
        (json!({"project": "x".repeat(201)}), "200 characters"),
    ] {
        let (status, body) = post(&app, "/setup", &invalid).await;
        let error = body["error"].as_str().unwrap_or_default();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{invalid}");
        assert!(error.contains(expected), "{invalid}: {error}");
    }
}

#[tokio::test]
async fn a_setting_that_changes_results_changes_the_model_version() {
    let (_, body) = post(&app_with(&[]), "/setup", &payload("setup")).await;
    let version = body["model_version"].clone();
    assert!(version.is_string(), "{body}");
    let other = app_with(&["--text-threshold", "0.4"]);
    let (_, body) = post(&other, "/setup", &payload("setup")).await;
    assert_ne!(body["model_version"], version);
}

#[tokio::test]
async fn an_unknown_route_or_method_is_an_error_in_json() {
    let app = app();
    let (status, body) = get_json(&app, "/nowhere").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body["error"].as_str().unwrap().contains("/nowhere"));
    let (status, body) = send_json(&app, "GET", "/predict", &Value::Null).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(body["error"].as_str().unwrap().contains("/predict"));
}

#[tokio::test]
async fn models_that_cannot_be_loaded_are_named_in_errors_and_in_health() {
    let app = app_with(&[
        "--detector",
        "no-such-model",
        "--model-dir",
        "no-such-folder",
    ]);
    let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "star");
    let (status, body) = post(&app, "/predict", &request).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        body["error"].as_str().unwrap().contains("no-such-model"),
        "{body}"
    );
    let (status, body) = get_json(&app, "/health").await;
    assert_eq!(status, StatusCode::OK);
    assert!(
        body["models"]["failed"]
            .as_str()
            .unwrap()
            .contains("no-such-model")
    );
}

#[tokio::test]
async fn ready_needs_the_models_and_health_does_not() {
    let app = app();
    wait_until_ready(&app).await;
    let (_, health) = get_json(&app, "/health").await;
    assert_eq!(
        (&health["ready"], &health["device"]),
        (&json!(true), &json!("cpu"))
    );
    let broken = app_with(&["--segmenter", "no-such-model"]);
    let start = Instant::now();
    loop {
        let (status, body) = get_json(&broken, "/ready").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        if body["reason"].as_str().unwrap().contains("no-such-model") {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{body}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(get_json(&broken, "/health").await.0, StatusCode::OK);
}

#[tokio::test]
async fn basic_auth_protects_all_routes_except_webhook_and_ready() {
    let app = app_with(&[
        "--basic-auth-user",
        "user",
        "--basic-auth-pass",
        "pa ss:wörd",
    ]);
    let header = |pair: &[u8]| format!("Basic {}", STANDARD.encode(pair));
    let (utf_8, latin_1) = (
        header("user:pa ss:wörd".as_bytes()),
        header(b"user:pa ss:w\xf6rd"),
    );
    let wrong = header(b"user:other");
    let setup = payload("setup").to_string().into_bytes();
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/health"),
        ("POST", "/setup"),
        ("POST", "/predict"),
        ("GET", "/versions"),
        ("GET", "/metrics"),
        ("GET", "/api-docs"),
    ] {
        for headers in [vec![], vec![("authorization", wrong.as_str())]] {
            let answer = send(&app, method, path, &headers, setup.clone()).await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
            let challenge = answer.headers()["www-authenticate"].to_str().unwrap();
            assert!(challenge.starts_with("Basic realm="), "{challenge}");
        }
        for header in [&utf_8, &latin_1] {
            let headers = [("authorization", header.as_str())];
            let answer = send(&app, method, path, &headers, setup.clone()).await;
            assert_ne!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
        }
    }
    // Label Studio sends webhooks without credentials, and orchestrators ask /ready without them
    let webhook = payload("webhook_annotation_created");
    assert_eq!(
        post(&app, "/webhook", &webhook).await.0,
        StatusCode::CREATED
    );
    wait_until_ready(&app).await;
    assert_eq!(get_json(&app, "/nowhere").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn bodies_of_many_megabytes_are_accepted_plain_and_gzip_encoded() {
    let mut request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
    // annotations with masks: 12 MB of numbers
    let rle: Vec<u8> = (0..3_000_000).map(|i| (i % 251) as u8).collect();
    let mask = json!({"type": "brushlabels", "value": {"format": "rle", "rle": rle}});
    request["tasks"][0]["annotations"] = json!([{"result": [mask]}]);
    let text = request.to_string().into_bytes();
    assert!(text.len() > 10_000_000);
    let mut encoder = GzEncoder::new(vec![], Compression::fast());
    encoder.write_all(&text).unwrap();
    let compressed = encoder.finish().unwrap();
    let app = app();
    let plain = [("content-type", "application/json")];
    let gzip = [
        ("content-encoding", "gzip"),
        ("accept-encoding", "gzip, deflate"),
    ];
    let answer = send(&app, "POST", "/predict", &plain, text).await;
    assert!(answer.headers().get("content-encoding").is_none());
    let plain_body: Value = serde_json::from_slice(&bytes(answer).await).unwrap();
    let answer = send(
        &app,
        "POST",
        "/predict",
        &[&gzip[..], &plain].concat(),
        compressed,
    )
    .await;
    assert_eq!(answer.headers()["content-encoding"], "gzip");
    let mut decompressed = vec![];
    GzDecoder::new(bytes(answer).await.as_slice())
        .read_to_end(&mut decompressed)
        .unwrap();
    let decompressed: Value = serde_json::from_slice(&decompressed).unwrap();
    let count = |body: &Value| {
        regions(&(StatusCode::OK, body.clone()))
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!((count(&plain_body), count(&decompressed)), (2, 2));
    let invalid = [&gzip[..1], &plain].concat();
    let broken = send(&app, "POST", "/predict", &invalid, b"not gzip".to_vec()).await;
    assert_eq!(broken.status(), StatusCode::BAD_REQUEST);
    let error: Value = serde_json::from_slice(&bytes(broken).await).unwrap();
    assert!(error["error"].as_str().unwrap().contains("body"), "{error}");
}

#[tokio::test]
async fn metrics_count_requests_predictions_and_regions() {
    let app = app_with(&[]);
    let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
    post(&app, "/predict", &request).await;
    // the repeated request is answered from the cache
    post(&app, "/predict", &request).await;
    post(&app, "/predict", &json!({})).await;
    get_json(&app, "/some/other/path").await;
    let answer = send(&app, "GET", "/metrics", &[], vec![]).await;
    let kind = answer.headers()["content-type"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let text = String::from_utf8(bytes(answer).await).unwrap();
    for line in [
        "groundling_predictions_total 1",
        "groundling_regions_total 4",
        "groundling_requests_total{route=\"/predict\",status=\"200\"} 2",
        "groundling_requests_total{route=\"/predict\",status=\"400\"} 1",
        "groundling_requests_total{route=\"other\",status=\"404\"} 1",
        "groundling_detector_duration_seconds_count 1",
        "groundling_ready 1.0",
        "groundling_waiting 0",
        "# EOF",
    ] {
        assert!(
            text.lines().any(|l| l == line),
            "/metrics has no {line}:\n{text}"
        );
    }
}
