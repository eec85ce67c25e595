//! Checks of convolutions of channels-last maps.

use std::fmt;

use candle_core::{Result, Tensor};

use super::{CallShape, Case, Check, Extent, Implementation, Random};
use crate::models::ops::convolution::{
    depthwise_conv3x3, depthwise_conv3x3_plain, depthwise_with_kernel,
};
use crate::models::ops::{
    Activation, Conv3x3, Depthwise3x3, Upscale2x, conv3x3, conv3x3_plain, upscale2x,
    upscale2x_plain,
};

/// The kind of convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// 3x3, from all input channels to all output channels.
    Dense { stride: usize, has_bias: bool },
    /// Depthwise 3x3.
    Depthwise { stride: usize },
    /// Transposed 2x2: every pixel becomes four. A map that all images share may be added to the result.
    Upscale { has_addend: bool },
}

/// A convolution of maps `[batch, rows, columns, input]`.
#[derive(Debug, Clone, Copy)]
struct Convolution {
    kind: Kind,
    batch: usize,
    /// `(rows, columns)`.
    map: (usize, usize),
    input: usize,
    /// Output channels; a depthwise convolution has as many as input channels.
    output: usize,
    activation: Activation,
}

impl fmt::Display for Convolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.batch > 1 {
            write!(f, "{}x", self.batch)?;
        }
        write!(f, "{}x{}x{}", self.map.0, self.map.1, self.input)?;
        match self.kind {
            Kind::Dense { stride, .. } => write!(f, " to {}, stride {stride}", self.output),
            Kind::Depthwise { stride } => write!(f, ", stride {stride}"),
            Kind::Upscale { has_addend: false } => write!(f, " to {}", self.output),
            Kind::Upscale { has_addend: true } => write!(f, " to {}, addend", self.output),
        }?;
        match self.activation {
            Activation::None => Ok(()),
            activation => write!(f, ", {activation:?}"),
        }
    }
}

impl CallShape for Convolution {
    fn draw(&self, random: &mut Random) -> Result<Box<dyn Case>> {
        let (input, output) = (self.input, self.output);
        let fan_in = match self.kind {
            Kind::Dense { .. } => 9 * input,
            Kind::Depthwise { .. } => 9,
            Kind::Upscale { .. } => input,
        };
        let deviation = 1.0 / (fan_in as f32).sqrt();
        let (kernel, bias) = match self.kind {
            Kind::Dense { has_bias, .. } => (
                random.spread(deviation, (output, input, 3, 3))?,
                has_bias.then(|| random.spread(1.0, output)).transpose()?,
            ),
            Kind::Depthwise { .. } => (
                random.spread(deviation, (9, input))?,
                Some(random.spread(1.0, input)?),
            ),
            Kind::Upscale { .. } => (
                random.spread(deviation, (input, output, 2, 2))?,
                Some(random.spread(1.0, output)?),
            ),
        };
        let (height, width) = self.map;
        let addend = match self.kind {
            Kind::Upscale { has_addend: true } => {
                Some(random.spread(1.0, (1, 2 * height, 2 * width, output))?)
            }
            _ => None,
        };
        Ok(Box::new(ConvolutionCase {
            kind: self.kind,
            addend,
            xs: random.spread(1.0, (self.batch, height, width, input))?,
            kernel,
            bias,
            activation: self.activation,
        }))
    }
}

struct ConvolutionCase {
    kind: Kind,
    xs: Tensor,
    kernel: Tensor,
    bias: Option<Tensor>,
    addend: Option<Tensor>,
    activation: Activation,
}

impl Case for ConvolutionCase {
    fn run(&self, implementation: Implementation) -> Result<Vec<Tensor>> {
        let (xs, kernel) = (
            implementation.to_target(&self.xs)?,
            implementation.to_target(&self.kernel)?,
        );
        let bias = implementation.to_target_optional(self.bias.as_ref())?;
        let activation = self.activation;
        let result = match (self.kind, bias) {
            (Kind::Dense { stride, .. }, bias) => {
                let conv = Conv3x3::for_set(implementation.set(&xs), &kernel, bias, stride)?;
                match implementation {
                    Implementation::Plain => conv3x3_plain(&xs, &conv, activation),
                    _ => conv3x3(&xs, &conv, activation),
                }
            }
            (Kind::Depthwise { stride }, Some(bias)) => {
                let conv = Depthwise3x3 {
                    kernel,
                    bias,
                    stride,
                };
                match implementation {
                    Implementation::Kernel(set) => {
                        depthwise_with_kernel(set, &xs, &conv, activation)
                    }
                    Implementation::Plain => depthwise_conv3x3_plain(&xs, &conv, activation),
                    Implementation::Device(..) => depthwise_conv3x3(&xs, &conv, activation),
                }
            }
            (Kind::Upscale { .. }, Some(bias)) => {
                let addend = implementation.to_target_optional(self.addend.as_ref())?;
                let addend = addend.as_ref();
                let upscale = Upscale2x::for_set(implementation.set(&xs), &kernel, &bias)?;
                match implementation {
                    Implementation::Plain => upscale2x_plain(&xs, &upscale, addend, activation),
                    _ => upscale2x(&xs, &upscale, addend, activation),
                }
            }
            (kind, None) => candle_core::bail!("{kind:?} takes a bias"),
        };
        Ok(vec![result?])
    }
}

