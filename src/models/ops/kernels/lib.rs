//! The CPU kernels: slices in, vectors out. They are compiled for every instruction set, and one is selected at run
//! time.
//!
//! They do not depend on tensors. A kernel panics if the length of a slice does not match the given sizes. The
//! operations one level up check the shapes, and tests compare each kernel with plain tensor operations. All `unsafe`
//! arithmetic of the models on the CPU is here. Most kernels consist of tiles of matrix products (`tile`). The kernels
//! are a separate package, so that they are compiled once, as one unit, for all crates that use them.

pub mod activation;
pub mod attention;
pub mod convolution;
pub mod depthwise;
pub mod feed_forward;
pub mod fused_convolution;
pub mod fusion_attention;
pub mod gemm;
pub mod inverted_bottleneck;
pub mod norm;
pub mod packed;
mod patches;
pub mod pooled_attention;
pub mod pooling;
pub mod sampling;
mod scratch;
pub mod simd;
mod tile;
pub mod window_attention;
mod words;
