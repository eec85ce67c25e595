//! Caches of computed results, keyed by the content that they were computed from.
//!
//! The cache key of a stage consists of the digest of the image's bytes and everything else that the result depends on.
//! So the same image under two URLs is computed once, and the result for an old version of an image is never used for a
//! new one. Results are kept in [`memory`]. Those that are small in relation to their computing time are also kept on
//! [`disk`], where they survive a restart.

mod blob;
pub mod disk;
pub mod memory;

pub use disk::DiskStore;
pub use memory::{CacheResult, MemoryCache, Source, Usage};
