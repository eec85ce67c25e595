//! Detected objects to Label Studio regions.

pub mod brush_rle;
pub mod polygon;

use std::sync::Arc;

use rand::Rng;
use rand::distr::Alphanumeric;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::geometry::{BoundingBox, Detection, ImageSize, Mask};
use crate::labeling::{
    ControlKind, ControlTag, ImageTag, Label, LabelingConfig, RegionControl, Shape,
};
use crate::pipeline::{DetectedObject, Prediction};
use crate::segmenter::ScoredMask;

/// One region of an answer, as Label Studio's editor reads it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)] // Label Studio's own field names
pub struct Region {
    pub id: String,
    pub from_name: String,
    pub to_name: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub original_width: usize,
    pub original_height: usize,
    pub image_rotation: u16,
    pub value: Map<String, Value>,
    /// 0..1; none for a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f32>,
}

/// What to do with a detection whose phrase is no label of a control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlabeled {
    /// Draw it without a label, so that the annotator gives it one.
    Keep,
    /// Leave it out: stored predictions must have labels of the config.
    Drop,
}

/// A label and the control it belongs to.
type Named<'a> = (&'a ControlTag, &'a Label);

/// How detections become regions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Style {
    /// For phrases that are no label.
    pub unlabeled: Unlabeled,
    /// Where labels have thresholds of their own that count: the box threshold of all others, 0..1.
    pub label_thresholds: Option<f32>,
    /// How far a polygon may be from its mask's boundary, in percent of the image's longer side.
    pub polygon_tolerance: f32,
}

/// The regions of a prediction and how many detections found no label.
#[derive(Debug, Clone, PartialEq)]
pub struct Regions {
    /// Per detection one of each shape, each only where the config has such a control.
    pub regions: Vec<Region>,
    /// The mean of the detections' scores, 0..1; 0 without any.
    pub score: f32,
    /// Detections of which nothing came back, for want of a label.
    pub dropped: usize,
}

/// Turns a prediction into regions of the controls that are attached to `image`.
pub fn regions(
    prediction: &Prediction,
    config: &LabelingConfig,
    image: &ImageTag,
    style: &Style,
) -> Regions {
    let mut regions = vec![];
    let (mut dropped, mut scores) = (0, vec![]);
    for object in &prediction.objects {
        let Detection { phrase, score, .. } = &object.detection;
        let found: Vec<(RegionControl, Option<Named>)> = config
            .region_controls(image)
            .map(|control| {
                let label = phrase
                    .as_deref()
                    .and_then(|phrase| control.label_for(phrase));
                (control, label)
            })
            .collect();
        if let Some(others) = style.label_thresholds {
            let own = found
                .iter()
                .find_map(|(_, label)| label.as_ref()?.1.score_threshold);
            if *score <= own.unwrap_or(others) {
                continue;
            }
        }
        let before = regions.len();
        for (control, label) in found {
            let needs_label = !control.labels.is_empty() && style.unlabeled == Unlabeled::Drop;
            if label.is_some() || !needs_label {
                let size = prediction.size;
                regions.extend(shaped(object, size, &control, image, label, style));
            }
        }
        if regions.len() > before {
            scores.push(*score);
        } else {
            dropped += 1;
        }
    }
    let score = (0.0 + scores.iter().sum::<f32>()) / scores.len().max(1) as f32;
    Regions {
        regions,
        score,
        dropped,
    }
}

/// The masks of marked objects as regions with the label the annotator drew with: of the brush where
/// there is one, else of the polygon; a control with that label before others.
pub fn cutouts<'a>(
    masks: &[Arc<ScoredMask>],
    label: Option<&str>,
    config: &'a LabelingConfig,
    image: &'a ImageTag,
    style: &Style,
) -> Vec<Region> {
    let named = |control: &RegionControl<'a>| control.label_named(label?);
    let controls: Vec<RegionControl> = config
        .region_controls(image)
        .filter(|control| control.shape != Shape::Rectangle)
        .collect();
    let rank =
        |control: &&RegionControl<'a>| (named(control).is_none(), control.shape != Shape::Brush);
    let Some(control) = controls.iter().min_by_key(rank) else {
        return vec![];
    };
    let mut regions = vec![];
    for scored in masks {
        let ScoredMask { mask, score } = &**scored;
        for value in mask_values(mask, control.shape, style) {
            let label = named(control);
            regions.extend(labeled(value, control, image, mask.size(), label, *score));
        }
    }
    regions
}

/// What was looked for, as if it had been typed into the text area.
pub fn typed(prompt: &str, area: &ControlTag, image: &ImageTag, size: ImageSize) -> Region {
    Region {
        id: fresh_id(),
        from_name: area.name.clone(),
        to_name: image.name.clone(),
        kind: "textarea",
        original_width: size.width,
        original_height: size.height,
        image_rotation: 0,
        value: Map::from_iter([("text".to_owned(), json!([prompt]))]),
        score: None,
    }
}

/// The regions a control makes of an object: none for a box without extent inside the image, or for an
/// empty mask.
fn shaped(
    object: &DetectedObject,
    size: ImageSize,
    control: &RegionControl,
    image: &ImageTag,
    label: Option<Named>,
    style: &Style,
) -> Vec<Region> {
    let (values, score) = match (control.shape, &object.mask) {
        (Shape::Rectangle, _) => {
            let value = rectangle_value(object.detection.bounding_box, size);
            (value.into_iter().collect(), object.detection.score)
        }
        (shape, Some(mask)) => (mask_values(&mask.mask, shape, style), mask.score),
        (_, None) => (vec![], 0.0),
    };
    values
        .into_iter()
        .flat_map(|value| labeled(value, control, image, size, label, score))
        .collect()
}

