//! Layer norm and group norm on a GPU.

use candle_core::{D, Result, Tensor};

use super::{Argument, Grid, activation_code, empty, launch, size};
use crate::models::ops::Activation;

/// See [`crate::models::ops::layer_norm`]; the caller has checked the shapes.
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
    // SAFETY: these are the kernel's arguments; weight and bias have the row's length, and `out` has the input's shape
    // and is new
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
                Argument::Size(activation_code(activation)),
            ],
        )?;
    }
    Ok(out)
}

/// See [`crate::models::ops::group_norm`]; the caller has checked the shapes.
pub(in crate::models::ops) fn group_norm(
    xs: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let xs = xs.contiguous()?;
    let (images, height, width, channels) = xs.dims4()?;
    let of_type = |weights: &Tensor| weights.to_dtype(xs.dtype())?.contiguous();
    let (weight, bias) = (of_type(weight)?, of_type(bias)?);
    let out = empty(xs.shape(), &xs)?;
    let grid = Grid {
        blocks: images * groups,
        threads: (512, 1),
    };
    // SAFETY: these are the kernel's arguments; the number of groups divides the channels, weight and bias have one
    // number per channel, and `out` has the input's shape and is new
    #[allow(unsafe_code)]
    unsafe {
        launch(
            "group_norm",
            &xs,
            grid,
            &[
                Argument::Tensor(&xs),
                Argument::Tensor(&weight),
                Argument::Tensor(&bias),
                Argument::Tensor(&out),
                Argument::Size(size(height * width)?),
                Argument::Size(size(groups)?),
                Argument::Size(size(channels / groups)?),
                Argument::Number(eps as f32),
            ],
        )?;
    }
    Ok(out)
}
