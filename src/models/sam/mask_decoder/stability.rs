//! SAM 2: replaces an unstable single mask by the best of several masks.

use candle_core::{DType, Result, Tensor};

use crate::models::sam::config::MaskDecoderConfig;

/// `_dynamic_multimask_via_stability` of `Sam2MaskDecoder`.
#[derive(Debug, Clone)]
pub(super) struct Stability {
    delta: f64,
    threshold: f64,
}

impl Stability {
    /// `None` if the configuration disables it.
    pub(super) fn new(config: &MaskDecoderConfig) -> Option<Self> {
        config.dynamic_multimask_via_stability.then_some(Self {
            delta: config.dynamic_multimask_stability_delta,
            threshold: config.dynamic_multimask_stability_thresh,
        })
    }

    /// All masks `[K, M, N]` of each prompt and their predicted IoU `[K, M]`, to one mask `[K, 1, N]` and its IoU
    /// `[K, 1]`: the first mask, or the best of the others if the area of the first one depends on the exact threshold.
    pub(super) fn select(&self, masks: &Tensor, iou_scores: &Tensor) -> Result<(Tensor, Tensor)> {
        let count = masks.dim(1)?;
        let single = masks.narrow(1, 0, 1)?.squeeze(1)?;
        let area = |threshold: f64| -> Result<Vec<f32>> {
            single
                .gt(threshold)?
                .to_dtype(DType::F32)?
                .sum(1)?
                .to_vec1()
        };
        let (inner, outer) = (area(self.delta)?, area(-self.delta)?);
        let scores: Vec<Vec<f32>> = iou_scores.to_dtype(DType::F32)?.to_vec2()?;
        let select = |(prompt, scores): (usize, &Vec<f32>)| {
            // an empty mask is stable
            let is_stable =
                outer[prompt] == 0.0 || inner[prompt] / outer[prompt] >= self.threshold as f32;
            let others = (1..count).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
            let index = if is_stable { 0 } else { others.unwrap_or(0) };
            (prompt * count + index) as u32
        };
        let index: Vec<u32> = scores.iter().enumerate().map(select).collect();
        let index = Tensor::new(index, masks.device())?;
        Ok((
            masks.flatten(0, 1)?.index_select(&index, 0)?.unsqueeze(1)?,
            iou_scores
                .flatten_all()?
                .index_select(&index, 0)?
                .unsqueeze(1)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn an_unstable_mask_is_replaced_by_the_best_other_one() -> Result<()> {
        let device = &Device::Cpu;
        let stability = Stability {
            delta: 0.05,
            threshold: 0.98,
        };
        // stable, unstable, and empty first masks
        let first = [[1f32, 2.0, -1.0], [1.0, 0.01, -1.0], [-1.0, -2.0, -3.0]];
        let masks: Vec<f32> = first
            .iter()
            .flat_map(|first| [*first, [7.0; 3], [8.0; 3]].concat())
            .collect();
        let masks = Tensor::from_vec(masks, (3, 3, 3), device)?;
        let scores = [0.1f32, 0.2, 0.3, 0.4, 0.6, 0.5, 0.9, 0.7, 0.8];
        let scores = Tensor::from_slice(&scores, (3, 3), device)?;
        let (masks, scores) = stability.select(&masks, &scores)?;
        let masks: Vec<Vec<f32>> = masks.squeeze(1)?.to_vec2()?;
        assert_eq!(masks, [first[0].to_vec(), vec![7.0; 3], first[2].to_vec()]);
        assert_eq!(scores.flatten_all()?.to_vec1::<f32>()?, [0.1, 0.6, 0.9]);
        Ok(())
    }
}
