//! Weights of full-size models without files: every tensor is drawn from a hash of its name.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use rayon::prelude::*;

/// A checkpoint that has every tensor, in every shape that a model asks for. The numbers depend only on the tensor's name,
/// so they are the same on every device and in every dtype, up to rounding.
///
/// Layers keep the scale of their input, norms scale by about 1, and nothing is near zero, so that an error in any part
/// changes the results.
pub(super) struct RandomWeights;

impl SimpleBackend for RandomWeights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let numbers = draw(name, shape.dims());
        let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu)?;
        tensor.to_dtype(dtype)?.to_device(device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("the shape of {name} is not known, so it cannot be drawn")
    }

    /// Tensors that are not in every checkpoint are not in this one.
    fn contains_tensor(&self, _: &str) -> bool {
        false
    }
}

/// The numbers of a tensor.
fn draw(name: &str, shape: &[usize]) -> Vec<f32> {
    let last = name.rsplit('.').next().unwrap_or(name);
    let is_table = ["table", "rel_pos", "attention_biases"]
        .iter()
        .any(|part| last.contains(part));
    let (mean, deviation) = match (last, shape) {
        ("running_var", _) => (1.0, 0.2),
        ("bias" | "running_mean", _) => (0.0, 0.1),
        _ if is_table => (0.0, 0.3),
        // Fourier features, and what is added to tokens
        ("positional_embedding" | "pos_embed" | "level_embed", _) => (0.0, 1.0),
        (_, [_]) => (1.0, 0.1),
        (_, [_, inputs @ ..]) => (0.0, (inputs.iter().product::<usize>() as f32).powf(-0.5)),
        _ => (0.0, 1.0),
    };
    let seed = hash(name);
    // the standard deviation of a uniform number in -1..1 is sqrt(1/3)
    let half_width = deviation * 3f32.sqrt();
    let count = shape.iter().product();
    let numbers = (0..count).into_par_iter().with_min_len(1 << 16);
    numbers
        .map(|index: usize| mean + half_width * unit(seed.wrapping_add(index as u64)))
        .collect()
}

/// FNV-1a.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// A number in -1..1 from a counter, by the finaliser of SplitMix64 (Steele et al. 2014).
fn unit(counter: u64) -> f32 {
    let mut bits = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    (bits >> 40) as f32 / (1 << 23) as f32 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_and_deviation(name: &str, shape: &[usize]) -> (f32, f32) {
        let numbers = draw(name, shape);
        let count = numbers.len() as f32;
        let mean = numbers.iter().sum::<f32>() / count;
        let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / count;
        (mean, variance.sqrt())
    }

    #[test]
    fn numbers_depend_on_the_name_and_fit_the_layer() {
        assert_eq!(draw("a.weight", &[3, 4]), draw("a.weight", &[3, 4]));
        assert_ne!(draw("a.weight", &[3, 4]), draw("b.weight", &[3, 4]));
        for (name, shape, expected) in [
            ("a.weight", &[64, 100][..], (0.0, 0.1)),
            ("a.c.weight", &[64, 4, 5, 5], (0.0, 0.1)),
            ("norm.weight", &[4096], (1.0, 0.1)),
            ("a.bias", &[4096], (0.0, 0.1)),
            ("bn.running_var", &[4096], (1.0, 0.2)),
            ("attn.relative_position_bias_table", &[4096, 3], (0.0, 0.3)),
        ] {
            let (mean, deviation) = mean_and_deviation(name, shape);
            let (expected_mean, expected_deviation) = expected;
            assert!((mean - expected_mean).abs() < 0.02, "{name}: {mean}");
            assert!(
                (deviation / expected_deviation - 1.0).abs() < 0.05,
                "{name}: {deviation}"
            );
        }
    }
}
