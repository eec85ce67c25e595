//! The groundling binary.

use std::process::ExitCode;

use groundling::memory::CachingAllocator;

#[global_allocator]
static ALLOCATOR: CachingAllocator = CachingAllocator;

fn main() -> ExitCode {
    groundling::commands::main()
}
