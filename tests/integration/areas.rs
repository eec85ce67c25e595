//! Regions of interest and tiles: objects that the whole image hides.

use serde_json::{Value, json};

use crate::support::{
    SHAPES, app, app_with, batch_request, data_uri, payload, post, prompt_request, regions,
};

const CONFIG: &str = r#"<View>
  <RectangleLabels name="roi" toName="image"><Label value="Search here"/></RectangleLabels>
  <Image name="image" value="$image"/>
  <TextArea name="prompt" toName="image"/>
  <RectangleLabels name="label" toName="image"><Label value="Red Circle"/><Label value="Blue Star"/></RectangleLabels>
  <BrushLabels name="label2" toName="image"><Label value="Red Circle"/><Label value="Blue Star"/></BrushLabels>
</View>"#;

/// The sides of the large picture, and the place of the shapes in it.
const SIZE: (u32, u32) = (2400, 1800);
const PLACE: (u32, u32, u32, u32) = (1360, 350, 320, 240);

/// A large picture with a red circle of 80 pixels and a blue star, on the background of the small one.
fn large() -> String {
    let shapes = image::load_from_memory(SHAPES).unwrap().into_rgb8();
    let background = image::imageops::crop_imm(&shapes, 130, 0, 340, 110).to_image();
    let filter = image::imageops::FilterType::CatmullRom;
    let mut picture = image::imageops::resize(&background, SIZE.0, SIZE.1, filter);
    for (x, y, pixel) in picture.enumerate_pixels_mut() {
        let (x, y) = (x as f32 + 0.5, y as f32 + 0.5);
        if (x - 1590.0).hypot(y - 430.0) < 40.0 {
            *pixel = image::Rgb([214, 36, 46]);
        } else if is_in_star(x - 1450.0, y - 520.0, 48.0) {
            *pixel = image::Rgb([34, 83, 208]);
        }
    }
    let mut file = std::io::Cursor::new(vec![]);
    picture
        .write_to(&mut file, image::ImageFormat::Png)
        .unwrap();
    data_uri(file.get_ref())
}

/// Whether a point is inside a star with five tips around the origin, the first one at the top.
fn is_in_star(x: f32, y: f32, radius: f32) -> bool {
    let corner = |i: usize| {
        let (sin, cos) = (std::f32::consts::PI * (i as f32 / 5.0 - 0.5)).sin_cos();
        let radius = if i.is_multiple_of(2) {
            radius
        } else {
            0.42 * radius
        };
        (radius * cos, radius * sin)
    };
    // the number of edges that a ray to the right crosses is odd inside
    let crossed = (0..10).filter(|i| {
        let ((x0, y0), (x1, y1)) = (corner(*i), corner((i + 1) % 10));
        (y0 > y) != (y1 > y) && x < x0 + (y - y0) / (y1 - y0) * (x1 - x0)
    });
    !crossed.count().is_multiple_of(2)
}

/// A rectangle that was drawn with the control `roi`, around the shapes.
fn area() -> Value {
    let (x, y, width, height) = PLACE;
    let percent = |pixels: u32, of: u32| f64::from(pixels) * 100.0 / f64::from(of);
    json!({
        "id": "r1", "type": "rectanglelabels", "from_name": "roi", "to_name": "image",
        "value": {"x": percent(x, SIZE.0), "y": percent(y, SIZE.1), "width": percent(width, SIZE.0),
                  "height": percent(height, SIZE.1), "rotation": 0, "rectanglelabels": ["Search here"]}
    })
}

/// Checks that the regions are a rectangle and a mask of the circle and of the star, inside their place.
fn check_small_shapes(found: &Value) {
    let found = found.as_array().unwrap();
    let (x, y, width, height) = PLACE;
    let (left, top) = (f64::from(x), f64::from(y));
    for label in ["Red Circle", "Blue Star"] {
        let of_label = |kind: &str| {
            let mut matching = found
                .iter()
                .filter(|region| region["value"][kind][0] == label);
            let first = matching.next();
            assert!(matching.next().is_none(), "{label} twice: {found:?}");
            first.unwrap_or_else(|| panic!("no {kind} of {label}: {found:?}"))
        };
        let rectangle = of_label("rectanglelabels");
        assert_eq!(rectangle["original_width"], SIZE.0);
        let value =
            |key: &str, of: u32| rectangle["value"][key].as_f64().unwrap() * f64::from(of) / 100.0;
        let (x0, y0) = (value("x", SIZE.0), value("y", SIZE.1));
        let (w, h) = (value("width", SIZE.0), value("height", SIZE.1));
        assert!(
            x0 >= left - 2.0 && x0 + w <= left + f64::from(width) + 2.0,
            "{x0} {w}"
        );
        assert!(
            y0 >= top - 2.0 && y0 + h <= top + f64::from(height) + 2.0,
            "{y0} {h}"
        );
        // the mask fills a good part of its rectangle, and nothing outside it
        let rle = of_label("brushlabels")["value"]["rle"].as_array().unwrap();
        let bytes: Vec<u8> = rle
            .iter()
            .map(|byte| byte.as_u64().unwrap() as u8)
            .collect();
        let pixels = crate::brush_rle_decoder::decode(&bytes);
        let set = (0..)
            .zip(pixels.chunks(4))
            .filter(|(_, pixel)| pixel[0] == 255);
        let (mut inside, mut outside) = (0, 0);
        for (i, _) in set {
            let (column, row) = (f64::from(i % SIZE.0), f64::from(i / SIZE.0));
            let fits = (x0 - 10.0..x0 + w + 10.0).contains(&column)
                && (y0 - 10.0..y0 + h + 10.0).contains(&row);
            if fits { inside += 1 } else { outside += 1 }
        }
        assert!(
            f64::from(inside) > 0.2 * w * h,
            "{label}: {inside} of {w}x{h}"
        );
        assert!(outside * 10 < inside, "{label}: {outside} pixels outside");
    }
}

