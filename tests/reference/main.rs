//! The models against the reference implementation, stage by stage, on the same weights and inputs.
//!
//! The fixtures beside this file are written by `generate.py`. Every test prints its largest
//! differences: `cargo test --release --test reference -- --nocapture`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    missing_docs
)]

mod compare;
mod demo;
mod detector;
mod full_size;
mod originals;
mod processing;
mod published;
mod segmenter;
