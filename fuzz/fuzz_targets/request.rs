//! Any body of a request is answered with JSON and never with 500, which is a defect. There are no models, so what is
//! understood ends with 503; what would be fetched from elsewhere is left out.

#![no_main]

use std::sync::LazyLock;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use clap::Parser;
use groundling::commands::serve::state;
use groundling::config::Cli;
use groundling::http::router;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tower::ServiceExt;

struct Server {
    runtime: Runtime,
    router: Router,
    _folder: TempDir,
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let models = folder.path().to_str().expect("a path");
    let none = "/nonexistent/model.safetensors";
    let flags = [
        "groundling",
        "--model-dir",
        models,
        "--detector",
        none,
        "--segmenter",
        none,
    ];
    let runtime = Runtime::new().expect("a runtime");
    let _guard = runtime.enter();
    let cli = Cli::try_parse_from(flags).expect("flags");
    let state = state(cli.serve).expect("a state");
    drop(_guard);
    Server {
        runtime,
        router: router(state),
        _folder: folder,
    }
});

fuzz_target!(|input: (u8, &[u8])| {
    let (path, body) = input;
    // anything with an address in it could be fetched
    if serde_json::from_slice::<Value>(body).is_ok_and(|body| has_address(&body)) {
        return;
    }
    let path = ["/predict", "/setup", "/webhook"][usize::from(path % 3)];
    let request = Request::post(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_vec()))
        .expect("a request");
    let (status, bytes) = SERVER.runtime.block_on(async {
        let response = SERVER
            .router
            .clone()
            .oneshot(request)
            .await
            .expect("an answer");
        let status = response.status();
        let bytes = to_bytes(response.into_body(), usize::MAX).await;
        (status, bytes.expect("a whole answer"))
    });
    assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let answer: Value = serde_json::from_slice(&bytes).expect("JSON");
    if !status.is_success() {
        assert!(answer["error"].is_string(), "{answer}");
    }
});

fn has_address(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains(":/") || text.contains("//"),
        Value::Array(items) => items.iter().any(has_address),
        Value::Object(fields) => fields.values().any(has_address),
        _ => false,
    }
}
