//! What `groundling predict` writes: JSON, Label Studio tasks, pictures.

pub mod coco_rle;
pub mod label_studio;
pub mod overlay;

use std::time::Duration;

use serde::Serialize;

use crate::pipeline::{DetectedObject, ModelTimes, Prediction};
use crate::prompt::Prompt;

/// The JSON of a run: one result per image, in the order they were given.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Per image what was found, or why nothing could be looked for.
    pub results: Vec<ImageReport>,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ImageReport {
    /// It was looked at.
    Done(Done),
    /// It could not be.
    Failed {
        /// The file as it was given.
        image: String,
        /// Why.
        error: String,
    },
}

/// What was found in an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Done {
    /// The file as it was given.
    pub image: String,
    /// Pixels of the upright image.
    pub width: usize,
    /// Pixels of the upright image.
    pub height: usize,
    /// The caption the detector read.
    pub prompt: String,
    /// The best first.
    pub detections: Vec<DetectionReport>,
    /// Where the time went.
    pub timings: Timings,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DetectionReport {
    /// What it is.
    pub phrase: Option<String>,
    /// 0..1.
    pub score: f32,
    /// x0, y0, x1, y1 in pixels of the upright image.
    #[serde(rename = "box")]
    pub bounding_box: [f32; 4],
    /// Its extent, as COCO's compressed RLE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<coco_rle::CocoRle>,
    /// The IoU the mask is expected to have with the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_score: Option<f32>,
}

/// Milliseconds of each step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Timings {
    pub decode_ms: f64,
    pub detector_ms: f64,
    pub segmenter_ms: f64,
    pub total_ms: f64,
}

impl Done {
    /// Describes a prediction; `decode_time` is what it took to read the image, `times` what the models took.
    pub fn new(
        image: String,
        prompt: &Prompt,
        prediction: &Prediction,
        decode_time: Duration,
        times: ModelTimes,
    ) -> Self {
        let ms = |time: Duration| (time.as_secs_f64() * 1e5).round() / 100.0;
        let ModelTimes {
            detector,
            segmenter,
        } = times;
        Self {
            image,
            width: prediction.size.width,
            height: prediction.size.height,
            prompt: prompt.to_string(),
            detections: prediction
                .objects
                .iter()
                .map(|object| detection(object, prediction))
                .collect(),
            timings: Timings {
                decode_ms: ms(decode_time),
                detector_ms: ms(detector),
                segmenter_ms: ms(segmenter),
                total_ms: ms(decode_time + detector + segmenter),
            },
        }
    }
}

fn detection(object: &DetectedObject, prediction: &Prediction) -> DetectionReport {
    let detection = &object.detection;
    DetectionReport {
        phrase: detection.phrase.clone(),
        score: detection.score,
        bounding_box: detection.bounding_box.clamped(prediction.size).corners(),
        mask: object
            .mask
            .as_ref()
            .map(|m| coco_rle::CocoRle::new(&m.mask)),
        mask_score: object.mask.as_ref().map(|m| m.score),
    }
}
