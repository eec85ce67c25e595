//! Convolutions on a GPU.

use candle_core::{Result, Tensor};

use super::{Argument, Grid, activation_code, empty, launch, size};
use crate::models::ops::{Activation, Depthwise};

/// Gathers the patch of `side` rows and columns around every output position (im2col), row by row: `[B, H, W, C]` to
/// `[B, ceil(H / stride), ceil(W / stride), side * side * C]`.
pub(in crate::models::ops) fn gather_patches(
    xs: &Tensor,
    side: usize,
    stride: usize,
) -> Result<Tensor> {
    let xs = xs.contiguous()?;
    let (batch, height, width, channels) = xs.dims4()?;
    let (rows, columns) = (height.div_ceil(stride), width.div_ceil(stride));
    let out = empty((batch, rows, columns, side * side * channels), &xs)?;
    let count = out.elem_count();
    let mut arguments = vec![Argument::Tensor(&xs), Argument::Tensor(&out)];
    for number in [count, height, width, channels, rows, columns, side, stride] {
        arguments.push(Argument::Size(size(number)?));
    }
    // SAFETY: these are the kernel's arguments; it reads only inside the map, and `out` is new
    #[allow(unsafe_code)]
    unsafe {
        launch("patches", &xs, Grid::of_threads(count), &arguments)?;
    }
    Ok(out)
}

/// See [`crate::models::ops::depthwise_conv3x3`]; the caller has checked the shapes.
pub(in crate::models::ops) fn depthwise<const SIDE: usize>(
    xs: &Tensor,
    conv: &Depthwise<SIDE>,
    activation: Activation,
) -> Result<Tensor> {
    let (xs, stride) = (xs.contiguous()?, conv.stride);
    let of_type = |weights: &Tensor| weights.to_dtype(xs.dtype())?.contiguous();
    let (kernel, bias) = (of_type(&conv.kernel)?, of_type(&conv.bias)?);
    let (batch, height, width, channels) = xs.dims4()?;
    let (rows, columns) = (height.div_ceil(stride), width.div_ceil(stride));
    let out = empty((batch, rows, columns, channels), &xs)?;
    let count = out.elem_count();
    let mut arguments = vec![
        Argument::Tensor(&xs),
        Argument::Tensor(&kernel),
        Argument::Tensor(&bias),
        Argument::Tensor(&out),
    ];
    for number in [count, height, width, channels, rows, columns, SIDE, stride] {
        arguments.push(Argument::Size(size(number)?));
    }
    arguments.push(Argument::Size(activation_code(activation)));
    // SAFETY: these are the kernel's arguments; the weights and the bias have as many channels as the map, the kernel
    // reads only inside the map, and `out` is new
    #[allow(unsafe_code)]
    unsafe {
        launch("depthwise", &xs, Grid::of_threads(count), &arguments)?;
    }
    Ok(out)
}
