//! Batches: the deadline, what is made already, and remembered prompts.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::studio::{LEGACY, Setup, Studio};
use crate::support::{
    SHAPES, SHAPES_CONFIG, app_with, batch_request, both_of, check_regions, data_uri, kinds,
    payload, post, prompt_request, regions, scratch,
};

#[tokio::test]
async fn what_does_not_fit_the_deadline_goes_on() {
    let studio = Studio::start(Setup::default()).await;
    let app = studio.app(LEGACY, &["--predict-deadline-s", "0"]);
    let images: Vec<String> = (0..3).map(|i| format!("/data/upload/1/{i}.png")).collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let request = batch_request(SHAPES_CONFIG, &images);
    let (status, body) = post(&app, "/predict", &request).await;
    assert_eq!(status, StatusCode::OK);
    let results = body["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    let is_later = |result: &Value| {
        let error = result["error"].as_str().unwrap_or_default();
        error.contains("PREDICT_DEADLINE_S") && result.get("result").is_none()
    };
    assert!(results.iter().any(is_later), "{results:?}");
    // asking again and again ends with everything
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
            "it never came: {body}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // what two requests look up at the same moment is fetched twice, and nothing is fetched again and again
    let served = studio.images_served();
    assert!((3..=5).contains(&served), "{served}");
}

#[tokio::test]
async fn a_task_whose_image_fails_costs_only_itself() {
    let studio = Studio::start(Setup::default()).await;
    let app = studio.app(LEGACY, &[]);
    let images = [
        "/data/upload/1/missing.png",
        "/data/upload/1/a.png",
        "s3://b/none.png",
    ];
    let (_, body) = post(&app, "/predict", &batch_request(SHAPES_CONFIG, &images)).await;
    assert_eq!(
        kinds(&body["results"][1]["result"]),
        both_of(&["Red Circle", "Blue Star"])
    );
    for (i, expected) in [(0, "missing.png answered 500"), (2, "resolve")] {
        let error = body["results"][i]["error"].as_str().unwrap();
        assert!(
            error.contains(expected) && !error.contains(LEGACY),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_prompt_is_remembered_for_the_projects_next_tasks() {
    let folder = scratch().join("remembering");
    let flags = ["--model-dir", folder.to_str().unwrap()];
    let image = data_uri(SHAPES);
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
        (kinds(&json!(found)), shown, version)
    };
    let version_of_setup = async |app: &axum::Router, extra: Value| {
        let mut setup = payload("setup");
        setup["project"] = json!("5.1");
        setup["schema"] = json!(SHAPES_CONFIG);
        setup["extra_params"] = extra;
        post(app, "/setup", &setup).await.1["model_version"].clone()
    };
    let both = both_of(&["Red Circle", "Blue Star"]);
    {
        let app = app_with(&flags);
        let (found, shown, before) = next(&app, "5.1").await;
        assert_eq!(shown, None);
        assert_eq!(found, both, "all labels where nobody typed yet");
        let mut typed = prompt_request(SHAPES_CONFIG, &image, "Blue star");
        typed["project"] = json!("5.1");
        let typed = post(&app, "/predict", &typed).await;
        let (found, shown, after) = next(&app, "5.1").await;
        assert_eq!(found, both_of(&["Blue Star"]));
        assert_eq!(
            shown,
            Some(json!("Blue star")),
            "the annotator sees what was looked for"
        );
        assert_ne!(before, after, "Label Studio must ask again");
        assert_eq!(typed.1["results"][0]["model_version"], after);
        assert_eq!(version_of_setup(&app, json!(null)).await, after);
        assert_eq!(
            next(&app, "6.1").await.0,
            both,
            "other projects have their own"
        );
    }
    // after a restart, once the writer has written
    let start = Instant::now();
    loop {
        let app = app_with(&flags);
        if next(&app, "5.1").await.0 == both_of(&["Blue Star"]) {
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
            "the prompt was forgotten"
        );
    }
}

#[tokio::test]
async fn nothing_to_look_for_is_said() {
    let no_labels = "<View><Image name='i' value='$image'/><Rectangle name='r' toName='i'/></View>";
    let request = batch_request(no_labels, &[&data_uri(SHAPES)]);
    let (status, body) = post(&app_with(&[]), "/predict", &request).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let error = body["error"].as_str().unwrap();
    assert!(error.contains("no prompt was given"), "{error}");
}

#[tokio::test]
async fn a_batch_keeps_what_it_began_with() {
    let studio = Studio::start(Setup::default()).await;
    let app = studio.app(LEGACY, &[]);
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
            kinds(&result["result"]),
            both_of(&["Red Circle", "Blue Star"])
        );
    }
}

#[tokio::test]
async fn a_prompt_that_cannot_be_read_is_not_remembered() {
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
        kinds(regions(&answer)),
        both_of(&["Red Circle", "Blue Star"])
    );
}

#[tokio::test]
async fn what_is_odd_about_one_task_or_label_costs_only_itself() {
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
    let both = both_of(&["Red Circle", "Blue Star"]);
    assert_eq!(kinds(&body["results"][0]["result"]), both);
    assert!(
        body["results"][1]["error"]
            .as_str()
            .unwrap()
            .contains("no text under")
    );
    assert_eq!(body["results"][2]["result"], json!([]));
    assert_eq!(body["results"][2]["score"].to_string(), "0.0");
}
