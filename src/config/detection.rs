//! Thresholds and limits of the detections.

use clap::Args;

use super::values::{Fraction, Percent, UpTo};
use crate::detector::DetectionOptions;

/// Thresholds and limits of the detections.
#[derive(Debug, Args)]
#[command(next_help_heading = "Detection")]
pub struct DetectionArgs {
    /// Minimum score of a box, 0 to 1. A lower value finds more objects and makes more mistakes.
    #[arg(long, env = "BOX_THRESHOLD", default_value_t = UpTo(0.3), value_name = "0..1")]
    pub box_threshold: Fraction,
    /// Minimum score of a phrase to name a box, 0 to 1.
    #[arg(long, env = "TEXT_THRESHOLD", default_value_t = UpTo(0.25), value_name = "0..1")]
    pub text_threshold: Fraction,
    /// Boxes of the same phrase whose overlap (IoU) is larger than this are merged into the best one, 0 to 1; 1 keeps
    /// all boxes.
    #[arg(long, env = "NMS_IOU", default_value_t = UpTo(0.7), value_name = "0..1")]
    pub nms_iou: Fraction,
    /// Maximum number of objects per image; the best ones are kept. [default: no limit]
    #[arg(long, env = "MAX_DETECTIONS", value_name = "N")]
    pub max_detections: Option<usize>,
    /// Maximum distance of a polygon from its mask's boundary, in percent of the image's longer side. A higher value
    /// gives fewer points.
    #[arg(
        long,
        env = "POLYGON_TOLERANCE",
        default_value_t = UpTo(0.2),
        value_name = "PERCENT"
    )]
    pub polygon_tolerance: Percent,
}

impl DetectionArgs {
    /// The detector's options.
    pub fn options(&self) -> DetectionOptions {
        DetectionOptions {
            box_threshold: self.box_threshold.0,
            text_threshold: self.text_threshold.0,
            nms_iou_threshold: self.nms_iou.0,
            max_detections: self.max_detections,
        }
    }
}
