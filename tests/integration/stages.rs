//! What is computed again and what is not, and who waits for whom.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use groundling::http::{AppState, router};
use groundling::pipeline::scheduler::Urgency;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower::ServiceExt;

use crate::support::{
    SHAPES, SHAPES_CONFIG, app_with, batch_request, both_of, data_uri, kinds, post, prompt_request,
    regions, state_with,
};

/// The labeling config of the tests with controls for thresholds.
fn with_thresholds() -> String {
    let numbers = r#"<Number name="box_threshold" toName="image"/><Number name="text_threshold" toName="image"/>"#;
    SHAPES_CONFIG.replace(
        "</View>\n  <Header>R",
        &format!("</View>{numbers}\n  <Header>R"),
    )
}

/// A prompt asked with a threshold.
fn asked(prompt: &str, threshold: (&str, f64)) -> Value {
    let mut request = prompt_request(&with_thresholds(), &data_uri(SHAPES), prompt);
    let (name, value) = threshold;
    let number = json!({"type": "number", "from_name": name, "to_name": "image", "value": {"number": value}});
    let context = request["params"]["context"]["result"]
        .as_array_mut()
        .unwrap();
    context.push(number);
    request
}

/// How often each stage was computed so far.
async fn computed(app: &Router) -> impl Fn(&str) -> u64 {
    counted(app, "misses").await
}

/// How many `hits` or `misses` each stage has so far.
pub async fn counted(app: &Router, what: &'static str) -> impl Fn(&str) -> u64 {
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    move |stage: &str| {
        let start = format!("groundling_store_{what}_total{{stage=\"{stage}\"}} ");
        let mut lines = text.lines();
        let number = lines.find_map(|line| line.strip_prefix(&start)?.parse().ok());
        number.unwrap_or_else(|| panic!("no {start} in\n{text}"))
    }
}

#[tokio::test]
async fn nothing_is_computed_twice() {
    let app = app_with(&[]);
    let request = asked("red circle. blue star.", ("box_threshold", 0.3));
    let first = post(&app, "/predict", &request).await;
    let before = computed(&app).await;
    let counts = [
        "image_features",
        "text_features",
        "queries",
        "image_embeddings",
    ]
    .map(&before);
    assert_eq!(counts, [1, 1, 1, 1]);
    assert_eq!(before("masks"), 2);

    // thresholds: no model, but for boxes that are new
    for threshold in [("box_threshold", 0.31), ("text_threshold", 0.2)] {
        let again = post(
            &app,
            "/predict",
            &asked("red circle. blue star.", threshold),
        )
        .await;
        assert_eq!(kinds(regions(&again)), kinds(regions(&first)));
    }
    let low = asked("red circle. blue star.", ("box_threshold", 0.01));
    let more = post(&app, "/predict", &low).await;
    assert!(kinds(regions(&more)).len() > kinds(regions(&first)).len());
    let after = computed(&app).await;
    for stage in [
        "image_features",
        "text_features",
        "queries",
        "image_embeddings",
    ] {
        assert_eq!(after(stage), 1, "{stage}");
    }
    assert!(after("masks") > 2);

    // another prompt: the same image
    let other = asked("green square", ("box_threshold", 0.3));
    post(&app, "/predict", &other).await;
    let after = computed(&app).await;
    assert_eq!((after("image_features"), after("image_embeddings")), (1, 1));
    assert_eq!((after("text_features"), after("queries")), (2, 2));

    // the same prompt on another image: the same text
    let mut other = image::load_from_memory(SHAPES).unwrap().into_rgb8();
    other.put_pixel(0, 0, image::Rgb([1, 2, 3]));
    let mut png = std::io::Cursor::new(vec![]);
    other.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let request = prompt_request(SHAPES_CONFIG, &data_uri(png.get_ref()), "green square");
    post(&app, "/predict", &request).await;
    let after = computed(&app).await;
    assert_eq!((after("image_features"), after("text_features")), (2, 2));
}

#[tokio::test]
async fn a_click_after_a_prompt_costs_the_mask_decoder_only() {
    let app = app_with(&[]);
    let prompt = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
    post(&app, "/predict", &prompt).await;
    let mut click = prompt.clone();
    click["params"]["context"]["result"] = json!([{
        "type": "keypointlabels", "to_name": "image", "from_name": "label2", "is_positive": true,
        "value": {"x": 78.9, "y": 78.1, "width": 0.2, "keypointlabels": ["Red Circle"]}
    }]);
    let answer = post(&app, "/predict", &click).await;
    assert_eq!(regions(&answer).as_array().unwrap().len(), 1);
    let after = computed(&app).await;
    assert_eq!((after("image_embeddings"), after("masks")), (1, 2));
    // the same click again
    post(&app, "/predict", &click).await;
    assert_eq!(computed(&app).await("masks"), 2);
}

