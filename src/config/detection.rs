//! Thresholds and limits of the detections.

use clap::Args;

use super::values::{Fraction, Overlap, Percent, UpTo};
use crate::checkpoints::registry;
use crate::detector::DetectionOptions;
use crate::geometry::MaskCleanup;
use crate::labeling::Outputs;
use crate::pipeline::tiles::{Tiles, Tiling};
use crate::preannotation::project::settings::PredictionSettings;

/// Thresholds and limits of the detections.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Detection")]
pub struct DetectionArgs {
    /// Minimum score of a box, 0 to 1. A lower value finds more objects and makes more mistakes.
    /// [default: 0.3, and 0.4 for LLMDet]
    #[arg(long, env = "BOX_THRESHOLD", value_name = "0..1")]
    pub box_threshold: Option<Fraction>,
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
    /// Fill the holes of masks that are smaller than this percentage of the mask's area; 0 fills none.
    #[arg(long, env = "FILL_HOLES", default_value_t = UpTo(0.0), value_name = "PERCENT")]
    pub fill_holes: Percent,
    /// Remove the islands of masks that are smaller than this percentage of the mask's area; 0 removes none.
    #[arg(long, env = "DROP_ISLANDS", default_value_t = UpTo(0.0), value_name = "PERCENT")]
    pub drop_islands: Percent,
    /// Also search each image in tiles, which finds small objects: "auto" (as many tiles as needed so that the detector
    /// shrinks none of them much), columns and rows such as "2x2", or the side of a tile in pixels. The time grows with
    /// the number of tiles.
    #[arg(long, env = "TILES", default_value_t = Tiles::Off, value_name = "off|auto|CxR|PIXELS")]
    pub tiles: Tiles,
    /// The share of a tile's side that it has in common with its neighbour, 0 to 0.5. An object that is larger than the
    /// overlap can be cut by two tiles.
    #[arg(long, env = "TILE_OVERLAP", default_value_t = Overlap::default(), value_name = "0..0.5")]
    pub tile_overlap: Overlap,
    /// The control tags that get regions, by their names or kinds, separated by commas, such as "label,BrushLabels".
    /// Ellipse, EllipseLabels, KeyPoint and KeyPointLabels get regions only if they are named here.
    /// [default: all others]
    #[arg(long, env = "OUTPUTS", value_name = "NAME[,NAME]")]
    pub outputs: Option<String>,
}

impl DetectionArgs {
    /// The control tags that get regions; `None` for the default ones.
    pub fn outputs(&self) -> Option<Outputs> {
        self.outputs.as_deref().and_then(Outputs::parse)
    }

    /// The settings of predictions with a detector, which has a default threshold of its own if it is registered. No labels
    /// are added to a project.
    pub fn settings(&self, detector: &str) -> PredictionSettings {
        let default = registry::box_threshold(detector);
        PredictionSettings {
            options: DetectionOptions {
                box_threshold: self.box_threshold.map_or(default, |threshold| threshold.0),
                text_threshold: self.text_threshold.0,
                nms_iou_threshold: self.nms_iou.0,
                max_detections: self.max_detections,
            },
            tiling: Tiling {
                tiles: self.tiles,
                overlap: self.tile_overlap.0,
            },
            outputs: self.outputs(),
            polygon_tolerance: self.polygon_tolerance.0,
            cleanup: MaskCleanup {
                fill_holes: self.fill_holes.0,
                drop_islands: self.drop_islands.0,
            },
            segment: true,
            add_labels: false,
        }
    }
}
