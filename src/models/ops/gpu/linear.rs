//! Linear layers on a GPU.

use candle_core::{Module, Result, Tensor};

use super::windows::{of_tokens, to_windows};
use super::{Argument, Grid, activation_code, launch, size};
use crate::models::ops::Activation;
use crate::models::ops::linear::linear_plain;

/// See [`crate::models::ops::linear`]. The weight is `[output, input]`. One kernel applies bias, residual and
/// activation to the matrix product.
pub(in crate::models::ops) fn linear(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let product = candle_nn::Linear::new(weight.clone(), None).forward(xs)?;
    if bias.is_none() && residual.is_none() && activation == Activation::None {
        return Ok(product);
    }
    let (count, channels) = (product.elem_count(), weight.dim(0)?);
    let residual_count = residual.map_or(0, Tensor::elem_count);
    let residual_fits = residual.is_none_or(|residual| {
        let (own, all) = (residual.dims(), product.dims());
        let is_same =
            |(i, (own, all)): (usize, (&usize, &usize))| own == all || i == 0 && *own == 1;
        own.len() == all.len() && own.iter().zip(all).enumerate().all(is_same)
    });
    let bias_fits = bias.is_none_or(|bias| bias.dims() == [channels]);
    if !residual_fits || !bias_fits || u32::try_from(count).is_err() {
        // the kernel does not support these shapes
        return linear_plain(xs, weight, bias, activation, residual);
    }
    let contiguous = |xs: &Tensor| xs.to_dtype(product.dtype())?.contiguous();
    let bias = bias.map(contiguous).transpose()?;
    let residual = residual.map(contiguous).transpose()?;
    // a view into another tensor may start at any element
    let is_at_four = |xs: &Tensor| xs.layout().start_offset().is_multiple_of(4);
    let all_at_four = [&bias, &residual].into_iter().flatten().all(is_at_four);
    let step = match channels.is_multiple_of(4) && all_at_four {
        true => 4,
        false => 1,
    };
    // SAFETY: these are the kernel's arguments; the bias has the product's channels, the residual has as many elements
    // as the product or as one image of it, and the step divides the channels. The product is new.
    #[allow(unsafe_code)]
    unsafe {
        launch(
            "epilogue",
            &product,
            Grid::of_threads(count / step),
            &[
                Argument::Tensor(&product),
                bias.as_ref().into(),
                residual.as_ref().into(),
                Argument::Size(size(count)?),
                Argument::Size(size(channels)?),
                Argument::Size(size(residual_count)?),
                Argument::Size(size(step)?),
                Argument::Size(activation_code(activation)),
            ],
        )?;
    }
    Ok(product)
}

/// See [`crate::models::ops::linear_by_heads`]. The weight is `[output, input]`.
pub(in crate::models::ops) fn linear_by_heads(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    heads: usize,
) -> Result<Tensor> {
    let (images, tokens, _) = xs.dims3()?;
    let product = linear(xs, weight, bias, Activation::None, None)?;
    let tokens = of_tokens(images, tokens);
    to_windows(&product, None, tokens, (1, heads), 1.0)?.squeeze(0)
}
