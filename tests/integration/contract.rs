//! The contract with Label Studio 1.23.2: every recorded request gets the response that Label Studio needs. The
//! recordings are in `payloads`.

use axum::Router;
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::fake_studio::{FakeStudio, LEGACY_TOKEN, StudioOptions};
use crate::support::{
    SHAPES_CONFIG, app, app_with, check_regions, get_json, payload, post, prompt_request, recorded,
    regions, types_and_labels,
};

/// A server that is connected to a fake Label Studio.
async fn connected_app() -> (FakeStudio, Router) {
    let studio = FakeStudio::start(StudioOptions::default()).await;
    let app = studio.app(LEGACY_TOKEN, &[]);
    (studio, app)
}

#[tokio::test]
async fn health_says_up_and_versions_lists_the_model_version() {
    let app = app();
    for name in ["health", "versions"] {
        let path = recorded(name)["request"]["path"]
            .as_str()
            .unwrap()
            .to_owned();
        let (status, body) = get_json(&app, &path).await;
        assert_eq!(status, StatusCode::OK);
        match name {
            "health" => assert_eq!(body["status"], "UP", "{body}"),
            _ => assert!(body["versions"][0].is_string(), "{body}"),
        }
    }
}

#[tokio::test]
async fn setup_accepts_extra_params_as_object_string_empty_or_null() {
    let (_studio, app) = connected_app().await;
    let version = async |body: &Value| {
        let (status, body) = post(&app, "/setup", body).await;
        assert_eq!(status, StatusCode::OK);
        body["model_version"].as_str().unwrap().to_owned()
    };
    let object = version(&payload("setup")).await;
    let text = version(&payload("setup_extra_params_from_form")).await;
    assert!(!object.is_empty());
    assert_eq!(object, text, "both requests set box_threshold to 0.3");
    for empty in [json!(""), json!(null), json!({})] {
        let mut body = payload("setup");
        body["extra_params"] = empty;
        assert_eq!(version(&body).await, object, "0.3 is the default");
    }
    let mut stricter = payload("setup");
    stricter["extra_params"] = json!("{\"box_threshold\": 0.5}");
    assert_ne!(version(&stricter).await, object);
}

#[tokio::test]
async fn predictions_of_a_batch_have_the_model_version_of_setup() {
    let (studio, app) = connected_app().await;
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
    // the images of the three tasks are fetched once each
    assert_eq!(studio.images_served(), 3);
}

#[tokio::test]
async fn an_interactive_request_gets_one_result_with_regions_and_a_version() {
    let (_studio, app) = connected_app().await;
    for name in [
        "predict_interactive_prompt",
        "predict_interactive_annotated_task",
    ] {
        let request = payload(name);
        let answer = post(&app, "/predict", &request).await;
        let found = regions(&answer);
        check_regions(found, 640, 480, &["Bok Choi", "Pot"]);
        // interactive_errors.json records what the page does with other shapes of results
        assert!(answer.1["results"][0].is_object());
        // the next /setup returns the same version
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
async fn the_empty_context_after_submit_gets_no_regions_and_needs_neither_models_nor_image() {
    // here neither the image nor the models can be loaded
    let app = app_with(&["--detector", "no-such-model"]);
    let request = payload("predict_interactive_empty_context");
    let answer = post(&app, "/predict", &request).await;
    assert_eq!(*regions(&answer), json!([]));
    let mut request = prompt_request(SHAPES_CONFIG, "http://127.0.0.1:1/missing.png", "x");
    request["params"]["context"] = json!({"result": []});
    let answer = post(&app, "/predict", &request).await;
    assert_eq!(*regions(&answer), json!([]));
}

#[tokio::test]
async fn a_smart_tool_gives_one_mask_with_its_label() {
    let (studio, app) = connected_app().await;
    let mut request = payload("predict_interactive_prompt");
    for (name, label) in [
        ("context_smartrect", Some("Bok Choi")),
        ("context_keypoint", Some("Bok Choi")),
        // this label of the keypoints does not exist for the brush
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
    // the first click fetches and encodes the image, the next ones do not fetch it again
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
async fn an_unusable_context_counts_as_no_context() {
    let (_studio, app) = connected_app().await;
    let mut request = payload("predict_interactive_prompt");
    request["params"] = json!(null);
    let (status, expected) = post(&app, "/predict", &request).await;
    assert_eq!(status, StatusCode::OK, "{expected}");
    let expected = types_and_labels(&expected["results"][0]["result"]);
    request["params"] = payload("predict_interactive_prompt")["params"].clone();
    for context in [
        json!(null),
        json!({}),
        json!("text"),
        json!([1]),
        json!({"result": "x"}),
    ] {
        request["params"]["context"] = context.clone();
        let answer = post(&app, "/predict", &request).await;
        assert_eq!(types_and_labels(regions(&answer)), expected, "{context}");
    }
}

#[tokio::test]
async fn a_context_with_regions_of_unusable_types_gets_no_regions() {
    let (_studio, app) = connected_app().await;
    let mut request = payload("predict_interactive_prompt");
    for region in [
        json!(null),
        json!(5),
        json!({"type": "ellipselabels", "value": {"x": 1}}),
    ] {
        request["params"]["context"] = json!({"result": [region]});
        let answer = post(&app, "/predict", &request).await;
        assert_eq!(*regions(&answer), json!([]), "{region}");
    }
}

#[tokio::test]
async fn known_webhooks_are_accepted_and_unknown_ones_are_not_an_error() {
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
    for unknown in [json!({"action": "SOMETHING_NEW"}), json!({}), json!([1])] {
        let (status, body) = post(&app, "/webhook", &unknown).await;
        assert_eq!(
            (status, &body["status"]),
            (StatusCode::OK, &json!("Unknown event"))
        );
    }
}
