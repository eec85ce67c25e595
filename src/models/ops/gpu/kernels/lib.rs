//! Kernels for NVIDIA GPUs, as PTX, which the driver compiles for the GPU at hand. What each computes, and what it is
//! given, stands above it in its `.cu` file. Every kernel comes in `_f32`, `_f16` and `_bf16`; inside, all numbers are
//! f32.

#![no_std]

/// The module with all kernels.
pub const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));
