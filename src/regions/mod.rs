//! Converts detected objects to Label Studio regions.
//!
//! `from_prediction` converts the objects of a prediction, `from_masks` the masks of a smart tool. For both,
//! `selection` finds the controls that take an object, `render` converts its box or mask to a control's value,
//! [`scores`] computes the score, and `region` adds the label.

pub mod bitmask;
pub mod brush_rle;
mod from_masks;
mod from_prediction;
pub mod polygon;
mod region;
mod render;
mod schema;
pub mod scores;
mod selection;
mod value;

pub use self::from_masks::mask_regions;
pub use self::from_prediction::{Regions, regions};
pub use self::region::{Region, prompt_region};
pub use self::selection::Unlabeled;
pub use self::value::{Labels, RegionValue};

/// Options of the conversion to regions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RegionOptions {
    /// What happens to phrases that match no label.
    pub unlabeled: Unlabeled,
    /// The box threshold of labels without their own one, 0..1. Set only if per-label thresholds apply.
    pub default_label_threshold: Option<f32>,
    /// Maximum distance of a polygon from its mask's boundary, in percent of the image's longer side.
    pub polygon_tolerance: f32,
}

#[cfg(test)]
mod tests;
