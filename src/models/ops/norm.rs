//! Norms whose variance is computed around the mean.
//!
//! candle's own fused layer norm computes the variance as `E[x^2] - E[x]^2`. This loses all digits if the mean is
//! much larger than the spread: the error is up to 8e-4 of the scale in SAM's mask embedding.

use candle_core::{D, Result, Tensor};

#[cfg(feature = "cuda")]
use super::gpu;
use super::kernels::norm;
use super::kernels::simd::InstructionSet;
use super::{Activation, activate_plain, cpu_tensor, f32_slice, has_kernel};

/// The activation of `(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension. `weight` and `bias`
/// are `[C]`; the result has the shape of `xs`.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn layer_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    check(xs, weight, bias)?;
    #[cfg(feature = "cuda")]
    if gpu::supports(xs) {
        return gpu::layer_norm(xs, weight, bias, eps, activation);
    }
    match has_kernel(xs) {
        true => with_kernel(
            InstructionSet::current(),
            xs,
            (weight, bias, eps),
            activation,
        ),
        false => layer_norm_plain(xs, weight, bias, eps, activation),
    }
}

pub(super) fn with_kernel(
    set: InstructionSet,
    xs: &Tensor,
    (weight, bias, eps): (&Tensor, &Tensor, f64),
    activation: Activation,
) -> Result<Tensor> {
    let tensors = [xs.contiguous()?, weight.contiguous()?, bias.contiguous()?];
    let [xs_view, weight, bias] = tensors.each_ref().map(Tensor::storage_and_layout);
    let (weight, bias) = (f32_slice(&weight)?, f32_slice(&bias)?);
    let xs = f32_slice(&xs_view)?;
    let result = norm::layer_norm(set, xs, weight, bias, eps as f32, activation);
    cpu_tensor(result, tensors[0].shape())
}

/// The same as [`layer_norm`], in plain tensor operations.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn layer_norm_plain(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let normed = candle_nn::ops::layer_norm_slow(xs, weight, bias, eps as f32)?;
    activate_plain(normed, activation)
}

/// Group norm of channels-last maps `[B, H, W, C]`: `groups` groups of neighbouring channels, each over all cells of
/// an image. The result has the same shape.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn group_norm(
    xs: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    check(xs, weight, bias)?;
    let (_, height, width, channels) = xs.dims4()?;
    if groups == 0 || channels % groups != 0 {
        candle_core::bail!("group norm: {groups} groups do not divide {channels} channels")
    }
    #[cfg(feature = "cuda")]
    if gpu::supports(xs) {
        return gpu::group_norm(xs, groups, weight, bias, eps);
    }
    if !has_kernel(xs) || xs.elem_count() == 0 {
        return group_norm_plain(xs, groups, weight, bias, eps);
    }
    let tensors = [xs.contiguous()?, weight.contiguous()?, bias.contiguous()?];
    let [maps, weight, bias] = tensors.each_ref().map(Tensor::storage_and_layout);
    let (weight, bias) = (f32_slice(&weight)?, f32_slice(&bias)?);
    let images = f32_slice(&maps)?.chunks(height * width * channels);
    let normed: Vec<Vec<f32>> = images
        .map(|image| norm::group_norm(image, groups, weight, bias, eps as f32))
        .collect();
    // a batch of one image, the usual case, is not copied
    let normed = match <[Vec<f32>; 1]>::try_from(normed) {
        Ok([normed]) => normed,
        Err(normed) => normed.concat(),
    };
    cpu_tensor(normed, xs.shape())
}

/// The same as [`group_norm`], in plain tensor operations.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn group_norm_plain(
    xs: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let channels = xs.dim(D::Minus1)?;
    let norm = candle_nn::GroupNorm::new(weight.clone(), bias.clone(), channels, groups, eps)?;
    xs.permute((0, 3, 1, 2))?
        .contiguous()?
        .apply(&norm)?
        .permute((0, 2, 3, 1))?
        .contiguous()
}

fn check(xs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<()> {
    let channels = xs.dim(D::Minus1)?;
    if weight.dims() != [channels] || bias.dims() != [channels] {
        candle_core::bail!(
            "norm: input {:?}, weight {:?}, bias {:?} do not fit",
            xs.dims(),
            weight.dims(),
            bias.dims()
        )
    }
    Ok(())
}
