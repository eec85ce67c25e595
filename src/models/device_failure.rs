//! Errors of a GPU that say nothing about the request.

use candle_core::Error;

/// Why a device could not run an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceFailure {
    /// Its memory is used up; a smaller operation may succeed.
    OutOfMemory,
    /// It no longer works for this process: CUDA keeps such an error until the process ends.
    Lost,
}

/// The names of CUDA and cuBLAS for memory that is used up.
const OUT_OF_MEMORY: [&str; 2] = ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"];
/// The names for errors that stay, and for a device that is gone.
const LOST: [&str; 13] = [
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    // after suspend, or if the card is gone
    "CUDA_ERROR_UNKNOWN",
];

impl DeviceFailure {
    /// Recognises the names of CUDA's errors in the text of an error, so it needs no CUDA. `None` for all other errors.
    pub fn of(error: &Error) -> Option<Self> {
        let text = error.to_string();
        let names_one_of = |names: &[&str]| names.iter().any(|name| text.contains(name));
        match () {
            () if names_one_of(&OUT_OF_MEMORY) => Some(Self::OutOfMemory),
            () if names_one_of(&LOST) => Some(Self::Lost),
            () => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_cuda_are_recognised_by_their_names() {
        let of = |text: &str| DeviceFailure::of(&Error::Msg(text.to_owned()));
        assert_eq!(
            of("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"),
            Some(DeviceFailure::OutOfMemory)
        );
        assert_eq!(
            of(
                "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")"
            ),
            Some(DeviceFailure::Lost)
        );
        assert_eq!(of("shape mismatch in matmul"), None);
    }
}
