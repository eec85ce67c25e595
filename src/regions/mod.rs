//! Converts detected objects to Label Studio regions.
//!
//! For each object, `selection` decides whether to keep it and which controls take it, `render` converts its box or
//! mask to a control's value, [`scores`] computes the score, and `region` adds the label.

pub mod brush_rle;
pub mod polygon;
mod region;
mod render;
mod schema;
pub mod scores;
mod selection;
mod value;

use std::sync::Arc;

pub use self::region::{Region, typed};
pub use self::selection::Unlabeled;
pub use self::value::{Labels, RegionValue};
use crate::labeling::{ImageTag, LabelingConfig};
use crate::pipeline::Prediction;
use crate::segmenter::ScoredMask;

/// Options of the conversion to regions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Style {
    /// What happens to phrases that match no label.
    pub unlabeled: Unlabeled,
    /// The box threshold of labels without their own one, 0..1. Set only if per-label thresholds apply.
    pub label_thresholds: Option<f32>,
    /// Maximum distance of a polygon from its mask's boundary, in percent of the image's longer side.
    pub polygon_tolerance: f32,
}

/// The regions of a prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct Regions {
    /// For each detection, one region per shape, if the config has a control of that shape.
    pub regions: Vec<Region>,
    /// The mean of the detections' scores, 0..1; 0 without detections.
    pub score: f32,
    /// Number of detections without any region, because no label matched.
    pub dropped: usize,
}

/// Converts a prediction to regions of the controls that are attached to `image`.
pub fn regions(
    prediction: &Prediction,
    config: &LabelingConfig,
    image: &ImageTag,
    style: &Style,
) -> Regions {
    let (size, tolerance) = (prediction.size, style.polygon_tolerance);
    let mut regions = vec![];
    let (mut dropped, mut scores) = (0, vec![]);
    for object in &prediction.objects {
        let kept = selection::destinations(&object.detection, config, image, style);
        let Some(destinations) = kept else {
            continue;
        };
        let before = regions.len();
        for destination in &destinations {
            let shape = destination.control.shape;
            let score = scores::of_object(object, shape);
            for value in render::of_object(object, size, shape, tolerance) {
                regions.extend(region::labeled(value, destination, image, size, score));
            }
        }
        if regions.len() > before {
            scores.push(object.detection.score);
        } else {
            dropped += 1;
        }
    }
    Regions {
        regions,
        score: scores::mean(scores),
        dropped,
    }
}

