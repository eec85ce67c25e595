//! Which detections are kept, and which controls take them.

use super::Style;
use crate::geometry::Detection;
use crate::labeling::{ControlTag, ImageTag, Label, LabelingConfig, RegionControl, Shape};

/// What to do with a detection whose phrase is no label of a control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlabeled {
    /// Draw it without a label, so that the annotator gives it one.
    Keep,
    /// Leave it out: stored predictions must have labels of the config.
    Drop,
}

/// A control that takes an object, and the label that the object has there.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Destination<'a> {
    pub(super) control: RegionControl<'a>,
    /// With the control that it belongs to.
    pub(super) label: Option<(&'a ControlTag, &'a Label)>,
}

/// The controls that take a detection: those that have a label for it or no labels at all, and with
/// [`Unlabeled::Keep`] all others too. `None` if its score is not above the threshold of its label.
pub(super) fn destinations<'a>(
    detection: &Detection,
    config: &'a LabelingConfig,
    image: &'a ImageTag,
    style: &Style,
) -> Option<Vec<Destination<'a>>> {
    let phrase = detection.phrase.as_deref();
    let controls = config.region_controls(image);
    let mut found: Vec<Destination> = controls
        .map(|control| Destination {
            label: phrase.and_then(|phrase| control.label_for(phrase)),
            control,
        })
        .collect();
    if let Some(others) = style.label_thresholds {
        let mut labels = found.iter().filter_map(|destination| destination.label);
        let own = labels.find_map(|(_, label)| label.score_threshold);
        if detection.score <= own.unwrap_or(others) {
            return None;
        }
    }
    found.retain(|destination| {
        let has_labels = !destination.control.labels.is_empty();
        destination.label.is_some() || !has_labels || style.unlabeled == Unlabeled::Keep
    });
    Some(found)
}

/// The control that takes what an annotator cut out with a label: one that has the label before others, and of
/// those a brush before a polygon.
pub(super) fn cutout_destination<'a>(
    label: Option<&str>,
    config: &'a LabelingConfig,
    image: &'a ImageTag,
) -> Option<Destination<'a>> {
    let controls = config.region_controls(image);
    let takes_masks = controls.filter(|control| control.shape != Shape::Rectangle);
    takes_masks
        .map(|control| Destination {
            label: label.and_then(|name| control.label_named(name)),
            control,
        })
        .min_by_key(|found| (found.label.is_none(), found.control.shape != Shape::Brush))
}
