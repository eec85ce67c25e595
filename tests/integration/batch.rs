//! Batches (`Retrieve predictions` and opening a task): the deadline, failing tasks, and remembered prompts.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::fake_studio::{FakeStudio, LEGACY_TOKEN, StudioOptions};
use crate::support::{
    SHAPES, SHAPES_CONFIG, app_with, batch_request, check_regions, data_uri, payload, post,
    prompt_request, rectangle_and_mask_of, regions, scratch, types_and_labels,
};

#[tokio::test]
async fn tasks_beyond_the_deadline_are_computed_in_the_background() {
    let studio = FakeStudio::start(StudioOptions::default()).await;
    let app = studio.app(LEGACY_TOKEN, &["--predict-deadline-s", "0"]);
    let images: Vec<String> = (0..3).map(|i| format!("/data/upload/1/{i}.png")).collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let request = batch_request(SHAPES_CONFIG, &images);
    let (status, body) = post(&app, "/predict", &request).await;
    assert_eq!(status, StatusCode::OK);
    let results = body["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    let is_unfinished = |result: &Value| {
        let error = result["error"].as_str().unwrap_or_default();
        error.contains("PREDICT_DEADLINE_S") && result.get("result").is_none()
    };
    assert!(results.iter().any(is_unfinished), "{results:?}");
    // repeated requests get all results in the end
    let start = Instant::now();
    loop {
        let (_, body) = post(&app, "/predict", &request).await;
        let results = body["results"].as_array().unwrap();
        if results.iter().all(|result| result["result"].is_array()) {
            results
                .iter()
                .for_each(|r| check_regions(&r["result"], 640, 480, &["Red Circle", "Blue Star"]));
            break;
        }
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "the batch is still unfinished after 60 s: {body}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // two requests at the same moment may both fetch an image; further requests fetch nothing
    let served = studio.images_served();
    assert!((3..=5).contains(&served), "{served}");
}

#[tokio::test]
async fn a_task_without_its_image_has_an_error_and_the_others_have_regions() {
    let studio = FakeStudio::start(StudioOptions::default()).await;
    let app = studio.app(LEGACY_TOKEN, &[]);
    let images = [
        "/data/upload/1/missing.png",
        "/data/upload/1/a.png",
        "s3://b/none.png",
    ];
    let (_, body) = post(&app, "/predict", &batch_request(SHAPES_CONFIG, &images)).await;
    assert_eq!(
        types_and_labels(&body["results"][1]["result"]),
        rectangle_and_mask_of(&["Red Circle", "Blue Star"])
    );
    for (i, expected) in [(0, "missing.png answered 500"), (2, "resolve")] {
        let error = body["results"][i]["error"].as_str().unwrap();
        assert!(
            error.contains(expected) && !error.contains(LEGACY_TOKEN),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_typed_prompt_applies_to_the_next_tasks_of_its_project_across_restarts() {
    let folder = scratch().join("remembered-prompts");
    let flags = ["--model-dir", folder.to_str().unwrap()];
    let image = data_uri(SHAPES);
    // the regions of the next task, the prompt that it shows, and the model version
    let next = async |app: &axum::Router, project: &str| {
        let mut request = batch_request(SHAPES_CONFIG, &[&image]);
        request["project"] = json!(project);
        let answer = post(app, "/predict", &request).await;
        let version = answer.1["results"][0]["model_version"].clone();
        let (shown, found): (Vec<Value>, Vec<Value>) = regions(&answer)
            .as_array()
            .unwrap()
            .iter()
            .cloned()
            .partition(|region| region["type"] == "textarea");
        let shown = shown
            .first()
            .map(|region| region["value"]["text"][0].clone());
        (types_and_labels(&json!(found)), shown, version)
    };
    let version_of_setup = async |app: &axum::Router, extra: Value| {
        let mut setup = payload("setup");
        setup["project"] = json!("5.1");
        setup["schema"] = json!(SHAPES_CONFIG);
        setup["extra_params"] = extra;
        post(app, "/setup", &setup).await.1["model_version"].clone()
    };
    let both = rectangle_and_mask_of(&["Red Circle", "Blue Star"]);
    {
        let app = app_with(&flags);
        let (found, shown, before) = next(&app, "5.1").await;
        assert_eq!(shown, None);
        assert_eq!(
            found, both,
            "without a typed prompt, a batch uses the labels"
        );
        let mut typed = prompt_request(SHAPES_CONFIG, &image, "Blue star");
        typed["project"] = json!("5.1");
        let typed = post(&app, "/predict", &typed).await;
        let (found, shown, after) = next(&app, "5.1").await;
        assert_eq!(found, rectangle_and_mask_of(&["Blue Star"]));
        assert_eq!(
            shown,
            Some(json!("Blue star")),
            "the annotator must see the prompt that was used"
        );
        assert_ne!(
            before, after,
            "with another model version, Label Studio retrieves the predictions again"
        );
        assert_eq!(typed.1["results"][0]["model_version"], after);
        assert_eq!(version_of_setup(&app, json!(null)).await, after);
        assert_eq!(
            next(&app, "6.1").await.0,
            both,
            "other projects keep their own prompt"
        );
    }
    // after a restart, as soon as the prompt is written to disk
    let start = Instant::now();
    loop {
        let app = app_with(&flags);
        if next(&app, "5.1").await.0 == rectangle_and_mask_of(&["Blue Star"]) {
            let extra = json!({"prompt": "red circle", "segment": false});
            let version = version_of_setup(&app, extra).await;
            let (found, _, predicted) = next(&app, "5.1").await;
            assert_eq!(
                found,
                [("rectanglelabels".to_owned(), "Red Circle".to_owned())]
            );
            assert_eq!(version, predicted);
            break;
        }
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "the prompt is not remembered after a restart"
        );
    }
}

#[tokio::test]
async fn a_prompt_in_extra_params_is_not_replaced_by_a_typed_one() {
    let app = app_with(&[]);
    let image = data_uri(SHAPES);
    let batch = batch_request(SHAPES_CONFIG, &[&image]);
    let mut setup = payload("setup");
    setup["project"] = batch["project"].clone();
    setup["extra_params"] = json!({"prompt": "red circle"});
    post(&app, "/setup", &setup).await;
    // the typed prompt applies to its own request only
    let mut typed = prompt_request(SHAPES_CONFIG, &image, "blue star");
    typed["project"] = batch["project"].clone();
    let answer = post(&app, "/predict", &typed).await;
    assert_eq!(
        types_and_labels(regions(&answer)),
        rectangle_and_mask_of(&["Blue Star"])
    );
    let answer = post(&app, "/predict", &batch).await;
    let mut found = types_and_labels(regions(&answer));
    found.retain(|(kind, _)| kind != "textarea");
    assert_eq!(found, rectangle_and_mask_of(&["Red Circle"]));
}

#[tokio::test]
async fn a_batch_without_a_prompt_and_without_labels_is_an_error() {
    let no_labels = "<View><Image name='i' value='$image'/><Rectangle name='r' toName='i'/></View>";
    let request = batch_request(no_labels, &[&data_uri(SHAPES)]);
    let (status, body) = post(&app_with(&[]), "/predict", &request).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let error = body["error"].as_str().unwrap();
    assert!(error.contains("no prompt was given"), "{error}");
}

#[tokio::test]
async fn a_prompt_typed_during_a_batch_does_not_change_that_batch() {
    let studio = FakeStudio::start(StudioOptions::default()).await;
    let app = studio.app(LEGACY_TOKEN, &[]);
    let images: Vec<String> = (0..12).map(|i| format!("/data/upload/1/{i}.png")).collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let mut typed = prompt_request(SHAPES_CONFIG, "/data/upload/1/0.png", "blue star");
    let batch = batch_request(SHAPES_CONFIG, &images);
    typed["project"] = batch["project"].clone();
    let running = {
        let (app, batch) = (app.clone(), batch.clone());
        tokio::spawn(async move { post(&app, "/predict", &batch).await })
    };
    let start = Instant::now();
    while studio.images_served() == 0 {
        assert!(start.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let typed = post(&app, "/predict", &typed).await;
    let (_, body) = running.await.unwrap();
    let before = body["results"][0]["model_version"].clone();
    assert_ne!(typed.1["results"][0]["model_version"], before);
    for result in body["results"].as_array().unwrap() {
        assert_eq!(result["model_version"], before);
        assert_eq!(
            types_and_labels(&result["result"]),
            rectangle_and_mask_of(&["Red Circle", "Blue Star"])
        );
    }
}

#[tokio::test]
async fn an_invalid_prompt_is_not_remembered() {
    let app = app_with(&[]);
    let image = data_uri(SHAPES);
    let batch = batch_request(SHAPES_CONFIG, &[&image]);
    for text in ["word ".repeat(600), "many, ".repeat(3000)] {
        let mut typed = prompt_request(SHAPES_CONFIG, &image, &text);
        typed["project"] = batch["project"].clone();
        let (status, _) = post(&app, "/predict", &typed).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
    }
    let answer = post(&app, "/predict", &batch).await;
    assert_eq!(
        types_and_labels(regions(&answer)),
        rectangle_and_mask_of(&["Red Circle", "Blue Star"])
    );
}

#[tokio::test]
async fn an_unusable_task_or_label_does_not_affect_the_others() {
    // a label without a visible character, a task without data, and a task with a high threshold
    let number = "<Number name='box_threshold' toName='image'/>";
    let soft_hyphen = "<Label value='&#xAD;'/>";
    let config = SHAPES_CONFIG
        .replace(
            "</View>\n  <Header>Rect",
            &format!("{number}</View>\n  <Header>Rect"),
        )
        .replace(
            "<Label value=\"Red Circle\"",
            &format!("{soft_hyphen}<Label value=\"Red Circle\""),
        );
    let image = data_uri(SHAPES);
    let mut request = batch_request(&config, &[&image, &image, &image]);
    request["tasks"][1]["data"] = json!([]);
    let strict =
        json!({"type": "number", "from_name": "box_threshold", "value": {"number": 0.999}});
    request["tasks"][2]["annotations"] = json!([{"result": [strict]}]);
    let (status, body) = post(&app_with(&[]), "/predict", &request).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let both = rectangle_and_mask_of(&["Red Circle", "Blue Star"]);
    assert_eq!(types_and_labels(&body["results"][0]["result"]), both);
    assert!(
        body["results"][1]["error"]
            .as_str()
            .unwrap()
            .contains("no text under")
    );
    assert_eq!(body["results"][2]["result"], json!([]));
    assert_eq!(body["results"][2]["score"].to_string(), "0.0");
}
