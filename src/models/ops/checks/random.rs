//! Random tensors from a fixed seed, the same on every machine.

use candle_core::{DType, Device, Result, Shape, Tensor};

/// A SplitMix64 generator (Steele et al. 2014), fast enough for inputs of many megabytes.
pub(super) struct Random {
    state: u64,
    /// The dtype that the numbers are rounded to.
    dtype: DType,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        let dtype = DType::F32;
        Self { state: seed, dtype }
    }

    /// The same numbers, rounded to a dtype with lower precision.
    pub(super) fn rounded_to(&self, dtype: DType) -> Self {
        Self { dtype, ..*self }
    }

    /// A number of 0..1, excluding 1, in steps of 2^-24.
    fn unit(&mut self) -> f32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        (bits >> 40) as f32 / (1 << 24) as f32
    }

    /// Uniform numbers between `low` and `high`, on the CPU.
    pub(super) fn between(
        &mut self,
        low: f32,
        high: f32,
        shape: impl Into<Shape>,
    ) -> Result<Tensor> {
        let shape = shape.into();
        let count = shape.elem_count();
        let numbers: Vec<f32> = (0..count)
            .map(|_| low + (high - low) * self.unit())
            .collect();
        let drawn = Tensor::from_vec(numbers, shape, &Device::Cpu)?;
        drawn.to_dtype(self.dtype)?.to_dtype(DType::F32)
    }

    /// Uniform numbers with this mean and standard deviation, on the CPU.
    pub(super) fn around(
        &mut self,
        mean: f32,
        deviation: f32,
        shape: impl Into<Shape>,
    ) -> Result<Tensor> {
        let half_width = deviation * 3f32.sqrt();
        self.between(mean - half_width, mean + half_width, shape)
    }

    /// Uniform numbers with mean zero and this standard deviation, on the CPU.
    pub(super) fn spread(&mut self, deviation: f32, shape: impl Into<Shape>) -> Result<Tensor> {
        self.around(0.0, deviation, shape)
    }

    /// The weight `[output, input]` of a linear layer, scaled so that the output has the input's scale.
    pub(super) fn weight(&mut self, output: usize, input: usize) -> Result<Tensor> {
        self.spread(1.0 / (input as f32).sqrt(), (output, input))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_given_mean_and_deviation_and_are_reproducible() -> Result<()> {
        let draw = |seed| Random::new(seed).around(3.0, 2.0, 10_000);
        let numbers: Vec<f32> = draw(1)?.to_vec1()?;
        assert_eq!(numbers, draw(1)?.to_vec1::<f32>()?);
        assert_ne!(numbers, draw(2)?.to_vec1::<f32>()?);
        let mean = numbers.iter().sum::<f32>() / 1e4;
        let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 1e4;
        assert!((mean - 3.0).abs() < 0.1, "{mean}");
        assert!((variance - 4.0).abs() < 0.2, "{variance}");
        Ok(())
    }
}
