//! What this processor can do at most: multiply-adds of f32 on numbers that never leave their registers.

use std::hint::black_box;
use std::time::{Duration, Instant};

use pulp::{Arch, Simd, WithSimd};

/// Chains of multiply-adds that do not wait for each other: a core finishes two vectors per cycle, each four
/// or five cycles after it began, and there are 16 registers.
const CHAINS: usize = 12;
/// Rounds between two looks at the clock: about 10 µs.
const ROUNDS: usize = 2500;
/// Of one measurement; the best of some counts, because a clock rate rises with work and falls with company.
const BURST: Duration = Duration::from_millis(50);
const BURSTS: usize = 6;

/// GFLOP/s of all threads together, a multiply-add counted as two.
pub(super) fn gflops() -> f64 {
    let arch = Arch::new();
    (0..BURSTS)
        .map(|_| {
            let rates = rayon::broadcast(|_| arch.dispatch(Burst));
            rates.into_iter().sum()
        })
        .fold(0.0, f64::max)
}

/// GFLOP/s of the calling thread.
struct Burst;

impl WithSimd for Burst {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        // the numbers stay near 1: x <- 0.5 x + 0.5
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
    fn a_processor_computes() {
        // from a slow emulator to a large server
        let peak = gflops();
        assert!((1e-3..1e6).contains(&peak), "{peak} GFLOP/s");
    }
}
