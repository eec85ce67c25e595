//! Operations that candle does not have, or whose candle version is too slow or not precise enough.
//!
//! They take and return tensors. Kernels run on a CPU in f32, and on an NVIDIA GPU; in all other cases the same
//! function runs in plain tensor operations, `..._plain`. [`checks`] compares both, in the tests and in
//! `groundling selftest`. The kernels are separate packages, in the folders `kernels` and `gpu/kernels`.

mod attention;
pub mod checks;
mod convolution;
mod deformable_sampling;
mod format;
mod fusion_attention;
#[cfg(feature = "cuda")]
mod gpu;
mod interrupt;
mod inverted_bottleneck;
mod linear;
mod norm;
mod pooled_attention;
mod pooling;
mod window_attention;

use std::ops::Deref;

use candle_core::{DType, Device, Layout, Result, Shape, Storage, Tensor};
use groundling_kernels as kernels;

pub use attention::{attention, attention_plain};
pub use convolution::{
    Conv, Conv3x3, Conv7x7, Depthwise, Depthwise3x3, Depthwise5x5, Upscale2x, conv3x3, conv7x7,
    convolve_plain, depthwise_conv3x3, depthwise_conv5x5, depthwise_plain, fused_mb_conv,
    fused_mb_conv_plain, upscale2x, upscale2x_plain,
};
pub use deformable_sampling::{Sampling, deformable_sampling, deformable_sampling_plain};
pub use format::with_weight_format;
pub use fusion_attention::{FusionAttention, FusionProjections};
pub use interrupt::{Interrupt, interruptible};
pub use inverted_bottleneck::{InvertedBottleneck, inverted_bottleneck, inverted_bottleneck_plain};
pub use kernels::activation::Activation;
pub use kernels::packed::Format;
pub use kernels::simd::InstructionSet;
pub use kernels::window_attention::Windows;
pub use linear::{
    Matrix, feed_forward, feed_forward_plain, linear, linear_by_heads, linear_by_heads_plain,
    linear_plain, products_by_image,
};
pub use norm::{group_norm, group_norm_plain, layer_norm, layer_norm_plain};
pub use pooled_attention::{pooled_window_attention, pooled_window_attention_plain};
pub use pooling::{max_pool2x2, max_pool2x2_plain};
pub use window_attention::{PositionBias, window_attention, window_attention_plain};

/// What is added to the score of a token that must not be attended to: its softmax weight is 0, and the sum is finite in
/// f32, f16 (for scores above -5500) and bf16. The lowest number of f32, which the reference adds, is minus infinity in both halves.
pub const MASKED: f32 = -6e4;

/// Whether a CPU kernel takes this tensor: f32 on a CPU.
fn has_kernel(xs: &Tensor) -> bool {
    matches!(xs.device(), Device::Cpu) && xs.dtype() == DType::F32
}

/// The instruction set of the kernels for this tensor; `None` if plain tensor operations are used.
fn kernel_set(xs: &Tensor) -> Option<InstructionSet> {
    has_kernel(xs).then(InstructionSet::current)
}

/// The elements of a contiguous f32 tensor on the CPU, from its locked storage and its layout.
fn f32_slice<'a, G>((storage, layout): &'a (G, &Layout)) -> Result<&'a [f32]>
where
    G: Deref<Target = Storage>,
{
    let (Storage::Cpu(storage), Some((start, end))) = (&**storage, layout.contiguous_offsets())
    else {
        candle_core::bail!(
            "a kernel needs a contiguous f32 tensor on the CPU, but the layout is {layout:?}"
        )
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// The elements of an f32 tensor on the CPU, copied to a vector.
fn f32_vec(xs: &Tensor) -> Result<Vec<f32>> {
    let xs = xs.contiguous()?;
    Ok(f32_slice(&xs.storage_and_layout())?.to_vec())
}

/// A kernel's result as a tensor.
fn cpu_tensor(numbers: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(numbers, shape.into(), &Device::Cpu)
}

/// An activation in plain tensor operations.
fn activate_plain(xs: Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::None => Ok(xs),
        Activation::Relu => xs.relu(),
        Activation::Gelu => xs.gelu_erf(),
        Activation::GeluTanh => xs.gelu(),
    }
}

#[cfg(test)]
mod testing {
    use super::checks::Comparison;
    use super::*;

    /// Asserts that two tensors differ by no more than `tolerance` of the expected one's scale.
    pub(super) fn assert_close(
        name: &str,
        actual: &Tensor,
        expected: &Tensor,
        tolerance: f64,
    ) -> Result<()> {
        let compared = Comparison::between(actual, expected)?;
        assert!(compared.is_within(tolerance), "{name}: {compared}");
        Ok(())
    }
}
