//! Messages to the annotator, in a text area that the labeling config has for them.

use serde_json::{Value, json};

use crate::support::{
    SHAPES, SHAPES_CONFIG, app, app_with, batch_request, data_uri, post, prompt_request, recorded,
    regions,
};

/// A config with the lines of `docs/labeling-configs/messages.md`.
fn config() -> String {
    let page = include_str!("../../docs/labeling-configs/messages.md");
    let (_, lines) = page.split_once("```xml\n<View>\n").unwrap();
    let (lines, _) = lines.split_once("  <Image").unwrap();
    assert!(lines.contains("groundling-status"), "{lines}");
    SHAPES_CONFIG.replacen("<View>", &format!("<View>{lines}"), 1)
}

/// The message of an answer, and the number of other regions.
fn message(regions: &Value) -> (String, usize) {
    let regions = regions.as_array().unwrap();
    let messages: Vec<&Value> = regions
        .iter()
        .filter(|region| region["from_name"] == "groundling-status")
        .collect();
    assert_eq!(messages.len(), 1, "{regions:?}");
    let message = messages[0];
    assert_eq!(
        (&message["type"], &message["to_name"]),
        (&json!("textarea"), &json!("groundling"))
    );
    assert_eq!(message["readonly"], true);
    // with a second key in its value, the editor would take it for a region
    assert_eq!(message["value"].as_object().unwrap().len(), 1);
    assert!(message["original_width"].is_null() && message["score"].is_null());
    let text = message["value"]["text"][0].as_str().unwrap();
    (text.to_owned(), regions.len() - 1)
}

async fn message_of_prompt(image: &str, prompt: &str) -> (String, usize) {
    let body = prompt_request(&config(), image, prompt);
    let answer = post(&app(), "/predict", &body).await;
    message(regions(&answer))
}

#[tokio::test]
async fn the_message_says_what_was_found() {
    let image = data_uri(SHAPES);
    let (found, count) = message_of_prompt(&image, "red circle. blue star.").await;
    assert_eq!(
        (found.as_str(), count),
        ("found 1 blue star, 1 red circle", 4)
    );
    let (nothing, count) = message_of_prompt(&image, "green heart").await;
    assert_eq!(count, 0);
    let best = nothing.strip_prefix("nothing above 0.30; best: green heart 0.");
    assert!(best.is_some(), "{nothing}");
}

#[tokio::test]
async fn the_message_says_what_is_wrong() {
    for (image, prompt, expected) in [
        ("http://127.0.0.1:9/a.png", "cup", "127.0.0.1"),
        ("nothing.png", "cup", "nothing.png"),
        ("data:image/png;base64,AAAA", "cup", "image"),
        ("", "-cup", "what to find"),
    ] {
        let (text, count) = message_of_prompt(image, prompt).await;
        assert!(text.contains(expected) && count == 0, "{text}");
    }
    // without a text area for messages, it is an error as before
    let body = prompt_request(SHAPES_CONFIG, "nothing.png", "cup");
    let (status, answer) = post(&app(), "/predict", &body).await;
    assert!(
        status.is_client_error() && answer["error"].is_string(),
        "{answer}"
    );
}

#[tokio::test]
async fn a_click_has_a_message_too() {
    let mut body = prompt_request("", "", "");
    body["label_config"] = json!(config());
    body["tasks"][0]["data"]["image"] = json!(data_uri(SHAPES));
    body["params"]["context"] = recorded("context_keypoint")["context"].clone();
    let answer = post(&app(), "/predict", &body).await;
    let (text, count) = message(regions(&answer));
    assert!(
        text.starts_with("segmented with score 0.") && count == 1,
        "{text}"
    );
    let answer = post(&app_with(&["--segmenter", "none"]), "/predict", &body).await;
    let (text, count) = message(regions(&answer));
    assert!(text.contains("SEGMENTER=none") && count == 0, "{text}");
}

#[tokio::test]
async fn without_a_detector_a_click_is_segmented_and_a_prompt_is_refused() {
    let app = app_with(&["--detector", "none"]);
    let mut body = prompt_request("", &data_uri(SHAPES), "red circle");
    body["label_config"] = json!(config());
    let (text, count) = message(regions(&post(&app, "/predict", &body).await));
    assert!(text.contains("DETECTOR=none") && count == 0, "{text}");
    body["params"]["context"] = recorded("context_keypoint")["context"].clone();
    let (text, count) = message(regions(&post(&app, "/predict", &body).await));
    assert!(
        text.starts_with("segmented with score 0.") && count == 1,
        "{text}"
    );
}

#[tokio::test]
async fn stored_predictions_have_no_message() {
    let batch = batch_request(&config(), &[&data_uri(SHAPES)]);
    let answer = post(&app(), "/predict", &batch).await;
    let found = regions(&answer).as_array().unwrap();
    assert!(!found.is_empty());
    assert!(
        found
            .iter()
            .all(|region| region["from_name"] != "groundling-status")
    );
    // the empty context that the editor sends after Submit is answered with nothing
    let mut body = prompt_request(&config(), &data_uri(SHAPES), "");
    body["params"]["context"]["result"] = json!([]);
    let answer = post(&app(), "/predict", &body).await;
    assert_eq!(regions(&answer), &json!([]));
}
