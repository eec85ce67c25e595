//! Bi-directional attention between image tokens and text tokens.

use std::fmt;
use std::sync::Arc;

use candle_core::{D, DType, Result, Tensor};

#[cfg(feature = "cuda")]
use super::gpu;
use super::kernels::fusion_attention::{ImageProjections, ImageTextPair, fusion_attention};
use super::kernels::simd::InstructionSet;
use super::{Activation, MASKED, Matrix, cpu_tensor, f32_slice, f32_vec, kernel_set, linear};

/// The weights `[output, input]` and biases `[output]` of bi-directional attention. The inner width is the width of
/// all heads together.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // the reference's own names
pub struct FusionProjections {
    pub vision_proj: (Tensor, Tensor),
    pub text_proj: (Tensor, Tensor),
    pub values_vision_proj: (Tensor, Tensor),
    pub values_text_proj: (Tensor, Tensor),
    pub out_vision_proj: (Tensor, Tensor),
    pub out_text_proj: (Tensor, Tensor),
    /// `[d]`: the layer scale of the image's residual.
    pub vision_param: Tensor,
    /// `[d]`: the layer scale of the text's residual.
    pub text_param: Tensor,
}

/// A linear layer.
#[derive(Debug, Clone)]
struct LinearLayer(Matrix, Tensor);

impl LinearLayer {
    fn for_set(set: Option<InstructionSet>, (weight, bias): &(Tensor, Tensor)) -> Result<Self> {
        Ok(Self(Matrix::for_set(set, weight.clone())?, bias.clone()))
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        linear(xs, &self.0, Some(&self.1), Activation::None, None)
    }
}

/// A linear layer whose output is scaled and added to a residual.
#[derive(Debug, Clone)]
struct ScaledLayer {
    layer: LinearLayer,
    /// `[output]`; on a GPU the layer has it already.
    scale: Option<Tensor>,
}

impl ScaledLayer {
    fn for_set(
        set: Option<InstructionSet>,
        projection: &(Tensor, Tensor),
        scale: &Tensor,
    ) -> Result<Self> {
        let (weight, bias) = projection;
        if !weight.device().is_cuda() {
            return Ok(Self {
                layer: LinearLayer::for_set(set, projection)?,
                scale: Some(scale.clone()),
            });
        }
        let scale = scale.to_dtype(DType::F32)?;
        let scaled = |xs: &Tensor, scale: &Tensor| -> Result<Tensor> {
            xs.to_dtype(DType::F32)?
                .broadcast_mul(scale)?
                .to_dtype(xs.dtype())
        };
        let projection = (scaled(weight, &scale.unsqueeze(1)?)?, scaled(bias, &scale)?);
        Ok(Self {
            layer: LinearLayer::for_set(set, &projection)?,
            scale: None,
        })
    }

    fn forward_added(&self, xs: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let Some(scale) = &self.scale else {
            let LinearLayer(weight, bias) = &self.layer;
            return linear(xs, weight, Some(bias), Activation::None, Some(residual));
        };
        residual + self.layer.forward(xs)?.broadcast_mul(scale)?
    }
}

/// Bi-directional attention with its residuals (`GroundingDinoBiMultiHeadAttention`, and the residuals of
/// `GroundingDinoFusionLayer`).
#[derive(Debug, Clone)]
pub struct FusionAttention {
    vision: VisionSide,
    text_proj: LinearLayer,
    values_text_proj: LinearLayer,
    out_text_proj: ScaledLayer,
    heads: usize,
}

#[derive(Clone)]
enum VisionSide {
    /// The image's projections, folded into the text's: see the kernel.
    Kernel(Arc<FoldedProjections>),
    Plain {
        vision_proj: LinearLayer,
        values_vision_proj: LinearLayer,
        out_vision_proj: ScaledLayer,
    },
}

struct FoldedProjections(ImageProjections);

impl fmt::Debug for VisionSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel(_) => "Kernel",
            Self::Plain { .. } => "Plain",
        })
    }
}

