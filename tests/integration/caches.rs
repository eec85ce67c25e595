//! What is computed once and reused: image features, text features, queries, image embeddings and masks.

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{
    SHAPES, SHAPES_CONFIG, app_with, data_uri, post, prompt_request, regions, types_and_labels,
};

/// [`SHAPES_CONFIG`] with controls for thresholds.
fn config_with_thresholds() -> String {
    let numbers = r#"<Number name="box_threshold" toName="image"/><Number name="text_threshold" toName="image"/>"#;
    SHAPES_CONFIG.replace(
        "</View>\n  <Header>R",
        &format!("</View>{numbers}\n  <Header>R"),
    )
}

/// The request of a prompt with a threshold.
fn request_with_threshold(prompt: &str, threshold: (&str, f64)) -> Value {
    let mut request = prompt_request(&config_with_thresholds(), &data_uri(SHAPES), prompt);
    let (name, value) = threshold;
    let number = json!({"type": "number", "from_name": name, "to_name": "image", "value": {"number": value}});
    let context = request["params"]["context"]["result"]
        .as_array_mut()
        .unwrap();
    context.push(number);
    request
}

/// How often each stage was computed so far.
async fn cache_misses(app: &Router) -> impl Fn(&str) -> u64 {
    cache_counts(app, "misses").await
}

/// The number of `hits` or `misses` of the cache of each stage so far.
pub async fn cache_counts(app: &Router, what: &'static str) -> impl Fn(&str) -> u64 {
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    move |stage: &str| {
        let start = format!("groundling_store_{what}_total{{stage=\"{stage}\"}} ");
        let mut lines = text.lines();
        let number = lines.find_map(|line| line.strip_prefix(&start)?.parse().ok());
        number.unwrap_or_else(|| panic!("/metrics has no {start}:\n{text}"))
    }
}

#[tokio::test]
async fn each_stage_is_computed_once_for_the_same_input() {
    let app = app_with(&[]);
    let request = request_with_threshold("red circle. blue star.", ("box_threshold", 0.3));
    let first = post(&app, "/predict", &request).await;
    let before = cache_misses(&app).await;
    let counts = [
        "image_features",
        "text_features",
        "queries",
        "image_embeddings",
    ]
    .map(&before);
    assert_eq!(counts, [1, 1, 1, 1]);
    assert_eq!(before("masks"), 2);

    // other thresholds: only the masks of new boxes are computed
    for threshold in [("box_threshold", 0.31), ("text_threshold", 0.2)] {
        let again = post(
            &app,
            "/predict",
            &request_with_threshold("red circle. blue star.", threshold),
        )
        .await;
        assert_eq!(
            types_and_labels(regions(&again)),
            types_and_labels(regions(&first))
        );
    }
    let low = request_with_threshold("red circle. blue star.", ("box_threshold", 0.01));
    let more = post(&app, "/predict", &low).await;
    assert!(types_and_labels(regions(&more)).len() > types_and_labels(regions(&first)).len());
    let after = cache_misses(&app).await;
    for stage in [
        "image_features",
        "text_features",
        "queries",
        "image_embeddings",
    ] {
        assert_eq!(after(stage), 1, "{stage}");
    }
    assert!(after("masks") > 2);

    // another prompt: the results of the image are reused
    let other = request_with_threshold("green square", ("box_threshold", 0.3));
    post(&app, "/predict", &other).await;
    let after = cache_misses(&app).await;
    assert_eq!((after("image_features"), after("image_embeddings")), (1, 1));
    assert_eq!((after("text_features"), after("queries")), (2, 2));

    // another image: the results of the prompt are reused
    let mut other = image::load_from_memory(SHAPES).unwrap().into_rgb8();
    other.put_pixel(0, 0, image::Rgb([1, 2, 3]));
    let mut png = std::io::Cursor::new(vec![]);
    other.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let request = prompt_request(SHAPES_CONFIG, &data_uri(png.get_ref()), "green square");
    post(&app, "/predict", &request).await;
    let after = cache_misses(&app).await;
    assert_eq!((after("image_features"), after("text_features")), (2, 2));
}

#[tokio::test]
async fn a_click_after_a_prompt_runs_only_the_mask_decoder() {
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
    let after = cache_misses(&app).await;
    assert_eq!((after("image_embeddings"), after("masks")), (1, 2));
    // the repeated click computes nothing
    post(&app, "/predict", &click).await;
    assert_eq!(cache_misses(&app).await("masks"), 2);
}
