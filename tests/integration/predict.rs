//! `POST /predict`: regions for good requests, clear errors for others, and the server stays up.

use axum::Router;
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    SHAPES, SHAPES_CONFIG, TOKEN, app, app_with, check_regions, data_uri, get_json, image_host,
    payload, post, prompt_request,
};

const LABELS: [&str; 2] = ["Red Circle", "Blue Star"];

/// The regions of an answer to one task.
fn regions(answer: &(StatusCode, Value)) -> &Value {
    let (status, body) = answer;
    assert_eq!(*status, StatusCode::OK, "{body}");
    assert_eq!(body["results"].as_array().unwrap().len(), 1);
    let result = &body["results"][0];
    assert!(result["model_version"].is_string());
    &result["result"]
}

/// Types and labels of regions.
fn kinds(regions: &Value) -> Vec<(String, String)> {
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

fn both_of(labels: &[&str]) -> Vec<(String, String)> {
    let mut kinds: Vec<_> = labels
        .iter()
        .flat_map(|label| {
            ["rectanglelabels", "brushlabels"].map(|kind| (kind.to_owned(), (*label).to_owned()))
        })
        .collect();
    kinds.sort();
    kinds
}

#[tokio::test]
async fn a_typed_prompt_gives_boxes_and_masks() {
    let app = app();
    let image = data_uri(SHAPES);
    let request = prompt_request(SHAPES_CONFIG, &image, "red circle. blue star.");
    let answer = post(&app, "/predict", &request).await;
    let found = regions(&answer);
    check_regions(found, 640, 480, &LABELS);
    assert_eq!(kinds(found), both_of(&LABELS));

    // the prompt may be a plain string; ids are fresh every time
    let mut again = request.clone();
    again["params"]["context"]["result"][0]["value"]["text"] = json!("red circle, blue star");
    let second = post(&app, "/predict", &again).await;
    let second = regions(&second);
    assert_eq!(kinds(second), both_of(&LABELS));
    assert_ne!(found[0]["id"], second[0]["id"]);
}

#[tokio::test]
async fn health_and_setup_answer_while_a_prediction_runs() {
    let app = app();
    let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
    let running = {
        let app = app.clone();
        tokio::spawn(async move { post(&app, "/predict", &request).await })
    };
    tokio::task::yield_now().await;
    let (health, _) = get_json(&app, "/health").await;
    let (setup, _) = post(&app, "/setup", &payload("setup")).await;
    assert_eq!((health, setup), (StatusCode::OK, StatusCode::OK));
    assert!(!running.is_finished(), "both came before the prediction");
    assert_eq!(
        kinds(regions(&running.await.unwrap())),
        both_of(&["Red Circle"])
    );
}

#[tokio::test]
async fn a_phrase_that_is_no_label_comes_unlabeled() {
    let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "circle");
    let answer = post(&app(), "/predict", &request).await;
    let found = regions(&answer);
    assert!(!found.as_array().unwrap().is_empty());
    check_regions(found, 640, 480, &[]);
    assert!(kinds(found).iter().all(|(_, label)| label.is_empty()));
}

#[tokio::test]
async fn boxes_only_without_a_segmenter_or_a_brush() {
    let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
    let app = app_with(&["--segmenter", "none"]);
    let answer = post(&app, "/predict", &request).await;
    assert_eq!(
        kinds(regions(&answer)),
        [("rectanglelabels".to_owned(), "Red Circle".to_owned())]
    );
}

#[tokio::test]
async fn after_submit_an_empty_context_is_answered_at_once() {
    let mut request = prompt_request(SHAPES_CONFIG, "http://127.0.0.1:1/never-asked.png", "x");
    request["params"]["context"] = json!({"result": []});
    let answer = post(&app(), "/predict", &request).await;
    assert_eq!(*regions(&answer), json!([]));
}

#[tokio::test]
async fn images_come_from_label_studio_and_elsewhere() {
    let host = image_host().await;
    let app = app_with(&[
        "--label-studio-host",
        &host,
        "--label-studio-access-token",
        TOKEN,
    ]);
    // the same host by another name is another origin: it gets no token
    let elsewhere = host.replace("127.0.0.1", "localhost");
    for image in [
        "/data/upload/1/shapes.png".to_owned(),
        "/data/local-files/?d=shapes.png".to_owned(),
        format!("{host}/data/upload/1/shapes.png"),
        format!("{elsewhere}/open.png"),
        // the token does not follow a redirect to another host
        "/data/upload/1/moved.png".to_owned(),
    ] {
        let request = prompt_request(SHAPES_CONFIG, &image, "red circle");
        let answer = post(&app, "/predict", &request).await;
        assert_eq!(kinds(regions(&answer)), both_of(&["Red Circle"]), "{image}");
    }
}