impl FusionAttention {
    /// Prepares the projections for their device.
    ///
    /// # Errors
    /// If the inner width is not a multiple of `heads`.
    pub fn new(projections: &FusionProjections, heads: usize) -> Result<Self> {
        Self::for_set(kernel_set(&projections.vision_proj.0), projections, heads)
    }

    /// Uses the kernels of an instruction set, or plain tensor operations if `set` is `None`.
    pub(super) fn for_set(
        set: Option<InstructionSet>,
        projections: &FusionProjections,
        heads: usize,
    ) -> Result<Self> {
        let inner = projections.text_proj.1.dim(0)?;
        if heads == 0 || inner % heads != 0 {
            candle_core::bail!("fusion attention: {heads} heads do not divide {inner} channels")
        }
        let vision = match set {
            Some(set) => {
                let layer = |(weight, bias): &(Tensor, Tensor)| -> Result<(Vec<f32>, Vec<f32>)> {
                    Ok((f32_vec(weight)?, f32_vec(bias)?))
                };
                let query = layer(&projections.vision_proj)?;
                let value = layer(&projections.values_vision_proj)?;
                let output = layer(&projections.out_vision_proj)?;
                VisionSide::Kernel(Arc::new(FoldedProjections(ImageProjections::new(
                    set,
                    (&query.0, &query.1),
                    (&value.0, &value.1),
                    (&output.0, &output.1),
                    &f32_vec(&projections.vision_param)?,
                    heads,
                ))))
            }
            None => VisionSide::Plain {
                vision_proj: LinearLayer::for_set(None, &projections.vision_proj)?,
                values_vision_proj: LinearLayer::for_set(None, &projections.values_vision_proj)?,
                out_vision_proj: ScaledLayer::for_set(
                    None,
                    &projections.out_vision_proj,
                    &projections.vision_param,
                )?,
            },
        };
        Ok(Self {
            vision,
            text_proj: LinearLayer::for_set(set, &projections.text_proj)?,
            values_text_proj: LinearLayer::for_set(set, &projections.values_text_proj)?,
            out_text_proj: ScaledLayer::for_set(
                set,
                &projections.out_text_proj,
                &projections.text_param,
            )?,
            heads,
        })
    }

    /// Image tokens `[B, N, d]`, text tokens `[B, T, d]`, `token_mask` `[B, N]` (1 image, 0 padding) and `text_bias`
    /// `[B, 1, T]` (0, or very negative for padding). Returns image and text tokens in the same shapes, with the
    /// inputs added.
    ///
    /// # Errors
    /// If the shapes do not fit each other.
    pub fn forward(
        &self,
        vision: &Tensor,
        text: &Tensor,
        token_mask: Option<&Tensor>,
        text_bias: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let keys = self.text_proj.forward(text)?;
        let values = self.values_text_proj.forward(text)?;
        let (vision, attended_text) = match &self.vision {
            VisionSide::Kernel(folded) => {
                with_kernel(&folded.0, vision, (&keys, &values), token_mask, text_bias)?
            }
            VisionSide::Plain {
                vision_proj,
                values_vision_proj,
                out_vision_proj,
            } => {
                let query = vision_proj.forward(vision)?;
                let vision_values = values_vision_proj.forward(vision)?;
                let sides = [&query, &vision_values, &keys, &values];
                let (delta, attended_text) = self.attend_plain(sides, token_mask, text_bias)?;
                (
                    out_vision_proj.forward_added(&delta, vision)?,
                    attended_text,
                )
            }
        };
        Ok((
            vision,
            self.out_text_proj.forward_added(&attended_text, text)?,
        ))
    }

