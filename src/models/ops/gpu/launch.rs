//! Launches CUDA kernels.

use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{DType, Device, Result, Shape, Storage, Tensor, bail};
use groundling_cuda_kernels::PTX;

/// The name of the module with all kernels.
const MODULE: &str = "groundling";

/// An argument of a kernel.
pub(super) enum Argument<'a> {
    /// The address of a contiguous tensor's first element.
    Tensor(&'a Tensor),
    /// A null pointer in place of an optional tensor.
    Null,
    /// `unsigned`
    Size(u32),
    /// `float`
    Number(f32),
    /// `Levels` of `sampling.cu`
    Levels(&'a Levels),
}

impl<'a> From<Option<&'a Tensor>> for Argument<'a> {
    fn from(xs: Option<&'a Tensor>) -> Self {
        xs.map_or(Self::Null, Self::Tensor)
    }
}

/// The largest number of levels that the sampling kernel supports.
pub(super) const MAX_LEVELS: usize = 16;

/// `Levels` of `sampling.cu`.
#[repr(C)]
pub(super) struct Levels {
    pub(super) count: u32,
    pub(super) rows: [u32; MAX_LEVELS],
    pub(super) columns: [u32; MAX_LEVELS],
}

// SAFETY: `Levels` is laid out as the structure of the kernel, and has no pointers and no padding
#[allow(unsafe_code)]
unsafe impl candle_core::cuda_backend::cudarc::driver::DeviceRepr for Levels {}

/// The number of blocks, and the number of threads per block in x and y.
pub(super) struct Grid {
    pub(super) blocks: usize,
    pub(super) threads: (u32, u32),
}

impl Grid {
    /// One thread for each of `count` elements, in blocks of 256.
    pub(super) fn of_threads(count: usize) -> Self {
        Self {
            blocks: count.div_ceil(256),
            threads: (256, 1),
        }
    }

    /// One warp for each of `count` rows, in blocks of eight warps.
    pub(super) fn of_warps(count: usize) -> Self {
        Self {
            blocks: count.div_ceil(8),
            threads: (256, 1),
        }
    }
}

/// Allocates an uninitialised tensor that a kernel will fill.
pub(super) fn empty(shape: impl Into<Shape>, like: &Tensor) -> Result<Tensor> {
    // SAFETY: every caller passes it to a kernel that writes all of its elements, and every bit pattern is a valid
    // number
    #[allow(unsafe_code)]
    unsafe {
        Tensor::empty(shape, like.dtype(), like.device())
    }
}

/// Launches the kernel `<kernel>_<format>` on the device of `like`, whose number format it takes. Later operations see
/// what the kernel writes, because the device has a single stream.
///
/// # Safety
/// The arguments must be those that the kernel declares, in its order. Everything that it reads must lie inside the
/// given tensors, and everything that it writes inside tensors that nothing else refers to.
#[allow(unsafe_code)]
pub(super) unsafe fn launch(
    kernel: &str,
    like: &Tensor,
    grid: Grid,
    arguments: &[Argument],
) -> Result<()> {
    if grid.blocks == 0 {
        return Ok(());
    }
    let Device::Cuda(device) = like.device() else {
        bail!("{kernel}: the tensor is not on a GPU")
    };
    let stream = device.cuda_stream();
    let pointers = arguments.iter().map(|argument| match argument {
        Argument::Tensor(xs) => pointer(xs, &stream),
        _ => Ok(0),
    });
    let pointers = pointers.collect::<Result<Vec<u64>>>()?;
    let name = format!("{kernel}_{}", like.dtype().as_str());
    let function = device.get_or_load_custom_func(&name, MODULE, PTX)?;
    let mut builder = function.builder();
    for (argument, pointer) in arguments.iter().zip(&pointers) {
        match argument {
            Argument::Tensor(_) | Argument::Null => builder.arg(pointer),
            Argument::Size(size) => builder.arg(size),
            Argument::Number(number) => builder.arg(number),
            Argument::Levels(levels) => builder.arg(*levels),
        };
    }
    let config = LaunchConfig {
        grid_dim: (super::size(grid.blocks)?, 1, 1),
        block_dim: (grid.threads.0, grid.threads.1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: guaranteed by the caller. The tensors live until the kernel is queued, and freeing them is queued behind
    // it
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

/// The device address of a contiguous tensor's first element.
fn pointer(xs: &Tensor, stream: &CudaStream) -> Result<u64> {
    let (storage, layout) = xs.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, _))) = (&*storage, layout.contiguous_offsets())
    else {
        bail!("a kernel needs a contiguous tensor on a GPU, but the layout is {layout:?}")
    };
    fn address<T>(slice: &CudaSlice<T>, stream: &CudaStream) -> u64 {
        slice.device_ptr(stream).0
    }
    let first = match &storage.slice {
        CudaStorageSlice::F32(slice) => address(slice, stream),
        CudaStorageSlice::F16(slice) => address(slice, stream),
        CudaStorageSlice::BF16(slice) => address(slice, stream),
        _ => bail!("the kernels do not support the dtype {:?}", xs.dtype()),
    };
    let size = match xs.dtype() {
        DType::F32 => 4,
        _ => 2,
    };
    Ok(first + size * start as u64)
}
