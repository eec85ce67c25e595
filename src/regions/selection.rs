//! Selects the detections to keep, and the controls that take them.

use super::RegionOptions;
use crate::geometry::Detection;
use crate::labeling::{ControlTag, ImageTag, Label, LabelingConfig, RegionControl, Shape};

/// What to do with a detection whose phrase matches no label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlabeled {
    /// Keep it without a label; the annotator assigns one.
    Keep,
    /// Drop it: stored predictions must have labels of the config.
    Drop,
}

/// A control that takes an object, and the object's label there.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Destination<'a> {
    pub(super) control: RegionControl<'a>,
    /// The label, and the control that defines it.
    pub(super) label: Option<(&'a ControlTag, &'a Label)>,
}

/// The controls that take a detection: those with a matching label or without any labels, and with
/// [`Unlabeled::Keep`] all others too.
pub(super) fn destinations<'a>(
    detection: &Detection,
    config: &'a LabelingConfig,
    image: &'a ImageTag,
    options: &RegionOptions,
) -> Vec<Destination<'a>> {
    let phrase = detection.phrase.as_deref();
    let controls = config.region_controls(image);
    let mut found: Vec<Destination> = controls
        .map(|control| Destination {
            label: phrase.and_then(|phrase| control.label_for(phrase)),
            control,
        })
        .collect();
    found.retain(|destination| {
        let has_labels = !destination.control.labels.is_empty();
        destination.label.is_some() || !has_labels || options.unlabeled == Unlabeled::Keep
    });
    found
}

/// The control that takes a smart tool's mask with this label. A control that has the label is preferred; among
/// those, a mask is preferred to an outline, and a brush to a bitmask.
pub(super) fn mask_destination<'a>(
    label: Option<&str>,
    config: &'a LabelingConfig,
    image: &'a ImageTag,
) -> Option<Destination<'a>> {
    let controls = config.region_controls(image);
    let takes_masks = controls.filter(|control| control.shape.needs_mask());
    takes_masks
        .map(|control| Destination {
            label: label.and_then(|name| control.label_named(name)),
            control,
        })
        .min_by_key(|found| {
            let rank = match found.control.shape {
                Shape::Brush => 0,
                Shape::Bitmask => 1,
                Shape::Polygon | Shape::Vector => 2,
                Shape::Ellipse | Shape::Rectangle | Shape::KeyPoint => 3,
            };
            (found.label.is_none(), rank)
        })
}
