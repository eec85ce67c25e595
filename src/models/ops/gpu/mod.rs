//! The operations on NVIDIA GPUs. cuBLAS computes the matrix products; between them, each kernel does in one pass what
//! plain candle operations do in many. The kernels take f32, f16 and bf16, and compute in f32.

mod attention;
mod convolution;
mod launch;
mod linear;
mod norm;
mod sampling;
mod softmax;
mod sums;
mod windows;

use candle_core::{DType, Result, Tensor};

pub(super) use self::attention::{
    attention, fusion_attention, pooled_window_attention, window_attention,
};
pub(super) use self::convolution::{depthwise, gather_patches};
use self::launch::{Argument, Grid, empty, launch};
pub(super) use self::linear::{linear, linear_by_heads};
pub(super) use self::norm::{group_norm, layer_norm};
pub(super) use self::sampling::deformable_sampling;
use super::Activation;

/// Whether the kernels support the tensor's device and number format.
pub(super) fn supports(xs: &Tensor) -> bool {
    xs.device().is_cuda() && [DType::F32, DType::F16, DType::BF16].contains(&xs.dtype())
}

/// Converts a size to the 32-bit integer that kernels take.
fn size(number: usize) -> Result<u32> {
    u32::try_from(number).map_err(candle_core::Error::wrap)
}

/// The number of elements that a kernel reads at once: as many as fit 16 bytes if the row lengths and the start offsets
/// are multiples of that, else one.
fn step<'a>(row: usize, tensors: impl IntoIterator<Item = &'a Tensor>) -> usize {
    let mut step = 1;
    for xs in tensors {
        step = 16 / xs.dtype().size_in_bytes();
        if !row.is_multiple_of(step) || !xs.layout().start_offset().is_multiple_of(step) {
            return 1;
        }
    }
    step
}

/// The number that identifies the activation in the kernels.
fn activation_code(activation: Activation) -> u32 {
    match activation {
        Activation::None => 0,
        Activation::Relu => 1,
        Activation::Gelu => 2,
        Activation::GeluTanh => 3,
    }
}
