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
    /// The scores of the detections that have regions, 0..1, best first.
    pub scores: Vec<f32>,
    /// The phrases of the detections that have regions.
    pub phrases: Vec<String>,
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
    let size = prediction.size;
    let mut regions = vec![];
    let (mut dropped, mut scores, mut phrases) = (0, vec![], vec![]);
    for object in &prediction.objects {
        let destinations = selection::destinations(&object.detection, config, image, options);
        let before = regions.len();
        for destination in &destinations {
            let shape = destination.control.shape;
            let score = scores::object_score(object, shape);
            let tolerance = options.tolerance_of(destination.control.control);
            let image_page = options.image_page(image, size);
            for value in render::object_values(object, size, shape, tolerance) {
                regions.extend(region::labeled(value, destination, image_page, score));
            }
        }
        if regions.len() > before {
            scores.push(object.detection.score);
            phrases.extend(object.detection.phrase.clone());
        } else {
            dropped += 1;
        }
    }
    Regions {
        regions,
        scores,
        phrases,
        dropped,
    }
}