#[tokio::test]
async fn a_region_of_interest_finds_what_the_whole_image_hides() {
    let app = app();
    let image = large();
    let mut body = prompt_request(CONFIG, &image, "red circle. blue star.");
    let answer = post(&app, "/predict", &body).await;
    assert_eq!(
        regions(&answer),
        &json!([]),
        "the shapes are too small for the whole image"
    );
    // the editor saves what was drawn as a draft
    body["tasks"][0]["drafts"] =
        json!([{"result": [area()], "updated_at": "2026-01-01T00:00:00Z"}]);
    let answer = post(&app, "/predict", &body).await;
    check_small_shapes(regions(&answer));
    // a region of interest with nothing in it
    let mut elsewhere = area();
    elsewhere["value"]["x"] = json!(1.0);
    body["tasks"][0]["drafts"][0]["result"] = json!([elsewhere]);
    let answer = post(&app, "/predict", &body).await;
    assert_eq!(regions(&answer), &json!([]));
}

#[tokio::test]
async fn a_region_of_interest_drawn_with_the_smart_tool_searches_for_the_last_prompt() {
    let app = app_with(&[]);
    let image = large();
    let mut drawn = prompt_request(CONFIG, &image, "");
    drawn["params"]["context"]["result"] = json!([area()]);
    let answer = post(&app, "/predict", &drawn).await;
    assert_eq!(regions(&answer), &json!([]), "nothing was typed");

    let typed = prompt_request(CONFIG, &image, "red circle. blue star.");
    let other_task = {
        let mut body = typed.clone();
        body["tasks"][0]["id"] = json!(72);
        body
    };
    // the prompt is typed just after the rectangle was drawn, and the draft is not saved yet
    let answer = post(&app, "/predict", &typed).await;
    check_small_shapes(regions(&answer));
    let answer = post(&app, "/predict", &other_task).await;
    assert_eq!(
        regions(&answer),
        &json!([]),
        "the rectangle belongs to another task"
    );
    let answer = post(&app, "/predict", &drawn).await;
    check_small_shapes(regions(&answer));
}

#[tokio::test]
async fn a_batch_searches_the_regions_of_interest_of_the_annotation() {
    let mut body = batch_request(CONFIG, &[&large()]);
    body["tasks"][0]["annotations"] = json!([{"result": [area()]}]);
    let answer = post(&app(), "/predict", &body).await;
    check_small_shapes(regions(&answer));
}

#[tokio::test]
async fn a_control_named_roi_that_is_the_only_output_gets_regions() {
    let config = r#"<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>
        <RectangleLabels name="roi" toName="image"><Label value="Red Circle"/></RectangleLabels></View>"#;
    let body = prompt_request(config, &data_uri(SHAPES), "red circle");
    let answer = post(&app(), "/predict", &body).await;
    assert_eq!(regions(&answer)[0]["from_name"], "roi");
}

#[tokio::test]
async fn tiles_find_small_objects_once() {
    let image = large();
    let body = prompt_request(CONFIG, &image, "red circle. blue star.");
    // the shapes lie across the seams of some of these tiles
    for tiles in ["auto", "8x6", "6x8", "330"] {
        let app = app_with(&["--tiles", tiles]);
        let answer = post(&app, "/predict", &body).await;
        check_small_shapes(regions(&answer));
        let version = answer.1["results"][0]["model_version"].as_str().unwrap();
        assert!(version.contains(&format!(" tiles={tiles} ")), "{version}");
    }
    // a project's own setting
    let app = app_with(&[]);
    let mut body = body;
    body["project"] = json!("7.1");
    let mut setup = payload("setup");
    setup["project"] = json!("7.1");
    setup["extra_params"] = json!({"tiles": "auto"});
    post(&app, "/setup", &setup).await;
    let answer = post(&app, "/predict", &body).await;
    check_small_shapes(regions(&answer));
    // a large object is not cut into parts
    let body = prompt_request(CONFIG, &data_uri(SHAPES), "red circle. blue star.");
    let plain = post(&app_with(&[]), "/predict", &body).await;
    let tiled = post(&app_with(&["--tiles", "3x3"]), "/predict", &body).await;
    let count =
        |answer: &(axum::http::StatusCode, Value)| regions(answer).as_array().unwrap().len();
    assert_eq!(count(&plain), count(&tiled));
}
