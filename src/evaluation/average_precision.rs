//! COCO's average precision, equal to that of `COCOeval` in pycocotools.

use std::collections::BTreeMap;

use serde::Serialize;

use super::matching::{ImageObjects, Outcome, by_label_and_image};
use super::{FoundObject, IouType, TrueObject};

/// At most this many objects of a label count in each image, the best ones: the last of `maxDets` in pycocotools'
/// `Params.setDetParams`, with which COCO's AP is defined (<https://cocodataset.org/#detection-eval>).
pub const MAX_DETECTIONS: usize = 100;

/// The average precision of a label, or its mean over labels; 0..1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AveragePrecision {
    /// COCO's AP: the mean over the IoU thresholds 0.5, 0.55, ..., 0.95.
    pub ap: f64,
    /// COCO's AP50: that of the IoU threshold 0.5.
    pub ap50: f64,
}

/// The average precision of a set of predictions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AveragePrecisions {
    /// The mean over the labels with true objects; `None` if there are none, where pycocotools returns -1.
    pub overall: Option<AveragePrecision>,
    /// For each label that occurs, its own; `None` without true objects. Crowds are not among them.
    pub labels: BTreeMap<String, Option<AveragePrecision>>,
}

/// The average precision of boxes or masks, for objects of all sizes (`area=all`) and at most [`MAX_DETECTIONS`] per image
/// and label.
///
/// Of two objects with equal scores, that in the image with the lower id counts as better; in the same image, that which
/// is first in `found`. This is also the order of pycocotools for a list of results.
///
/// The result equals that of pycocotools, with one exception: pycocotools counts a correct prediction of an annotation
/// whose id is 0 as wrong, because it also uses 0 for "no annotation".
pub fn average_precision(
    truth: &[TrueObject],
    found: &[FoundObject],
    iou_type: IouType,
) -> AveragePrecisions {
    let labels: BTreeMap<String, Option<AveragePrecision>> = by_label_and_image(truth, found)
        .into_iter()
        .map(|(label, images)| (label.to_owned(), of_label(images, iou_type)))
        .collect();
    let known: Vec<&AveragePrecision> = labels.values().flatten().collect();
    let overall = (!known.is_empty()).then(|| AveragePrecision {
        ap: mean(known.iter().map(|label| label.ap)),
        ap50: mean(known.iter().map(|label| label.ap50)),
    });
    AveragePrecisions { overall, labels }
}

/// The average precision of one label; `None` without true objects.
fn of_label(images: BTreeMap<u64, ImageObjects>, iou_type: IouType) -> Option<AveragePrecision> {
    let wanted: usize = images.values().map(ImageObjects::wanted).sum();
    if wanted == 0 {
        return None;
    }
    let images: Vec<_> = images
        .into_values()
        .map(|mut objects| {
            objects.found.truncate(MAX_DETECTIONS);
            let ious = objects.ious(iou_type);
            (objects, ious)
        })
        .collect();
    let at_iou = |min_iou: f64| {
        let mut outcomes: Vec<(f32, Outcome)> = vec![];
        for (objects, ious) in &images {
            let scores = objects.found.iter().map(|found| found.score);
            outcomes.extend(scores.zip(objects.outcomes(ious, min_iou)));
        }
        // stable, so the order of the images decides between equal scores
        outcomes.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        interpolated_precision(outcomes.into_iter().map(|(_, outcome)| outcome), wanted)
    };
    let precisions = iou_thresholds().map(at_iou);
    Some(AveragePrecision {
        ap: mean(precisions.into_iter()),
        ap50: precisions[0],
    })
}

/// The mean, over 101 values of recall, of the best precision with at least that recall. `outcomes` are sorted by score.
fn interpolated_precision(outcomes: impl Iterator<Item = Outcome>, wanted: usize) -> f64 {
    let (mut correct, mut wrong) = (0usize, 0usize);
    let (mut recalls, mut precisions) = (vec![], vec![]);
    for outcome in outcomes {
        match outcome {
            Outcome::Correct(_) => correct += 1,
            Outcome::Wrong => wrong += 1,
            Outcome::Ignored => continue,
        }
        recalls.push(correct as f64 / wanted as f64);
        // with the reference's guard against a division by 0
        precisions.push(correct as f64 / (correct as f64 + wrong as f64 + f64::EPSILON));
    }
    for i in (1..precisions.len()).rev() {
        precisions[i - 1] = precisions[i - 1].max(precisions[i]);
    }
    mean(recall_points().into_iter().map(|min_recall| {
        let first = recalls.partition_point(|recall| *recall < min_recall);
        precisions.get(first).copied().unwrap_or(0.0)
    }))
}

/// `numpy.linspace(0.5, 0.95, 10)`, bit for bit: an IoU can equal a threshold.
fn iou_thresholds() -> [f64; 10] {
    let step = (0.95 - 0.5) / 9.0;
    std::array::from_fn(|i| match i {
        9 => 0.95,
        _ => i as f64 * step + 0.5,
    })
}

/// `numpy.linspace(0, 1, 101)`, bit for bit.
fn recall_points() -> [f64; 101] {
    std::array::from_fn(|i| match i {
        100 => 1.0,
        _ => i as f64 * 0.01,
    })
}

/// The mean of at least one value.
fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Expected, Fixture};
    use super::*;

    /// The largest difference to the reference, of all numbers.
    fn difference(found: &AveragePrecisions, expected: &Expected) -> f64 {
        let mut largest = 0f64;
        let mut compare = |found: Option<AveragePrecision>, expected: Option<[f64; 2]>| {
            assert_eq!(found.is_some(), expected.is_some());
            if let (Some(found), Some([ap, ap50])) = (found, expected) {
                largest = largest
                    .max((found.ap - ap).abs())
                    .max((found.ap50 - ap50).abs());
            }
        };
        compare(found.overall, expected.overall);
        assert!(found.labels.keys().eq(expected.labels.keys()));
        for (label, found) in &found.labels {
            compare(*found, expected.labels[label]);
        }
        largest
    }

    #[test]
    fn average_precision_equals_pycocotools() {
        let fixture = Fixture::read();
        for (iou_type, expected) in [
            (IouType::Boxes, &fixture.expected.bbox),
            (IouType::Masks, &fixture.expected.segm),
        ] {
            let result = average_precision(&fixture.truth.objects, &fixture.found, iou_type);
            let difference = difference(&result, expected);
            println!("{iou_type:?}: the largest difference to pycocotools is {difference:.1e}");
            assert!(difference < 1e-6, "{result:#?}\n{expected:#?}");
        }
    }

    #[test]
    fn the_thresholds_are_those_of_pycocotools_bit_by_bit() {
        let expected = Fixture::read().expected;
        assert_eq!(
            iou_thresholds().map(f64::to_bits).as_slice(),
            expected.iou_threshold_bits
        );
        assert_eq!(
            recall_points().map(f64::to_bits).as_slice(),
            expected.recall_point_bits
        );
    }

    #[test]
    fn without_true_objects_there_is_no_average_precision() {
        let result = average_precision(&[], &[], IouType::Boxes);
        assert_eq!((result.overall, result.labels.len()), (None, 0));
    }
}
