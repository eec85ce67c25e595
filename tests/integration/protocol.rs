//! Label Studio's capability protocol: a client that behaves as its editor does.

use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};

use crate::scheduling::{keep_models_busy, wait_until};
use crate::support::{SHAPES, app_with, data_uri, post, prompt_request, state_with};

const CONFIG: &str = r#"<View><Image name="image" value="$image"/>
    <BitmaskLabels name="mask" toName="image"><Label value="Thing"/></BitmaskLabels></View>"#;

/// A request with this context. Its task has the picture of shapes.
fn request(context: &Value) -> Value {
    let mut body = prompt_request("", "", "");
    body["label_config"] = json!(CONFIG);
    body["tasks"][0]["data"]["image"] = json!(data_uri(SHAPES));
    body["params"]["context"] = context.clone();
    body
}

/// A click, in percent of the picture.
fn point(x: f64, y: f64, positive: bool) -> Value {
    json!({"type": "keypointlabels", "value": {"x": x, "y": y, "positive": positive}})
}

/// The result of the only prediction in an answer.
async fn result(app: &axum::Router, context: &Value) -> Vec<Value> {
    let (status, answer) = post(app, "/predict", &request(context)).await;
    assert!(status.is_success(), "{answer}");
    assert_eq!(answer["results"].as_array().unwrap().len(), 1);
    let result = &answer["results"][0];
    assert!(
        result["model_version"]
            .as_str()
            .is_some_and(|version| !version.is_empty())
    );
    result["result"].as_array().unwrap().clone()
}

/// The mask of an answer: the pixels whose red channel is above 127.
fn mask(result: &[Value]) -> image::GrayImage {
    assert_eq!(result.len(), 1, "{result:?}");
    assert_eq!(result[0]["type"], "bitmask");
    let value = &result[0]["value"];
    let url = value["imageDataURL"].as_str().unwrap();
    let data = url.strip_prefix("data:image/png;base64,").unwrap();
    let png = base64::engine::general_purpose::STANDARD
        .decode(data)
        .unwrap();
    let decoded = image::load_from_memory(&png).unwrap().into_rgb8();
    assert_eq!((decoded.width(), decoded.height()), (640, 480));
    assert_eq!(
        (&value["width"], &value["height"]),
        (&json!(640), &json!(480))
    );
    image::GrayImage::from_fn(640, 480, |x, y| {
        image::Luma([u8::from(decoded.get_pixel(x, y)[0] > 127)])
    })
}

fn area(mask: &image::GrayImage) -> usize {
    mask.pixels().filter(|pixel| pixel[0] == 1).count()
}

