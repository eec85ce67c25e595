//! Layer norm and group norm, with the variance computed around the mean.

#![allow(unsafe_code)]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::activation::{Activation, activate};
use crate::scratch::{SharedPointer, filled};
use crate::simd::InstructionSet;

/// Minimum size of a parallel task, in numbers.
const MIN_TASK_NUMBERS: usize = 1 << 14;

/// The activation of `(x - mean) / sqrt(variance + eps) * weight + bias`, for every row of `weight.len()` numbers.
pub fn layer_norm(
    set: InstructionSet,
    xs: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    activation: Activation,
) -> Vec<f32> {
    let channels = weight.len().max(1);
    let step = (MIN_TASK_NUMBERS / channels + 1) * channels;
    let run = |output: SharedPointer<*mut f32>| {
        xs.par_chunks(step).enumerate().for_each(|(i, xs)| {
            // SAFETY: the chunk's part of the output.
            let output = unsafe { output.get().add(i * step) };
            set.run(NormRows {
                xs,
                weight,
                bias,
                eps,
                activation,
                output,
            });
        });
    };
    // SAFETY: every task writes as many numbers as its chunk has.
    unsafe { filled(xs.len(), run) }
}

/// Some rows of a layer norm.
struct NormRows<'a> {
    xs: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
    activation: Activation,
    output: *mut f32,
}

impl WithSimd for NormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let channels = self.weight.len();
        for (row, xs) in self.xs.chunks_exact(channels).enumerate() {
            let mean = sum(xs, 0.0, false) / channels as f32;
            let variance = sum(xs, mean, true) / channels as f32;
            let scale = 1.0 / (variance + self.eps).sqrt();
            let scaled = xs.iter().zip(self.weight).zip(self.bias);
            for (i, ((x, weight), bias)) in scaled.enumerate() {
                // SAFETY: the row is as long as the input's.
                unsafe {
                    let out = self.output.add(row * channels + i);
                    out.write((x - mean) * scale * weight + bias);
                }
            }
            if self.activation == Activation::None {
                continue;
            }
            for first in (0..channels).step_by(S::F32_LANES) {
                let count = S::F32_LANES.min(channels - first);
                // SAFETY: numbers of the row, which are written above.
                unsafe {
                    let at = self.output.add(row * channels + first);
                    let x = simd.partial_load_f32s(std::slice::from_raw_parts(at, count));
                    let x = activate(simd, self.activation, x);
                    at.copy_from_nonoverlapping((&raw const x).cast(), count);
                }
            }
        }
    }
}

/// The sum of `x - mean`, or of its square, in several lanes: faster and more precise than a single running sum.
#[inline(always)]
fn sum(xs: &[f32], mean: f32, is_squared: bool) -> f32 {
    let term = |x: f32| {
        let difference = x - mean;
        if is_squared {
            difference * difference
        } else {
            difference
        }
    };
    let mut lanes = [0f32; 32];
    let chunks = xs.chunks_exact(32);
    let mut rest = 0.0;
    for x in chunks.remainder() {
        rest += term(*x);
    }
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += term(*x);
        }
    }
    let mut half = 16;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        for (low, high) in low.iter_mut().zip(high.iter()) {
            *low += high;
        }
        half /= 2;
    }
    lanes[0] + rest
}

/// Group norm of one image's map, channels last: `groups` groups of neighbouring channels, each over all cells.
///
/// The statistics are in double precision, because a group may have few cells that differ little from their mean.
pub fn group_norm(xs: &[f32], groups: usize, weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let channels = weight.len().max(1);
    let cells = (MIN_TASK_NUMBERS / channels).max(1);
    let of_group = channels / groups.max(1);
    let count = (xs.len() / channels * of_group) as f64;
    let averages = |mean: &[f64], is_squared: bool| -> Vec<f64> {
        let parts: Vec<Vec<f64>> = xs
            .par_chunks(cells * channels)
            .map(|xs| {
                let mut sums = vec![0f64; channels];
                for cell in xs.chunks_exact(channels) {
                    for ((sum, x), mean) in sums.iter_mut().zip(cell).zip(mean) {
                        let difference = f64::from(*x) - mean;
                        *sum += if is_squared {
                            difference * difference
                        } else {
                            difference
                        };
                    }
                }
                sums
            })
            .collect();
        let average = |channel: usize| {
            let group = channel / of_group * of_group;
            let parts = parts.iter().flat_map(|part| &part[group..group + of_group]);
            parts.sum::<f64>() / count
        };
        (0..channels).map(average).collect()
    };
    let means = averages(&vec![0.0; channels], false);
    let scales: Vec<f64> = averages(&means, true)
        .iter()
        .zip(weight)
        .map(|(variance, weight)| f64::from(*weight) / (variance + f64::from(eps)).sqrt())
        .collect();
    let mut output = xs.to_vec();
    output.par_chunks_mut(cells * channels).for_each(|output| {
        for cell in output.chunks_exact_mut(channels) {
            let numbers = cell.iter_mut().zip(&means).zip(&scales).zip(bias);
            for (((x, mean), scale), bias) in numbers {
                *x = ((f64::from(*x) - mean) * scale) as f32 + bias;
            }
        }
    });
    output
}
