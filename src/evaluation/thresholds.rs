//! Precision, recall and F1 at every score threshold, and the threshold with the best F1.

use std::collections::BTreeMap;

use serde::Serialize;

use super::matching::{Outcome, by_label_and_image};
use super::plateau::Plateau;
use super::{FoundObject, IouType, TrueObject};

/// A found object is correct if its IoU with a true object is at least this.
pub(super) const MIN_IOU: f64 = 0.5;

/// The numbers at one score threshold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct OperatingPoint {
    /// Objects with higher scores are found.
    pub threshold: f32,
    /// Number of true objects. Crowds are not counted.
    pub true_objects: usize,
    /// Number of objects found. Those inside of crowds are not counted.
    pub found: usize,
    /// Number of true objects that are found.
    pub correct: usize,
    /// The share of the found objects that are correct, 0..1; `None` if none is found.
    pub precision: Option<f64>,
    /// The share of the true objects that are found, 0..1; `None` if there are none.
    pub recall: Option<f64>,
    /// The harmonic mean of precision and recall, 0..1; `None` if nothing is true and nothing found.
    pub f1: Option<f64>,
    /// The mean IoU of the masks of the correct objects and of the true ones, 0..1; `None` if no pair has two masks.
    pub mean_mask_iou: Option<f64>,
}

/// The numbers of a label at every score threshold from the lowest one on.
#[derive(Debug, Clone, PartialEq)]
pub struct ThresholdCurve {
    /// The threshold of the candidates: what is below it is not known.
    lowest: f32,
    true_objects: usize,
    /// The found objects without those inside of crowds, best first.
    candidates: Vec<Candidate>,
    /// The sums over the first 0, 1, ..., n candidates.
    sums: Vec<Sums>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    score: f32,
    is_correct: bool,
    /// The IoU with the mask of the true object, if both have one.
    mask_iou: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Sums {
    correct: usize,
    mask_pairs: usize,
    mask_iou: f64,
}

/// The curve of each label that occurs. `candidates` are the objects found with a threshold of `lowest`.
///
/// Found and true objects of the same image and label are matched as for the average precision, at an IoU of 0.5: best
/// score first. So what is below a threshold does not influence what is above it. The number of objects per image is not
/// limited.
pub fn threshold_curves(
    truth: &[TrueObject],
    candidates: &[FoundObject],
    iou_type: IouType,
    lowest: f32,
) -> BTreeMap<String, ThresholdCurve> {
    let labels = by_label_and_image(truth, candidates).into_iter();
    let curves = labels.map(|(label, images)| {
        let (mut candidates, mut true_objects) = (vec![], 0);
        for objects in images.values() {
            true_objects += objects.wanted();
            let outcomes = objects.outcomes(&objects.ious(iou_type), MIN_IOU);
            for (found, outcome) in objects.found.iter().zip(outcomes) {
                let truth = match outcome {
                    Outcome::Correct(index) => Some(objects.truth[index]),
                    Outcome::Wrong => None,
                    Outcome::Ignored => continue,
                };
                let masked = truth.filter(|truth| truth.mask.is_some() && found.mask.is_some());
                candidates.push(Candidate {
                    score: found.score,
                    is_correct: truth.is_some(),
                    mask_iou: masked.map(|truth| IouType::Masks.iou(truth, found)),
                });
            }
        }
        let curve = ThresholdCurve::new(lowest, true_objects, candidates);
        (label.to_owned(), curve)
    });
    curves.collect()
}

impl ThresholdCurve {
    fn new(lowest: f32, true_objects: usize, mut candidates: Vec<Candidate>) -> Self {
        candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
        let mut sum = Sums::default();
        let mut sums = vec![sum];
        for candidate in &candidates {
            sum.correct += usize::from(candidate.is_correct);
            sum.mask_pairs += usize::from(candidate.mask_iou.is_some());
            sum.mask_iou += candidate.mask_iou.unwrap_or(0.0);
            sums.push(sum);
        }
        Self {
            lowest,
            true_objects,
            candidates,
            sums,
        }
    }

    /// The curve of several labels with one common threshold.
    pub fn merged<'a>(curves: impl IntoIterator<Item = &'a Self>) -> Self {
        let (mut lowest, mut true_objects, mut candidates) = (0.0, 0, vec![]);
        for curve in curves {
            lowest = curve.lowest.max(lowest);
            true_objects += curve.true_objects;
            candidates.extend_from_slice(&curve.candidates);
        }
        Self::new(lowest, true_objects, candidates)
    }

