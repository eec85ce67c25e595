//! Layers that several models share. They hold the weights and load them by their published names. The computations
//! are in [`ops`](super::ops), which has the fast kernels.

mod attention;
mod bicubic;
mod convolution;
mod linear;
mod mlp;
mod norm;

pub use self::attention::MultiheadAttention;
pub use self::bicubic::BicubicResize;
pub use self::convolution::{PatchEmbedding, Upscale2x};
pub use self::linear::{Linear, linear, linear_b, linear_concat};
pub use self::mlp::Mlp;
pub use self::norm::{LayerNorm, LayerNorm2d, layer_norm};