/// Converts the masks of a smart tool to regions with the annotator's label. A control that has the label is
/// preferred; among those, a brush is preferred to a polygon.
pub fn cutouts(
    masks: &[Arc<ScoredMask>],
    label: Option<&str>,
    config: &LabelingConfig,
    image: &ImageTag,
    style: &Style,
) -> Vec<Region> {
    let Some(destination) = selection::cutout_destination(label, config, image) else {
        return vec![];
    };
    let shape = destination.control.shape;
    let mut regions = vec![];
    for scored in masks {
        let (size, score) = (scored.mask.size(), Some(scores::of_mask(scored)));
        for value in render::of_mask(&scored.mask, shape, style.polygon_tolerance) {
            regions.extend(region::labeled(value, &destination, image, size, score));
        }
    }
    regions
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use std::sync::Arc;

    use super::*;
    use crate::geometry::{BoundingBox, Detection, ImageSize, Mask};
    use crate::pipeline::DetectedObject;

    const KEEP: Style = Style {
        unlabeled: Unlabeled::Keep,
        label_thresholds: None,
        polygon_tolerance: 0.25,
    };
    const DROP: Style = Style {
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
        Prediction { size, objects }
    }

    #[test]
    fn a_detection_becomes_a_rectangle_and_a_mask() {
        let xml = include_str!("../../examples/label-studio/labeling_config.xml");
        let config = LabelingConfig::parse(xml).unwrap();
        let image = config.image().unwrap();
        let prediction = prediction(&["bok choi", "dog"]);

        let kept = regions(&prediction, &config, image, &KEEP);
        let kinds: Vec<_> = kept
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
        assert_eq!(kept.regions[0].value, rectangle);
        assert_eq!(kept.regions[2].value.label(), None);
        assert_eq!(kept.regions[1].score, Some(1.0));
        let mut ids: Vec<_> = kept.regions.iter().map(|r| &r.id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 4);

        let stored = regions(&prediction, &config, image, &DROP);
        assert_eq!((stored.regions.len(), stored.dropped), (2, 1));
    }

    #[test]
    fn only_controls_of_the_config_get_regions() {
        let config = LabelingConfig::parse(
            "<View><Image name='i' value='$i'/><BrushLabels name='b' toName='i'><Label value='dog'/></BrushLabels></View>",
        )
        .unwrap();
        let image = config.image().unwrap();
        let made = regions(&prediction(&["dog"]), &config, image, &KEEP);
        assert_eq!(made.regions.len(), 1);
        assert_eq!(made.regions[0].kind, "brushlabels");
    }

    fn made(controls: &str, phrases: &[&str], style: &Style) -> Vec<Region> {
        let xml = format!("<View><Image name='i' value='$i'/>{controls}</View>");
        let config = LabelingConfig::parse(&xml).unwrap();
        let image = config.image().unwrap();
        regions(&prediction(phrases), &config, image, style).regions
    }

    #[test]
    fn separate_labels_share_the_id_of_their_shape() {
        let controls = "<Labels name='l' toName='i'><Label value='dog' alias='d'/></Labels>
            <Rectangle name='r' toName='i'/><Polygon name='p' toName='i'/>";
        let found = made(controls, &["dog"], &DROP);
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
        assert!(made(controls, &["cat"], &DROP).is_empty());
        // shapes without any `<Labels>` control, and shapes whose labels do not match
        assert!(
            made(controls, &["cat"], &KEEP)
                .iter()
                .all(|r| r.kind != "labels")
        );
        assert_eq!(
            made("<Rectangle name='r' toName='i'/>", &["cat"], &DROP).len(),
            1
        );
    }

    #[test]
    fn labels_may_have_thresholds_of_their_own() {
        let controls = "<RectangleLabels name='r' toName='i' model_score_threshold='0.4'>
            <Label value='dog'/><Label value='cat' score_threshold='0.6'/></RectangleLabels>";
        let style = Style {
            label_thresholds: Some(0.9),
            ..KEEP
        };
        // all scores are 0.5
        let found = made(controls, &["dog", "cat", "cow"], &style);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].value.label(), Some("dog"));
    }

    #[test]
    fn a_cutout_goes_to_the_brush_that_knows_the_label() {
        let size = ImageSize {
            height: 50,
            width: 100,
        };
        let masks = [Arc::new(ScoredMask {
            mask: Mask::from_pixels(size, [true]),
            score: 0.7,
        })];
        let controls = |order: &str| {
            let polygon = "<PolygonLabels name='p' toName='i'><Label value='dog'/></PolygonLabels>";
            let brush = "<BrushLabels name='b' toName='i'><Label value='cat'/></BrushLabels>";
            let config = LabelingConfig::parse(&format!(
                "<View><Image name='i' value='$i'/>{polygon}{brush}</View>"
            ));
            let config = config.unwrap();
            let image = config.image().unwrap();
            cutouts(&masks, Some(order), &config, image, &KEEP)
        };
        let cat = &controls("cat")[0];
        assert_eq!((cat.kind, cat.value.label()), ("brushlabels", Some("cat")));
        let dog = &controls("dog")[0];
        assert_eq!(
            (dog.kind, dog.value.label()),
            ("polygonlabels", Some("dog"))
        );
        assert!(matches!(&dog.value, RegionValue::Polygon { points, .. } if points.len() == 4));
        let unknown = &controls("cow")[0];
        assert_eq!((unknown.kind, unknown.value.label()), ("brushlabels", None));
    }

    #[test]
    fn a_label_shares_the_bytes_of_its_brush() {
        let controls = "<Labels name='l' toName='i'><Label value='dog'/></Labels>
            <Brush name='b' toName='i'/>";
        let found = made(controls, &["dog"], &DROP);
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
    fn shapes_with_labels_of_their_own_as_json() {
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
        let found = made(controls, &["dog"], &DROP);
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
        let found = made(controls, &["cat"], &KEEP);
        assert_eq!(json_without_ids(&found), unlabeled);
    }

    #[test]
    fn shapes_with_labels_apart_as_json() {
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
        let found = made(controls, &["dog"], &DROP);
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
        let found = made(controls, &["cat"], &KEEP);
        assert_eq!(json_without_ids(&found), unlabeled);
    }

    #[test]
    fn a_prompt_as_json() {
        let xml = "<View><Image name='i' value='$i'/><TextArea name='t' toName='i'/></View>";
        let config = LabelingConfig::parse(xml).unwrap();
        let size = prediction(&[]).size;
        let region = typed("dog . cat", &config.controls[0], &config.images[0], size);
        let expected = json!([{"from_name": "t", "to_name": "i", "type": "textarea",
            "original_width": 100, "original_height": 50, "image_rotation": 0,
            "value": {"text": ["dog . cat"]}}]);
        assert_eq!(json_without_ids(&[region]), expected);
    }
}
