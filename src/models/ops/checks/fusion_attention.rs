//! Checks of bi-directional attention between image and text.

use std::fmt;

use candle_core::{Device, Result, Tensor};

use super::{CallShape, Case, Check, Extent, Implementation, Random};
use crate::models::ops::{FusionAttention, FusionProjections, MASKED};

/// The sizes of image and text.
#[derive(Debug, Clone, Copy)]
struct Fusion {
    batch: usize,
    /// Number of image tokens.
    image: usize,
    /// Number of text tokens.
    text: usize,
    heads: usize,
    /// Channels per head.
    width: usize,
    /// Channels per token.
    d: usize,
    /// Whether some image tokens are padding.
    is_masked: bool,
}

impl fmt::Display for Fusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.batch > 1 {
            write!(f, "{} of ", self.batch)?;
        }
        write!(
            f,
            "{}x{d} and {}x{d}, {} heads of {}",
            self.image,
            self.text,
            self.heads,
            self.width,
            d = self.d
        )?;
        f.write_str(if self.is_masked { ", masked" } else { "" })
    }
}

impl CallShape for Fusion {
    fn draw(&self, random: &mut Random) -> Result<Box<dyn Case>> {
        let (batch, d, inner) = (self.batch, self.d, self.heads * self.width);
        let mut layer = |output, input| -> Result<(Tensor, Tensor)> {
            Ok((random.weight(output, input)?, random.spread(1.0, output)?))
        };
        let projections = FusionProjections {
            vision_proj: layer(inner, d)?,
            text_proj: layer(inner, d)?,
            values_vision_proj: layer(inner, d)?,
            values_text_proj: layer(inner, d)?,
            out_vision_proj: layer(d, inner)?,
            out_text_proj: layer(d, inner)?,
            vision_param: random.spread(1.0, d)?,
            text_param: random.spread(1.0, d)?,
        };
        // the last text token is padding, unless it is the only one
        let bias = (0..batch * self.text).map(|i| {
            let is_padding = self.text > 1 && (i + 1) % self.text == 0;
            if is_padding { MASKED } else { 0.0 }
        });
        // the last image token is never padding
        let mask = (0..batch * self.image).map(|i| {
            let is_padding = i % 7 == 3 && (i + 1) % self.image != 0;
            if is_padding { 0f32 } else { 1.0 }
        });
        let cpu = &Device::Cpu;
        let mask = Tensor::from_iter(mask, cpu)?.reshape((batch, self.image))?;
        Ok(Box::new(FusionCase {
            projections,
            heads: self.heads,
            vision: random.spread(2.0, (batch, self.image, d))?,
            text: random.spread(2.0, (batch, self.text, d))?,
            token_mask: self.is_masked.then_some(mask),
            text_bias: Tensor::from_iter(bias, cpu)?.reshape((batch, 1, self.text))?,
        }))
    }
}

struct FusionCase {
    projections: FusionProjections,
    heads: usize,
    vision: Tensor,
    text: Tensor,
    token_mask: Option<Tensor>,
    text_bias: Tensor,
}

impl Case for FusionCase {
    fn run(&self, implementation: Implementation) -> Result<Vec<Tensor>> {
        let layer = |(weight, bias): &(Tensor, Tensor)| -> Result<(Tensor, Tensor)> {
            Ok((
                implementation.to_target(weight)?,
                implementation.to_target(bias)?,
            ))
        };
        let of = &self.projections;
        let projections = FusionProjections {
            vision_proj: layer(&of.vision_proj)?,
            text_proj: layer(&of.text_proj)?,
            values_vision_proj: layer(&of.values_vision_proj)?,
            values_text_proj: layer(&of.values_text_proj)?,
            out_vision_proj: layer(&of.out_vision_proj)?,
            out_text_proj: layer(&of.out_text_proj)?,
            vision_param: implementation.to_target(&of.vision_param)?,
            text_param: implementation.to_target(&of.text_param)?,
        };
        let (vision, text) = FusionAttention::for_set(
            implementation.set(&projections.text_param),
            &projections,
            self.heads,
        )?
        .forward(
            &implementation.to_target(&self.vision)?,
            &implementation.to_target(&self.text)?,
            implementation
                .to_target_optional(self.token_mask.as_ref())?
                .as_ref(),
            &implementation.to_target(&self.text_bias)?,
        )?;
        Ok(vec![vision, text])
    }
}

/// The kernel multiplies the projections with each other before it uses the image, so its order differs from that of
/// the plain implementation.
const TOLERANCE: f64 = 1e-5;
/// Five consecutive results are rounded.
const ROUNDINGS: f64 = 8.0;

pub(super) fn checks(extent: Extent) -> Vec<Check> {
    let check = |used_by, text, is_masked| {
        let call_shape = Fusion {
            batch: 1,
            image: extent.of(17_821, 501),
            text,
            heads: 4,
            width: 256,
            d: 256,
            is_masked,
        };
        Check::published("fusion_attention", TOLERANCE, used_by, call_shape)
            .with_roundings(ROUNDINGS)
    };
    vec![
        check("encoder layer, two phrases", 8, false),
        check("encoder layer, the longest text", 256, true),
        Check::odd("fusion_attention", TOLERANCE, odd_shapes()).with_roundings(ROUNDINGS),
    ]
}

fn odd_shapes() -> Vec<Fusion> {
    let mut call_shapes = vec![];
    for (batch, image, text, heads, width, d) in [
        (1, 1, 1, 1, 4, 8),
        (2, 301, 5, 4, 16, 32),
        (1, 97, 13, 2, 8, 48),
        (1, 700, 256, 2, 4, 16),
    ] {
        for is_masked in [false, true] {
            call_shapes.push(Fusion {
                batch,
                image,
                text,
                heads,
                width,
                d,
                is_masked,
            });
        }
    }
    call_shapes
}
