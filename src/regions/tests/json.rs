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

#[test]
fn regions_of_controls_with_their_own_labels_have_label_studios_json() {
    let controls = "<RectangleLabels name='r' toName='i'><Label value='dog'/></RectangleLabels>
        <BrushLabels name='b' toName='i'><Label value='dog'/></BrushLabels>
        <PolygonLabels name='p' toName='i'><Label value='dog'/></PolygonLabels>";
    let labeled = json!([
        {"from_name": "r", "to_name": "i", "type": "rectanglelabels",
            "original_width": 100, "original_height": 50, "image_rotation": 0, "score": 0.5,
            "value": {"x": 0.0, "y": 10.0, "width": 50.0, "height": 90.0, "rotation": 0,
                "rectanglelabels": ["dog"]}},
        {"from_name": "b", "to_name": "i", "type": "brushlabels",
            "original_width": 100, "original_height": 50, "image_rotation": 0, "score": 1.0,
            "value": {"format": "rle", "rle": [0, 0, 78, 32, 57, 27, 252, 96, 17, 255, 244, 225, 112, 0],
                "brushlabels": ["dog"]}},
        {"from_name": "p", "to_name": "i", "type": "polygonlabels",
            "original_width": 100, "original_height": 50, "image_rotation": 0, "score": 1.0,
            "value": {"points": [[2.0, 0.0], [2.0, 2.0], [1.0, 2.0], [1.0, 0.0]], "closed": true,
                "polygonlabels": ["dog"]}}
    ]);
    let found = regions_of(controls, &["dog"], &DROP);
    assert_eq!(json_without_ids(&found), labeled);
    let unlabeled = json!([
        {"from_name": "r", "to_name": "i", "type": "rectanglelabels",
            "original_width": 100, "original_height": 50, "image_rotation": 0, "score": 0.5,
            "value": {"x": 0.0, "y": 10.0, "width": 50.0, "height": 90.0, "rotation": 0}},
        {"from_name": "b", "to_name": "i", "type": "brushlabels",
            "original_width": 100, "original_height": 50, "image_rotation": 0, "score": 1.0,
            "value": {"format": "rle", "rle": [0, 0, 78, 32, 57, 27, 252, 96, 17, 255, 244, 225, 112, 0]}},
        {"from_name": "p", "to_name": "i", "type": "polygonlabels",
            "original_width": 100, "original_height": 50, "image_rotation": 0, "score": 1.0,
            "value": {"points": [[2.0, 0.0], [2.0, 2.0], [1.0, 2.0], [1.0, 0.0]], "closed": true}}
    ]);
    let found = regions_of(controls, &["cat"], &KEEP);
    assert_eq!(json_without_ids(&found), unlabeled);
}

#[test]
fn regions_of_controls_with_separate_labels_have_label_studios_json() {
    let controls = "<Labels name='l' toName='i'><Label value='dog'/></Labels>
        <Rectangle name='r' toName='i'/><Brush name='b' toName='i'/>
        <Polygon name='p' toName='i'/>";
    let labeled = json!([
        {"from_name": "r", "to_name": "i", "type": "rectangle",
            "original_width": 100, "original_height": 50, "image_rotation": 0, "score": 0.5,
            "value": {"x": 0.0, "y": 10.0, "width": 50.0, "height": 90.0, "rotation": 0}},
        {"from_name": "l", "to_name": "i", "type": "labels",
            "original_width": 100, "original_height": 50, "image_rotation": 0, "score": 0.5,
            "value": {"x": 0.0, "y": 10.0, "width": 50.0, "height": 90.0, "rotation": 0,
                "labels": ["dog"]}},
        {"from_name": "b", "to_name": "i", "type": "brush",
            "original_width": 100, "original_height": 50, "image_rotation": 0, "score": 1.0,
            "value": {"format": "rle", "rle": [0, 0, 78, 32, 57, 27, 252, 96, 17, 255, 244, 225, 112, 0]}},
        {"from_name": "l", "to_name": "i", "type": "labels",
            "original_width": 100, "original_height": 50, "image_rotation": 0, "score": 1.0,
            "value": {"format": "rle", "rle": [0, 0, 78, 32, 57, 27, 252, 96, 17, 255, 244, 225, 112, 0],
                "labels": ["dog"]}},
        {"from_name": "p", "to_name": "i", "type": "polygon",
            "original_width": 100, "original_height": 50, "image_rotation": 0, "score": 1.0,
            "value": {"points": [[2.0, 0.0], [2.0, 2.0], [1.0, 2.0], [1.0, 0.0]], "closed": true}},
        {"from_name": "l", "to_name": "i", "type": "labels",
            "original_width": 100, "original_height": 50, "image_rotation": 0, "score": 1.0,
            "value": {"points": [[2.0, 0.0], [2.0, 2.0], [1.0, 2.0], [1.0, 0.0]], "closed": true,
                "labels": ["dog"]}}
    ]);
    let found = regions_of(controls, &["dog"], &DROP);
    assert_eq!(json_without_ids(&found), labeled);
    let unlabeled = json!([
        {"from_name": "r", "to_name": "i", "type": "rectangle",
            "original_width": 100, "original_height": 50, "image_rotation": 0, "score": 0.5,
            "value": {"x": 0.0, "y": 10.0, "width": 50.0, "height": 90.0, "rotation": 0}},
        {"from_name": "b", "to_name": "i", "type": "brush",
            "original_width": 100, "original_height": 50, "image_rotation": 0, "score": 1.0,
            "value": {"format": "rle", "rle": [0, 0, 78, 32, 57, 27, 252, 96, 17, 255, 244, 225, 112, 0]}},
        {"from_name": "p", "to_name": "i", "type": "polygon",
            "original_width": 100, "original_height": 50, "image_rotation": 0, "score": 1.0,
            "value": {"points": [[2.0, 0.0], [2.0, 2.0], [1.0, 2.0], [1.0, 0.0]], "closed": true}}
    ]);
    let found = regions_of(controls, &["cat"], &KEEP);
    assert_eq!(json_without_ids(&found), unlabeled);
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
    let region = |from: &str, kind: &str, value: Value| {
        json!({"from_name": from, "to_name": "i", "type": kind, "original_width": 100, "original_height": 50,
            "image_rotation": 0, "score": 1.0, "value": value})
    };
    let own = "<BitmaskLabels name='b' toName='i'><Label value='dog'/></BitmaskLabels>
        <VectorLabels name='v' toName='i'><Label value='dog'/></VectorLabels>";
    let expected = json!([
        region(
            "b",
            "bitmasklabels",
            json!({"imageDataURL": url, "bitmasklabels": ["dog"]})
        ),
        region(
            "v",
            "vectorlabels",
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
        region("b", "bitmask", json!({"imageDataURL": url})),
        region(
            "l",
            "labels",
            json!({"imageDataURL": url, "labels": ["dog"]})
        ),
        region(
            "v",
            "vector",
            json!({"vertices": vertices(), "closed": true})
        ),
        region(
            "l",
            "labels",
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
    let region = prompt_region("dog . cat", &config.controls[0], &config.images[0], size);
    let expected = json!([{"from_name": "t", "to_name": "i", "type": "textarea",
        "original_width": 100, "original_height": 50, "image_rotation": 0,
        "value": {"text": ["dog . cat"]}}]);
    assert_eq!(json_without_ids(&[region]), expected);
}
