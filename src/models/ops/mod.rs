//! Operations that candle does not have, or not precisely enough: each as a CPU kernel and as a
//! plain-tensor version that runs on every device, held together by a test.

mod deformable_sampling;
mod depthwise_conv;
mod layer_norm;

use candle_core::{CpuStorage, Layout, Result};

pub use deformable_sampling::{deformable_sampling, deformable_sampling_plain};
pub use depthwise_conv::{depthwise_conv3x3, depthwise_conv3x3_plain};
pub use layer_norm::{layer_norm, layer_norm_plain};

/// The numbers of a contiguous f32 input of the operation `name`.
fn contiguous_f32<'a>(name: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("{name}: strided input {layout:?}"),
    }
}
