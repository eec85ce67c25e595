//! The peak rate of this processor: f32 multiply-adds on values that stay in registers.

use std::hint::black_box;
use std::time::{Duration, Instant};

use pulp::{Arch, Simd, WithSimd};

/// Independent chains of multiply-adds. A core can complete two vector operations per cycle, each with a latency of
/// four or five cycles, and it has 16 registers.
const CHAINS: usize = 12;
/// Rounds between two reads of the clock: about 10 µs.
const ROUNDS: usize = 2500;
/// Duration of one measurement. The best of several is used, because the clock rate rises under load and falls if
/// other cores are busy.
const BURST: Duration = Duration::from_millis(50);
const BURSTS: usize = 6;

/// The rate of all threads together in GFLOP/s; a multiply-add counts as two operations.
pub(super) fn gflops() -> f64 {
    let arch = Arch::new();
    (0..BURSTS)
        .map(|_| {
            let rates = rayon::broadcast(|_| arch.dispatch(Burst));
            rates.into_iter().sum()
        })
        .fold(0.0, f64::max)
}

/// Measures the rate of the calling thread in GFLOP/s.
struct Burst;

impl WithSimd for Burst {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        // the values stay near 1: x <- 0.5 x + 0.5
        let half = simd.splat_f32s(black_box(0.5));
        let mut chains = [simd.splat_f32s(black_box(1.0)); CHAINS];
        let start = Instant::now();
        let mut rounds = 0;
        let elapsed = loop {
            for _ in 0..ROUNDS {
                for chain in &mut chains {
                    *chain = simd.mul_add_f32s(*chain, half, half);
                }
            }
            rounds += ROUNDS;
            let elapsed = start.elapsed();
            if elapsed >= BURST {
                break elapsed;
            }
        };
        for chain in chains {
            black_box(simd.reduce_sum_f32s(chain));
        }
        let flops = 2 * rounds * CHAINS * S::F32_LANES;
        flops as f64 / elapsed.as_nanos() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measured_peak_is_plausible() {
        // from a slow emulator to a large server
        let peak = gflops();
        assert!((1e-3..1e6).contains(&peak), "{peak} GFLOP/s");
    }
}
