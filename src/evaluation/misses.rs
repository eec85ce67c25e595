//! What a person should look at: each object that was missed or found wrongly, and the correct ones beside them.

use std::sync::Arc;

use super::matching::{Outcome, by_label_and_image};
use super::thresholds::MIN_IOU;
use super::{CocoBox, FoundObject, IouType, TrueObject};
use crate::geometry::Mask;

/// An object of an image, and whether it was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Miss {
    /// The id of its image.
    pub image: u64,
    /// Its label.
    pub label: String,
    /// Whether it was found.
    pub kind: MissKind,
    /// The score, 0..1; `None` if it was not found.
    pub score: Option<f32>,
    /// Its box: that of the annotation if it was missed, else that of the prediction.
    pub bounding_box: CocoBox,
    /// Its mask, of the same.
    pub mask: Option<Arc<Mask>>,
}

/// Whether an object was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissKind {
    /// Annotated and found.
    Correct,
    /// Annotated and not found.
    Missed,
    /// Found and not annotated.
    Wrong,
    /// Found inside of a crowd, which is neither right nor wrong.
    Crowd,
}

impl MissKind {
    /// Whether it is an error.
    pub fn is_miss(self) -> bool {
        matches!(self, Self::Missed | Self::Wrong)
    }
}

/// All objects at the score threshold of their label, matched at an IoU of 0.5 as for the average precision. Crowds
/// themselves are left out.
pub fn misses(
    truth: &[TrueObject],
    found: &[FoundObject],
    iou_type: IouType,
    threshold: impl Fn(&str) -> f32,
) -> Vec<Miss> {
    let mut all = vec![];
    for (label, images) in by_label_and_image(truth, found) {
        let threshold = threshold(label);
        for (image, mut objects) in images {
            objects.found.retain(|object| object.score > threshold);
            let outcomes = objects.outcomes(&objects.ious(iou_type), MIN_IOU);
            let mut is_missed: Vec<bool> =
                objects.truth.iter().map(|truth| !truth.is_crowd).collect();
            let miss = |kind, score, bounding_box, mask| Miss {
                image,
                label: label.to_owned(),
                kind,
                score,
                bounding_box,
                mask,
            };
            for (object, outcome) in objects.found.iter().zip(outcomes) {
                let kind = match outcome {
                    Outcome::Correct(index) => {
                        is_missed[index] = false;
                        MissKind::Correct
                    }
                    Outcome::Ignored => MissKind::Crowd,
                    Outcome::Wrong => MissKind::Wrong,
                };
                let score = Some(object.score);
                all.push(miss(kind, score, object.bounding_box, object.mask.clone()));
            }
            for (object, is_missed) in objects.truth.iter().zip(is_missed) {
                if is_missed {
                    let mask = object.mask.clone();
                    all.push(miss(MissKind::Missed, None, object.bounding_box, mask));
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_is_correct_missed_or_wrong() {
        let bounding_box = |x: f64| CocoBox([x, 0.0, 10.0, 10.0]);
        let truth = |x, is_crowd| TrueObject {
            image: 1,
            label: "cup".to_owned(),
            bounding_box: bounding_box(x),
            mask: None,
            is_crowd,
        };
        let found = |x, score| FoundObject {
            image: 1,
            label: "cup".to_owned(),
            score,
            bounding_box: bounding_box(x),
            mask: None,
        };
        let truth = [truth(0.0, false), truth(50.0, false), truth(200.0, true)];
        let found = [
            found(1.0, 0.9),
            found(100.0, 0.8),
            found(50.0, 0.2),
            found(200.0, 0.7),
        ];
        let mut kinds: Vec<_> = misses(&truth, &found, IouType::Boxes, |_| 0.3)
            .into_iter()
            .map(|miss| (miss.bounding_box.0[0] as i32, miss.kind, miss.score))
            .collect();
        kinds.sort_by_key(|(x, ..)| *x);
        let expected = [
            (1, MissKind::Correct, Some(0.9)),
            (50, MissKind::Missed, None),
            (100, MissKind::Wrong, Some(0.8)),
            (200, MissKind::Crowd, Some(0.7)),
        ];
        assert_eq!(kinds, expected);
    }
}
