//! Hostile requests: bodies that are large, slow or compressed, requests from web pages of other sites, and labeling
//! configs. Each is rejected within its limits of memory and time.

use std::io::Write;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::StreamExt;
use groundling::http::router;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{
    SHAPES, SHAPES_CONFIG, data_uri, get_json, post, prompt_request, repository, state_with,
};

fn app() -> axum::Router {
    router(state_with(&["--max-body-bytes", "2000000"]))
}

/// Sends a request. Returns the status and the error; the response must come within 5 s.
async fn status_and_error(app: &axum::Router, request: Request<Body>) -> (StatusCode, String) {
    let start = Instant::now();
    let response = app.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    (
        status,
        body["error"].as_str().unwrap_or_default().to_owned(),
    )
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut compressed = GzEncoder::new(vec![], Compression::best());
    compressed.write_all(bytes).unwrap();
    compressed.finish().unwrap()
}

#[tokio::test]
async fn a_body_above_the_limit_is_rejected_before_it_is_read() {
    let app = app();
    let request = || Request::post("/predict").header("content-type", "application/json");
    // a Content-Length above the limit is rejected without waiting for the body
    let pending = Body::from_stream(futures_util::stream::pending::<
        Result<Vec<u8>, std::io::Error>,
    >());
    let declared = request()
        .header("content-length", "3000000")
        .body(pending)
        .unwrap();
    let (status, error) = status_and_error(&app, declared).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(
        error.contains("2000000 bytes") && error.contains("MAX_BODY_BYTES"),
        "{error}"
    );
    // a body without a Content-Length is read up to the limit
    let chunks = std::iter::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 65536]));
    let endless = Body::from_stream(futures_util::stream::iter(chunks));
    let (status, _) = status_and_error(&app, request().body(endless).unwrap()).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    // the limit applies to the decompressed size
    let bomb = gzip(&vec![b' '; 50_000_000]);
    assert!(bomb.len() < 100_000);
    let bomb = request()
        .header("content-encoding", "gzip")
        .body(Body::from(bomb));
    let (status, _) = status_and_error(&app, bomb.unwrap()).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    // a compression ratio of hundreds is rejected even below the limit
    let bomb = gzip(&vec![b' '; 1_900_000]);
    let bomb = request()
        .header("content-encoding", "gzip")
        .body(Body::from(bomb));
    let (status, error) = status_and_error(&app, bomb.unwrap()).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(error.contains("Content-Encoding"), "{error}");
    // an ordinary compressed request is accepted
    let usual = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle").to_string();
    let usual = request()
        .header("content-encoding", "gzip")
        .body(gzip(usual.as_bytes()).into());
    assert_eq!(
        status_and_error(&app, usual.unwrap()).await.0,
        StatusCode::OK
    );
}

#[tokio::test(start_paused = true)]
async fn a_large_body_waits_for_memory_and_a_small_one_does_not() {
    let state = state_with(&["--request-bytes", "4000000"]);
    let budget = state.preannotator.budget().clone();
    let app = router(state);
    let request = |length: usize| {
        let request = Request::post("/predict").header("content-type", "application/json");
        request.header("content-length", length)
    };
    // this client sends slowly and reserves nearly all memory for bodies, a quarter of REQUEST_BYTES
    let slow = futures_util::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        Some((Ok::<_, std::io::Error>(vec![b' '; 10_000]), ()))
    });
    let start = futures_util::stream::iter([Ok(vec![b' '; 70_000])]);
    let slow = start.chain(slow);
    let slow = request(950_000).body(Body::from_stream(slow)).unwrap();
    let slow = tokio::spawn(app.clone().oneshot(slow));
    while budget.used() < 900_000 {
        tokio::task::yield_now().await;
    }

    let large = request(100_000)
        .body(Body::from(vec![b' '; 100_000]))
        .unwrap();
    let large = app.clone().oneshot(large).await.unwrap();
    assert_eq!(large.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(large.headers()["retry-after"], "5");
    let text = large.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&text);
    assert!(
        text.contains("REQUEST_BYTES") && text.contains("bytes of memory are needed"),
        "{text}"
    );
    let small = request(10).body(Body::from(vec![b' '; 10])).unwrap();
    let small = app.clone().oneshot(small).await.unwrap();
    assert_eq!(small.status(), StatusCode::BAD_REQUEST);

    // a body must be complete within 120 s
    let slow = slow.await.unwrap().unwrap();
    assert_eq!(slow.status(), StatusCode::REQUEST_TIMEOUT);
    assert_eq!(budget.used(), 0);
}

