//! The prompt encoder: points, boxes and masks to embeddings.

use std::f64::consts::TAU;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{Activation, Conv2d, Conv2dConfig, VarBuilder};

use super::config::PromptEncoderConfig;
use crate::models::layers::LayerNorm2d;

/// The label of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointLabel {
    /// The point is not on the object; label 0 of the reference.
    Background,
    /// The point is on the object; label 1 of the reference.
    Foreground,
    /// No point: fills the list of an object with fewer points than another. Label -10 of the reference, with a zero
    /// embedding.
    Padding,
}

/// A position `(x, y)` in pixels of the model's input, and its label.
pub type LabelledPoint = ((f32, f32), PointLabel);

/// `SamPositionalEmbedding`: random Fourier features of a position. They are computed in f32, because in half precision
/// a position would be wrong by up to two pixels.
#[derive(Debug, Clone)]
pub struct PositionEmbedding {
    /// `[2, F]`, f32.
    matrix: Tensor,
    /// The dtype of the results.
    dtype: DType,
}

impl PositionEmbedding {
    /// Loads `positional_embedding`.
    pub fn load(features: usize, vb: VarBuilder) -> Result<Self> {
        let in_f32 = vb.to_dtype(DType::F32);
        Ok(Self {
            matrix: in_f32.get((2, features), "positional_embedding")?,
            dtype: vb.dtype(),
        })
    }

    /// Positions `(x, y)` in 0..1, `[..., 2]` in f32, to `[..., 2 F]` in the model's dtype.
    pub fn forward(&self, positions_xy: &Tensor) -> Result<Tensor> {
        let angles = ((positions_xy * 2.0)? - 1.0)?.broadcast_matmul(&self.matrix)?;
        let angles = (angles * TAU)?;
        Tensor::cat(&[angles.sin()?, angles.cos()?], D::Minus1)?.to_dtype(self.dtype)
    }

    /// The embeddings of the cell centres of a `grid` x `grid` map: `[1, grid^2, 2 F]`, row by row.
    pub fn of_grid(&self, grid: usize, device: &Device) -> Result<Tensor> {
        let center = |i: usize| (i as f32 + 0.5) / grid as f32;
        let positions_xy: Vec<f32> = (0..grid * grid)
            .flat_map(|i| [center(i % grid), center(i / grid)])
            .collect();
        let positions_xy = Tensor::from_vec(positions_xy, (1, grid * grid, 2), device)?;
        self.forward(&positions_xy)
    }
}

/// `SamPromptEncoder`.
#[derive(Debug, Clone)]
pub struct PromptEncoder {
    positions: PositionEmbedding,
    /// `[4, C]`: the embeddings that are added for padding (zero), "no point", background and foreground.
    label_embeddings: Tensor,
    /// `[2, C]`: the embeddings that are added for a box's top left and bottom right corner.
    corner_embeddings: Tensor,
    /// `[1, 1, C]`: what follows the corners of a box.
    box_padding: Option<Tensor>,
    /// `[1, C, 1, 1]`.
    no_mask_embed: Tensor,
    mask_embed: MaskEmbedding,
    image_size: usize,
}

impl PromptEncoder {
    /// Loads `point_embed`, `not_a_point_embed`, `no_mask_embed` and `mask_embed`. With `pads_boxes`, as in SAM 2, the
    /// reference's "no point" follows the corners of a box.
    pub fn load(
        vb: VarBuilder,
        config: &PromptEncoderConfig,
        positions: PositionEmbedding,
        pads_boxes: bool,
    ) -> Result<Self> {
        let width = config.hidden_size;
        let embedding = |name: &str| vb.pp(name).get((1, width), "weight");
        let no_point = embedding("not_a_point_embed")?;
        // SAM 2 has one tensor with four rows
        let points = match vb.contains_tensor("point_embed.weight") {
            true => vb.get((4, width), "point_embed.weight")?.chunk(4, 0)?,
            false => (0..4)
                .map(|i| embedding(&format!("point_embed.{i}")))
                .collect::<Result<_>>()?,
        };
        let [background, foreground, top_left, bottom_right] = &points[..] else {
            candle_core::bail!("the prompt encoder has {} point embeddings", points.len())
        };
        Ok(Self {
            positions,
            label_embeddings: Tensor::cat(
                &[&no_point.zeros_like()?, &no_point, background, foreground],
                0,
            )?,
            corner_embeddings: Tensor::cat(&[top_left, bottom_right], 0)?,
            box_padding: pads_boxes.then(|| no_point.unsqueeze(0)).transpose()?,
            no_mask_embed: embedding("no_mask_embed")?.reshape((1, width, 1, 1))?,
            mask_embed: MaskEmbedding::load(vb.pp("mask_embed"), config)?,
            image_size: config.image_size,
        })
    }

