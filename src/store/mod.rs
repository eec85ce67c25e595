//! What was computed, kept by the content it was computed of.
//!
//! A stage's key is the digest of the image's bytes, and what else the result depends on. So the same picture under two
//! URLs is computed once, and a result is never of an old picture. Results are kept in [`memory`]; the ones that are
//! small for what they cost are also kept on [`disk`], where they outlive the process.

pub mod disk;
pub mod memory;

pub use disk::DiskStore;
pub use memory::{Had, Kept, Source, Usage};
