//! Typed phrases that become labels of the project.

use axum::Router;
use serde_json::{Value, json};

use crate::fake_studio::{FakeStudio, LEGACY_TOKEN, StudioOptions};
use crate::support::{
    SHAPES, SHAPES_CONFIG, data_uri, payload, post, prompt_request, regions, send_json,
    types_and_labels,
};

/// The type and label of each region that a prompt finds in project 7.
async fn predict(app: &Router, prompt: &str) -> Vec<(String, String)> {
    let mut body = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), prompt);
    body["project"] = json!("7.1795350328");
    // not `post`, which records the answer for the check with Label Studio's SDK: the request has the old labels
    types_and_labels(regions(&send_json(app, "POST", "/predict", &body).await))
}

async fn set_up(app: &Router, extra_params: &Value) {
    let mut setup = payload("setup");
    setup["project"] = json!("7.1795350328");
    setup["extra_params"] = extra_params.clone();
    post(app, "/setup", &setup).await;
}

#[tokio::test]
async fn a_phrase_becomes_a_label_only_if_the_settings_ask_for_it() {
    let studio = FakeStudio::start(StudioOptions::default()).await;
    let app = studio.app(LEGACY_TOKEN, &[]);
    // a project alone cannot switch it on
    set_up(&app, &json!({"add_labels": true})).await;
    let found = predict(&app, "purple ring").await;
    assert!(found.iter().all(|(_, label)| label.is_empty()) && !found.is_empty());
    assert_eq!(studio.changed_label_config(), None);

    let app = studio.app(LEGACY_TOKEN, &["--add-labels", "1"]);
    set_up(&app, &json!({"add_labels": false})).await;
    predict(&app, "purple ring").await;
    assert_eq!(studio.changed_label_config(), None);
    set_up(&app, &json!({})).await;
    // what is known, and what finds nothing, is not added
    predict(&app, "red circles. black moon").await;
    assert_eq!(studio.changed_label_config(), None);
    let found = predict(&app, "purple ring. red circle").await;
    assert!(
        found.contains(&("brushlabels".to_owned(), "purple ring".to_owned())),
        "{found:?}"
    );
    assert!(
        found.iter().all(|(_, label)| !label.is_empty()),
        "{found:?}"
    );
    let config = studio.changed_label_config().unwrap();
    let label = "<Label value=\"purple ring\"/>";
    assert_eq!(config.matches(label).count(), 2, "{config}");
    assert_eq!(config.replace(label, ""), SHAPES_CONFIG);
    // once is enough
    predict(&app, "purple ring").await;
    assert_eq!(studio.changed_label_config().unwrap(), config);
}

#[tokio::test]
async fn an_answer_does_not_fail_if_labels_cannot_be_added() {
    let studio = FakeStudio::start(StudioOptions::default()).await;
    let app = studio.app("not the token", &["--add-labels", "1"]);
    let found = predict(&app, "purple ring").await;
    assert!(found.iter().all(|(_, label)| label.is_empty()) && !found.is_empty());
    assert_eq!(studio.changed_label_config(), None);
}
