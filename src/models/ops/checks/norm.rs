//! Checks of layer norm and group norm.

use std::fmt;

use candle_core::{Result, Tensor};

use super::{CallShape, Case, Check, Extent, Implementation, Random};
use crate::models::ops::Activation;
use crate::models::ops::norm::{
    group_norm, group_norm_plain, layer_norm, layer_norm_plain,
    with_kernel as layer_norm_with_kernel,
};

/// The kind of norm.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Over the channels of every row.
    Layer(Activation),
    /// Over groups of channels and all cells of a map.
    Group { groups: usize },
}

/// A norm of `[batch, rows, columns, channels]`.
#[derive(Debug, Clone, Copy)]
struct Norm {
    kind: Kind,
    batch: usize,
    /// `(rows, columns)`.
    map: (usize, usize),
    channels: usize,
    eps: f64,
    /// The mean and the standard deviation of the input.
    input: (f32, f32),
}

impl fmt::Display for Norm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.batch > 1 {
            write!(f, "{}x", self.batch)?;
        }
        if self.map.0 > 1 {
            write!(f, "{}x", self.map.0)?;
        }
        write!(f, "{}x{}", self.map.1, self.channels)?;
        match self.kind {
            Kind::Layer(Activation::None) => Ok(()),
            Kind::Layer(activation) => write!(f, ", {activation:?}"),
            Kind::Group { groups } => write!(f, ", {groups} groups"),
        }
    }
}

impl CallShape for Norm {
    fn draw(&self, random: &mut Random) -> Result<Box<dyn Case>> {
        let ((mean, deviation), (height, width)) = (self.input, self.map);
        let shape = (self.batch, height, width, self.channels);
        Ok(Box::new(NormCase {
            kind: self.kind,
            xs: random.around(mean, deviation, shape)?,
            weight: random.around(1.0, 0.1, self.channels)?,
            bias: random.spread(0.1, self.channels)?,
            eps: self.eps,
        }))
    }
}

struct NormCase {
    kind: Kind,
    xs: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl Case for NormCase {
    fn run(&self, implementation: Implementation) -> Result<Vec<Tensor>> {
        if let Implementation::Kernel(set) = implementation {
            let (xs, weight, bias) = (&self.xs, &self.weight, &self.bias);
            let result = match self.kind {
                Kind::Layer(activation) => {
                    layer_norm_with_kernel(set, xs, (weight, bias, self.eps), activation)
                }
                Kind::Group { groups } => group_norm(xs, groups, weight, bias, self.eps),
            };
            return Ok(vec![result?]);
        }
        let [xs, weight, bias] =
            [&self.xs, &self.weight, &self.bias].map(|xs| implementation.to_target(xs));
        let (xs, weight, bias) = (xs?, weight?, bias?);
        let result = match self.kind {
            Kind::Layer(activation) => match implementation {
                Implementation::Device(..) => layer_norm(&xs, &weight, &bias, self.eps, activation),
                _ => layer_norm_plain(&xs, &weight, &bias, self.eps, activation),
            },
            Kind::Group { groups } => match implementation {
                Implementation::Device(..) => group_norm(&xs, groups, &weight, &bias, self.eps),
                _ => group_norm_plain(&xs, groups, &weight, &bias, self.eps),
            },
        };
        Ok(vec![result?])
    }
}

/// candle's group norm rounds to the input's dtype after each of its four steps.
const GROUP_NORM_ROUNDINGS: f64 = 4.0;

/// A mean that is as large as the spread costs about one digit.
const TOLERANCE: f64 = 5e-6;
/// In the odd shapes of layer norm the mean is 500 times the spread, so f32 represents the normed values with three
/// digits less.
const LARGE_MEAN_TOLERANCE: f64 = 3e-4;

pub(super) fn checks(extent: Extent) -> Vec<Check> {
    let layer = |used_by, (batch, rows), channels, eps, activation| {
        let call_shape = Norm {
            kind: Kind::Layer(activation),
            batch,
            map: (1, rows),
            channels,
            eps,
            input: (0.5, 1.0),
        };
        Check::published("layer_norm", TOLERANCE, used_by, call_shape)
    };
    let group = |used_by, map| {
        let call_shape = Norm {
            kind: Kind::Group { groups: 32 },
            batch: 1,
            map,
            channels: 256,
            eps: 1e-5,
            input: (0.5, 1.0),
        };
        let check = Check::published("group_norm", TOLERANCE, used_by, call_shape);
        Check {
            is_per_instruction_set: false,
            ..check.with_roundings(GROUP_NORM_ROUNDINGS)
        }
    };
    let (none, gelu) = (Activation::None, Activation::Gelu);
    vec![
        layer(
            "Swin-T stage 1",
            (1, extent.of(53_400, 535)),
            96,
            1e-5,
            none,
        ),
        layer(
            "Swin-B patch merging 3",
            (1, extent.of(850, 85)),
            2048,
            1e-5,
            none,
        ),
        layer("BERT", (1, extent.of(256, 23)), 768, 1e-12, none),
        layer(
            "encoder layer",
            (1, extent.of(17_821, 401)),
            256,
            1e-5,
            none,
        ),
        layer("SAM ViT-L", (1, extent.of(4096, 99)), 1024, 1e-6, none),
        layer(
            "SAM decoder, upscaling",
            (4, extent.of(16_384, 169)),
            64,
            1e-6,
            gelu,
        ),
        Check::odd("layer_norm", LARGE_MEAN_TOLERANCE, odd_layers()),
        group("level 1", extent.of((100, 134), (21, 27))),
        group("level 4", (13, 17)),
        Check {
            is_per_instruction_set: false,
            ..Check::odd("group_norm", TOLERANCE, odd_groups()).with_roundings(GROUP_NORM_ROUNDINGS)
        },
    ]
}

fn odd_layers() -> Vec<Norm> {
    let mut call_shapes = vec![];
    for channels in [1, 2, 13, 96, 256] {
        for activation in [Activation::None, Activation::Gelu, Activation::GeluTanh] {
            call_shapes.push(Norm {
                kind: Kind::Layer(activation),
                batch: 1,
                map: (3, 7),
                channels,
                eps: 1e-6,
                // a variance that is computed in one pass would lose all digits here
                input: (50.0, 0.1),
            });
        }
    }
    call_shapes
}

fn odd_groups() -> Vec<Norm> {
    [((1, 1), 1, 2), ((3, 5), 4, 8), ((40, 33), 32, 64)]
        .map(|(map, groups, channels)| Norm {
            kind: Kind::Group { groups },
            batch: 2,
            map,
            channels,
            eps: 1e-5,
            input: (3.0, 2.0),
        })
        .to_vec()
}
