//! Health, setup, and what is not there.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::{SHAPES_CONFIG, app, app_with, call, get_json, payload, post, prompt_request};

#[tokio::test]
async fn health_answers_before_the_models_are_there() {
    let app = app_with(&[]);
    for path in ["/health", "/"] {
        let (status, body) = get_json(&app, path).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(body["status"], "UP");
        assert!(body["model_class"].is_string());
    }
}

#[tokio::test]
async fn setup_answers_the_version_whatever_comes() {
    let app = app();
    let (status, body) = post(&app, "/setup", &payload("setup")).await;
    assert_eq!(status, StatusCode::OK);
    let version = body["model_version"].as_str().unwrap().to_owned();
    assert!(!version.is_empty());
    for odd in [
        json!({}),
        json!({"schema": "<View"}),
        json!([1]),
        Value::Null,
    ] {
        let (status, body) = post(&app, "/setup", &odd).await;
        assert_eq!(
            (status, &body["model_version"]),
            (StatusCode::OK, &json!(version))
        );
    }
    // what changes results changes the version
    let other = app_with(&["--box-threshold", "0.4"]);
    let (_, body) = post(&other, "/setup", &payload("setup")).await;
    assert_ne!(body["model_version"], json!(version));
}

#[tokio::test]
async fn what_is_not_there_is_said_in_json() {
    let app = app();
    let (status, body) = get_json(&app, "/nowhere").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body["error"].as_str().unwrap().contains("/nowhere"));
    let (status, body) = call(&app, "GET", "/predict", &Value::Null).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(body["error"].as_str().unwrap().contains("/predict"));
}

#[tokio::test]
async fn models_that_cannot_be_loaded_are_reported() {
    let app = app_with(&[
        "--detector",
        "no-such-model",
        "--model-dir",
        "no-such-folder",
    ]);
    let request = prompt_request(
        SHAPES_CONFIG,
        &crate::support::data_uri(crate::support::SHAPES),
        "star",
    );
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
