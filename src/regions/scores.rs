//! Scores of regions and of predictions.

use crate::labeling::Shape;
use crate::pipeline::DetectedObject;
use crate::segmenter::ScoredMask;

/// The score, 0..1, of an object's region from a control of this shape: the detector's score for a rectangle, else
/// the segmenter's.
pub(super) fn of_object(object: &DetectedObject, shape: Shape) -> Option<f32> {
    match shape {
        Shape::Rectangle => Some(in_range(object.detection.score)),
        Shape::Brush | Shape::Polygon => object.mask.as_deref().map(of_mask),
    }
}

/// The score of a mask's region, 0..1.
pub(super) fn of_mask(mask: &ScoredMask) -> f32 {
    in_range(mask.score)
}

/// The segmenter's predicted IoU can be greater than 1.
fn in_range(score: f32) -> f32 {
    score.clamp(0.0, 1.0)
}

/// The mean of scores; 0 without any.
pub fn mean(scores: impl IntoIterator<Item = f32>) -> f32 {
    let add = |(sum, count), score| (sum + score, count + 1);
    let (sum, count) = scores.into_iter().fold((0.0, 0), add);
    sum / count.max(1) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_nothing_is_zero() {
        assert_eq!(mean([]).to_bits(), 0.0_f32.to_bits());
        assert_eq!(mean([0.25, 0.75]), 0.5);
    }
}