    /// The numbers at a threshold, which should not be below that of the candidates.
    pub fn at(&self, threshold: f32) -> OperatingPoint {
        // as in the detector: with a threshold of 0 every candidate passes
        let passes = |candidate: &Candidate| candidate.score > threshold || threshold <= 0.0;
        self.point(threshold, self.candidates.partition_point(passes))
    }

    /// The numbers at the threshold with the highest F1; `None` if no candidate is correct.
    ///
    /// F1 is the same for all thresholds between two neighbouring scores, and this is the middle of such a plateau, so that
    /// scores which differ a little in other images have the same results. Neighbouring plateaus with the same F1 are
    /// one. If several have the highest F1, it is the widest one, and of equally wide ones the highest. The threshold
    /// is rounded to as few decimals as stay near the middle, but at least two.
    ///
    /// It is the best one for these images. For other images it is only an estimate, and a poor one if few objects are
    /// annotated.
    pub fn best(&self) -> Option<OperatingPoint> {
        let best = self.plateaus().into_iter().reduce(|best, other| {
            let is_wider = other.f1 == best.f1 && other.width() > best.width();
            if other.f1 > best.f1 || is_wider {
                other
            } else {
                best
            }
        });
        best.filter(|best| best.f1 > 0.0)
            .map(|best| self.at(best.middle()))
    }

    /// The ranges of thresholds with the same F1, from the highest threshold to the lowest.
    fn plateaus(&self) -> Vec<Plateau> {
        let score = |index: usize| self.candidates.get(index).map(|candidate| candidate.score);
        // the numbers of candidates that a threshold can find: those with equal scores are found together
        let counts = 1..=self.candidates.len();
        let counts: Vec<usize> = counts
            .filter(|found| score(*found) != score(found - 1))
            .collect();
        let plateaus = counts.chunk_by(|a, b| self.f1(*a) == self.f1(*b));
        let plateau = |counts: &[usize]| {
            let (first, last) = (*counts.first()?, *counts.last()?);
            let high = score(first - 1)?;
            Some(Plateau {
                f1: self.f1(first),
                low: score(last).unwrap_or(self.lowest.min(high)),
                high,
            })
        };
        plateaus.filter_map(plateau).collect()
    }

    /// The F1 of the first `found` candidates; at least one is found.
    fn f1(&self, found: usize) -> f64 {
        2.0 * self.sums[found].correct as f64 / (self.true_objects + found) as f64
    }

