//! Checks of the operations that multiply with bf16 weights.
//!
//! Products of two bf16 numbers are exact in f32. So for bf16 inputs an operation gives the same result as in f32. It
//! differs more only if it rounds intermediate sums again, for a second layer.

use std::fmt;

use candle_core::{DType, Result, Tensor};

use super::{
    CallShape, Case, Check, Extent, Implementation, Random, convolution, fused_convolution,
    inverted_bottleneck, linear,
};
use crate::models::ops::{Format, with_weight_format};

/// A call with bf16 inputs, and a kernel that stores its weights in bf16.
struct InBf16(Box<dyn CallShape>);

impl fmt::Display for InBf16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl CallShape for InBf16 {
    fn draw(&self, random: &mut Random) -> Result<Box<dyn Case>> {
        let case = self.0.draw(&mut random.rounded_to(DType::BF16))?;
        Ok(Box::new(Bf16Case(case)))
    }
}

struct Bf16Case(Box<dyn Case>);

impl Case for Bf16Case {
    fn run(&self, implementation: Implementation) -> Result<Vec<Tensor>> {
        with_weight_format(Format::Bf16, || self.0.run(implementation))
    }
}

/// Tolerance of one product, as in f32.
const TOLERANCE_ONE_PRODUCT: f64 = 5e-6;
/// Tolerance of two products: the input of the second one is rounded to 8 bits.
const TOLERANCE_TWO_PRODUCTS: f64 = 5e-3;

pub(super) fn checks(extent: Extent) -> Vec<Check> {
    let in_f32 = [
        linear::checks(extent),
        convolution::checks(extent),
        fused_convolution::checks(extent),
        inverted_bottleneck::checks(extent),
    ];
    let in_bf16 = in_f32.into_iter().flatten().filter_map(|check| {
        let (op, tolerance) = match check.op {
            "linear" => ("linear, bf16", TOLERANCE_ONE_PRODUCT),
            "linear_by_heads" => ("linear_by_heads, bf16", TOLERANCE_ONE_PRODUCT),
            "conv3x3" => ("conv3x3, bf16", TOLERANCE_ONE_PRODUCT),
            "conv7x7" => ("conv7x7, bf16", TOLERANCE_ONE_PRODUCT),
            "upscale2x" => ("upscale2x, bf16", TOLERANCE_ONE_PRODUCT),
            "fused_mb_conv" => ("fused_mb_conv, bf16", TOLERANCE_TWO_PRODUCTS),
            "feed_forward" => ("feed_forward, bf16", TOLERANCE_TWO_PRODUCTS),
            "inverted_bottleneck" => ("inverted_bottleneck, bf16", TOLERANCE_TWO_PRODUCTS),
            // it has no matrix product
            _ => return None,
        };
        let call_shapes = check.call_shapes.into_iter();
        Some(Check {
            op,
            tolerance,
            call_shapes: call_shapes
                .map(|call_shape| Box::new(InBf16(call_shape)) as Box<dyn CallShape>)
                .collect(),
            ..check
        })
    });
    in_bf16.collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::models::ops::{Activation, InstructionSet, Matrix, linear, linear_plain, testing};

    #[test]
    fn both_factors_are_rounded_to_the_nearest_bf16() -> Result<()> {
        let mut random = Random::new(7);
        let (xs, weight) = (random.spread(1.0, (50, 33))?, random.weight(21, 33)?);
        let rounded = |xs: &Tensor| xs.to_dtype(DType::BF16)?.to_dtype(DType::F32);
        let expected = linear_plain(
            &rounded(&xs)?,
            &rounded(&weight)?,
            None,
            Activation::None,
            None,
        )?;
        for set in InstructionSet::available() {
            let matrix =
                with_weight_format(Format::Bf16, || Matrix::for_set(Some(set), weight.clone()))?;
            let result = linear(&xs, &matrix, None, Activation::None, None)?;
            testing::assert_close(set.name(), &result, &expected, TOLERANCE_ONE_PRODUCT)?;
        }
        Ok(())
    }

    #[test]
    fn nan_stays_nan() -> Result<()> {
        // a NaN whose bits would overflow to zero in a naive rounding
        let xs = Tensor::new(&[[1.0, f32::from_bits(0x7fff_ffff)]], &Device::Cpu)?;
        let weight = Tensor::ones((1, 2), DType::F32, &Device::Cpu)?;
        for set in InstructionSet::available() {
            let matrix =
                with_weight_format(Format::Bf16, || Matrix::for_set(Some(set), weight.clone()))?;
            let result = linear(&xs, &matrix, None, Activation::None, None)?;
            assert!(
                result.flatten_all()?.to_vec1::<f32>()?[0].is_nan(),
                "{set:?}"
            );
        }
        Ok(())
    }
}
