//! Checks of convolutions of channels-last maps.

use std::fmt;

use candle_core::{Result, Tensor};

use super::{CallShape, Case, Check, Extent, Implementation, Random};
use crate::models::ops::convolution::{
    convolve, convolve_plain, depthwise, depthwise_plain, depthwise_with_kernel,
};
use crate::models::ops::{Activation, Conv, Depthwise, Upscale2x, upscale2x, upscale2x_plain};

/// The kind of convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// From all input channels to all output channels.
    Dense {
        side: usize,
        stride: usize,
        has_bias: bool,
    },
    /// Every channel on its own.
    Depthwise { side: usize, stride: usize },
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
            Kind::Depthwise { stride, .. } => write!(f, ", stride {stride}"),
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
            Kind::Dense { side, .. } => side * side * input,
            Kind::Depthwise { side, .. } => side * side,
            Kind::Upscale { .. } => input,
        };
        let deviation = 1.0 / (fan_in as f32).sqrt();
        let (kernel, bias) = match self.kind {
            Kind::Dense { side, has_bias, .. } => (
                random.spread(deviation, (output, input, side, side))?,
                has_bias.then(|| random.spread(1.0, output)).transpose()?,
            ),
            Kind::Depthwise { side, .. } => (
                random.spread(deviation, (side * side, input))?,
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

impl ConvolutionCase {
    fn dense<const SIDE: usize>(
        &self,
        implementation: Implementation,
        stride: usize,
    ) -> Result<Tensor> {
        let xs = implementation.to_target(&self.xs)?;
        let kernel = implementation.to_target(&self.kernel)?;
        let bias = implementation.to_target_optional(self.bias.as_ref())?;
        let conv = Conv::<SIDE>::for_set(implementation.set(&xs), &kernel, bias, stride)?;
        match implementation {
            Implementation::Plain => convolve_plain(&xs, &conv, self.activation),
            _ => convolve(&xs, &conv, self.activation),
        }
    }

    fn depthwise<const SIDE: usize>(
        &self,
        implementation: Implementation,
        bias: &Tensor,
        stride: usize,
    ) -> Result<Tensor> {
        let xs = implementation.to_target(&self.xs)?;
        let conv = Depthwise::<SIDE> {
            kernel: implementation.to_target(&self.kernel)?,
            bias: implementation.to_target(bias)?,
            stride,
        };
        match implementation {
            Implementation::Kernel(set) => depthwise_with_kernel(set, &xs, &conv, self.activation),
            Implementation::Plain => depthwise_plain(&xs, &conv, self.activation),
            Implementation::Device(..) => depthwise(&xs, &conv, self.activation),
        }
    }

    fn upscale(&self, implementation: Implementation, bias: &Tensor) -> Result<Tensor> {
        let xs = implementation.to_target(&self.xs)?;
        let (kernel, bias) = (
            implementation.to_target(&self.kernel)?,
            implementation.to_target(bias)?,
        );
        let addend = implementation.to_target_optional(self.addend.as_ref())?;
        let upscale = Upscale2x::for_set(implementation.set(&xs), &kernel, &bias)?;
        let compute = match implementation {
            Implementation::Plain => upscale2x_plain,
            _ => upscale2x,
        };
        compute(&xs, &upscale, addend.as_ref(), self.activation)
    }
}

impl Case for ConvolutionCase {
    fn run(&self, implementation: Implementation) -> Result<Vec<Tensor>> {
        let result = match (self.kind, &self.bias) {
            (
                Kind::Dense {
                    side: 3, stride, ..
                },
                _,
            ) => self.dense::<3>(implementation, stride),
            (
                Kind::Dense {
                    side: 7, stride, ..
                },
                _,
            ) => self.dense::<7>(implementation, stride),
            (Kind::Depthwise { side: 3, stride }, Some(bias)) => {
                self.depthwise::<3>(implementation, bias, stride)
            }
            (Kind::Depthwise { side: 5, stride }, Some(bias)) => {
                self.depthwise::<5>(implementation, bias, stride)
            }
            (Kind::Upscale { .. }, Some(bias)) => self.upscale(implementation, bias),
            (kind, _) => candle_core::bail!("there is no {kind:?}, or it takes a bias"),
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
    let dense = |stride, has_bias| Kind::Dense {
        side: 3,
        stride,
        has_bias,
    };
    let patches = Kind::Dense {
        side: 7,
        stride: 4,
        has_bias: true,
    };
    let depthwise = |stride| Kind::Depthwise { side: 3, stride };
    let depthwise_5 = Kind::Depthwise { side: 5, stride: 1 };
    let upscale = |has_addend| Kind::Upscale { has_addend };
    let (none, gelu, tanh) = (Activation::None, Activation::Gelu, Activation::GeluTanh);
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
        check(
            "EfficientViT, first convolution",
            dense(2, true),
            square(512, 62),
            3,
            32,
            tanh,
        ),
        check(
            "EfficientViT stage 1",
            dense(1, true),
            square(256, 31),
            32,
            32,
            tanh,
        ),
        Check::odd("conv3x3", TOLERANCE, odd_dense(3, [1, 2])),
        check(
            "SAM 2 Tiny, patches",
            patches,
            square(1024, 62),
            3,
            96,
            none,
        ),
        check(
            "SAM 2 Large, patches",
            patches,
            square(1024, 62),
            3,
            144,
            none,
        ),
        Check::odd("conv7x7", TOLERANCE, odd_dense(7, [1, 4])),
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
        Check::odd("depthwise_conv3x3", TOLERANCE, odd_depthwise(3)),
        check(
            "EfficientViT stage 5, aggregation",
            depthwise_5,
            square(16, 9),
            1536,
            1536,
            none,
        ),
        Check::odd("depthwise_conv5x5", TOLERANCE, odd_depthwise(5)),
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
        Kind::Dense { side: 3, .. } => "conv3x3",
        Kind::Dense { .. } => "conv7x7",
        Kind::Depthwise { side: 3, .. } => "depthwise_conv3x3",
        Kind::Depthwise { .. } => "depthwise_conv5x5",
        Kind::Upscale { .. } => "upscale2x",
    }
}

fn odd_dense(side: usize, [one, more]: [usize; 2]) -> Vec<Convolution> {
    let mut call_shapes = vec![];
    for (map, input, output) in [
        ((1, 1), 1, 1),
        ((5, 8), 3, 20),
        ((7, 4), 16, 33),
        ((19, 9), 40, 7),
        // patches that are gathered in parts
        ((4, 5), 260, 9),
        ((3, 6), 131, 5),
    ] {
        for (stride, has_bias) in [(one, true), (more, true), (one, false)] {
            call_shapes.push(Convolution {
                kind: Kind::Dense {
                    side,
                    stride,
                    has_bias,
                },
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

fn odd_depthwise(side: usize) -> Vec<Convolution> {
    let mut call_shapes = vec![];
    for (map, channels) in [((1, 1), 1), ((5, 8), 3), ((7, 4), 16), ((2, 9), 21)] {
        for (stride, activation) in [
            (1, Activation::Gelu),
            (2, Activation::Gelu),
            (1, Activation::GeluTanh),
        ] {
            call_shapes.push(Convolution {
                kind: Kind::Depthwise { side, stride },
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
