//! Image tags with several pages.

use serde_json::{Value, json};

use crate::support::{SHAPES, app, batch_request, data_uri, post, prompt_request, regions};

const CONFIG: &str = r#"<View>
  <Image name="image" valueList="$pages"/>
  <TextArea name="prompt" toName="image" perItem="true"/>
  <RectangleLabels name="label" toName="image"><Label value="Red Circle"/><Label value="Blue Star"/></RectangleLabels>
  <BrushLabels name="label2" toName="image"><Label value="Red Circle"/><Label value="Blue Star"/></BrushLabels>
</View>"#;

/// An empty page, then the picture of shapes, then its mirror image.
fn pages() -> Value {
    let shapes = image::load_from_memory(SHAPES).unwrap().into_rgb8();
    let png = |picture: &image::RgbImage| {
        let mut file = std::io::Cursor::new(vec![]);
        picture
            .write_to(&mut file, image::ImageFormat::Png)
            .unwrap();
        data_uri(file.get_ref())
    };
    let empty = image::RgbImage::from_pixel(64, 48, image::Rgb([90, 90, 90]));
    let mirrored = image::imageops::flip_horizontal(&shapes);
    json!([png(&empty), png(&shapes), png(&mirrored)])
}

fn request(mut body: Value) -> Value {
    body["tasks"][0]["data"] = json!({"pages": pages()});
    body
}

/// The page and the left edge of each rectangle, in order.
fn rectangles(regions: &Value) -> Vec<(u64, u64)> {
    let rectangles = regions.as_array().unwrap().iter();
    rectangles
        .filter(|region| region["type"] == "rectanglelabels")
        .map(|region| {
            let page = region["item_index"].as_u64().unwrap();
            (page, region["value"]["x"].as_f64().unwrap() as u64)
        })
        .collect()
}

#[tokio::test]
async fn a_prompt_searches_the_page_that_is_shown() {
    let mut body = request(prompt_request(CONFIG, "", "red circle"));
    body["params"]["context"]["result"][0]["item_index"] = json!(2);
    let answer = post(&app(), "/predict", &body).await;
    let found = rectangles(regions(&answer));
    assert_eq!(found.len(), 1);
    // mirrored, the circle is on the left
    assert!(found[0].0 == 2 && found[0].1 < 20, "{found:?}");
    assert!(
        regions(&answer)
            .as_array()
            .unwrap()
            .iter()
            .all(|region| region["item_index"] == 2 && region["value"]["item_index"].is_null())
    );
    // without a number, all pages are searched: the editor does not say which one is shown
    let body = request(prompt_request(CONFIG, "", "red circle"));
    let answer = post(&app(), "/predict", &body).await;
    let found: Vec<u64> = rectangles(regions(&answer)).iter().map(|r| r.0).collect();
    assert_eq!(found, [1, 2]);
}

#[tokio::test]
async fn a_batch_searches_all_pages() {
    let body = request(batch_request(CONFIG, &[""]));
    let answer = post(&app(), "/predict", &body).await;
    let found = rectangles(regions(&answer));
    let on = |page: u64| found.iter().filter(|(other, _)| *other == page).count();
    assert!(on(0) == 0 && on(1) == 2 && on(2) == 2, "{found:?}");
}

#[tokio::test]
async fn a_click_segments_the_page_that_it_is_on() {
    let click = |page: u64, x: f64| {
        json!({"type": "keypointlabels", "from_name": "point", "to_name": "image", "item_index": page,
               "is_positive": true, "value": {"x": x, "y": 78, "width": 0.2, "keypointlabels": ["Red Circle"]}})
    };
    let mut body = request(prompt_request("", "", ""));
    body["label_config"] = json!(CONFIG);
    // the editor sends the points of all pages; the last one was just drawn
    let context = [click(1, 79.0), click(2, 21.0)];
    body["params"]["context"]["result"] = json!(context);
    let answer = post(&app(), "/predict", &body).await;
    let found = regions(&answer);
    assert_eq!(found.as_array().unwrap().len(), 1);
    assert_eq!(
        (&found[0]["type"], &found[0]["item_index"]),
        (&json!("brushlabels"), &json!(2))
    );
}

#[tokio::test]
async fn a_wrong_list_of_pages_is_named() {
    for (pages, expected) in [
        (json!(null), "no list of URLs under \"pages\""),
        (json!([]), "no list of URLs"),
        (json!(["a", {"url": "b"}]), "no list of URLs"),
        (json!(vec!["a"; 1001]), "1001 pages"),
    ] {
        let mut body = prompt_request(CONFIG, "", "red circle");
        body["tasks"][0]["data"] = json!({ "pages": pages });
        let (status, answer) = post(&app(), "/predict", &body).await;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(
            status.is_client_error() && error.contains(expected),
            "{answer}"
        );
    }
    let mut body = request(prompt_request(CONFIG, "", "red circle"));
    body["params"]["context"]["result"][0]["item_index"] = json!(7);
    let (status, answer) = post(&app(), "/predict", &body).await;
    let error = answer["error"].as_str().unwrap_or_default();
    assert!(status.is_client_error(), "{answer}");
    assert!(
        error.contains("number 7") && error.contains("3 pages"),
        "{error}"
    );
}
