//! Opens the compute device.

use candle_core::{Device, DeviceLocation, Error, Result};

use super::settings::DeviceChoice;

/// Opens the chosen device.
///
/// # Errors
/// If a GPU was chosen by number and it is missing or cannot compute, or the build has no CUDA.
pub fn open(choice: DeviceChoice) -> Result<Device> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(number) => gpu(number).map_err(|error| Error::Msg(reason(&error))),
        DeviceChoice::Auto if cfg!(feature = "cuda") => Ok(gpu(0).unwrap_or_else(|error| {
            let reason = reason(&error);
            tracing::warn!(reason, "the GPU cannot be used; the models run on the CPU");
            Device::Cpu
        })),
        DeviceChoice::Auto => Ok(Device::Cpu),
    }
}

/// The message of an error, without candle's backtrace.
fn reason(error: &Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

/// Opens a GPU and checks it with a small computation. All threads share one stream. candle's default is one stream
/// per thread; then a tensor that one thread loads may not be ready for another thread.
fn gpu(number: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(number)?;
    #[cfg(feature = "cuda")]
    prepare(&device)?;
    let two = (candle_core::Tensor::new(1f32, &device)? + 1.0)?.to_scalar::<f32>()?;
    if two != 2.0 {
        candle_core::bail!("a test computation on the GPU gave a wrong result (1 + 1 = {two})")
    }
    Ok(device)
}

/// Configures the driver for the single stream.
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
fn prepare(device: &Device) -> Result<()> {
    use candle_core::cuda_backend::cudarc::driver::result::{device as driver, mem_pool};
    use candle_core::cuda_backend::cudarc::driver::sys::CUmemPool_attribute;

    let device = device.as_cuda_device()?;
    // SAFETY: all tensors of the device are allocated, used and freed in its single stream
    unsafe { device.disable_event_tracking() };
    let mut everything = u64::MAX;
    let number = device.cuda_stream().context().cu_device();
    // freed memory stays in the process's pool for reuse; by default the driver releases it at every synchronisation
    // and has to map it again
    let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the context's own device, its default pool, and a value of the attribute's type
    let kept = unsafe {
        driver::get_default_mem_pool(number)
            .and_then(|pool| mem_pool::set_attribute(pool, threshold, (&raw mut everything).cast()))
    };
    if let Err(error) = kept {
        // the device has no memory pools, or does not allow to change the threshold
        tracing::debug!("freed GPU memory is not cached: {error}");
    }
    Ok(())
}

/// `cpu`, or `cuda:N` with the GPU's number.
pub fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// The properties of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuProperties {
    /// Its name.
    pub name: String,
    /// Its compute capability, such as `9.0`.
    pub compute_capability: String,
    /// Its memory in bytes.
    pub memory: u64,
    /// The driver with its version; `None` if the system does not tell.
    pub driver: Option<String>,
}

/// The properties of a GPU; `None` for a CPU, or if the driver does not tell.
#[cfg(feature = "cuda")]
pub fn gpu_properties(device: &Device) -> Option<GpuProperties> {
    let stream = device.as_cuda_device().ok()?.cuda_stream();
    let context = stream.context();
    let (major, minor) = context.compute_capability().ok()?;
    Some(GpuProperties {
        name: context.name().ok()?,
        compute_capability: format!("{major}.{minor}"),
        memory: context.total_mem().ok()? as u64,
        driver: driver(),
    })
}

/// The first line of what the kernel module says about itself.
#[cfg(feature = "cuda")]
fn driver() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let line = text.lines().next()?;
    Some(line.trim_start_matches("NVRM version:").trim().to_owned())
}

/// The properties of a GPU; always `None` in a build without CUDA.
#[cfg(not(feature = "cuda"))]
pub fn gpu_properties(_: &Device) -> Option<GpuProperties> {
    None
}

/// The memory in use in bytes: of all tensors on a GPU, or of this process on a CPU (Linux only).
///
/// # Errors
/// If the GPU's driver does not answer.
pub fn used_memory(device: &Device) -> Result<Option<u64>> {
    if device.is_cpu() {
        return Ok(resident_bytes());
    }
    device.synchronize()?;
    pool_bytes(device)
}

/// The resident memory of this process.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes << 10)
}

/// The memory of the allocations in the process's pool on a GPU.
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
fn pool_bytes(device: &Device) -> Result<Option<u64>> {
    use candle_core::cuda_backend::cudarc::driver::result::{device as driver, mem_pool};
    use candle_core::cuda_backend::cudarc::driver::sys::CUmemPool_attribute;

    let stream = device.as_cuda_device()?.cuda_stream();
    let mut used = 0u64;
    let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
    // SAFETY: the context's own device, its default pool, and a value of the attribute's type
    let read = unsafe {
        driver::get_default_mem_pool(stream.context().cu_device())
            .and_then(|pool| mem_pool::get_attribute(pool, attribute, (&raw mut used).cast()))
    };
    // the device may have no memory pools
    Ok(read.is_ok().then_some(used))
}

#[cfg(not(feature = "cuda"))]
fn pool_bytes(_: &Device) -> Result<Option<u64>> {
    Ok(None)
}
