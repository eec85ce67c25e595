//! Layer norm.

use candle_core::{D, Result, Tensor};

use super::{Argument, Grid, empty, launch, number, size};
use crate::models::ops::Activation;

/// As [`crate::models::ops::layer_norm`], of shapes that fit each other.
pub(in crate::models::ops) fn layer_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let channels = xs.dim(D::Minus1)?;
    let rows = xs.elem_count() / channels.max(1);
    let xs = xs.contiguous()?;
    let of_type = |xs: &Tensor, dtype| xs.to_dtype(dtype)?.contiguous();
    let (weight, bias) = (of_type(weight, xs.dtype())?, of_type(bias, xs.dtype())?);
    let out = empty(xs.shape(), &xs)?;
    // SAFETY: the kernel's arguments; weight and bias have the row's length, `out` has the input's shape and is new
    #[allow(unsafe_code)]
    unsafe {
        launch(
            "layer_norm",
            &xs,
            Grid::of_warps(rows),
            &[
                Argument::Tensor(&xs),
                Argument::Tensor(&weight),
                Argument::Tensor(&bias),
                Argument::Tensor(&out),
                Argument::Size(size(rows)?),
                Argument::Size(size(channels)?),
                Argument::Number(eps as f32),
                Argument::Size(number(activation)),
            ],
        )?;
    }
    Ok(out)
}
