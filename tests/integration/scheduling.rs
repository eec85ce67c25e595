//! Who is served when: limits on waiting requests, clients that disconnect, and annotators before batches.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use groundling::http::{AppState, router};
use groundling::pipeline::scheduler::Urgency;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower::ServiceExt;

use crate::support::{
    SHAPES, SHAPES_CONFIG, app_with, batch_request, data_uri, get_json, payload, post,
    prompt_request, rectangle_and_mask_of, regions, state_with, types_and_labels,
};

/// Keeps the models busy until the sender is dropped.
pub fn keep_models_busy(state: &AppState) -> (mpsc::Sender<()>, JoinHandle<()>) {
    let (release, released) = mpsc::channel::<()>();
    let scheduler = state.preannotator.stages().scheduler().clone();
    let blocking = tokio::spawn(async move {
        let work = move || {
            // also ends when the sender is dropped
            let _ = released.recv();
        };
        scheduler.run(Urgency::Annotator, work).await.unwrap();
    });
    (release, blocking)
}

/// Waits for a condition, at most 30 s.
pub async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "after 30 s still not: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn above_max_queue_a_request_gets_retry_after_and_a_disconnected_client_leaves_the_queue() {
    let state = state_with(&["--max-queue", "3"]);
    let app = router(state.clone());
    let (release, blocking) = keep_models_busy(&state);
    let request = |i: usize| prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), &format!("cup {i}"));
    let send = |i: usize| {
        let (app, request) = (app.clone(), request(i));
        tokio::spawn(async move { post(&app, "/predict", &request).await })
    };
    for round in 0..3 {
        let waiting: Vec<_> = (0..3).map(|i| send(10 * round + i)).collect();
        wait_until("three requests wait", || state.preannotator.waiting() == 3).await;
        let body = Body::from(request(99).to_string());
        let fourth = Request::post("/predict").header("content-type", "application/json");
        let fourth = fourth.body(body).unwrap();
        let response = app.clone().oneshot(fourth).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let retry_after = response.headers()["retry-after"].to_str().unwrap();
        assert!(retry_after.parse::<u32>().unwrap() > 0);
        for request in waiting {
            request.abort();
        }
        wait_until("no request waits", || state.preannotator.waiting() == 0).await;
    }
    // all clients have disconnected: their steps do not delay the next request
    let last = send(100);
    wait_until("one request waits", || state.preannotator.waiting() == 1).await;
    let steps = state.preannotator.stages().scheduler().waiting();
    assert!(
        steps[0] <= 2,
        "steps of disconnected clients still wait: {steps:?}"
    );
    drop(release);
    blocking.await.unwrap();
    assert_eq!(last.await.unwrap().0, StatusCode::OK);
}

#[tokio::test]
async fn a_cached_result_does_not_wait_for_the_models() {
    let state = state_with(&[]);
    let app = router(state.clone());
    let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
    post(&app, "/predict", &request).await;
    let (release, blocking) = keep_models_busy(&state);
    let again = tokio::time::timeout(Duration::from_secs(20), post(&app, "/predict", &request));
    assert_eq!(
        types_and_labels(regions(&again.await.unwrap())),
        rectangle_and_mask_of(&["Red Circle"])
    );
    drop(release);
    blocking.await.unwrap();
}

#[tokio::test]
async fn image_hosts_that_never_respond_do_not_delay_other_requests() {
    // this host accepts connections and sends nothing
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let app = app_with(&[
        "--allowed-image-hosts",
        "127.0.0.1",
        "--image-timeout-s",
        "600",
    ]);
    let waiting: Vec<_> = (0..12)
        .map(|i| {
            let image = format!("{silent}/{i}.png");
            let request = prompt_request(SHAPES_CONFIG, &image, "red circle");
            let app = app.clone();
            tokio::spawn(async move { post(&app, "/predict", &request).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
    let answer = tokio::time::timeout(Duration::from_secs(60), post(&app, "/predict", &request));
    let answer = answer
        .await
        .expect("the request waits for hosts that never respond");
    assert_eq!(
        types_and_labels(regions(&answer)),
        rectangle_and_mask_of(&["Red Circle"])
    );
    for request in waiting {
        assert!(!request.is_finished());
        request.abort();
    }
}

#[tokio::test]
async fn a_request_of_an_annotator_is_computed_before_a_batch() {
    let state = state_with(&[]);
    let app = router(state.clone());
    let (release, blocking) = keep_models_busy(&state);
    let images: Vec<String> = (0..12u8)
        .map(|i| {
            let mut picture = image::load_from_memory(SHAPES).unwrap().into_rgb8();
            picture.put_pixel(0, 0, image::Rgb([i, 0, 0]));
            let mut png = std::io::Cursor::new(vec![]);
            picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
            data_uri(png.get_ref())
        })
        .collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let batch = batch_request(SHAPES_CONFIG, &images);
    let batch = {
        let app = app.clone();
        tokio::spawn(async move { post(&app, "/predict", &batch).await })
    };
    let steps = || state.preannotator.stages().scheduler().waiting();
    wait_until("the batch waits", || steps()[Urgency::Batch as usize] > 0).await;
    let interactive = {
        let app = app.clone();
        let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
        tokio::spawn(async move { post(&app, "/predict", &request).await })
    };
    // one of these steps is the one that keeps the models busy
    wait_until("the annotator's request waits", || {
        steps()[Urgency::Annotator as usize] == 2
    })
    .await;
    drop(release);
    blocking.await.unwrap();
    let answer = interactive.await.unwrap();
    assert_eq!(
        types_and_labels(regions(&answer)),
        rectangle_and_mask_of(&["Red Circle"])
    );
    // all stages of the annotator's request ran before the batch of twelve was complete
    assert!(!batch.is_finished(), "the batch was computed first");
    let (status, body) = batch.await.unwrap();
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body["results"].as_array().unwrap().len(), 12);
}

#[tokio::test]
async fn health_and_setup_respond_while_a_prediction_runs() {
    let state = state_with(&[]);
    let app = router(state.clone());
    let (release, blocking) = keep_models_busy(&state);
    let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
    let running = {
        let app = app.clone();
        tokio::spawn(async move { post(&app, "/predict", &request).await })
    };
    tokio::task::yield_now().await;
    let (health, _) = get_json(&app, "/health").await;
    let (setup, body) = post(&app, "/setup", &payload("setup")).await;
    assert_eq!((health, setup), (StatusCode::OK, StatusCode::OK));
    assert!(body["model_version"].is_string(), "{body}");
    assert!(!running.is_finished(), "the models were not busy");
    drop(release);
    blocking.await.unwrap();
    assert_eq!(
        types_and_labels(regions(&running.await.unwrap())),
        rectangle_and_mask_of(&["Red Circle"])
    );
}
