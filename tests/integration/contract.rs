//! Every body recorded of Label Studio 1.23.2, answered as it needs it.

use axum::Router;
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::studio::{LEGACY, Setup, Studio};
use crate::support::{app, app_with, check_regions, get_json, payload, post, recorded, regions};

/// A server whose images come from a Label Studio.
async fn connected() -> (Studio, Router) {
    let studio = Studio::start(Setup::default()).await;
    let app = studio.app(LEGACY, &[]);
    (studio, app)
}

#[tokio::test]
async fn health_and_versions_are_json() {
    let app = app();
    for name in ["health", "versions"] {
        let path = recorded(name)["request"]["path"]
            .as_str()
            .unwrap()
            .to_owned();
        let (status, body) = get_json(&app, &path).await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.is_object());
    }
    let (_, body) = get_json(&app, "/versions").await;
    assert!(body["versions"][0].is_string(), "{body}");
}

#[tokio::test]
async fn setup_takes_extra_params_in_every_shape() {
    let (_studio, app) = connected().await;
    let version = async |body: &Value| {
        let (status, body) = post(&app, "/setup", body).await;
        assert_eq!(status, StatusCode::OK);
        body["model_version"].as_str().unwrap().to_owned()
    };
    let object = version(&payload("setup")).await;
    let text = version(&payload("setup_extra_params_from_form")).await;
    assert!(!object.is_empty());
    assert_eq!(object, text, "both say box_threshold 0.3");
    for nothing in [json!(""), json!(null), json!({})] {
        let mut body = payload("setup");
        body["extra_params"] = nothing;
        assert_eq!(version(&body).await, object, "0.3 is the default");
    }
    let mut stricter = payload("setup");
    stricter["extra_params"] = json!("{\"box_threshold\": 0.5}");
    assert_ne!(version(&stricter).await, object);
}

#[tokio::test]
async fn batches_carry_the_version_of_setup() {
    let (studio, app) = connected().await;
    let (_, setup) = post(&app, "/setup", &payload("setup")).await;
    for name in ["predict_batch", "predict_open_task", "test_request"] {
        let request = payload(name);
        let (status, body) = post(&app, "/predict", &request).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let results = body["results"].as_array().unwrap();
        assert_eq!(results.len(), request["tasks"].as_array().unwrap().len());
        for result in results {
            check_regions(&result["result"], 640, 480, &["Bok Choi", "Pot"]);
            assert_eq!(result["model_version"], setup["model_version"], "{name}");
        }
    }
    // uploads and local files of the three tasks, each once
    assert_eq!(studio.images_served(), 3);
}

#[tokio::test]
async fn interactive_answers_are_one_object() {
    let (_studio, app) = connected().await;
    for name in [
        "predict_interactive_prompt",
        "predict_interactive_annotated_task",
    ] {
        let request = payload(name);
        let answer = post(&app, "/predict", &request).await;
        let found = regions(&answer);
        check_regions(found, 640, 480, &["Bok Choi", "Pot"]);
        // what the page does with an answer of another shape is in interactive_errors.json
        assert!(answer.1["results"][0].is_object());
        // the version is that of the next /setup
        let mut setup = payload("setup");
        setup["project"] = request["project"].clone();
        setup["extra_params"] = json!(null);
        let (_, setup) = post(&app, "/setup", &setup).await;
        assert_eq!(
            answer.1["results"][0]["model_version"],
            setup["model_version"]
        );
    }
}

#[tokio::test]
async fn after_submit_an_empty_context_is_answered_without_the_models() {
    // neither the image nor a model could be had
    let app = app_with(&["--detector", "no-such-model"]);
    let answer = post(
        &app,
        "/predict",
        &payload("predict_interactive_empty_context"),
    )
    .await;
    assert_eq!(*regions(&answer), json!([]));
}

#[tokio::test]
async fn smart_tools_give_a_mask_with_their_label() {
    let (studio, app) = connected().await;
    let mut request = payload("predict_interactive_prompt");
    for (name, label) in [
        ("context_smartrect", Some("Bok Choi")),
        ("context_keypoint", Some("Bok Choi")),
        // a label of the keypoints that the brush does not have
        ("context_keypoint2", None),
    ] {
        request["params"]["context"] = recorded(name)["context"].clone();
        let answer = post(&app, "/predict", &request).await;
        let found = regions(&answer);
        check_regions(found, 640, 480, &["Bok Choi"]);
        let [mask] = found.as_array().unwrap().as_slice() else {
            panic!("{name}: {found}");
        };
        assert_eq!(mask["type"], "brushlabels");
        assert_eq!(mask["value"]["brushlabels"][0].as_str(), label, "{name}");
    }
    // the image is encoded at the first click, and not even fetched at the others
    assert_eq!(studio.images_served(), 1);
    request["params"]["context"] = recorded("context_prompt_with_regions")["context"].clone();
    check_regions(
        regions(&post(&app, "/predict", &request).await),
        640,
        480,
        &[],
    );
}

#[tokio::test]
async fn a_context_of_any_shape_is_survived() {
    let (_studio, app) = connected().await;
    let mut request = payload("predict_interactive_prompt");
    for context in [
        json!(null),
        json!({}),
        json!("text"),
        json!([1]),
        json!({"result": "x"}),
    ] {
        request["params"]["context"] = context.clone();
        let (status, body) = post(&app, "/predict", &request).await;
        assert_eq!(status, StatusCode::OK, "{context} {body}");
    }
    for region in [
        json!(null),
        json!(5),
        json!({"type": "ellipselabels", "value": {"x": 1}}),
    ] {
        request["params"]["context"] = json!({"result": [region]});
        let answer = post(&app, "/predict", &request).await;
        assert_eq!(
            *regions(&answer),
            json!([]),
            "kinds of no use get an empty answer"
        );
    }
    request["params"] = json!(null);
    let (status, body) = post(&app, "/predict", &request).await;
    assert_eq!(status, StatusCode::OK, "{body}");
}

#[tokio::test]
async fn webhooks_are_heard_known_or_not() {
    let app = app();
    for name in [
        "webhook_annotation_created",
        "webhook_annotation_updated",
        "webhook_annotations_deleted",
        "webhook_project_updated",
        "webhook_tasks_created",
        "webhook_start_training",
    ] {
        let (status, body) = post(&app, "/webhook", &payload(name)).await;
        assert_eq!(
            (status, &body["status"]),
            (StatusCode::CREATED, &json!("ok")),
            "{name}"
        );
    }
    for odd in [json!({"action": "SOMETHING_NEW"}), json!({}), json!([1])] {
        let (status, body) = post(&app, "/webhook", &odd).await;
        assert_eq!(
            (status, &body["status"]),
            (StatusCode::OK, &json!("Unknown event"))
        );
    }
}