#[tokio::test]
async fn a_batch_uses_the_labels_and_survives_a_bad_task() {
    let mut request = payload("predict_batch");
    request["label_config"] = json!(SHAPES_CONFIG);
    let template = request["tasks"][0].clone();
    let task = |image: &str| {
        let mut task = template.clone();
        task["data"] = json!({ "image": image });
        task
    };
    let good = data_uri(SHAPES);
    request["tasks"] = json!([task(&good), task("data:image/png;base64,AAAA"), task(&good)]);
    let (status, body) = post(&app(), "/predict", &request).await;
    assert_eq!(status, StatusCode::OK);
    let results = body["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    for i in [0, 2] {
        check_regions(&results[i]["result"], 640, 480, &LABELS);
        assert_eq!(kinds(&results[i]["result"]), both_of(&LABELS));
    }
    assert!(results[1].get("result").is_none());
    assert!(
        results[1]["error"]
            .as_str()
            .unwrap()
            .contains("not a readable image")
    );
}

/// The error of a bad request; after it the server still serves.
async fn refused(app: &Router, request: &Value) -> (u16, String) {
    let (status, body) = post(app, "/predict", request).await;
    assert!(!status.is_success(), "{body}");
    let (health, _) = get_json(app, "/health").await;
    assert_eq!(health, StatusCode::OK);
    (status.as_u16(), body["error"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_named() {
    let app = app();
    let image = data_uri(SHAPES);
    let prompt = |config: &str, text: &str| prompt_request(config, &image, text);
    let many: Vec<String> = (0..400).map(|i| format!("word{i}")).collect();
    let no_text_area = SHAPES_CONFIG.replace("TextArea", "Number");
    for (request, expected) in [
        (prompt("<View></View>", "star"), "no <Image> tag"),
        (prompt("<View><Image", "star"), "not well-formed XML"),
        (
            prompt(&no_text_area, "star"),
            "no <TextArea> for the image \"image\"",
        ),
        (prompt(SHAPES_CONFIG, " . "), "names nothing"),
        (
            prompt(SHAPES_CONFIG, &many.join(" ")),
            "the model takes 256 tokens",
        ),
        (
            json!({"label_config": SHAPES_CONFIG}),
            "missing field `tasks`",
        ),
        (json!("text"), "not usable"),
    ] {
        let (status, error) = refused(&app, &request).await;
        assert_eq!(status, 400, "{error}");
        assert!(error.contains(expected), "{error}");
    }
    let mut no_image = prompt(SHAPES_CONFIG, "star");
    no_image["tasks"][0]["data"] = json!({"photo": "x"});
    let (_, error) = refused(&app, &no_image).await;
    assert!(error.contains("no text under \"image\""), "{error}");
    // and now a good one
    let answer = post(&app, "/predict", &prompt(SHAPES_CONFIG, "red circle")).await;
    assert_eq!(kinds(regions(&answer)), both_of(&["Red Circle"]));
}

#[tokio::test]
async fn what_is_wrong_with_an_image_is_named() {
    let host = image_host().await;
    let with_token = app_with(&[
        "--label-studio-host",
        &host,
        "--label-studio-access-token",
        TOKEN,
    ]);
    let no_token = app_with(&["--label-studio-host", &host]);
    let no_host = app_with(&[]);
    let small = app_with(&["--max-image-pixels", "1000"]);
    let upload = "/data/upload/1/shapes.png";
    let missing = "/data/upload/1/missing.png";
    for (app, image, status, expected) in [
        (&with_token, missing, 502, "missing.png answered 404"),
        (
            &no_token,
            upload,
            502,
            "answered 401: set LABEL_STUDIO_ACCESS_TOKEN",
        ),
        (&no_host, upload, 422, "set LABEL_STUDIO_HOST"),
        (
            &with_token,
            &format!("{host}/text.png"),
            422,
            "not a readable image",
        ),
        (
            &with_token,
            "http://127.0.0.1:1/x.png",
            502,
            "cannot fetch http://127.0.0.1:1/x.png",
        ),
        (
            &with_token,
            "s3://bucket/x.png",
            422,
            "s3://bucket/x.png is not an image URL",
        ),
        (&small, &data_uri(SHAPES), 422, "640x480 pixels"),
    ] {
        let request = prompt_request(SHAPES_CONFIG, image, "star");
        let (code, error) = refused(app, &request).await;
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains(TOKEN));
        assert_eq!(code, status, "{error}");
    }
}
