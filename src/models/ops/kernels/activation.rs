//! Activations of layers.

use pulp::Simd;

use crate::simd::{gelu, gelu_tanh};

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
    /// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2` (torch's `approximate="tanh"`).
    GeluTanh,
}

impl Activation {
    /// Whether it needs so many registers that a matrix product applies it in a pass of its own.
    #[inline(always)]
    pub(crate) fn is_separate_pass(self) -> bool {
        matches!(self, Self::Gelu | Self::GeluTanh)
    }
}

/// Applies an activation to a vector.
#[inline(always)]
pub fn activate<S: Simd>(simd: S, activation: Activation, x: S::f32s) -> S::f32s {
    match activation {
        Activation::None => x,
        Activation::Relu => simd.max_f32s(x, simd.splat_f32s(0.0)),
        Activation::Gelu => gelu(simd, x),
        Activation::GeluTanh => gelu_tanh(simd, x),
    }
}

/// An activation as a type. A function pointer would be called through a wrapper that is compiled without the
/// instruction set.
pub(crate) trait Function {
    fn apply<S: Simd>(simd: S, x: S::f32s) -> S::f32s;
}

/// [`Activation::Gelu`].
pub(crate) struct Gelu;

impl Function for Gelu {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        gelu(simd, x)
    }
}

/// [`Activation::GeluTanh`].
pub(crate) struct GeluTanh;

impl Function for GeluTanh {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        gelu_tanh(simd, x)
    }
}