/// Rounding of f32 over sums of up to a few thousand products.
const TOLERANCE: f64 = 5e-6;

pub(super) fn checks(extent: Extent) -> Vec<Check> {
    let check =
        |used_by, kind, (batch, side): (usize, (usize, usize)), input, output, activation| {
            let call_shape = Convolution {
                kind,
                batch,
                map: side,
                input,
                output,
                activation,
            };
            Check::published(name(kind), TOLERANCE, used_by, call_shape)
        };
    let dense = |stride, has_bias| Kind::Dense { stride, has_bias };
    let depthwise = |stride| Kind::Depthwise { stride };
    let upscale = |has_addend| Kind::Upscale { has_addend };
    let (none, gelu) = (Activation::None, Activation::Gelu);
    let square = |full: usize, quick: usize| (1, extent.of((full, full), (quick, quick)));
    let boxes = |full: usize, quick: usize| (4, extent.of((full, full), (quick, quick)));
    let level_3 = (1, extent.of((25, 34), (9, 12)));
    vec![
        check("SAM neck", dense(1, false), square(64, 16), 256, 256, none),
        check("Swin-T, level 4", dense(2, true), level_3, 768, 256, none),
        check("Swin-B, level 4", dense(2, true), level_3, 1024, 256, none),
        check(
            "MobileSAM, first convolution",
            dense(2, true),
            square(1024, 62),
            3,
            32,
            gelu,
        ),
        check(
            "MobileSAM, second convolution",
            dense(2, true),
            square(512, 31),
            32,
            64,
            none,
        ),
        Check::odd("conv3x3", TOLERANCE, odd_dense()),
        check(
            "MobileSAM stage 1",
            depthwise(1),
            square(256, 30),
            256,
            256,
            gelu,
        ),
        check(
            "MobileSAM patch merging 1",
            depthwise(2),
            square(256, 30),
            128,
            128,
            gelu,
        ),
        check(
            "MobileSAM stage 3",
            depthwise(1),
            square(64, 19),
            160,
            160,
            none,
        ),
        check(
            "MobileSAM patch merging 3",
            depthwise(1),
            square(64, 19),
            320,
            320,
            gelu,
        ),
        Check::odd("depthwise_conv3x3", TOLERANCE, odd_depthwise()),
        check(
            "SAM decoder, first upscaling",
            upscale(false),
            boxes(64, 13),
            256,
            64,
            none,
        ),
        check(
            "SAM decoder, second upscaling",
            upscale(false),
            boxes(128, 26),
            64,
            32,
            gelu,
        ),
        check(
            "SAM 2 decoder, first upscaling",
            upscale(true),
            boxes(64, 13),
            256,
            64,
            none,
        ),
        check(
            "SAM 2 decoder, second upscaling",
            upscale(true),
            boxes(128, 26),
            64,
            32,
            gelu,
        ),
        Check::odd("upscale2x", TOLERANCE, odd_upscalings()),
    ]
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Dense { .. } => "conv3x3",
        Kind::Depthwise { .. } => "depthwise_conv3x3",
        Kind::Upscale { .. } => "upscale2x",
    }
}

fn odd_dense() -> Vec<Convolution> {
    let mut call_shapes = vec![];
    for (map, input, output) in [
        ((1, 1), 1, 1),
        ((5, 8), 3, 20),
        ((7, 4), 16, 33),
        ((19, 9), 40, 7),
    ] {
        for (stride, has_bias) in [(1, true), (2, true), (1, false)] {
            call_shapes.push(Convolution {
                kind: Kind::Dense { stride, has_bias },
                batch: 2,
                map,
                input,
                output,
                activation: Activation::Relu,
            });
        }
    }
    call_shapes
}

fn odd_depthwise() -> Vec<Convolution> {
    let mut call_shapes = vec![];
    for (map, channels) in [((1, 1), 1), ((5, 8), 3), ((7, 4), 16), ((2, 9), 21)] {
        for (stride, activation) in [
            (1, Activation::Gelu),
            (2, Activation::Gelu),
            (1, Activation::GeluTanh),
        ] {
            call_shapes.push(Convolution {
                kind: Kind::Depthwise { stride },
                batch: 2,
                map,
                input: channels,
                output: channels,
                activation,
            });
        }
    }
    call_shapes
}

fn odd_upscalings() -> Vec<Convolution> {
    let mut call_shapes = vec![];
    for (batch, map, input, output) in [(1, (1, 1), 1, 1), (2, (3, 5), 7, 9), (1, (4, 4), 32, 16)] {
        for has_addend in [false, true] {
            call_shapes.push(Convolution {
                kind: Kind::Upscale { has_addend },
                batch,
                map,
                input,
                output,
                activation: Activation::Gelu,
            });
        }
    }
    call_shapes
}
