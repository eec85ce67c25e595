//! `POST /predict`: regions for good requests, clear errors for others, and the server stays up.

use axum::http::StatusCode;
use groundling::http::router;
use groundling::pipeline::scheduler::Urgency;
use serde_json::json;

use crate::support::{
    SHAPES, SHAPES_CONFIG, app, app_with, batch_request, both_of, check_regions, data_uri,
    get_json, kinds, payload, post, prompt_request, refused, regions, state_with,
};

const LABELS: [&str; 2] = ["Red Circle", "Blue Star"];

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
    let state = state_with(&[]);
    let app = router(state.clone());
    // the models are busy until they are released
    let (release, released) = std::sync::mpsc::channel::<()>();
    let busy = tokio::spawn(async move {
        let work = move || {
            // an error is the release, too
            let _ = released.recv();
        };
        let scheduler = state.preannotator.stages().scheduler();
        scheduler.run(Urgency::Annotator, work).await
    });
    let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
    let running = {
        let app = app.clone();
        tokio::spawn(async move { post(&app, "/predict", &request).await })
    };
    tokio::task::yield_now().await;
    let (health, _) = get_json(&app, "/health").await;
    let (setup, _) = post(&app, "/setup", &payload("setup")).await;
    assert_eq!((health, setup), (StatusCode::OK, StatusCode::OK));
    assert!(!running.is_finished(), "the models were not busy");
    drop(release);
    busy.await.unwrap().unwrap();
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
async fn a_batch_uses_the_labels_and_survives_a_bad_task() {
    let good = data_uri(SHAPES);
    let images = [&good, "data:image/png;base64,AAAA", &good];
    let request = batch_request(SHAPES_CONFIG, &images);
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
        (prompt(SHAPES_CONFIG, " . "), "has no words"),
        (
            prompt(SHAPES_CONFIG, &many.join(" ")),
            "the model's limit of 256 tokens",
        ),
        (
            json!({"label_config": SHAPES_CONFIG}),
            "missing field `tasks`",
        ),
        (json!({"tasks": []}), "missing field `label_config`"),
        (
            prompt("<View><Image name='i' valueList='$pages'/></View>", "star"),
            "valueList",
        ),
        (
            prompt(
                "<View><Image name='image' value='$image'/><TextArea name='prompt' toName='image'/></View>",
                "star",
            ),
            "add one for the regions",
        ),
        (json!("text"), "invalid request"),
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
