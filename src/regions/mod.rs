//! Detected objects to Label Studio regions.

pub mod brush_rle;

use rand::Rng;
use rand::distr::Alphanumeric;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::geometry::{BoundingBox, ImageSize, Mask};
use crate::labeling::{ControlKind, ControlTag, ImageTag, LabelingConfig};
use crate::pipeline::{DetectedObject, Prediction};

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
    /// 0..1.
    pub score: f32,
}

/// What to do with a detection whose phrase is no label of a control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlabeled {
    /// Draw it without a label, so that the annotator gives it one.
    Keep,
    /// Leave it out: stored predictions must have labels of the config.
    Drop,
}

/// The regions of a prediction and how many detections found no label.
#[derive(Debug, Clone, PartialEq)]
pub struct Regions {
    /// Per detection a rectangle and a mask, each only where the config has such a control.
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
    unlabeled: Unlabeled,
) -> Regions {
    let mut regions = vec![];
    let (mut dropped, mut scores) = (0, vec![]);
    for object in &prediction.objects {
        let before = regions.len();
        for control in config.controls_of(image) {
            let label = control.label_for(&object.detection.phrase);
            if label.is_some() || unlabeled == Unlabeled::Keep {
                regions.extend(region(object, prediction.size, control, label));
            }
        }
        if regions.len() > before {
            scores.push(object.detection.score);
        } else {
            dropped += 1;
        }
    }
    let score = scores.iter().sum::<f32>() / scores.len().max(1) as f32;
    Regions {
        regions,
        score,
        dropped,
    }
}

/// The region a control makes of an object: none for a text area, for a box without extent inside the
/// image, or for an empty mask.
fn region(
    object: &DetectedObject,
    size: ImageSize,
    control: &ControlTag,
    label: Option<&str>,
) -> Option<Region> {
    let (kind, mut value, score) = match control.kind {
        ControlKind::TextArea => return None,
        ControlKind::RectangleLabels(_) => {
            let value = rectangle_value(object.detection.bounding_box, size)?;
            ("rectanglelabels", value, object.detection.score)
        }
        ControlKind::BrushLabels(_) => {
            let mask = object.mask.as_ref().filter(|m| m.mask.area() > 0)?;
            ("brushlabels", brush_value(&mask.mask), mask.score)
        }
    };
    if let Some(label) = label {
        value.insert(kind.to_owned(), json!([label]));
    }
    Some(Region {
        id: fresh_id(),
        from_name: control.name.clone(),
        to_name: control.to_name.clone(),
        kind,
        original_width: size.width,
        original_height: size.height,
        image_rotation: 0,
        value,
        // the segmenter's expectation can overshoot
        score: score.clamp(0.0, 1.0),
    })
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

/// Ten letters and digits, never the same twice: accepting a region overwrites one of the same id.
fn fresh_id() -> String {
    let characters = rand::rng().sample_iter(Alphanumeric);
    characters.take(10).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::geometry::Detection;
    use crate::segmenter::ScoredMask;

    fn prediction(phrases: &[&str]) -> Prediction {
        let size = ImageSize {
            height: 50,
            width: 100,
        };
        let objects = phrases
            .iter()
            .map(|phrase| DetectedObject {
                detection: Detection {
                    phrase: (*phrase).to_owned(),
                    score: 0.5,
                    bounding_box: BoundingBox {
                        x0: -10.0,
                        y0: 5.0,
                        x1: 50.0,
                        y1: 60.0,
                    },
                },
                mask: Some(ScoredMask {
                    mask: Mask::from_pixels(size, [false, true]),
                    score: 1.02,
                }),
            })
            .collect();
        Prediction {
            size,
            objects,
            detector_time: Duration::ZERO,
            segmenter_time: Duration::ZERO,
        }
    }

    #[test]
    fn a_detection_becomes_a_rectangle_and_a_mask() {
        let xml = include_str!("../../examples/label-studio/labeling_config.xml");
        let config = LabelingConfig::parse(xml).unwrap();
        let image = config.image().unwrap();
        let prediction = prediction(&["bok choi", "dog"]);

        let kept = regions(&prediction, &config, image, Unlabeled::Keep);
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
        assert_eq!(kept.regions[1].score, 1.0);
        let mut ids: Vec<_> = kept.regions.iter().map(|r| &r.id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 4);

        let stored = regions(&prediction, &config, image, Unlabeled::Drop);
        assert_eq!((stored.regions.len(), stored.dropped), (2, 1));
    }

    #[test]
    fn only_controls_of_the_config_get_regions() {
        let config = LabelingConfig::parse(
            "<View><Image name='i' value='$i'/><BrushLabels name='b' toName='i'><Label value='dog'/></BrushLabels></View>",
        )
        .unwrap();
        let image = config.image().unwrap();
        let made = regions(&prediction(&["dog"]), &config, image, Unlabeled::Keep);
        assert_eq!(made.regions.len(), 1);
        assert_eq!(made.regions[0].kind, "brushlabels");
    }
}
