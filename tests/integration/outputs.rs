//! Which controls get regions.

use serde_json::{Value, json};

use crate::support::{
    SHAPES, app, app_with, data_uri, payload, post, prompt_request, recorded, regions,
};

const LABELS: &str = "<Label value='Red Circle'/><Label value='Blue Star'/>";

/// A config with controls of every kind.
fn config() -> String {
    let controls = [
        ("RectangleLabels", "boxes"),
        ("BrushLabels", "masks"),
        ("PolygonLabels", "outlines"),
        ("EllipseLabels", "ellipses"),
        ("KeyPointLabels", "points"),
    ];
    let controls =
        controls.map(|(tag, name)| format!("<{tag} name='{name}' toName='image'>{LABELS}</{tag}>"));
    format!(
        "<View><Image name='image' value='$image'/><TextArea name='prompt' toName='image'/>{}</View>",
        controls.concat()
    )
}

/// The names of the controls of the regions, sorted.
fn names(regions: &Value) -> Vec<&str> {
    let regions = regions.as_array().unwrap().iter();
    let mut names: Vec<&str> = regions.map(|r| r["from_name"].as_str().unwrap()).collect();
    names.sort_unstable();
    names
}

/// The regions of a prompt in a project with these `extra_params`, and the model version.
async fn predict(flags: &[&str], extra_params: &Value, config: &str) -> (Value, String) {
    let app = app_with(flags);
    let mut setup = payload("setup");
    setup["project"] = json!("7.1");
    setup["schema"] = json!(config);
    setup["extra_params"] = extra_params.clone();
    let (_, answer) = post(&app, "/setup", &setup).await;
    let mut body = prompt_request(config, &data_uri(SHAPES), "red circle");
    body["project"] = json!("7.1");
    let answer_of_prompt = post(&app, "/predict", &body).await;
    let version = answer["model_version"].as_str().unwrap().to_owned();
    (regions(&answer_of_prompt).clone(), version)
}

#[tokio::test]
async fn ellipses_and_points_get_regions_only_if_they_are_named() {
    let nothing = json!(null);
    let (usual, version) = predict(&[], &nothing, &config()).await;
    assert_eq!(names(&usual), ["boxes", "masks", "outlines"]);
    // such controls change nothing, not even the model version
    let without: String = config()
        .replace("<EllipseLabels name='ellipses'", "<Ellipse name='ellipses'")
        .replace("</EllipseLabels>", "</Ellipse>");
    let (same, same_version) = predict(&[], &nothing, &without).await;
    assert_eq!(
        (names(&same), same_version),
        (names(&usual), version.clone())
    );

    let wanted = json!({"outputs": ["points", "EllipseLabels", "boxes"]});
    let (found, other_version) = predict(&[], &wanted, &config()).await;
    assert_eq!(names(&found), ["boxes", "ellipses", "points"]);
    assert_ne!(other_version, version);
    let of = |name: &str| {
        let mut found = found.as_array().unwrap().iter();
        &found.find(|region| region["from_name"] == name).unwrap()["value"]
    };
    let number = |value: &Value, key: &str| value[key].as_f64().unwrap();
    let (rectangle, ellipse, point) = (of("boxes"), of("ellipses"), of("points"));
    assert_eq!(ellipse["ellipselabels"], json!(["Red Circle"]));
    assert_eq!(point["keypointlabels"], json!(["Red Circle"]));
    let centre = number(rectangle, "x") + number(rectangle, "width") / 2.0;
    for found in [ellipse, point] {
        assert!(
            (number(found, "x") - centre).abs() < 2.0,
            "{found} {rectangle}"
        );
    }
    // the object is a circle in a picture of 4:3
    let radii = (
        number(ellipse, "radiusX") * 6.4,
        number(ellipse, "radiusY") * 4.8,
    );
    assert!((radii.0 / radii.1 - 1.0).abs() < 0.15, "{ellipse}");
    let width = number(rectangle, "width") * 6.4;
    assert!(
        (2.0 * radii.0 / width - 1.0).abs() < 0.15,
        "{ellipse} {rectangle}"
    );
}

#[tokio::test]
async fn outputs_are_a_setting_of_the_server_and_of_the_project() {
    let nothing = json!(null);
    let (found, _) = predict(&["--outputs", "masks"], &nothing, &config()).await;
    assert_eq!(names(&found), ["masks"]);
    let project = json!({"outputs": "boxes, polygonlabels"});
    let (found, _) = predict(&["--outputs", "masks"], &project, &config()).await;
    assert_eq!(names(&found), ["boxes", "outlines"]);
}

#[tokio::test]
async fn outputs_that_the_config_does_not_have_are_named() {
    let app = app_with(&["--outputs", "bitmask, mask"]);
    let body = prompt_request(&config(), &data_uri(SHAPES), "red circle");
    let (status, answer) = post(&app, "/predict", &body).await;
    let error = answer["error"].as_str().unwrap_or_default();
    assert!(status.is_client_error(), "{answer}");
    assert!(
        error.contains("\"bitmask\"") && error.contains("\"outlines\""),
        "{error}"
    );
}

#[tokio::test]
async fn smart_clicks_are_answered_as_before_with_a_control_for_points() {
    let mut body = prompt_request("", "", "");
    body["label_config"] = json!(config());
    body["tasks"][0]["data"]["image"] = json!(data_uri(SHAPES));
    body["params"]["context"] = recorded("context_keypoint")["context"].clone();
    let context = &mut body["params"]["context"]["result"][0];
    context["from_name"] = json!("points");
    context["value"]["keypointlabels"] = json!(["Red Circle"]);
    let answer = post(&app(), "/predict", &body).await;
    assert_eq!(names(regions(&answer)), ["masks"]);
}

#[tokio::test]
async fn holes_are_filled_only_if_the_settings_say_so() {
    let config = config().replace("Red Circle", "Purple Ring");
    let area = async |flags: &[&str]| {
        let app = app_with(&[&["--outputs", "masks"], flags].concat());
        let body = prompt_request(&config, &data_uri(SHAPES), "purple ring");
        let answer = post(&app, "/predict", &body).await;
        let bytes = regions(&answer)[0]["value"]["rle"].as_array().unwrap();
        let bytes: Vec<u8> = bytes.iter().map(|b| b.as_u64().unwrap() as u8).collect();
        let pixels = crate::brush_rle_decoder::decode(&bytes);
        let set = pixels.chunks(4).filter(|pixel| pixel[0] == 255).count();
        let version = answer.1["results"][0]["model_version"].clone();
        (set, version.as_str().unwrap().to_owned())
    };
    let (ring, version) = area(&[]).await;
    assert!(!version.contains("holes"));
    // the hole of the ring has about 40 % of its area
    let (same, _) = area(&["--fill-holes", "10"]).await;
    assert_eq!(same, ring);
    let (disc, version) = area(&["--fill-holes", "90"]).await;
    assert!(disc as f32 > 1.2 * ring as f32, "{ring} {disc}");
    assert!(version.contains(" holes=90 "), "{version}");
    let (whole, version) = area(&["--drop-islands", "50"]).await;
    assert!(
        whole <= ring && version.contains(" islands=50 "),
        "{version}"
    );
}
