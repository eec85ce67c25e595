//! The numbers of `groundling evaluate`: predictions compared with true annotations.
//!
//! - [`CocoDataset`]: the true objects, from a COCO annotation file
//! - [`average_precision()`]: COCO's AP, equal to that of pycocotools
//! - [`threshold_curves()`]: precision, recall and F1 of each label at every score threshold, and the best threshold
//! - [`coco_results()`]: the predictions as a list that pycocotools reads

mod average_precision;
mod coco_annotation;
mod coco_file;
mod coco_results;
mod coco_segmentation;
#[cfg(test)]
mod fixture;
mod matching;
mod misses;
mod objects;
mod plateau;
mod regions;
mod thresholds;

pub use self::average_precision::{
    AveragePrecision, AveragePrecisions, MAX_DETECTIONS, average_precision,
};
pub use self::coco_file::{CocoCategory, CocoDataset, CocoFileError, CocoImage};
pub use self::coco_results::{CocoResult, coco_results};
pub use self::misses::{Miss, MissKind, misses};
pub use self::objects::{CocoBox, FoundObject, IouType, TrueObject};
pub use self::regions::{LabeledShape, Outline, labeled_shapes};
pub use self::thresholds::{OperatingPoint, ThresholdCurve, threshold_curves};
