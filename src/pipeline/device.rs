//! Where to compute.

use candle_core::{Device, DeviceLocation, Result};

use crate::config::DeviceChoice;

/// Opens the chosen device.
///
/// # Errors
/// If a GPU was asked for by number and there is none, or the build has no CUDA.
pub fn open(choice: DeviceChoice) -> Result<Device> {
    match choice {
        DeviceChoice::Auto => Device::cuda_if_available(0),
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(number) => Device::new_cuda(number),
    }
}

/// `cpu`, or `cuda:0` with the GPU's number.
pub fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}