#[tokio::test]
async fn the_memory_of_a_request_is_reserved_and_released() {
    let state = state_with(&[]);
    let budget = state.preannotator.budget().clone();
    let app = router(state);
    let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
    let request_line = Request::post("/predict").header("content-type", "application/json");
    let request = request_line.body(Body::from(request.to_string())).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    // the response counts until it is sent; the body, the image file and its pixels counted before
    let before = budget.used();
    assert!(before > 100, "{before}");
    assert!(budget.peak() > 3 * 640 * 480, "{}", budget.peak());
    let answer = response.into_body().collect().await.unwrap().to_bytes();
    assert!(before >= answer.len(), "{before}");
    drop(answer);
    assert_eq!(budget.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_image_waits_for_memory_and_is_then_rejected_with_the_reason() {
    let folder = repository("examples/images");
    let flags = ["--request-bytes", "2000000"];
    let files = ["--local-files-document-root", folder.to_str().unwrap()];
    let state = state_with(&[flags, files].concat());
    let reserved = state.preannotator.budget().reserve_unchecked(1_900_000);
    let app = router(state);
    let image = "/data/local-files/?d=shapes.png";
    let body = prompt_request(SHAPES_CONFIG, image, "red circle").to_string();
    let request = Request::post("/predict").header("content-type", "application/json");
    let request = request.header("content-length", body.len());
    let (status, error) = status_and_error(&app, request.body(body.into()).unwrap()).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{error}");
    assert!(
        error.contains("REQUEST_BYTES") && error.contains("shapes.png"),
        "{error}"
    );
    drop(reserved);
}

#[tokio::test]
async fn requests_without_json_or_from_pages_of_other_sites_are_rejected() {
    let app = app();
    let body = json!({"project": "666.1", "extra_params": {"prompt": "poison"}}).to_string();
    let setup = || Request::post("/setup");
    // content types that a web page can send to another site without a preflight request
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "",
    ] {
        let request = setup()
            .header("content-type", kind)
            .body(body.clone().into());
        let (status, error) = status_and_error(&app, request.unwrap()).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{kind}");
        assert!(error.contains("application/json"), "{error}");
    }
    let json = || setup().header("content-type", "application/json; charset=utf-8");
    for (header, value) in [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("host", "evil.example"),
    ] {
        let request = json().header(header, value).body(body.clone().into());
        let (status, error) = status_and_error(&app, request.unwrap()).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{header} {value}");
        assert!(error.contains("ALLOWED_ORIGINS"), "{error}");
    }
    let (_, setup) = post(&app, "/setup", &json!({"project": "666.1"})).await;
    let version = setup["model_version"].as_str().unwrap();
    assert!(!version.contains("poison"), "{version}");
    // a page of the server itself is accepted
    let own = json()
        .header("host", "localhost:9090")
        .header("origin", "http://localhost:9090");
    let own = own.body(body.into()).unwrap();
    assert_eq!(status_and_error(&app, own).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_deeply_nested_labeling_config_is_rejected_within_a_second() {
    let app = app();
    let open = "<RectangleLabels name='a' toName='image'><Label value='x'/>".repeat(3000);
    let close = "</RectangleLabels>".repeat(3000);
    let config = format!("<View><Image name='image' value='$image'/>{open}{close}</View>");
    let request = prompt_request(&config, &data_uri(SHAPES), "cup");
    let start = Instant::now();
    let (status, body) = post(&app, "/predict", &request).await;
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    assert!(
        body["error"]
            .as_str()
            .unwrap()
            .contains("levels of nested elements"),
        "{body}"
    );
    assert_eq!(get_json(&app, "/health").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_short_text_with_many_json_values_is_rejected_within_a_second() {
    let app = router(state_with(&[]));
    let config = serde_json::to_string(SHAPES_CONFIG).unwrap();
    let many = |text: &str, count: usize| vec![text; count].join(",");
    let tasks = |tasks: String| format!("{{\"label_config\": {config}, \"tasks\": [{tasks}]}}");
    let context = format!(
        "{{\"label_config\": {config}, \"tasks\": [], \"params\": {{\"context\": {{\"result\": [{}]}}}}}}",
        many("{}", 200_000)
    );
    for (body, expected) in [
        (tasks(many("{}", 20_000)), "10000"),
        (
            tasks(format!(
                "{{\"data\": {{\"a\": [{}]}}}}",
                many("[]", 1_200_000)
            )),
            "tasks[0].data",
        ),
        (
            tasks(
                many("{\"data\": {\"a\": [[],[],[]]}}", 9_000)
                    .replace("[[],[],[]]", &format!("[{}]", many("0", 200))),
            ),
            "data",
        ),
        (context, "params"),
        (tasks("[".repeat(1_000_000)), "tasks[0]"),
    ] {
        let start = Instant::now();
        let request = Request::post("/predict").header("content-type", "application/json");
        let (status, error) = status_and_error(&app, request.body(body.into()).unwrap()).await;
        assert!(start.elapsed() < Duration::from_secs(1), "{expected}");
        assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_webhook_above_the_body_limit_is_accepted_without_reserving_memory() {
    let state = state_with(&["--max-body-bytes", "2000000"]);
    let budget = state.preannotator.budget().clone();
    let app = router(state);
    let body = json!({"action": "ANNOTATION_CREATED", "annotation": "x".repeat(3_000_000)});
    let (status, body) = post(&app, "/webhook", &body).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    assert_eq!(budget.peak(), 0, "only the beginning of the body is kept");
}
