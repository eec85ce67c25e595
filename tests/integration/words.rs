//! What prompts and labels mean: negative phrases, bullets, prompts and thresholds of single labels, labels of a task.

use serde_json::{Value, json};

use crate::support::{
    SHAPES, SHAPES_CONFIG, app, app_with, batch_request, data_uri, post, prompt_request, regions,
    types_and_labels,
};

/// The labels of the rectangles that a prompt finds, sorted; the empty text for one without a label.
async fn rectangles(config: &str, prompt: &str) -> Vec<String> {
    let body = prompt_request(config, &data_uri(SHAPES), prompt);
    let answer = post(&app(), "/predict", &body).await;
    labels(regions(&answer))
}

fn labels(regions: &Value) -> Vec<String> {
    types_and_labels(regions)
        .into_iter()
        .filter(|(kind, _)| kind == "rectanglelabels")
        .map(|(_, label)| label)
        .collect()
}

#[tokio::test]
async fn a_negative_phrase_drops_its_objects() {
    let both = rectangles(SHAPES_CONFIG, "red circle. blue star.").await;
    assert_eq!(both, ["Blue Star", "Red Circle"]);
    let one = rectangles(SHAPES_CONFIG, "red circle. -blue star.").await;
    assert_eq!(one, ["Red Circle"]);
    let list = rectangles(SHAPES_CONFIG, "- red circle\n- blue star").await;
    assert_eq!(list, both);
}

#[tokio::test]
async fn a_prompt_of_negative_phrases_is_an_error() {
    let body = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "-cup. -saucer");
    let (status, answer) = post(&app(), "/predict", &body).await;
    let error = answer["error"].as_str().unwrap_or_default();
    assert!(status.is_client_error(), "{status}");
    assert!(
        error.contains("-cup. -saucer") && error.contains("what to find"),
        "{error}"
    );
}

/// A config with rectangles for these labels.
fn config(labels: &str) -> String {
    format!(
        r#"<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>
        <RectangleLabels name="label" toName="image">{labels}</RectangleLabels></View>"#
    )
}

#[tokio::test]
async fn a_label_can_have_a_prompt() {
    let config = config(r#"<Label value="Sun" prompt="red circle"/><Label value="Blue Star"/>"#);
    let batch = batch_request(&config, &[&data_uri(SHAPES)]);
    let answer = post(&app(), "/predict", &batch).await;
    assert_eq!(labels(regions(&answer)), ["Blue Star", "Sun"]);
    assert_eq!(rectangles(&config, "red circle").await, ["Sun"]);
}

#[tokio::test]
async fn a_threshold_of_a_label_holds_for_that_label_only() {
    let find = async |first: &str, flags: &[&str]| {
        let labels = format!(r#"<Label value="Red Circle" {first}/><Label value="Blue Star"/>"#);
        let body = prompt_request(
            &config(&labels),
            &data_uri(SHAPES),
            "red circle. blue star.",
        );
        let answer = post(&app_with(flags), "/predict", &body).await;
        self::labels(regions(&answer))
    };
    let both = ["Blue Star", "Red Circle"];
    assert_eq!(find("", &[]).await, both);
    assert_eq!(find(r#"score_threshold="0.999""#, &[]).await, ["Blue Star"]);
    // the others keep the threshold of the settings
    let strict = ["--box-threshold", "0.999"];
    assert_eq!(
        find(r#"score_threshold="0.2""#, &strict).await,
        ["Red Circle"]
    );
    // a label above its threshold is not crowded out by one below
    let limited = ["--max-detections", "1"];
    assert_eq!(
        find(r#"score_threshold="0.999""#, &limited).await,
        ["Blue Star"]
    );
}

#[tokio::test]
async fn labels_may_come_from_the_data_of_each_task() {
    let config = r#"<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>
        <RectangleLabels name="label" toName="image" value="$labels"/></View>"#;
    let data = |labels: Value| json!({"image": data_uri(SHAPES), "labels": labels});
    let mut batch = batch_request(config, &[&data_uri(SHAPES), &data_uri(SHAPES)]);
    batch["tasks"][0]["data"] = data(json!([{"value": "Red Circle", "background": "red"}]));
    batch["tasks"][1]["data"] = data(json!([
        {"value": "Sun", "alias": "sun", "predicted_values": "red circle"}, {"value": "Blue Star"}
    ]));
    let (_, answer) = post(&app(), "/predict", &batch).await;
    assert_eq!(labels(&answer["results"][0]["result"]), ["Red Circle"]);
    assert_eq!(
        labels(&answer["results"][1]["result"]),
        ["Blue Star", "sun"]
    );
    // the version belongs to the project, so it does not depend on the task
    let version = |i: usize| &answer["results"][i]["model_version"];
    assert_eq!(version(0), version(1));

    batch["tasks"][1]["data"] = json!({"image": data_uri(SHAPES)});
    let (_, answer) = post(&app(), "/predict", &batch).await;
    assert_eq!(labels(&answer["results"][0]["result"]), ["Red Circle"]);
    let error = answer["results"][1]["error"].as_str().unwrap_or_default();
    assert!(error.contains("no <Label> to search for"), "{answer}");

    let mut typed = prompt_request(config, &data_uri(SHAPES), "red circle");
    typed["tasks"][0]["data"] = data(json!([{"value": "Red Circle"}]));
    let answer = post(&app(), "/predict", &typed).await;
    assert_eq!(labels(regions(&answer)), ["Red Circle"]);
}

#[tokio::test]
async fn tags_that_groundling_does_not_use_change_nothing() {
    let config = r#"<View className="wide">
        <Style>.wide { color: red } .prompt::before { content: "a < b" }</Style>
        <Header value="Find"/><Header>Things</Header>
        <Collapse><Panel value="Prompt">
          <View className="my prompt" visibleWhen="region-selected"><TextArea name="words" toName="image"/></View>
        </Panel></Collapse>
        <Image name="image" value="$image" zoom="true"/>
        <View style="display: flex"><RectangleLabels name="label" toName="image" className="tall">
          <View><Filter name="filter" toName="label"/><Label value="Red Circle" hotkey="1" background="red"/></View>
        </RectangleLabels></View>
        <Choices name="quality" toName="image" perRegion="true"><Choice value="Red"/><Choice value="Good"/></Choices>
        <Rating name="stars" toName="image"/><TextArea name="notes" toName="image" perRegion="true"/>
        <Taxonomy name="kind" toName="image"><Choice value="Blue Star"/></Taxonomy>
        <Relations><Relation value="on top of"/></Relations></View>"#
        .replace("a < b", "a &lt; b");
    let mut body = prompt_request(&config, &data_uri(SHAPES), "red circle");
    body["params"]["context"]["result"][0]["from_name"] = json!("words");
    let answer = post(&app(), "/predict", &body).await;
    assert_eq!(labels(regions(&answer)), ["Red Circle"]);
    let batch = batch_request(&config, &[&data_uri(SHAPES)]);
    let answer = post(&app(), "/predict", &batch).await;
    assert_eq!(labels(regions(&answer)), ["Red Circle"]);
    let types = types_and_labels(regions(&answer));
    assert!(
        types.iter().all(|(kind, _)| kind == "rectanglelabels"),
        "{types:?}"
    );
}
