//! The models against the reference implementation, stage by stage, on the same weights and inputs.
//!
//! The fixtures beside this file are written by `generate.py`. Every test prints its largest
//! differences: `cargo test --release --test reference -- --nocapture`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod compare;
mod detector;
mod segmenter;
