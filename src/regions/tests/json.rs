//! The JSON of regions.

use serde_json::{Value, json};

use super::*;

/// Regions as the JSON that Label Studio reads, without their random ids.
fn json_without_ids(found: &[Region]) -> Value {
    let mut read = serde_json::to_value(found).unwrap();
    for region in read.as_array_mut().unwrap() {
        let id = region.as_object_mut().unwrap().remove("id").unwrap();
        assert_eq!(id.as_str().unwrap().len(), 10);
    }
    read
}

/// The JSON of a region of the test picture, without its id.
fn region(from: &str, kind: &str, score: f32, value: Value) -> Value {
    json!({"from_name": from, "to_name": "i", "type": kind, "original_width": 100, "original_height": 50,
        "image_rotation": 0, "score": score, "value": value})
}

/// The value of the test picture's object as a rectangle, a brush stroke and a polygon, with the labels.
fn values(labels: [&Value; 3]) -> [Value; 3] {
    let rectangle = json!({"x": 0.0, "y": 10.0, "width": 50.0, "height": 90.0, "rotation": 0});
    let brush =
        json!({"format": "rle", "rle": [0, 0, 78, 32, 57, 27, 252, 96, 17, 255, 244, 225, 112, 0]});
    let polygon =
        json!({"points": [[2.0, 0.0], [2.0, 2.0], [1.0, 2.0], [1.0, 0.0]], "closed": true});
    let mut values = [rectangle, brush, polygon];
    for (value, label) in values.iter_mut().zip(labels) {
        let label = label.as_object().unwrap().clone();
        value.as_object_mut().unwrap().extend(label);
    }
    values
}

#[test]
fn regions_of_controls_with_their_own_labels_have_label_studios_json() {
    let controls = "<RectangleLabels name='r' toName='i'><Label value='dog'/></RectangleLabels>
        <BrushLabels name='b' toName='i'><Label value='dog'/></BrushLabels>
        <PolygonLabels name='p' toName='i'><Label value='dog'/></PolygonLabels>";
    let expected = |[rectangle, brush, polygon]: [Value; 3]| {
        json!([
            region("r", "rectanglelabels", 0.5, rectangle),
            region("b", "brushlabels", 1.0, brush),
            region("p", "polygonlabels", 1.0, polygon),
        ])
    };
    let labeled = values([
        &json!({"rectanglelabels": ["dog"]}),
        &json!({"brushlabels": ["dog"]}),
        &json!({"polygonlabels": ["dog"]}),
    ]);
    let found = regions_of(controls, &["dog"], &DROP);
    assert_eq!(json_without_ids(&found), expected(labeled));
    let found = regions_of(controls, &["cat"], &KEEP);
    assert_eq!(json_without_ids(&found), expected(values([&json!({}); 3])));
}

#[test]
fn regions_of_controls_with_separate_labels_have_label_studios_json() {
    let controls = "<Labels name='l' toName='i'><Label value='dog'/></Labels>
        <Rectangle name='r' toName='i'/><Brush name='b' toName='i'/>
        <Polygon name='p' toName='i'/>";
    let [rectangle, brush, polygon] = values([&json!({}); 3]);
    let shapes = [
        region("r", "rectangle", 0.5, rectangle),
        region("b", "brush", 1.0, brush),
        region("p", "polygon", 1.0, polygon),
    ];
    let [rectangle, brush, polygon] = values([&json!({"labels": ["dog"]}); 3]);
    let labels = [
        region("l", "labels", 0.5, rectangle),
        region("l", "labels", 1.0, brush),
        region("l", "labels", 1.0, polygon),
    ];
    let labeled: Value = shapes
        .iter()
        .zip(&labels)
        .flat_map(|(shape, label)| [shape.clone(), label.clone()])
        .collect();
    let found = regions_of(controls, &["dog"], &DROP);
    assert_eq!(json_without_ids(&found), labeled);
    let found = regions_of(controls, &["cat"], &KEEP);
    assert_eq!(json_without_ids(&found), Value::from(shapes.to_vec()));
}

/// The vertices of the test mask's outline.
fn vertices() -> Value {
    let points = [[2.0, 0.0], [2.0, 2.0], [1.0, 2.0], [1.0, 0.0]];
    let vertex = |(i, [x, y]): (usize, [f64; 2])| {
        let previous = i.checked_sub(1).map(|i| format!("v{i}"));
        json!({"id": format!("v{i}"), "x": x, "y": y, "prevPointId": previous, "isBezier": false})
    };
    points.into_iter().enumerate().map(vertex).collect()
}

#[test]
fn bitmasks_and_vectors_have_label_studios_json() {
    let size = prediction(&[]).size;
    let url = bitmask::data_url(&Mask::from_pixels(size, [false, true]));
    let own = "<BitmaskLabels name='b' toName='i'><Label value='dog'/></BitmaskLabels>
        <VectorLabels name='v' toName='i'><Label value='dog'/></VectorLabels>";
    let expected = json!([
        region(
            "b",
            "bitmasklabels",
            1.0,
            json!({"imageDataURL": url, "bitmasklabels": ["dog"]})
        ),
        region(
            "v",
            "vectorlabels",
            1.0,
            json!({"vertices": vertices(), "closed": true, "vectorlabels": ["dog"]})
        ),
    ]);
    assert_eq!(
        json_without_ids(&regions_of(own, &["dog"], &DROP)),
        expected
    );

    let separate = "<Labels name='l' toName='i'><Label value='dog'/></Labels>
        <Bitmask name='b' toName='i'/><Vector name='v' toName='i'/>";
    let expected = json!([
        region("b", "bitmask", 1.0, json!({"imageDataURL": url})),
        region(
            "l",
            "labels",
            1.0,
            json!({"imageDataURL": url, "labels": ["dog"]})
        ),
        region(
            "v",
            "vector",
            1.0,
            json!({"vertices": vertices(), "closed": true})
        ),
        region(
            "l",
            "labels",
            1.0,
            json!({"vertices": vertices(), "closed": true, "labels": ["dog"]})
        ),
    ]);
    assert_eq!(
        json_without_ids(&regions_of(separate, &["dog"], &DROP)),
        expected
    );
}

#[test]
fn a_prompt_region_has_label_studios_json() {
    let xml = "<View><Image name='i' value='$i'/><TextArea name='t' toName='i'/></View>";
    let config = LabelingConfig::parse(xml).unwrap();
    let size = prediction(&[]).size;
    let image_page = ImagePage {
        image: &config.images[0],
        page: None,
        size,
    };
    let region = prompt_region("dog . cat", &config.controls[0], image_page);
    let expected = json!([{"from_name": "t", "to_name": "i", "type": "textarea",
        "original_width": 100, "original_height": 50, "image_rotation": 0,
        "value": {"text": ["dog . cat"]}}]);
    assert_eq!(json_without_ids(&[region]), expected);
}
