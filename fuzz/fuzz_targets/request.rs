//! Any body of a request gets a JSON response and never status 500. The server has no models, so valid requests get 503.
//! Bodies with addresses are skipped, so that nothing is fetched.

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
    let folder = tempfile::tempdir().expect("a temporary folder can be created");
    let models = folder.path().to_str().expect("the path is UTF-8");
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
    let runtime = Runtime::new().expect("the runtime starts");
    let _guard = runtime.enter();
    let cli = Cli::try_parse_from(flags).expect("the flags are valid");
    let state = state(cli.serve).expect("the server starts");
    drop(_guard);
    Server {
        runtime,
        router: router(state),
        _folder: folder,
    }
});

fuzz_target!(|input: (u8, &[u8])| {
    let (path, body) = input;
    // an address in the body could be fetched
    if serde_json::from_slice::<Value>(body).is_ok_and(|body| has_address(&body)) {
        return;
    }
    let path = ["/predict", "/setup", "/webhook"][usize::from(path % 3)];
    let request = Request::post(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_vec()))
        .expect("the request is valid");
    let (status, bytes) = SERVER.runtime.block_on(async {
        let response = SERVER
            .router
            .clone()
            .oneshot(request)
            .await
            .expect("the router is infallible");
        let status = response.status();
        let bytes = to_bytes(response.into_body(), usize::MAX).await;
        (status, bytes.expect("the response is complete"))
    });
    assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let body: Value = serde_json::from_slice(&bytes).expect("the response is JSON");
    if !status.is_success() {
        assert!(body["error"].is_string(), "{body}");
    }
});

/// Whether a text in the value may be an address.
fn has_address(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains(":/") || text.contains("//"),
        Value::Array(items) => items.iter().any(has_address),
        Value::Object(fields) => fields.values().any(has_address),
        _ => false,
    }
}
