//! Which found object is which true object, decided as in `COCOeval.evaluateImg` of pycocotools.

use std::collections::BTreeMap;

use super::{FoundObject, IouType, TrueObject};

/// The objects of one label in one image.
#[derive(Debug, Default)]
pub(super) struct ImageObjects<'a> {
    /// The true ones; crowds are last.
    pub(super) truth: Vec<&'a TrueObject>,
    /// The found ones, best first. Equal scores keep their order.
    pub(super) found: Vec<&'a FoundObject>,
}

/// Groups objects by their labels, and then by their images. Images are sorted by their ids: of equal scores in two
/// images, COCO's evaluation takes that in the first image first.
pub(super) fn by_label_and_image<'a>(
    truth: &'a [TrueObject],
    found: &'a [FoundObject],
) -> BTreeMap<&'a str, BTreeMap<u64, ImageObjects<'a>>> {
    let mut labels: BTreeMap<&str, BTreeMap<u64, ImageObjects>> = BTreeMap::new();
    for object in truth {
        let images = labels.entry(&object.label).or_default();
        images.entry(object.image).or_default().truth.push(object);
    }
    for object in found {
        let images = labels.entry(&object.label).or_default();
        images.entry(object.image).or_default().found.push(object);
    }
    for objects in labels.values_mut().flat_map(BTreeMap::values_mut) {
        // both sorts are stable
        objects.truth.sort_by_key(|object| object.is_crowd);
        objects.found.sort_by(|a, b| b.score.total_cmp(&a.score));
    }
    labels
}

/// The overlaps of the objects of an image: for each found object, its IoU with each true object.
#[derive(Debug)]
pub(super) struct Ious(Vec<Vec<f64>>);

/// What a found object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The true object with this index.
    Correct(usize),
    /// Part of a crowd, so it does not count.
    Ignored,
    /// None of the true objects.
    Wrong,
}

impl ImageObjects<'_> {
    /// Number of true objects that should be found.
    pub(super) fn wanted(&self) -> usize {
        let is_wanted = |object: &&&TrueObject| !object.is_crowd;
        self.truth.iter().filter(is_wanted).count()
    }

    /// The overlaps of all pairs.
    pub(super) fn ious(&self, iou_type: IouType) -> Ious {
        let of = |found: &&FoundObject| {
            let truth = self.truth.iter();
            truth.map(|truth| iou_type.iou(truth, found)).collect()
        };
        Ious(self.found.iter().map(of).collect())
    }

    /// What each found object is. From the best score to the lowest, each is matched to the true object with which it
    /// overlaps most, of those that are not matched yet and have an IoU of at least `min_iou`; of equal ones, the last.
    /// If there is none, it is matched to a crowd. Any number of found objects can be matched to the same crowd.
    ///
    /// The outcome of an object does not depend on those with lower scores.
    pub(super) fn outcomes(&self, ious: &Ious, min_iou: f64) -> Vec<Outcome> {
        let mut is_matched = vec![false; self.truth.len()];
        let outcome = |ious: &Vec<f64>| {
            let mut best_iou = min_iou;
            let mut best = None;
            for (i, (truth, iou)) in self.truth.iter().zip(ious).enumerate() {
                // never a crowd
                if is_matched[i] {
                    continue;
                }
                if truth.is_crowd && best.is_some_and(|best: usize| !self.truth[best].is_crowd) {
                    break;
                }
                if *iou >= best_iou {
                    (best_iou, best) = (*iou, Some(i));
                }
            }
            match best {
                None => Outcome::Wrong,
                Some(best) if self.truth[best].is_crowd => Outcome::Ignored,
                Some(best) => {
                    is_matched[best] = true;
                    Outcome::Correct(best)
                }
            }
        };
        ious.0.iter().map(outcome).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::CocoBox;
    use super::*;

    /// A true object between two columns.
    fn truth(x0: f64, x1: f64, is_crowd: bool) -> TrueObject {
        TrueObject {
            image: 1,
            label: "cup".to_owned(),
            bounding_box: CocoBox([x0, 0.0, x1 - x0, 1.0]),
            mask: None,
            is_crowd,
        }
    }

    fn found(x0: f64, x1: f64, score: f32) -> FoundObject {
        FoundObject {
            image: 1,
            label: "cup".to_owned(),
            score,
            bounding_box: CocoBox([x0, 0.0, x1 - x0, 1.0]),
            mask: None,
        }
    }

    fn outcomes(truth: &[TrueObject], found: &[FoundObject]) -> Vec<Outcome> {
        let labels = by_label_and_image(truth, found);
        let objects = &labels["cup"][&1];
        objects.outcomes(&objects.ious(IouType::Boxes), 0.5)
    }

    #[test]
    fn the_best_score_is_matched_to_the_object_with_the_largest_overlap() {
        let truth = [truth(0.0, 10.0, false), truth(2.0, 12.0, false)];
        // in the order of their scores: the third, the first, the second
        let found = [
            found(2.0, 12.0, 0.8),
            found(2.0, 12.0, 0.8),
            found(1.9, 11.9, 0.9),
        ];
        let expected = [Outcome::Correct(1), Outcome::Correct(0), Outcome::Wrong];
        assert_eq!(outcomes(&truth, &found), expected);
    }

    #[test]
    fn a_crowd_is_matched_to_any_number_of_objects_that_are_no_other_object() {
        let truth = [truth(0.0, 100.0, true), truth(0.0, 10.0, false)];
        let found = [
            found(0.0, 8.0, 0.9),
            found(0.0, 10.0, 0.8),
            found(50.0, 60.0, 0.7),
            found(95.0, 110.0, 0.6),
        ];
        let expected = [
            Outcome::Correct(0),
            Outcome::Ignored,
            Outcome::Ignored,
            Outcome::Wrong,
        ];
        assert_eq!(outcomes(&truth, &found), expected);
    }
}
