//! The models compared with the reference implementation, stage by stage, with the same weights and inputs.
//!
//! `generate.py` writes the fixtures next to this file. Every test prints its largest differences:
//! `cargo test --release --test reference -- --nocapture`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    missing_docs
)]

mod clicks;
mod compare;
mod demo;
mod detector;
mod full_size;
mod originals;
mod processing;
mod published;
mod segmenter;