#[tokio::test]
async fn a_detection_without_a_phrase_is_unlabeled_for_the_annotator() {
    let app = app_with(&[]);
    let request = asked("red circle", ("text_threshold", 0.999));
    let answer = post(&app, "/predict", &request).await;
    let found = kinds(regions(&answer));
    assert!(!found.is_empty());
    assert!(found.iter().all(|(_, label)| label.is_empty()), "{found:?}");
}

/// Keeps the models busy until the sender is dropped.
fn hold(state: &AppState) -> (mpsc::Sender<()>, JoinHandle<()>) {
    let (release, released) = mpsc::channel::<()>();
    let scheduler = state.preannotator.stages().scheduler().clone();
    let held = tokio::spawn(async move {
        let work = move || {
            // an error is the release, too
            let _ = released.recv();
        };
        scheduler.run(Urgency::Annotator, work).await.unwrap();
    });
    (release, held)
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}: never");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn who_leaves_makes_room_and_who_is_refused_is_told_when_to_come_back() {
    let state = state_with(&["--max-queue", "3"]);
    let app = router(state.clone());
    let (release, held) = hold(&state);
    let request = |i: usize| prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), &format!("cup {i}"));
    let ask = |i: usize| {
        let (app, request) = (app.clone(), request(i));
        tokio::spawn(async move { post(&app, "/predict", &request).await })
    };
    for round in 0..3 {
        let asking: Vec<_> = (0..3).map(|i| ask(10 * round + i)).collect();
        until("three requests wait", || state.preannotator.waiting() == 3).await;
        let body = Body::from(request(99).to_string());
        let fourth = Request::post("/predict").header("content-type", "application/json");
        let fourth = fourth.body(body).unwrap();
        let refused = app.clone().oneshot(fourth).await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        let pause = refused.headers()["retry-after"].to_str().unwrap();
        assert!(pause.parse::<u32>().unwrap() > 0);
        for leaving in asking {
            leaving.abort();
        }
        until("nobody waits", || state.preannotator.waiting() == 0).await;
    }
    // all of them have left: nothing of theirs is in the way
    let stays = ask(100);
    until("one waits", || state.preannotator.waiting() == 1).await;
    let steps = state.preannotator.stages().scheduler().waiting();
    assert!(
        steps[0] <= 2,
        "steps of those who left still wait: {steps:?}"
    );
    drop(release);
    held.await.unwrap();
    assert_eq!(stays.await.unwrap().0, StatusCode::OK);
}

#[tokio::test]
async fn a_kept_answer_waits_for_nobody() {
    let state = state_with(&[]);
    let app = router(state.clone());
    let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
    post(&app, "/predict", &request).await;
    let (release, held) = hold(&state);
    let again = tokio::time::timeout(Duration::from_secs(20), post(&app, "/predict", &request));
    assert_eq!(
        kinds(regions(&again.await.unwrap())),
        both_of(&["Red Circle"])
    );
    drop(release);
    held.await.unwrap();
}

#[tokio::test]
async fn hosts_that_never_answer_stop_nobody_else() {
    // they take connections and say nothing
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let app = app_with(&[
        "--allowed-image-hosts",
        "127.0.0.1",
        "--image-timeout-s",
        "600",
    ]);
    let asking: Vec<_> = (0..12)
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
    let answer = answer.await.expect("it waits for hosts that never answer");
    assert_eq!(kinds(regions(&answer)), both_of(&["Red Circle"]));
    for request in asking {
        assert!(!request.is_finished());
        request.abort();
    }
}

#[tokio::test]
async fn an_annotator_goes_before_a_batch() {
    let state = state_with(&[]);
    let app = router(state.clone());
    let (release, held) = hold(&state);
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
    until("the batch waits", || steps()[Urgency::Batch as usize] > 0).await;
    let asking = {
        let app = app.clone();
        let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
        tokio::spawn(async move { post(&app, "/predict", &request).await })
    };
    // beside the step that holds everybody up
    until("the annotator waits", || {
        steps()[Urgency::Annotator as usize] == 2
    })
    .await;
    drop(release);
    held.await.unwrap();
    let answer = asking.await.unwrap();
    assert_eq!(kinds(regions(&answer)), both_of(&["Red Circle"]));
    // it was computed from the image to the masks, and the batch of twelve has not been
    assert!(!batch.is_finished(), "the batch went first");
    let (status, body) = batch.await.unwrap();
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body["results"].as_array().unwrap().len(), 12);
}
