//! The threads that compute: one pool for all of them, whose size is a setting.

#![allow(unsafe_code)]

use std::num::NonZeroUsize;

/// The variables that candle takes its number of threads from; nothing else tells it.
const OF_CANDLE: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];

/// Sets how many threads compute: as given, else as `RAYON_NUM_THREADS` says, else as many as the process may use
/// cores (its affinity and the limits of its control group counted). Returns how many there are.
///
/// # Safety
/// No other thread may run yet: it writes environment variables.
///
/// # Errors
/// If the threads exist already, or the system gives none.
pub unsafe fn start(count: Option<NonZeroUsize>) -> Result<usize, rayon::ThreadPoolBuildError> {
    let of_rayon = || std::env::var(OF_CANDLE[0]).ok()?.parse().ok();
    let count = count
        .or_else(of_rayon)
        .or_else(|| std::thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get);
    for variable in OF_CANDLE {
        // SAFETY: the caller promises that no other thread reads them meanwhile.
        unsafe { std::env::set_var(variable, count.to_string()) };
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .thread_name(|index| format!("compute-{index}"))
        .build_global()?;
    Ok(count)
}