/// A value as Label Studio keeps it: one region of a control with labels of its own; of a control whose
/// labels stand apart the shape, and then the label under the same id.
fn labeled(
    mut value: Map<String, Value>,
    control: &RegionControl,
    image: &ImageTag,
    size: ImageSize,
    label: Option<Named>,
    score: f32,
) -> Vec<Region> {
    let is_own = matches!(control.control.kind, ControlKind::ShapeLabels(_));
    let region = |from: &ControlTag, kind: &'static str, value| Region {
        id: String::new(),
        from_name: from.name.clone(),
        to_name: image.name.clone(),
        kind,
        original_width: size.width,
        original_height: size.height,
        image_rotation: 0,
        value,
        // the segmenter's expectation can overshoot
        score: Some(score.clamp(0.0, 1.0)),
    };
    let mut made = match (is_own, label) {
        (true, label) => {
            let kind = control.shape.labels_kind();
            if let Some((_, label)) = label {
                value.insert(kind.to_owned(), json!([label.name()]));
            }
            vec![region(control.control, kind, value)]
        }
        (false, Some((labels, label))) => {
            let shape = region(control.control, control.shape.kind(), value.clone());
            value.insert("labels".to_owned(), json!([label.name()]));
            vec![shape, region(labels, "labels", value)]
        }
        (false, None) => vec![region(control.control, control.shape.kind(), value)],
    };
    let id = fresh_id();
    for region in &mut made {
        region.id.clone_from(&id);
    }
    made
}

/// What a mask looks like as a brush stroke or as polygons; nothing of an empty one.
fn mask_values(mask: &Mask, shape: Shape, style: &Style) -> Vec<Map<String, Value>> {
    match shape {
        Shape::Brush if mask.area() > 0 => vec![brush_value(mask)],
        Shape::Polygon => polygon_values(mask, style.polygon_tolerance),
        _ => vec![],
    }
}

/// A box in percent of the image, 0..100.
fn rectangle_value(b: BoundingBox, size: ImageSize) -> Option<Map<String, Value>> {
    let b = b.clamped(size);
    if b.area() <= 0.0 {
        return None;
    }
    let percent = |value: f32, of: usize| f64::from(value) * 100.0 / of as f64;
    let (x, y) = (percent(b.x0, size.width), percent(b.y0, size.height));
    Some(Map::from_iter([
        ("x".to_owned(), json!(x)),
        ("y".to_owned(), json!(y)),
        ("width".to_owned(), json!(percent(b.x1, size.width) - x)),
        ("height".to_owned(), json!(percent(b.y1, size.height) - y)),
        ("rotation".to_owned(), json!(0)),
    ]))
}

fn brush_value(mask: &Mask) -> Map<String, Value> {
    Map::from_iter([
        ("format".to_owned(), json!("rle")),
        ("rle".to_owned(), json!(brush_rle::encode(mask))),
    ])
}

/// Outlines in percent of the image, 0..100.
fn polygon_values(mask: &Mask, tolerance: f32) -> Vec<Map<String, Value>> {
    let size = mask.size();
    let pixels = tolerance / 100.0 * size.width.max(size.height) as f32;
    let percent = |value: f32, of: usize| f64::from(value) * 100.0 / of as f64;
    let outlines = polygon::outlines(mask, pixels).into_iter().map(|ring| {
        let points = ring.iter();
        let points: Vec<[f64; 2]> = points
            .map(|[x, y]| [percent(*x, size.width), percent(*y, size.height)])
            .collect();
        Map::from_iter([
            ("points".to_owned(), json!(points)),
            ("closed".to_owned(), json!(true)),
        ])
    });
    outlines.collect()
}

/// Ten letters and digits, never the same twice: accepting a region overwrites one of the same id.
fn fresh_id() -> String {
    let characters = rand::rng().sample_iter(Alphanumeric);
    characters.take(10).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let value = &kept.regions[0].value;
        let numbers = ["x", "y", "width", "height"].map(|key| value[key].as_f64().unwrap());
        assert_eq!(numbers, [0.0, 10.0, 50.0, 90.0]);
        assert_eq!(value["rectanglelabels"], json!(["Bok Choi"]));
        assert!(!kept.regions[2].value.contains_key("rectanglelabels"));
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
        assert_eq!(found[1].value["labels"], json!(["d"]));
        assert_eq!(found[1].value["x"], found[0].value["x"]);
        assert!(made(controls, &["cat"], &DROP).is_empty());
        // unlabeled shapes alone, and shapes that no control labels
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
        assert_eq!(found[0].value["rectanglelabels"], json!(["dog"]));
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
        assert_eq!(controls("cat")[0].value["brushlabels"], json!(["cat"]));
        let polygon = &controls("dog")[0];
        assert_eq!(polygon.value["polygonlabels"], json!(["dog"]));
        assert_eq!(polygon.value["points"].as_array().unwrap().len(), 4);
        let unknown = &controls("cow")[0];
        assert_eq!(unknown.kind, "brushlabels");
        assert!(!unknown.value.contains_key("brushlabels"));
    }
}
