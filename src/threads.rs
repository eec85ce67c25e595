//! The compute threads: one shared pool of configurable size.

#![allow(unsafe_code)]

use std::num::NonZeroUsize;

/// The environment variables from which candle reads its number of threads; it has no other setting.
const CANDLE_VARIABLES: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];

/// Starts the pool of compute threads and returns its size. The size is `count`, else `RAYON_NUM_THREADS`, else the
/// number of cores that the process may use (CPU affinity and cgroup limits included).
///
/// # Safety
/// No other thread may be running, because this function writes environment variables.
///
/// # Errors
/// If the pool exists already, or a thread cannot be started.
pub(crate) unsafe fn start(
    count: Option<NonZeroUsize>,
) -> Result<usize, rayon::ThreadPoolBuildError> {
    let from_environment = || std::env::var(CANDLE_VARIABLES[0]).ok()?.parse().ok();
    let count = count
        .or_else(from_environment)
        .or_else(|| std::thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get);
    for variable in CANDLE_VARIABLES {
        // SAFETY: the caller guarantees that no other thread runs, so none reads the environment.
        unsafe { std::env::set_var(variable, count.to_string()) };
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .thread_name(|index| format!("compute-{index}"))
        .build_global()?;
    Ok(count)
}
