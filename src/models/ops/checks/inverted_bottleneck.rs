//! Checks of inverted bottlenecks: a wide depthwise convolution between two linear layers.

use std::fmt;

use candle_core::{Result, Tensor};

use super::{CallShape, Case, Check, Extent, Implementation, Random};
use crate::models::ops::{
    Activation, Depthwise3x3, InvertedBottleneck, inverted_bottleneck, inverted_bottleneck_plain,
};

/// A block on maps `[batch, rows, columns, input]`.
#[derive(Debug, Clone, Copy)]
struct Block {
    batch: usize,
    /// `(rows, columns)`.
    map: (usize, usize),
    input: usize,
    hidden: usize,
    output: usize,
    stride: usize,
    has_residual: bool,
    activation: Activation,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.batch > 1 {
            write!(f, "{}x", self.batch)?;
        }
        write!(
            f,
            "{}x{}x{} to {} to {}, stride {}",
            self.map.0, self.map.1, self.input, self.hidden, self.output, self.stride
        )?;
        if self.has_residual {
            f.write_str(", residual")?;
        }
        match self.activation {
            Activation::None => Ok(()),
            activation => write!(f, ", {activation:?}"),
        }
    }
}

impl CallShape for Block {
    fn draw(&self, random: &mut Random) -> Result<Box<dyn Case>> {
        let (height, width) = self.map;
        let (rows, columns) = (height.div_ceil(self.stride), width.div_ceil(self.stride));
        let residual = self
            .has_residual
            .then(|| random.spread(1.0, (self.batch, rows, columns, self.output)));
        Ok(Box::new(BlockCase {
            xs: random.spread(1.0, (self.batch, height, width, self.input))?,
            widen: random.weight(self.hidden, self.input)?,
            widen_bias: random.spread(1.0, self.hidden)?,
            kernel: random.spread(1.0 / 3.0, (9, self.hidden))?,
            kernel_bias: random.spread(1.0, self.hidden)?,
            narrow: random.weight(self.output, self.hidden)?,
            narrow_bias: random.spread(1.0, self.output)?,
            stride: self.stride,
            residual: residual.transpose()?,
            activation: self.activation,
        }))
    }
}

struct BlockCase {
    xs: Tensor,
    widen: Tensor,
    widen_bias: Tensor,
    kernel: Tensor,
    kernel_bias: Tensor,
    narrow: Tensor,
    narrow_bias: Tensor,
    stride: usize,
    residual: Option<Tensor>,
    activation: Activation,
}

impl Case for BlockCase {
    fn run(&self, implementation: Implementation) -> Result<Vec<Tensor>> {
        let block = InvertedBottleneck {
            widen: implementation.matrix(&self.widen)?,
            widen_bias: implementation.to_target(&self.widen_bias)?,
            depthwise: Depthwise3x3 {
                kernel: implementation.to_target(&self.kernel)?,
                bias: implementation.to_target(&self.kernel_bias)?,
                stride: self.stride,
            },
            narrow: implementation.matrix(&self.narrow)?,
            narrow_bias: implementation.to_target(&self.narrow_bias)?,
        };
        let residual = implementation.to_target_optional(self.residual.as_ref())?;
        let xs = implementation.to_target(&self.xs)?;
        let compute = match implementation {
            Implementation::Plain => inverted_bottleneck_plain,
            _ => inverted_bottleneck,
        };
        let result = compute(&xs, &block, residual.as_ref(), self.activation)?;
        Ok(vec![result])
    }
}

/// Rounding of f32 over three layers of up to a few hundred products.
const TOLERANCE: f64 = 5e-6;
/// The result of every layer is rounded.
const ROUNDINGS: f64 = 6.0;

pub(super) fn checks(extent: Extent) -> Vec<Check> {
    let check = |used_by, side: usize, [input, hidden, output]: [usize; 3], stride| {
        let side = extent.of(side, side / 5);
        let is_convolution_block = stride == 1 && input == output;
        let call_shape = Block {
            batch: 1,
            map: (side, side),
            input,
            hidden,
            output,
            stride,
            has_residual: is_convolution_block,
            activation: match is_convolution_block {
                true => Activation::Gelu,
                false => Activation::None,
            },
        };
        Check::published("inverted_bottleneck", TOLERANCE, used_by, call_shape)
            .with_roundings(ROUNDINGS)
    };
    vec![
        check("MobileSAM stage 1", 256, [64, 256, 64], 1),
        check("MobileSAM patch merging 1", 256, [64, 128, 128], 2),
        check("MobileSAM patch merging 2", 128, [128, 160, 160], 2),
        check("MobileSAM patch merging 3", 64, [160, 320, 320], 1),
        Check::odd("inverted_bottleneck", TOLERANCE, odd_shapes()).with_roundings(ROUNDINGS),
    ]
}

fn odd_shapes() -> Vec<Block> {
    let mut call_shapes = vec![];
    for (batch, map, input, hidden, output) in [
        (1, (1, 1), 1, 1, 1),
        (2, (5, 8), 3, 20, 7),
        (1, (37, 5), 8, 16, 8),
        (1, (3, 131), 4, 9, 5),
        // more than one task in both directions
        (1, (66, 67), 2, 5, 2),
    ] {
        for (stride, has_residual) in [(1, true), (2, true), (1, false)] {
            call_shapes.push(Block {
                batch,
                map,
                input,
                hidden,
                output,
                stride,
                has_residual,
                activation: Activation::Gelu,
            });
        }
    }
    call_shapes
}
