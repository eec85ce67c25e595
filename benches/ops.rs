//! Every operation compared with its plain implementation, in the shapes of the published models:
//!
//!     cargo bench --bench ops                         # all
//!     cargo bench --bench ops -- window_attention     # those whose name contains this
//!
//! The plain implementations are candle's tensor operations, on the same threads. A kernel's time includes packing its
//! weights; a model packs them only once, when it loads.

use std::time::Duration;

use anyhow::Context;
use criterion::{Criterion, SamplingMode};
use groundling::memory::CachingAllocator;
use groundling::models::ops::InstructionSet;
use groundling::models::ops::checks::{Extent, all};

// as in the binary
#[global_allocator]
static ALLOCATOR: CachingAllocator = CachingAllocator;

fn main() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let set = InstructionSet::current();
    for check in all(Extent::Full) {
        // odd shapes only test correctness
        let Some(call) = check.call() else { continue };
        let mut group = criterion.benchmark_group(format!("{}/{}", check.op(), check.used_by()));
        group
            .sample_size(10)
            .sampling_mode(SamplingMode::Flat)
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_secs(1));
        let mut failure = None;
        group.bench_function(set.name(), |bencher| {
            bencher.iter(|| failure = call.with_kernel(set).err());
        });
        group.bench_function("plain", |bencher| {
            bencher.iter(|| failure = call.plain().err());
        });
        group.finish();
        if let Some(error) = failure {
            return Err(error).context(check.op());
        }
    }
    criterion.final_summary();
    Ok(())
}
