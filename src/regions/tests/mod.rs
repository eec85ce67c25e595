//! Tests of the conversion to regions.

mod json;

use std::sync::Arc;

use super::*;
use crate::geometry::{BoundingBox, Detection, ImageSize, Mask};
use crate::labeling::{LabelingConfig, Outputs};
use crate::pipeline::DetectedObject;
use crate::pipeline::Prediction;
use crate::segmenter::ScoredMask;

const KEEP: RegionOptions = RegionOptions {
    unlabeled: Unlabeled::Keep,
    polygon_tolerance: 0.25,
    page: None,
};
const DROP: RegionOptions = RegionOptions {
    unlabeled: Unlabeled::Drop,
    ..KEEP
};

fn prediction(phrases: &[&str]) -> Prediction {
    let size = ImageSize {
        height: 50,
        width: 100,
    };
    let objects = phrases
        .iter()
        .map(|phrase| DetectedObject {
            detection: Detection {
                phrase: Some((*phrase).to_owned()),
                score: 0.5,
                bounding_box: BoundingBox {
                    x0: -10.0,
                    y0: 5.0,
                    x1: 50.0,
                    y1: 60.0,
                },
            },
            mask: Some(Arc::new(ScoredMask {
                mask: Mask::from_pixels(size, [false, true]),
                score: 1.02,
            })),
        })
        .collect();
    Prediction {
        size,
        objects,
        best_rejected: None,
    }
}

#[test]
fn a_detection_becomes_a_rectangle_and_a_mask() {
    let xml = include_str!("../../../examples/label-studio/labeling_config.xml");
    let config = LabelingConfig::parse(xml).unwrap();
    let image = config.image().unwrap();
    let prediction = prediction(&["bok choi", "dog"]);

    let with_unlabeled = regions(&prediction, &config, image, &KEEP);
    let kinds: Vec<_> = with_unlabeled
        .regions
        .iter()
        .map(|r| (r.kind, r.from_name.as_str()))
        .collect();
    let pair = [("rectanglelabels", "label"), ("brushlabels", "label2")];
    assert_eq!(kinds, [pair, pair].concat());
    let rectangle = RegionValue::Rectangle {
        x: 0.0,
        y: 10.0,
        width: 50.0,
        height: 90.0,
        rotation: 0,
        labels: Labels::Own(Some("Bok Choi".to_owned())),
    };
    assert_eq!(with_unlabeled.regions[0].value, rectangle);
    assert_eq!(with_unlabeled.regions[2].value.label(), None);
    assert_eq!(with_unlabeled.regions[1].score, Some(1.0));
    let mut ids: Vec<_> = with_unlabeled.regions.iter().map(|r| &r.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4);

    let labeled_only = regions(&prediction, &config, image, &DROP);
    assert_eq!((labeled_only.regions.len(), labeled_only.dropped), (2, 1));
}

#[test]
fn only_controls_of_the_config_get_regions() {
    let config = LabelingConfig::parse(
        "<View><Image name='i' value='$i'/><BrushLabels name='b' toName='i'><Label value='dog'/></BrushLabels></View>",
    )
    .unwrap();
    let image = config.image().unwrap();
    let found = regions(&prediction(&["dog"]), &config, image, &KEEP);
    assert_eq!(found.regions.len(), 1);
    assert_eq!(found.regions[0].kind, "brushlabels");
}

fn regions_of(controls: &str, phrases: &[&str], options: &RegionOptions) -> Vec<Region> {
    let xml = format!("<View><Image name='i' value='$i'/>{controls}</View>");
    let config = LabelingConfig::parse(&xml).unwrap();
    let image = config.image().unwrap();
    regions(&prediction(phrases), &config, image, options).regions
}

#[test]
fn a_shape_and_its_separate_label_share_an_id() {
    let controls = "<Labels name='l' toName='i'><Label value='dog' alias='d'/></Labels>
        <Rectangle name='r' toName='i'/><Polygon name='p' toName='i'/>";
    let found = regions_of(controls, &["dog"], &DROP);
    let kinds: Vec<_> = found
        .iter()
        .map(|r| (r.from_name.as_str(), r.kind))
        .collect();
    let rectangle = [("r", "rectangle"), ("l", "labels")];
    assert_eq!(kinds[..2], rectangle);
    assert_eq!(kinds[2], ("p", "polygon"));
    assert_eq!(found[0].id, found[1].id);
    assert_ne!(found[0].id, found[2].id);
    let labels = Labels::Separate("d".to_owned());
    let labeled = found[0].value.clone().with_labels(labels);
    assert_eq!(found[1].value, labeled);
    assert!(regions_of(controls, &["cat"], &DROP).is_empty());
    // shapes without any `<Labels>` control, and shapes whose labels do not match
    assert!(
        regions_of(controls, &["cat"], &KEEP)
            .iter()
            .all(|r| r.kind != "labels")
    );
    assert_eq!(
        regions_of("<Rectangle name='r' toName='i'/>", &["cat"], &DROP).len(),
        1
    );
}

