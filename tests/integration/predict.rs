//! `POST /predict`: regions for valid requests, and an error with the reason for others.

use axum::http::StatusCode;
use serde_json::json;

use crate::support::{
    SHAPES, SHAPES_CONFIG, app, app_with, batch_request, check_regions, data_uri, post,
    predict_error, prompt_request, rectangle_and_mask_of, regions, types_and_labels,
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
    assert_eq!(types_and_labels(found), rectangle_and_mask_of(&LABELS));

    // the prompt may also be a plain string; the ids are new in every response
    let mut again = request.clone();
    again["params"]["context"]["result"][0]["value"]["text"] = json!("red circle, blue star");
    let second = post(&app, "/predict", &again).await;
    let second = regions(&second);
    assert_eq!(types_and_labels(second), rectangle_and_mask_of(&LABELS));
    assert_ne!(found[0]["id"], second[0]["id"]);
}

#[tokio::test]
async fn a_detection_without_a_phrase_gives_unlabeled_regions() {
    let number = r#"<Number name="text_threshold" toName="image" defaultValue="0.999"/>"#;
    let config = SHAPES_CONFIG.replace(
        "</View>\n  <Header>R",
        &format!("</View>{number}\n  <Header>R"),
    );
    assert_ne!(config, SHAPES_CONFIG);
    let request = prompt_request(&config, &data_uri(SHAPES), "red circle");
    let answer = post(&app(), "/predict", &request).await;
    let found = regions(&answer);
    check_regions(found, 640, 480, &[]);
    let found = types_and_labels(found);
    assert!(!found.is_empty());
    assert!(found.iter().all(|(_, label)| label.is_empty()), "{found:?}");
}

#[tokio::test]
async fn a_phrase_that_matches_no_label_gives_unlabeled_regions() {
    let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "circle");
    let answer = post(&app(), "/predict", &request).await;
    let found = regions(&answer);
    assert!(!found.as_array().unwrap().is_empty());
    check_regions(found, 640, 480, &[]);
    assert!(
        types_and_labels(found)
            .iter()
            .all(|(_, label)| label.is_empty())
    );
}

#[tokio::test]
async fn without_a_segmenter_there_are_only_rectangles() {
    let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle");
    let app = app_with(&["--segmenter", "none"]);
    let answer = post(&app, "/predict", &request).await;
    assert_eq!(
        types_and_labels(regions(&answer)),
        [("rectanglelabels".to_owned(), "Red Circle".to_owned())]
    );
}

#[tokio::test]
async fn a_batch_searches_the_labels_and_an_unreadable_image_is_an_error_of_its_task() {
    let good = data_uri(SHAPES);
    let images = [&good, "data:image/png;base64,AAAA", &good];
    let request = batch_request(SHAPES_CONFIG, &images);
    let (status, body) = post(&app(), "/predict", &request).await;
    assert_eq!(status, StatusCode::OK);
    let results = body["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    for i in [0, 2] {
        check_regions(&results[i]["result"], 640, 480, &LABELS);
        assert_eq!(
            types_and_labels(&results[i]["result"]),
            rectangle_and_mask_of(&LABELS)
        );
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
async fn an_error_says_what_is_wrong_with_the_request() {
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
            prompt("<View><Image name='i' valueList='pages'/></View>", "star"),
            "no valid valueList",
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
        let (status, error) = predict_error(&app, &request).await;
        assert_eq!(status, 400, "{error}");
        assert!(error.contains(expected), "{error}");
    }
    let mut no_image = prompt(SHAPES_CONFIG, "star");
    no_image["tasks"][0]["data"] = json!({"photo": "x"});
    let (_, error) = predict_error(&app, &no_image).await;
    assert!(error.contains("no text under \"image\""), "{error}");
    // the server still works
    let answer = post(&app, "/predict", &prompt(SHAPES_CONFIG, "red circle")).await;
    assert_eq!(
        types_and_labels(regions(&answer)),
        rectangle_and_mask_of(&["Red Circle"])
    );
}