    /// The attention outputs of the image tokens `[B, N, inner]` and of the text tokens `[B, T, inner]`. `sides` are
    /// the queries and values of the image, and the keys and values of the text.
    fn attend_plain(
        &self,
        sides: [&Tensor; 4],
        token_mask: Option<&Tensor>,
        text_bias: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let heads = self.heads;
        #[cfg(feature = "cuda")]
        if gpu::supports(sides[0]) {
            return gpu::fusion_attention(sides, token_mask, text_bias, heads);
        }
        // [B, N, heads * D] -> [B, heads, N, D]
        let split = |xs: &Tensor| -> Result<Tensor> {
            let (batch, tokens, inner) = xs.dims3()?;
            xs.reshape((batch, tokens, heads, inner / heads))?
                .transpose(1, 2)?
                .contiguous()
        };
        let merge = |xs: Tensor| xs.transpose(1, 2)?.flatten_from(2);
        let [query, vision_value, key, text_value] = sides.map(split);
        let query = query?;
        let scale = 1.0 / (query.dim(D::Minus1)? as f64).sqrt();
        // [B, heads, N, T]
        let scores = (query * scale)?.matmul(&key?.transpose(2, 3)?)?;
        let to_text = scores.broadcast_add(&text_bias.unsqueeze(1)?)?;
        let to_text = candle_nn::ops::softmax_last_dim(&to_text)?;
        let to_vision = scores.transpose(2, 3)?.contiguous()?;
        let to_vision = match token_mask {
            Some(mask) => to_vision.broadcast_add(&padding_bias(mask, to_vision.dtype())?)?,
            None => to_vision,
        };
        let to_vision = candle_nn::ops::softmax_last_dim(&to_vision)?;
        Ok((
            merge(to_text.matmul(&text_value?)?)?,
            merge(to_vision.matmul(&vision_value?)?)?,
        ))
    }
}

/// Runs the kernel once per image, because each image has its own text.
fn with_kernel(
    projections: &ImageProjections,
    vision: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    token_mask: Option<&Tensor>,
    text_bias: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let shape = vision.dims3()?;
    let (batch, count, d) = shape;
    let (images, tokens, inner) = keys.dims3()?;
    let fits = images == batch
        && tokens > 0
        && d == projections.d()
        && text_bias.dims() == [batch, 1, tokens]
        && token_mask.is_none_or(|mask| mask.dims() == [batch, count]);
    if !fits {
        candle_core::bail!(
            "fusion attention: image {:?}, text {:?}, mask {:?}, bias {:?} do not fit",
            vision.dims(),
            keys.dims(),
            token_mask.map(Tensor::dims),
            text_bias.dims()
        )
    }
    let tensors = [vision, keys, values, text_bias].map(Tensor::contiguous);
    let [vision, keys, values, text_bias] = tensors;
    let (vision, keys, values, text_bias) = (vision?, keys?, values?, text_bias?);
    let mask = token_mask.map(Tensor::contiguous).transpose()?;
    let views = [&vision, &keys, &values, &text_bias].map(Tensor::storage_and_layout);
    let mask_view = mask.as_ref().map(Tensor::storage_and_layout);
    let mask = mask_view.as_ref().map(f32_slice).transpose()?;
    let (mut all_vision, mut all_text) = (vec![], vec![]);
    for image in 0..batch {
        let image_part = |view: usize, length: usize| -> Result<&[f32]> {
            Ok(&f32_slice(&views[view])?[image * length..][..length])
        };
        let pair = ImageTextPair {
            vision: image_part(0, count * d)?,
            token_mask: mask.map(|mask| &mask[image * count..][..count]),
            keys: image_part(1, tokens * inner)?,
            values: image_part(2, tokens * inner)?,
            text_bias: image_part(3, tokens)?,
        };
        let attended = fusion_attention(projections, pair);
        if batch == 1 {
            (all_vision, all_text) = (attended.vision, attended.text);
        } else {
            all_vision.extend(attended.vision);
            all_text.extend(attended.text);
        }
    }
    Ok((
        cpu_tensor(all_vision, shape)?,
        cpu_tensor(all_text, (batch, tokens, inner))?,
    ))
}

/// A mask `[B, N]` of 1 and 0 to a bias `[B, 1, 1, N]` of 0 and [`MASKED`].
fn padding_bias(token_mask: &Tensor, dtype: DType) -> Result<Tensor> {
    ((1.0 - token_mask)? * f64::from(MASKED))?
        .unsqueeze(1)?
        .unsqueeze(1)?
        .to_dtype(dtype)
}
