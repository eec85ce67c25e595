//! Activations of layers.

use pulp::Simd;

use crate::simd::gelu;

/// The function that is applied to a sum before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
    /// `x (1 + erf(x / sqrt 2)) / 2`.
    Gelu,
}

/// Applies an activation to a vector.
#[inline(always)]
pub fn activate<S: Simd>(simd: S, activation: Activation, x: S::f32s) -> S::f32s {
    match activation {
        Activation::None => x,
        Activation::Relu => simd.max_f32s(x, simd.splat_f32s(0.0)),
        Activation::Gelu => gelu(simd, x),
    }
}