#[test]
fn ellipses_and_points_are_outputs_only_on_request() {
    let xml = "<View><Image name='i' value='$i'/>
        <KeyPointLabels name='k' toName='i'><Label value='dog'/></KeyPointLabels>
        <EllipseLabels name='e' toName='i'><Label value='dog'/></EllipseLabels>
        <RectangleLabels name='r' toName='i'><Label value='dog'/></RectangleLabels></View>";
    let config = LabelingConfig::parse(xml).unwrap();
    let found = |outputs: &str| -> Vec<Region> {
        let config = config.clone().with_outputs(Outputs::parse(outputs));
        let image = config.image().unwrap();
        regions(&prediction(&["dog"]), &config, image, &DROP).regions
    };
    let names = |outputs: &str| -> Vec<String> {
        let found = found(outputs);
        found.into_iter().map(|region| region.from_name).collect()
    };
    assert_eq!(names(""), ["r"]);
    assert_eq!(names("k, EllipseLabels"), ["k", "e"]);
    assert_eq!(names("rectangle"), ["r"]);
    assert!(names("b").is_empty());
    // the mask is one pixel, the second of the first row of 50x100
    let found = found("k,e");
    let RegionValue::KeyPoint { x, y, .. } = found[0].value else {
        panic!("{:?}", found[0].value);
    };
    assert_eq!((x, y), (1.5, 1.0));
    assert_eq!(found[1].kind, "ellipselabels");
    let none = config.clone().with_outputs(Outputs::parse("b,brushlabels"));
    let error = none.require_region_control(none.image().unwrap());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("brushlabels") && error.contains("\"k\""),
        "{error}"
    );
}

#[test]
fn regions_of_a_page_carry_its_number() {
    let config = LabelingConfig::parse(
        "<View><Image name='i' valueList='$i'/><Labels name='l' toName='i'><Label value='dog'/></Labels>
         <Rectangle name='r' toName='i'/></View>",
    )
    .unwrap();
    let options = RegionOptions {
        page: Some(3),
        ..DROP
    };
    let image = config.image().unwrap();
    let found = regions(&prediction(&["dog"]), &config, image, &options).regions;
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|region| region.item_index == Some(3)));
    let written = serde_json::to_value(&found[0]).unwrap();
    assert_eq!(written["item_index"], 3);
    assert!(written["value"]["item_index"].is_null());
}

#[test]
fn a_control_can_have_its_own_tolerance() {
    let points = |tolerance: &str| {
        let size = ImageSize {
            height: 200,
            width: 200,
        };
        let circle = (0..200 * 200).map(|i| {
            let (x, y) = ((i % 200) as f32 - 100.0, (i / 200) as f32 - 100.0);
            x * x + y * y < 80.0 * 80.0
        });
        let masks = [Arc::new(ScoredMask {
            mask: Mask::from_pixels(size, circle),
            score: 0.9,
        })];
        let config = LabelingConfig::parse(&format!(
            "<View><Image name='i' value='$i'/><Polygon name='p' toName='i' {tolerance}/></View>"
        ));
        let config = config.unwrap();
        let found = mask_regions(&masks, None, &config, config.image().unwrap(), &KEEP);
        match &found[0].value {
            RegionValue::Polygon { points, .. } => points.len(),
            other => panic!("{other:?}"),
        }
    };
    let usual = points("");
    assert_eq!(points("polygon_tolerance='0.25'"), usual);
    assert!(points("polygon_tolerance='2'") < usual);
}

#[test]
fn a_mask_goes_to_the_control_that_has_its_label_or_to_a_brush() {
    let size = ImageSize {
        height: 50,
        width: 100,
    };
    let masks = [Arc::new(ScoredMask {
        mask: Mask::from_pixels(size, [true]),
        score: 0.7,
    })];
    let regions_with_label = |label: &str| {
        let polygon = "<PolygonLabels name='p' toName='i'><Label value='dog'/></PolygonLabels>";
        let brush = "<BrushLabels name='b' toName='i'><Label value='cat'/></BrushLabels>";
        let config = LabelingConfig::parse(&format!(
            "<View><Image name='i' value='$i'/>{polygon}{brush}</View>"
        ));
        let config = config.unwrap();
        let image = config.image().unwrap();
        mask_regions(&masks, Some(label), &config, image, &KEEP)
    };
    let cat = &regions_with_label("cat")[0];
    assert_eq!((cat.kind, cat.value.label()), ("brushlabels", Some("cat")));
    let dog = &regions_with_label("dog")[0];
    assert_eq!(
        (dog.kind, dog.value.label()),
        ("polygonlabels", Some("dog"))
    );
    assert!(matches!(&dog.value, RegionValue::Polygon { points, .. } if points.len() == 4));
    let unknown = &regions_with_label("cow")[0];
    assert_eq!((unknown.kind, unknown.value.label()), ("brushlabels", None));
}

#[test]
fn a_brush_and_its_separate_label_share_their_bytes() {
    let controls = "<Labels name='l' toName='i'><Label value='dog'/></Labels>
        <Brush name='b' toName='i'/>";
    let found = regions_of(controls, &["dog"], &DROP);
    let rle: Vec<_> = found
        .iter()
        .map(|region| match &region.value {
            RegionValue::Brush { rle, .. } => rle,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(rle.len(), 2);
    assert!(Arc::ptr_eq(rle[0], rle[1]));
}
