//! Scores of regions and of predictions.

use crate::labeling::Shape;
use crate::pipeline::DetectedObject;
use crate::segmenter::ScoredMask;

/// The score, 0..1, of an object's region from a control of this shape: the detector's score for a rectangle, else
/// the segmenter's.
pub(super) fn object_score(object: &DetectedObject, shape: Shape) -> Option<f32> {
    match shape.needs_mask() {
        false => Some(clamp_score(object.detection.score)),
        true => object.mask.as_deref().map(mask_score),
    }
}

/// The score of a mask's region, 0..1.
pub(super) fn mask_score(mask: &ScoredMask) -> f32 {
    clamp_score(mask.score)
}

/// The segmenter's predicted IoU can be greater than 1.
fn clamp_score(score: f32) -> f32 {
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
    fn the_mean_without_scores_is_zero() {
        assert_eq!(mean([]).to_bits(), 0.0_f32.to_bits());
        assert_eq!(mean([0.25, 0.75]), 0.5);
    }
}
