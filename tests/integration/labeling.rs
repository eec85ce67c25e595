//! Labeling configs: which controls get regions, how labels match phrases, and thresholds in the config.

use serde_json::{Value, json};

use crate::support::{
    SHAPES, app, app_with, batch_request, data_uri, payload, post, prompt_request, regions,
};

const LABELS: &str = "<Label value='Red Circle'/><Label value='Blue Star'/>";

/// A config with an image, a prompt and these controls.
fn config(controls: &str) -> String {
    format!(
        "<View><Image name='image' value='$image'/><TextArea name='prompt' toName='image'/>{controls}</View>"
    )
}

/// The regions of a prompt, as [`summary`] describes them.
async fn regions_of_prompt(config: &str, prompt: &str) -> Vec<String> {
    let request = prompt_request(config, &data_uri(SHAPES), prompt);
    let answer = post(&app(), "/predict", &request).await;
    summary(regions(&answer))
}

/// `from_name type label` of each region, sorted. The label is `-` if the region has none.
fn summary(regions: &Value) -> Vec<String> {
    let lines = regions.as_array().unwrap().iter().map(|region| {
        let kind = region["type"].as_str().unwrap();
        let value = &region["value"];
        let label = value[kind][0].as_str().unwrap_or("-");
        format!("{} {kind} {label}", region["from_name"].as_str().unwrap())
    });
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn each_control_gets_regions_of_its_own_type() {
    let one = |tag: &str| config(&format!("<{tag} name='c' toName='image'>{LABELS}</{tag}>"));
    for (tag, kind) in [
        ("RectangleLabels", "rectanglelabels"),
        ("BrushLabels", "brushlabels"),
        ("PolygonLabels", "polygonlabels"),
    ] {
        let found = regions_of_prompt(&one(tag), "red circle").await;
        assert_eq!(found, [format!("c {kind} Red Circle")]);
    }
    let polygon = prompt_request(&one("PolygonLabels"), &data_uri(SHAPES), "blue star");
    let answer = post(&app(), "/predict", &polygon).await;
    let points = regions(&answer)[0]["value"]["points"].as_array().unwrap();
    // a star has ten corners; the outline of its mask has some more
    assert!((8..60).contains(&points.len()), "{}", points.len());
    let coarse = app_with(&["--polygon-tolerance", "10"]);
    let answer = post(&coarse, "/predict", &polygon).await;
    let fewer = regions(&answer)[0]["value"]["points"].as_array().unwrap();
    assert!(fewer.len() < points.len());
}

#[tokio::test]
async fn a_shape_with_a_separate_labels_tag_gets_its_label_from_that_tag() {
    let controls = format!(
        "<Labels name='l' toName='image'>{LABELS}</Labels><Rectangle name='r' toName='image'/>
         <Brush name='b' toName='image'/><Polygon name='p' toName='image'/>"
    );
    let found = regions_of_prompt(&config(&controls), "red circle").await;
    let pair = "l labels Red Circle";
    assert_eq!(
        found,
        [
            "b brush -",
            pair,
            pair,
            pair,
            "p polygon -",
            "r rectangle -"
        ]
    );
}

#[tokio::test]
async fn a_phrase_matches_a_label_by_value_alias_predicted_values_or_hint() {
    let label = |attributes: &str| {
        let controls = format!(
            "<RectangleLabels name='c' toName='image'><Label {attributes}/></RectangleLabels>"
        );
        config(&controls)
    };
    for (attributes, result) in [
        ("value='Sun' alias='red circle'", "red circle"),
        ("value='Sun' predicted_values='moon, red circle'", "Sun"),
        ("value='Sun' hint='Red circles'", "Sun"),
        ("value='RED_CIRCLES'", "RED_CIRCLES"),
        ("value='Moon'", "-"),
    ] {
        let found = regions_of_prompt(&label(attributes), "Red Circle").await;
        assert_eq!(
            found,
            [format!("c rectanglelabels {result}")],
            "{attributes}"
        );
        let batch = batch_request(&label(attributes), &[&data_uri(SHAPES)]);
        let answer = post(&app(), "/predict", &batch).await;
        // in a batch the predicted values are part of the prompt, and every region has a label
        let found = summary(regions(&answer));
        assert!(
            found.iter().all(|region| !region.ends_with('-')),
            "{found:?}"
        );
        if attributes.contains("predicted_values") {
            assert_eq!(found, ["c rectanglelabels Sun"]);
        }
    }
}

#[tokio::test]
async fn with_several_images_a_prompt_applies_to_the_image_of_its_text_area() {
    let side = |name: &str| {
        format!(
            "<Image name='{name}' value='${name}_url'/><TextArea name='{name}_prompt' toName='{name}'/>
             <RectangleLabels name='{name}_box' toName='{name}'>{LABELS}</RectangleLabels>"
        )
    };
    let config = format!(
        "<View>\n<!-- <Image/> -->{}<View>{}</View></View>",
        side("left"),
        side("right")
    );
    let mut request = payload("predict_interactive_prompt");
    request["label_config"] = json!(config);
    request["tasks"][0]["data"] = json!({"right_url": data_uri(SHAPES)});
    let prompt = |to: &str| {
        json!({"type": "textarea", "from_name": format!("{to}_prompt"), "to_name": to,
               "value": {"text": ["red circle"]}})
    };
    request["params"]["context"]["result"] = json!([prompt("right")]);
    let answer = post(&app(), "/predict", &request).await;
    assert_eq!(
        summary(regions(&answer)),
        ["right_box rectanglelabels Red Circle"]
    );
    assert_eq!(regions(&answer)[0]["to_name"], "right");
    request["params"]["context"]["result"] = json!([prompt("left")]);
    let (_, body) = post(&app(), "/predict", &request).await;
    let error = body["error"].as_str().unwrap();
    assert!(error.starts_with("task 71: "), "{error}");
    assert!(error.contains("no text under \"left_url\""), "{error}");
    // a batch covers both images
    let mut batch = batch_request(&config, &[""]);
    let image = data_uri(SHAPES);
    batch["tasks"][0]["data"] = json!({"right_url": image, "left_url": image});
    let answer = post(&app(), "/predict", &batch).await;
    assert_eq!(summary(regions(&answer)).len(), 4);
}

#[tokio::test]
async fn labels_that_need_several_passes_are_all_searched() {
    // the demo model is unreliable with many unknown words, so the known labels are in the last pass
    let mut labels: Vec<String> = (0..150)
        .map(|i| format!("<Label value='unheard of thing number {i}'/>"))
        .collect();
    labels.push(LABELS.to_owned());
    let controls = format!(
        "<RectangleLabels name='c' toName='image'>{}</RectangleLabels>",
        labels.concat()
    );
    let request = batch_request(&config(&controls), &[&data_uri(SHAPES)]);
    let answer = post(&app(), "/predict", &request).await;
    let found = summary(regions(&answer));
    let known = [
        "c rectanglelabels Red Circle",
        "c rectanglelabels Blue Star",
    ];
    assert!(
        found.iter().any(|region| known.contains(&region.as_str())),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_threshold_in_the_task_overrides_the_default_of_the_config() {
    let control = format!("<RectangleLabels name='c' toName='image'>{LABELS}</RectangleLabels>");
    let number = "<Number name='box_threshold' toName='image' defaultValue='0.99'/>";
    let strict = config(&format!("{control}{number}"));
    assert!(regions_of_prompt(&strict, "red circle").await.is_empty());
    // a lower threshold in a draft of the task
    let mut request = prompt_request(&strict, &data_uri(SHAPES), "red circle");
    let value = |threshold: f32| json!({"type": "number", "from_name": "box_threshold", "to_name": "image", "value": {"number": threshold}});
    request["tasks"][0]["drafts"] = json!([{"result": [value(0.2)]}]);
    let answer = post(&app(), "/predict", &request).await;
    assert_eq!(summary(regions(&answer)), ["c rectanglelabels Red Circle"]);
    // a changed threshold repeats the prediction with the typed prompt
    let typed = request["params"]["context"]["result"][0].clone();
    request["tasks"][0]["drafts"] = json!([{"result": [typed]}]);
    request["params"]["context"]["result"] = json!([value(0.25)]);
    let answer = post(&app(), "/predict", &request).await;
    assert_eq!(summary(regions(&answer)), ["c rectanglelabels Red Circle"]);
    request["params"]["context"]["result"] = json!([value(0.99)]);
    assert!(summary(regions(&post(&app(), "/predict", &request).await)).is_empty());
}

#[tokio::test]
async fn a_label_can_have_its_own_score_threshold() {
    let of_label = config(
        "<RectangleLabels name='c' toName='image'><Label value='Red Circle' score_threshold='0.999'/><Label value='Blue Star'/></RectangleLabels>",
    );
    let found = regions_of_prompt(&of_label, "red circle. blue star").await;
    assert_eq!(found, ["c rectanglelabels Blue Star"]);
}

#[tokio::test]
async fn each_rectangle_of_a_smart_tool_gives_a_mask() {
    let controls = format!("<PolygonLabels name='p' toName='image'>{LABELS}</PolygonLabels>");
    let mut request = prompt_request(&config(&controls), &data_uri(SHAPES), "x");
    let rectangle = |x: f32, y: f32| {
        json!({"type": "rectanglelabels", "to_name": "image", "from_name": "r", "original_width": 640,
               "value": {"x": x, "y": y, "width": 28.0, "height": 38.0, "rotation": 0, "rectanglelabels": ["Blue Star"]}})
    };
    request["params"]["context"]["result"] = json!([rectangle(64.7, 59.4), rectangle(5.0, 5.0)]);
    let answer = post(&app(), "/predict", &request).await;
    let found = regions(&answer).as_array().unwrap();
    assert!(found.len() >= 2, "{found:?}");
    assert!(
        found
            .iter()
            .all(|r| r["value"]["polygonlabels"] == json!(["Blue Star"]))
    );
    // the image is rotated in the editor, which is not supported: no regions rather than wrong ones
    let mut rotated = rectangle(1.0, 1.0);
    rotated["image_rotation"] = json!(90);
    request["params"]["context"]["result"] = json!([rotated]);
    assert_eq!(
        *regions(&post(&app(), "/predict", &request).await),
        json!([])
    );
}