    /// The points of `K` objects, in pixels of the model's input and the same number for each, to `[K, P, C]`.
    ///
    /// With `pad`, the reference's "no point" is appended; use it if there are no boxes.
    ///
    /// # Errors
    /// If the objects have different numbers of points.
    pub fn embed_points(&self, objects: &[Vec<LabelledPoint>], pad: bool) -> Result<Tensor> {
        let (device, dtype) = (
            self.label_embeddings.device(),
            self.label_embeddings.dtype(),
        );
        let count = objects.first().map_or(0, Vec::len);
        if objects.iter().any(|points| points.len() != count) {
            candle_core::bail!(
                "all objects must have the same number of points; fill shorter lists with padding"
            )
        }
        let (mut positions_xy, mut labels, mut has_position) = (vec![], vec![], vec![]);
        for points in objects {
            for ((x, y), label) in points {
                positions_xy.extend([*x, *y]);
                let (index, weight) = match label {
                    PointLabel::Padding => (0u32, 0f32),
                    PointLabel::Background => (2, 1.0),
                    PointLabel::Foreground => (3, 1.0),
                };
                labels.push(index);
                has_position.push(weight);
            }
            if pad {
                positions_xy.extend([0.0, 0.0]);
                labels.push(1);
                has_position.push(0.0);
            }
        }
        let (k, p) = (objects.len(), count + usize::from(pad));
        let positions = self.embed_pixels(&Tensor::from_vec(positions_xy, (k, p, 2), device)?)?;
        let has_position = Tensor::from_vec(has_position, (k, p, 1), device)?.to_dtype(dtype)?;
        let labels = self
            .label_embeddings
            .index_select(&Tensor::new(labels, device)?, 0)?
            .reshape((k, p, ()))?;
        positions.broadcast_mul(&has_position)? + labels
    }

    /// `K` boxes, xyxy in pixels of the model's input, to the embeddings of their corners `[K, 2, C]`, or with the
    /// padding of SAM 2 `[K, 3, C]`.
    pub fn embed_boxes(&self, boxes: &[[f32; 4]]) -> Result<Tensor> {
        let corners: Vec<f32> = boxes.iter().flatten().copied().collect();
        let corners = Tensor::from_vec(
            corners,
            (boxes.len(), 2, 2),
            self.corner_embeddings.device(),
        )?;
        let corners = self
            .embed_pixels(&corners)?
            .broadcast_add(&self.corner_embeddings.unsqueeze(0)?)?;
        match &self.box_padding {
            Some(padding) => {
                let padding = padding.repeat((boxes.len(), 1, 1))?;
                Tensor::cat(&[&corners, &padding], 1)
            }
            None => Ok(corners),
        }
    }

    /// Mask logits `[K, 1, 4 G, 4 G]` of an earlier prediction, to `[K, C, G, G]`. Without masks, `[1, C, 1, 1]`, the
    /// same embedding for all cells.
    pub fn embed_masks(&self, masks: Option<&Tensor>) -> Result<Tensor> {
        match masks {
            Some(masks) => self.mask_embed.forward(masks),
            None => Ok(self.no_mask_embed.clone()),
        }
    }

    /// Pixel coordinates `[..., 2]` to position embeddings at the pixels' centres.
    fn embed_pixels(&self, pixels: &Tensor) -> Result<Tensor> {
        let positions_xy = ((pixels + 0.5)? / self.image_size as f64)?;
        self.positions.forward(&positions_xy)
    }
}

/// `SamMaskEmbedding`: halves a mask with four times the resolution of the image embedding twice.
#[derive(Debug, Clone)]
struct MaskEmbedding {
    conv1: Conv2d,
    norm1: LayerNorm2d,
    conv2: Conv2d,
    norm2: LayerNorm2d,
    conv3: Conv2d,
    activation: Activation,
}

impl MaskEmbedding {
    fn load(vb: VarBuilder, config: &PromptEncoderConfig) -> Result<Self> {
        let (channels, eps) = (config.mask_input_channels, config.layer_norm_eps);
        let strided = Conv2dConfig {
            stride: 2,
            ..Default::default()
        };
        let conv3 = Conv2dConfig::default();
        Ok(Self {
            conv1: candle_nn::conv2d(1, channels / 4, 2, strided, vb.pp("conv1"))?,
            norm1: LayerNorm2d::load(channels / 4, eps, vb.pp("layer_norm1"))?,
            conv2: candle_nn::conv2d(channels / 4, channels, 2, strided, vb.pp("conv2"))?,
            norm2: LayerNorm2d::load(channels, eps, vb.pp("layer_norm2"))?,
            conv3: candle_nn::conv2d(channels, config.hidden_size, 1, conv3, vb.pp("conv3"))?,
            activation: config.hidden_act,
        })
    }

    fn forward(&self, masks: &Tensor) -> Result<Tensor> {
        let hidden_states = self.norm1.forward(&masks.apply(&self.conv1)?)?;
        let hidden_states = hidden_states.apply(&self.activation)?.apply(&self.conv2)?;
        let hidden_states = self.norm2.forward(&hidden_states)?;
        hidden_states.apply(&self.activation)?.apply(&self.conv3)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn positions_are_rounded_only_once_in_half_precision() -> Result<()> {
        // as in the checkpoints: normal numbers of scale 1, so that an angle is up to about 20
        let matrix = Tensor::new(&[[2.7f32, -1.3, 0.4], [-0.9, 3.1, 1.7]], &Device::Cpu)?;
        let tensors = HashMap::from([("positional_embedding".to_owned(), matrix)]);
        let of_grid = |dtype| {
            let vb = VarBuilder::from_tensors(tensors.clone(), dtype, &Device::Cpu);
            PositionEmbedding::load(3, vb)?.of_grid(64, &Device::Cpu)
        };
        let exact = of_grid(DType::F32)?;
        for (dtype, rounding) in [(DType::F16, 2f32.powi(-11)), (DType::BF16, 2f32.powi(-8))] {
            let rounded = of_grid(dtype)?;
            assert_eq!(rounded.dtype(), dtype);
            let difference = (rounded.to_dtype(DType::F32)? - &exact)?.abs()?;
            let largest = difference.max_all()?.to_scalar::<f32>()?;
            assert!(largest <= rounding, "{dtype:?}: {largest}");
        }
        Ok(())
    }
}
