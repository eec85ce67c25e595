//! Kernels for NVIDIA GPUs as PTX, which the driver compiles for the GPU that is present. A comment above each kernel
//! in its `.cu` file says what it computes and what its arguments are. Every kernel exists as `_f32`, `_f16` and
//! `_bf16`, and computes in f32.

#![no_std]

/// The module with all kernels.
pub const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));
