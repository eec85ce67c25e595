//! Where to compute.

use candle_core::{Device, DeviceLocation, Error, Result};

use crate::config::DeviceChoice;

/// Opens the chosen device.
///
/// # Errors
/// If a GPU was asked for by number and there is none that computes, or the build has no CUDA.
pub fn open(choice: DeviceChoice) -> Result<Device> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(number) => gpu(number).map_err(|error| Error::Msg(reason(&error))),
        DeviceChoice::Auto if cfg!(feature = "cuda") => Ok(gpu(0).unwrap_or_else(|error| {
            let reason = reason(&error);
            tracing::warn!(reason, "the GPU cannot be used, the CPU computes");
            Device::Cpu
        })),
        DeviceChoice::Auto => Ok(Device::Cpu),
    }
}

/// What an error says, without the stack that candle adds to it.
fn reason(error: &Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

/// A GPU, after it has computed something. All threads give it work in one queue: candle's default is one for each
/// thread, and models that one thread loads are not there yet for another.
fn gpu(number: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(number)?;
    #[cfg(feature = "cuda")]
    prepare(&device)?;
    let two = (candle_core::Tensor::new(1f32, &device)? + 1.0)?.to_scalar::<f32>()?;
    if two != 2.0 {
        candle_core::bail!("the GPU says that 1 + 1 is {two}")
    }
    Ok(device)
}

/// Tells the driver what is known of the one stream that all work is in.
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
fn prepare(device: &Device) -> Result<()> {
    use candle_core::cuda_backend::cudarc::driver::result::{device as driver, mem_pool};
    use candle_core::cuda_backend::cudarc::driver::sys::CUmemPool_attribute;

    let device = device.as_cuda_device()?;
    // SAFETY: all tensors of the device are allocated, used and freed in its one stream
    unsafe { device.disable_event_tracking() };
    let mut everything = u64::MAX;
    let number = device.cuda_stream().context().cu_device();
    // what is freed stays with the process, which needs it again soon; the driver would take it back at every
    // synchronisation, and map it anew
    let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the context's own device, its default pool, and a number of the type that the attribute has
    let kept = unsafe {
        driver::get_default_mem_pool(number)
            .and_then(|pool| mem_pool::set_attribute(pool, threshold, (&raw mut everything).cast()))
    };
    if let Err(error) = kept {
        // it has no pools, or keeps its own way with them
        tracing::debug!("the GPU's memory is not kept: {error}");
    }
    Ok(())
}

/// `cpu`, or `cuda:0` with the GPU's number.
pub fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}
