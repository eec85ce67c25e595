//! The kernels: slices in, vectors out, compiled for every instruction set and chosen at run time.
//!
//! They know no tensors; the operations one level up check shapes, and hold each of them together with plain
//! tensor operations by a test. All arithmetic of the models that is `unsafe` lies here. Most of them
//! are made of tiles of matrix products (`tile`).
//! They are a package of their own, so that they are compiled once, as one unit, whoever is built on them.

pub mod activation;
pub mod attention;
pub mod convolution;
pub mod depthwise;
pub mod feed_forward;
pub mod fusion_attention;
pub mod gemm;
pub mod inverted_bottleneck;
pub mod norm;
pub mod packed;
pub mod sampling;
mod scratch;
pub mod simd;
mod tile;
pub mod window_attention;
mod words;
