//! Converts detected objects to Label Studio regions.
//!
//! `from_prediction` converts the objects of a prediction, `from_masks` the masks of a smart tool. For both,
//! `selection` finds the controls that take an object, `render` converts its box or mask to a control's value,
//! [`scores`] computes the score, and `region` adds the label.

pub mod bitmask;
pub mod brush_rle;
mod ellipse;
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
pub use self::region::{ImagePage, Region, prompt_region, random_id, status_region};
pub use self::selection::Unlabeled;
pub use self::value::{Labels, RegionValue};

use crate::geometry::ImageSize;
use crate::labeling::{ControlTag, ImageTag};

/// Options of the conversion to regions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RegionOptions {
    /// What happens to phrases that match no label.
    pub unlabeled: Unlabeled,
    /// Maximum distance of a polygon from its mask's boundary, in percent of the image's longer side, for controls
    /// without their own.
    pub polygon_tolerance: f32,
    /// The number of the page, from 0; `None` if the image tag shows a single image.
    pub page: Option<usize>,
}

impl RegionOptions {
    /// The tolerance of a control's outlines.
    fn tolerance_of(&self, control: &ControlTag) -> f32 {
        control.polygon_tolerance.unwrap_or(self.polygon_tolerance)
    }

    /// Where the regions of an image of this size belong.
    fn image_page<'a>(&self, image: &'a ImageTag, size: ImageSize) -> ImagePage<'a> {
        ImagePage {
            image,
            page: self.page,
            size,
        }
    }
}

#[cfg(test)]
mod tests;
