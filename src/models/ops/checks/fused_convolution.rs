//! Checks of a convolution to many channels, followed by a linear layer to few.

use std::fmt;

use candle_core::{Result, Tensor};

use super::{CallShape, Case, Check, Extent, Implementation, Random};
use crate::models::ops::{Activation, Conv3x3, fused_mb_conv, fused_mb_conv_plain};

/// A block on maps `[batch, rows, columns, input]`.
#[derive(Debug, Clone, Copy)]
struct Block {
    batch: usize,
    /// `(rows, columns)`.
    map: (usize, usize),
    input: usize,
    wide: usize,
    output: usize,
    stride: usize,
    has_residual: bool,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.batch > 1 {
            write!(f, "{}x", self.batch)?;
        }
        write!(
            f,
            "{}x{}x{} to {} to {}, stride {}",
            self.map.0, self.map.1, self.input, self.wide, self.output, self.stride
        )?;
        if self.has_residual {
            f.write_str(", residual")?;
        }
        Ok(())
    }
}

impl CallShape for Block {
    fn draw(&self, random: &mut Random) -> Result<Box<dyn Case>> {
        let (height, width) = self.map;
        let (rows, columns) = (height.div_ceil(self.stride), width.div_ceil(self.stride));
        let residual = self
            .has_residual
            .then(|| random.spread(1.0, (self.batch, rows, columns, self.output)));
        let deviation = 1.0 / (9.0 * self.input as f32).sqrt();
        Ok(Box::new(BlockCase {
            xs: random.spread(1.0, (self.batch, height, width, self.input))?,
            kernel: random.spread(deviation, (self.wide, self.input, 3, 3))?,
            kernel_bias: random.spread(1.0, self.wide)?,
            narrow: random.weight(self.output, self.wide)?,
            narrow_bias: random.spread(1.0, self.output)?,
            stride: self.stride,
            residual: residual.transpose()?,
        }))
    }
}

struct BlockCase {
    xs: Tensor,
    kernel: Tensor,
    kernel_bias: Tensor,
    narrow: Tensor,
    narrow_bias: Tensor,
    stride: usize,
    residual: Option<Tensor>,
}

impl Case for BlockCase {
    fn run(&self, implementation: Implementation) -> Result<Vec<Tensor>> {
        let xs = implementation.to_target(&self.xs)?;
        let kernel = implementation.to_target(&self.kernel)?;
        let bias = Some(implementation.to_target(&self.kernel_bias)?);
        let conv = Conv3x3::for_set(implementation.set(&xs), &kernel, bias, self.stride)?;
        let residual = implementation.to_target_optional(self.residual.as_ref())?;
        let compute = match implementation {
            Implementation::Plain => fused_mb_conv_plain,
            _ => fused_mb_conv,
        };
        let result = compute(
            &xs,
            &conv,
            Activation::GeluTanh,
            &implementation.matrix(&self.narrow)?,
            Some(&implementation.to_target(&self.narrow_bias)?),
            residual.as_ref(),
        )?;
        Ok(vec![result])
    }
}

/// Rounding of f32 over two layers of up to a few thousand products.
const TOLERANCE: f64 = 5e-6;
/// The result of every layer is rounded.
const ROUNDINGS: f64 = 4.0;

pub(super) fn checks(extent: Extent) -> Vec<Check> {
    let check = |used_by, side: usize, [input, wide, output]: [usize; 3], stride| {
        let side = extent.of(side, side / 8 + 3);
        let call_shape = Block {
            batch: 1,
            map: (side, side),
            input,
            wide,
            output,
            stride,
            has_residual: stride == 1,
        };
        Check::published("fused_mb_conv", TOLERANCE, used_by, call_shape).with_roundings(ROUNDINGS)
    };
    vec![
        check("EfficientViT stage 2, first", 256, [32, 512, 64], 2),
        check("EfficientViT stage 2", 128, [64, 256, 64], 1),
        check("EfficientViT stage 3, first", 128, [64, 1024, 128], 2),
        check("EfficientViT stage 3", 64, [128, 512, 128], 1),
        check("EfficientViT-SAM neck", 64, [256, 256, 256], 1),
        Check::odd("fused_mb_conv", TOLERANCE, odd_shapes()).with_roundings(ROUNDINGS),
    ]
}

fn odd_shapes() -> Vec<Block> {
    let mut call_shapes = vec![];
    for (batch, map, input, wide, output) in [
        (1, (1, 1), 1, 1, 1),
        (2, (5, 8), 3, 20, 7),
        (1, (37, 5), 8, 16, 8),
        // more wide channels than are computed at once
        (1, (9, 11), 4, 1100, 5),
        // patches that are gathered in parts
        (1, (4, 6), 131, 530, 9),
    ] {
        for (stride, has_residual) in [(1, true), (2, true), (1, false)] {
            call_shapes.push(Block {
                batch,
                map,
                input,
                wide,
                output,
                stride,
                has_residual,
            });
        }
    }
    call_shapes
}