    fn point(&self, threshold: f32, found: usize) -> OperatingPoint {
        let Sums {
            correct,
            mask_pairs,
            mask_iou,
        } = self.sums[found];
        let share = |of: usize| (of > 0).then(|| correct as f64 / of as f64);
        OperatingPoint {
            threshold,
            true_objects: self.true_objects,
            found,
            correct,
            precision: share(found),
            recall: share(self.true_objects),
            f1: (self.true_objects + found > 0).then(|| self.f1(found)),
            mean_mask_iou: (mask_pairs > 0).then(|| mask_iou / mask_pairs as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::CocoBox;
    use super::super::fixture::Fixture;
    use super::*;
    use crate::geometry::{ImageSize, Mask};

    /// A curve of candidates with these scores.
    fn curve(true_objects: usize, candidates: &[(f32, bool)]) -> ThresholdCurve {
        let candidates = candidates.iter().map(|(score, is_correct)| Candidate {
            score: *score,
            is_correct: *is_correct,
            mask_iou: None,
        });
        ThresholdCurve::new(0.1, true_objects, candidates.collect())
    }

    fn best(true_objects: usize, candidates: &[(f32, bool)]) -> Option<(f32, usize, usize)> {
        let best = curve(true_objects, candidates).best()?;
        Some((best.threshold, best.correct, best.found))
    }

    #[test]
    fn the_best_threshold_is_the_middle_of_its_plateau() {
        let candidates = [(0.9, true), (0.8, true), (0.4, false), (0.2, false)];
        assert_eq!(best(2, &candidates), Some((0.6, 2, 2)));
        // down to the threshold of the candidates
        assert_eq!(best(2, &candidates[..2]), Some((0.45, 2, 2)));
        // equal scores are found together
        let candidates = [(0.5, true), (0.5, false), (0.3, false)];
        assert_eq!(best(1, &candidates), Some((0.4, 1, 2)));
    }

    #[test]
    fn of_plateaus_with_the_same_f1_the_widest_one_is_taken() {
        // F1 is 2/3 with one and with four candidates, and lower with other numbers
        let wide_below = [
            (0.9, true),
            (0.88, false),
            (0.86, false),
            (0.84, true),
            (0.3, false),
        ];
        assert_eq!(best(2, &wide_below), Some((0.57, 2, 4)));
        let wide_above = [(0.9, true), (0.5, false), (0.48, false), (0.46, true)];
        assert_eq!(
            best(2, &[&wide_above[..], &[(0.4, false)]].concat()),
            Some((0.7, 1, 1))
        );
    }

    #[test]
    fn a_threshold_is_exclusive_and_zero_lets_everything_pass() {
        let curve = curve(4, &[(0.9, true), (0.5, true), (0.0, false)]);
        let found = |threshold: f32| curve.at(threshold).found;
        assert_eq!([0.0, 0.1, 0.5, 0.89, 0.9].map(found), [3, 2, 1, 1, 0]);
        let point = curve.at(0.0);
        assert_eq!(
            (point.precision, point.recall),
            (Some(2.0 / 3.0), Some(0.5))
        );
        assert_eq!(point.f1, Some(4.0 / 7.0));
        let point = curve.at(0.95);
        assert_eq!(
            (point.precision, point.recall, point.f1),
            (None, Some(0.0), Some(0.0))
        );
    }

    #[test]
    fn without_a_correct_candidate_there_is_no_best_threshold() {
        assert_eq!(best(2, &[(0.9, false)]), None);
        assert_eq!(best(2, &[]), None);
        let point = curve(0, &[]).at(0.5);
        assert_eq!(
            (point.precision, point.recall, point.f1),
            (None, None, None)
        );
    }

    #[test]
    fn curves_of_several_labels_have_a_common_threshold() {
        let (cups, plates) = (
            curve(1, &[(0.9, true), (0.3, false)]),
            curve(1, &[(0.7, true), (0.5, false)]),
        );
        let both = ThresholdCurve::merged([&cups, &plates]);
        let best = both.best().unwrap();
        assert_eq!((best.threshold, best.correct, best.found), (0.6, 2, 2));
        assert_eq!(both.at(0.4).true_objects, 2);
    }

    #[test]
    fn the_mask_iou_is_the_mean_over_pairs_with_masks() {
        let size = ImageSize {
            height: 1,
            width: 4,
        };
        let mask = |pixels: [bool; 4]| Some(Arc::new(Mask::from_pixels(size, pixels)));
        let bounding_box = |i: usize| CocoBox([10.0 * i as f64, 0.0, 5.0, 5.0]);
        let pair = |i: usize, masks: [Option<Arc<Mask>>; 2]| {
            let [truth, found] = masks;
            (
                TrueObject {
                    image: 1,
                    label: "cup".to_owned(),
                    bounding_box: bounding_box(i),
                    mask: truth,
                    is_crowd: false,
                },
                FoundObject {
                    image: 1,
                    label: "cup".to_owned(),
                    score: 0.9 - 0.1 * i as f32,
                    bounding_box: bounding_box(i),
                    mask: found,
                },
            )
        };
        let (truth, found): (Vec<_>, Vec<_>) = [
            pair(0, [mask([true; 4]), mask([true, true, true, false])]),
            pair(1, [mask([true; 4]), None]),
            pair(2, [mask([true; 4]), mask([true, false, false, false])]),
        ]
        .into_iter()
        .unzip();
        let curves = threshold_curves(&truth, &found, IouType::Boxes, 0.0);
        let mask_iou = |threshold: f32| curves["cup"].at(threshold).mean_mask_iou;
        assert_eq!(
            [0.85, 0.75, 0.3].map(mask_iou),
            [Some(0.75), Some(0.75), Some(0.5)]
        );
        assert_eq!(mask_iou(0.95), None);
    }

    #[test]
    fn the_counts_at_a_threshold_equal_pycocotools() {
        let fixture = Fixture::read();
        assert!(!fixture.expected.counts.is_empty());
        for expected in &fixture.expected.counts {
            let iou_type = match expected.iou_type.as_str() {
                "bbox" => IouType::Boxes,
                _ => IouType::Masks,
            };
            let curves = threshold_curves(&fixture.truth.objects, &fixture.found, iou_type, 0.0);
            let point = curves[&expected.label].at(expected.threshold);
            assert_eq!(
                [point.true_objects, point.found, point.correct],
                [expected.true_objects, expected.found, expected.correct],
                "{expected:?}"
            );
        }
    }
}
