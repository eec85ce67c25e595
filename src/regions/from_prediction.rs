//! Converts the objects of a prediction to regions.

use super::region::Region;
use super::{RegionOptions, region, render, scores, selection};
use crate::labeling::{ImageTag, LabelingConfig};
use crate::pipeline::Prediction;

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
    options: &RegionOptions,
) -> Regions {
    let (size, tolerance) = (prediction.size, options.polygon_tolerance);
    let mut regions = vec![];
    let (mut dropped, mut scores) = (0, vec![]);
    for object in &prediction.objects {
        let Some(destinations) = selection::destinations(&object.detection, config, image, options)
        else {
            continue;
        };
        let before = regions.len();
        for destination in &destinations {
            let shape = destination.control.shape;
            let score = scores::object_score(object, shape);
            for value in render::object_values(object, size, shape, tolerance) {
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
