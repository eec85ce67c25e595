//! The outputs of `groundling predict`: JSON, Label Studio tasks, overlay images and datasets. `annotate` writes datasets too.

pub mod export;
pub mod image_file;
pub mod label_studio;
pub mod names;
pub mod overlay;

use std::time::Duration;

use serde::Serialize;

use crate::geometry::coco_rle::CocoRle;
use crate::pipeline::{DetectedObject, ModelTimes, Prediction};
use crate::prompt::Prompt;

/// The JSON of a run: one result per image, in the given order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// For each image, its result or its error.
    pub results: Vec<ImageReport>,
}

/// The result of one image.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ImageReport {
    /// The prediction.
    Predicted(PredictionReport),
    /// The image could not be processed.
    Failed {
        /// The file's path as given.
        image: String,
        /// The error message.
        error: String,
    },
}

/// The prediction of one image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PredictionReport {
    /// The file's path as given.
    pub image: String,
    /// Width in pixels, after the EXIF orientation is applied.
    pub width: usize,
    /// Height in pixels, after the EXIF orientation is applied.
    pub height: usize,
    /// The detector's caption.
    pub prompt: String,
    /// The detections, sorted by score, best first.
    pub detections: Vec<DetectionReport>,
    /// The time of each step.
    pub timings: StepTimes,
}

/// One detected object.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DetectionReport {
    /// The phrase of the prompt that names it.
    pub phrase: Option<String>,
    /// The detector's score, 0..1.
    pub score: f32,
    /// x0, y0, x1, y1 in pixels, after the EXIF orientation is applied.
    #[serde(rename = "box")]
    pub bounding_box: [f32; 4],
    /// The mask as COCO's compressed RLE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<CocoRle>,
    /// The predicted IoU of the mask with the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_score: Option<f32>,
}

/// The time of each step, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct StepTimes {
    pub decode_ms: f64,
    pub detector_ms: f64,
    pub segmenter_ms: f64,
    pub total_ms: f64,
}

impl PredictionReport {
    /// Describes a prediction. `decode_time` is the time to read and decode the image, `times` are the times of the
    /// models.
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
            timings: StepTimes {
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
        mask: object.mask.as_ref().map(|m| CocoRle::new(&m.mask)),
        mask_score: object.mask.as_ref().map(|m| m.score),
    }
}
