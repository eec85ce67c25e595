//! Converts the masks of a smart tool to regions.

use std::sync::Arc;

use super::region::Region;
use super::{RegionOptions, region, render, scores, selection};
use crate::labeling::{ImageTag, LabelingConfig};
use crate::segmenter::ScoredMask;

/// Converts the masks of a smart tool to regions with the annotator's label. A control that has the label is
/// preferred; among those, a mask is preferred to an outline, and a brush to a bitmask.
pub fn mask_regions(
    masks: &[Arc<ScoredMask>],
    label: Option<&str>,
    config: &LabelingConfig,
    image: &ImageTag,
    options: &RegionOptions,
) -> Vec<Region> {
    let Some(destination) = selection::mask_destination(label, config, image) else {
        return vec![];
    };
    let shape = destination.control.shape;
    let tolerance = options.tolerance_of(destination.control.control);
    let mut regions = vec![];
    for scored in masks {
        let (size, score) = (scored.mask.size(), Some(scores::mask_score(scored)));
        let image_page = options.image_page(image, size);
        for value in render::mask_values(&scored.mask, shape, tolerance) {
            regions.extend(region::labeled(value, &destination, image_page, score));
        }
    }
    regions
}