#[tokio::test]
async fn capabilities_need_neither_the_image_nor_the_models() {
    // models that can never be loaded
    let app = app_with(&["--detector", "/nowhere/a", "--segmenter", "/nowhere/b"]);
    let mut body = request(&json!({"event": "capabilities"}));
    body["tasks"][0]["data"] = json!({});
    let (status, answer) = post(&app, "/predict", &body).await;
    assert!(status.is_success(), "{answer}");
    let item = &answer["results"][0]["result"][0];
    assert_eq!(
        (&item["type"], &item["origin"]),
        (&json!("capabilities"), &json!("manual"))
    );
    assert!(item["id"].as_str().is_some_and(|id| !id.is_empty()));
    let value = &item["value"];
    assert_eq!(value["prompts"], json!(["point", "box"]));
    let tags: Vec<&str> = value["targets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|target| target["tag"].as_str().unwrap())
        .collect();
    assert_eq!(
        tags,
        [
            "BitmaskLabels",
            "RectangleLabels",
            "PolygonLabels",
            "VectorLabels"
        ]
    );
    assert_eq!(value["model_info"]["name"], "groundling");
    let boxes_only = app_with(&["--segmenter", "none"]);
    let item = &result(&boxes_only, &json!({"event": "capabilities"})).await[0];
    assert_eq!(item["value"]["prompts"], json!([]));
}

#[tokio::test]
async fn clicks_without_names_give_a_white_mask_of_one_object() {
    let app = app_with(&[]);
    let click = json!({"result": [point(79.0, 78.0, true)]});
    let circle = mask(&result(&app, &click).await);
    assert_eq!(circle.get_pixel(505, 374)[0], 1, "the click is not inside");
    assert_eq!(circle.get_pixel(20, 20)[0], 0);
    // a rectangle
    let rectangle = json!({"type": "rectanglelabels",
        "value": {"x": 64.5, "y": 59.0, "width": 29.0, "height": 38.5}});
    let boxed = mask(&result(&app, &json!({"result": [rectangle]})).await);
    let common = circle
        .pixels()
        .zip(boxed.pixels())
        .filter(|(a, b)| a[0] == 1 && b[0] == 1);
    assert!(common.count() * 10 > 7 * area(&boxed));
    // all points belong to one object, and a negative one is negative
    let more = json!({"result": [point(79.0, 78.0, true), point(85.0, 70.0, false)]});
    let smaller = mask(&result(&app, &more).await);
    let both_positive = json!({"result": [point(79.0, 78.0, true), point(85.0, 70.0, true)]});
    let larger = mask(&result(&app, &both_positive).await);
    assert!(smaller != larger);
    assert_eq!(larger.get_pixel(544, 336)[0], 1);
    // without a positive mark there is no object
    let negative = json!({"result": [point(79.0, 78.0, false)]});
    assert!(result(&app, &negative).await.is_empty());
}

#[tokio::test]
async fn an_unknown_event_has_an_empty_answer() {
    let app = app_with(&[]);
    for event in ["track", "track_progress", "track_cancel", ""] {
        assert!(result(&app, &json!({ "event": event })).await.is_empty());
    }
}

#[tokio::test]
async fn a_click_after_prewarm_uses_its_embedding() {
    let state = state_with(&[]);
    let app = groundling::http::router(state.clone());
    let prewarm = json!({"event": "prewarm"});
    let ack = result(&app, &prewarm).await;
    assert_eq!(ack[0]["type"], "prewarm_ack");
    assert_eq!(ack[0]["value"]["status"], "ok");
    // the work goes on behind: a repeated request says when it is done
    let done = async {
        loop {
            let ack = result(&app, &prewarm).await;
            if ack[0]["value"]["cached"] == json!([0]) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), done)
        .await
        .unwrap();
    let embeddings = |state: &groundling::http::AppState| {
        let metrics = state.preannotator.render_metrics().unwrap();
        let name = "groundling_store_misses_total{stage=\"image_embeddings\"}";
        let line = metrics.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("{metrics}")).to_owned()
    };
    let before = embeddings(&state);
    mask(&result(&app, &json!({"result": [point(79.0, 78.0, true)]})).await);
    assert_eq!(
        embeddings(&state),
        before,
        "the embedding was computed again"
    );
    let released = result(&app, &json!({"event": "release"})).await;
    assert_eq!(released[0]["value"], json!({"status": "released"}));
}

#[tokio::test]
async fn an_aborted_click_costs_nothing_further() {
    let state = state_with(&[]);
    let app = groundling::http::router(state.clone());
    mask(&result(&app, &json!({"result": [point(79.0, 78.0, true)]})).await);
    let (release, blocking) = keep_models_busy(&state);
    // the editor aborts a request when the next point comes
    for i in 0..20 {
        let app = app.clone();
        let clicked = tokio::spawn(async move {
            let context = json!({"result": [point(40.0 + f64::from(i), 30.0, true)]});
            post(&app, "/predict", &request(&context)).await
        });
        wait_until("the click waits", || state.preannotator.waiting() == 1).await;
        clicked.abort();
        wait_until("the click has left", || state.preannotator.waiting() == 0).await;
    }
    let last = tokio::spawn({
        let app = app.clone();
        async move { result(&app, &json!({"result": [point(79.0, 77.0, true)]})).await }
    });
    wait_until("the last click waits", || state.preannotator.waiting() == 1).await;
    let steps = state.preannotator.stages().scheduler().waiting();
    assert!(
        steps[0] <= 2,
        "steps of aborted clicks still wait: {steps:?}"
    );
    drop(release);
    blocking.await.unwrap();
    mask(&last.await.unwrap());
}
