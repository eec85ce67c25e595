//! How kernels are started.

use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{DType, Device, Result, Shape, Storage, Tensor, bail};
use groundling_cuda_kernels::PTX;

/// The name of the module with all kernels.
const MODULE: &str = "groundling";

/// What a kernel is given.
pub(super) enum Argument<'a> {
    /// The address of a contiguous tensor's first number.
    Tensor(&'a Tensor),
    /// No tensor.
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

/// The most levels that a kernel samples.
pub(super) const MOST_LEVELS: usize = 16;

/// `Levels` of `sampling.cu`.
#[repr(C)]
pub(super) struct Levels {
    pub(super) count: u32,
    pub(super) rows: [u32; MOST_LEVELS],
    pub(super) columns: [u32; MOST_LEVELS],
}

// SAFETY: `Levels` is laid out as the structure of the kernel, and has no pointers and no padding
#[allow(unsafe_code)]
unsafe impl candle_core::cuda_backend::cudarc::driver::DeviceRepr for Levels {}

/// Blocks, and the threads of a block in x and in y.
pub(super) struct Grid {
    pub(super) blocks: usize,
    pub(super) threads: (u32, u32),
}

impl Grid {
    /// Blocks of 256 threads.
    pub(super) fn of_threads(count: usize) -> Self {
        Self {
            blocks: count.div_ceil(256),
            threads: (256, 1),
        }
    }

    /// Blocks of eight warps.
    pub(super) fn of_warps(count: usize) -> Self {
        Self {
            blocks: count.div_ceil(8),
            threads: (256, 1),
        }
    }
}

/// A tensor for a kernel to fill.
pub(super) fn empty(shape: impl Into<Shape>, like: &Tensor) -> Result<Tensor> {
    // SAFETY: every caller hands it to a kernel that writes all its numbers, and its numbers have no invalid bits
    #[allow(unsafe_code)]
    unsafe {
        Tensor::empty(shape, like.dtype(), like.device())
    }
}

/// Starts `<kernel>_<format>`, with the format of `like`, on its device. What the kernel writes is there for all that
/// is started later, since the device has one stream.
///
/// # Safety
/// The arguments are those that the kernel declares, in its order. All that it reads lies inside the tensors, all that
/// it writes inside tensors that nothing else refers to.
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
        bail!("{kernel}: a kernel for GPUs, and a tensor elsewhere")
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
    // SAFETY: the caller's promise; the tensors live until the kernel is queued, and what frees them queues behind it
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

/// Where a contiguous tensor's numbers lie on the device.
fn pointer(xs: &Tensor, stream: &CudaStream) -> Result<u64> {
    let (storage, layout) = xs.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, _))) = (&*storage, layout.contiguous_offsets())
    else {
        bail!("a kernel takes contiguous numbers on a GPU, not {layout:?}")
    };
    fn address<T>(slice: &CudaSlice<T>, stream: &CudaStream) -> u64 {
        slice.device_ptr(stream).0
    }
    let first = match &storage.slice {
        CudaStorageSlice::F32(slice) => address(slice, stream),
        CudaStorageSlice::F16(slice) => address(slice, stream),
        CudaStorageSlice::BF16(slice) => address(slice, stream),
        _ => bail!("a kernel does not take {:?}", xs.dtype()),
    };
    let size = match xs.dtype() {
        DType::F32 => 4,
        _ => 2,
    };
    Ok(first + size * start as u64)
}
