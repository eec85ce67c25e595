//! The kernels: slices in, vectors out, compiled for every instruction set and chosen at run time.
//!
//! They know no tensors; the operations one level up check shapes, and hold each of them together with plain
//! tensor operations by a test. All code that is `unsafe` lies here. [`gemm`] is what most of them are made of.

pub(super) mod attention;
pub(super) mod convolution;
pub(super) mod depthwise;
pub(super) mod feed_forward;
pub(super) mod fusion_attention;
pub(super) mod gemm;
pub(super) mod inverted_bottleneck;
pub(super) mod norm;
pub(super) mod packed;
pub(super) mod sampling;
mod scratch;
pub(super) mod simd;
pub(super) mod window_attention;
