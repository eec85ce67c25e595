//! Linear layers, alone and in pairs.

use std::fmt;
use std::sync::Arc;

use candle_core::{D, Result, Shape, Tensor};

#[cfg(feature = "cuda")]
use super::gpu;
use super::interrupt::check_interrupt;
use super::kernels::feed_forward;
use super::kernels::gemm::{Rows, product, product_by_heads};
use super::kernels::packed::Packed;
use super::kernels::simd::InstructionSet;
use super::{Activation, activate_plain, cpu_tensor, f32_slice, format, has_kernel, kernel_set};

/// The weight `[output, input]` of a linear layer. If the kernels run on its device, it is packed for them, and no
/// tensor is kept.
#[derive(Clone)]
pub enum Matrix {
    /// Packed for the kernels.
    Packed(Arc<PackedMatrix>),
    /// A tensor, for plain tensor operations.
    Plain(Tensor),
}

/// A packed weight.
pub struct PackedMatrix(Packed);

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self {
            Self::Packed(_) => "packed",
            Self::Plain(_) => "plain",
        };
        write!(f, "Matrix({form}, {:?})", self.dims())
    }
}

impl Matrix {
    /// Packs a weight `[output, input]` if the kernels take it.
    pub fn new(weight: Tensor) -> Result<Self> {
        Self::for_set(kernel_set(&weight), weight)
    }

    /// Packs a weight for the kernels of an instruction set, or keeps it for plain tensor operations.
    pub(super) fn for_set(set: Option<InstructionSet>, weight: Tensor) -> Result<Self> {
        match set {
            Some(set) => Self::packed(set, &weight),
            None => Ok(Self::Plain(weight)),
        }
    }

    /// Packs a weight for one instruction set.
    fn packed(set: InstructionSet, weight: &Tensor) -> Result<Self> {
        let dims = weight.dims2()?;
        let weight = weight.contiguous()?;
        let view = weight.storage_and_layout();
        let packed = Packed::of_rows(set, format::current(), f32_slice(&view)?, dims, dims.1);
        Ok(Self::Packed(Arc::new(PackedMatrix(packed))))
    }

    /// `[output, input]`.
    pub fn dims(&self) -> (usize, usize) {
        match self {
            Self::Packed(packed) => (packed.0.n(), packed.0.k()),
            Self::Plain(weight) => weight.dims2().unwrap_or_default(),
        }
    }

    /// The packed form, for kernels.
    pub(super) fn panels(&self) -> Option<&Packed> {
        match self {
            Self::Packed(packed) => Some(&packed.0),
            Self::Plain(_) => None,
        }
    }
}

/// `activation(xs W^T + bias + residual)`: `[..., input]` to `[..., output]`. The residual has the result's shape, or
/// the shape of one image, `[1, ...]`, and is then added to all images.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn linear(
    xs: &Tensor,
    weight: &Matrix,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    check_interrupt()?;
    let shape = output_shape("linear", xs, weight, bias)?;
    let packed = match weight {
        #[cfg(feature = "cuda")]
        Matrix::Plain(weight) if gpu::supports(xs) => {
            return gpu::linear(xs, weight, bias, activation, residual);
        }
        Matrix::Plain(weight) => return linear_plain(xs, weight, bias, activation, residual),
        Matrix::Packed(packed) => &packed.0,
    };
    let xs = xs.contiguous()?;
    let residual = residual.map(Tensor::contiguous).transpose()?;
    let (input, output) = (packed.k(), packed.n());
    let xs_view = xs.storage_and_layout();
    let bias_view = bias.map(Tensor::storage_and_layout);
    let residual_view = residual.as_ref().map(Tensor::storage_and_layout);
    let xs = f32_slice(&xs_view)?;
    let bias = bias_view.as_ref().map(f32_slice).transpose()?;
    let residual = residual_view.as_ref().map(f32_slice).transpose()?;
    let rows = Rows {
        data: xs,
        count: xs.len() / input.max(1),
        stride: input,
    };
    if let Some(residual) = residual {
        let of_image = residual.len() / output.max(1);
        if of_image == 0 && rows.count > 0 || !rows.count.is_multiple_of(of_image.max(1)) {
            candle_core::bail!(
                "linear: a residual of {of_image} rows cannot be repeated for {} rows",
                rows.count
            )
        }
    }
    let result = product(rows, packed, bias, activation, residual);
    cpu_tensor(result, shape)
}

/// The same as [`linear`], in plain tensor operations.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn linear_plain(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let sum = xs.apply(&candle_nn::Linear::new(weight.clone(), bias.cloned()))?;
    let sum = match residual {
        Some(residual) => sum.broadcast_add(residual)?,
        None => sum,
    };
    activate_plain(sum, activation)
}

/// [`linear`] of tokens `[B, N, input]`, split by heads: `[B, heads, N, output / heads]`.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn linear_by_heads(
    xs: &Tensor,
    weight: &Matrix,
    bias: Option<&Tensor>,
    heads: usize,
) -> Result<Tensor> {
    check_interrupt()?;
    output_shape("linear by heads", xs, weight, bias)?;
    let (images, tokens, input) = xs.dims3()?;
    let (output, _) = weight.dims();
    if heads == 0 || output % heads != 0 {
        candle_core::bail!("linear by heads: {heads} heads do not divide {output} outputs")
    }
    let packed = match weight {
        #[cfg(feature = "cuda")]
        Matrix::Plain(weight) if gpu::supports(xs) => {
            return gpu::linear_by_heads(xs, weight, bias, heads);
        }
        Matrix::Plain(weight) => return linear_by_heads_plain(xs, weight, bias, heads),
        Matrix::Packed(packed) => &packed.0,
    };
    let xs = xs.contiguous()?;
    let bias = bias.map(Tensor::storage_and_layout);
    let xs = xs.storage_and_layout();
    let rows = Rows {
        data: f32_slice(&xs)?,
        count: images * tokens,
        stride: input,
    };
    let bias = bias.as_ref().map(f32_slice).transpose()?;
    let result = product_by_heads(rows, images, packed, bias, heads);
    cpu_tensor(result, (images, heads, tokens, output / heads))
}

/// The same as [`linear_by_heads`], in plain tensor operations.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn linear_by_heads_plain(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    heads: usize,
) -> Result<Tensor> {
    let (images, tokens, _) = xs.dims3()?;
    linear_plain(xs, weight, bias, Activation::None, None)?
        .reshape((images, tokens, heads, ()))?
        .transpose(1, 2)?
        .contiguous()
}

/// The products of every row of `weights` `[K, M, C]` with every row of the same image in `xs` `[K, N, C]`:
/// `[K, M, N]`.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn products_by_image(weights: &Tensor, xs: &Tensor) -> Result<Tensor> {
    if !has_kernel(xs) {
        return weights.matmul(&xs.transpose(1, 2)?);
    }
    let product = |image: usize| -> Result<Tensor> {
        let weights = Matrix::new(weights.get(image)?)?;
        linear(&xs.get(image)?, &weights, None, Activation::None, None)?.t()
    };
    let products = (0..xs.dim(0)?).map(product).collect::<Result<Vec<_>>>()?;
    Tensor::stack(&products, 0)
}

/// A linear layer: its weight and its bias.
type Layer<'a> = (&'a Matrix, Option<&'a Tensor>);

/// `W2 activation(W1 xs + b1) + b2 + residual`: `[..., input]` to `[..., output]`, which is also the residual's
/// shape. The kernel keeps only a part of the hidden numbers in memory.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn feed_forward(
    xs: &Tensor,
    (w1, b1): Layer,
    activation: Activation,
    (w2, b2): Layer,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    check_interrupt()?;
    let (Some(first), Some(second)) = (w1.panels(), w2.panels()) else {
        return feed_forward_plain(xs, (w1, b1), activation, (w2, b2), residual);
    };
    output_shape("feed forward", xs, w1, b1)?;
    let mut dims = xs.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = second.n();
    }
    let fits = second.k() == first.n()
        && b2.is_none_or(|bias| bias.dims() == [second.n()])
        && residual.is_none_or(|residual| residual.dims() == dims);
    if !fits {
        candle_core::bail!(
            "feed forward: input {:?}, layers {w1:?} and {w2:?}, residual {:?} do not fit",
            xs.dims(),
            residual.map(Tensor::dims)
        )
    }
    let xs = xs.contiguous()?;
    let residual = residual.map(Tensor::contiguous).transpose()?;
    let views = [
        b1.map(Tensor::storage_and_layout),
        b2.map(Tensor::storage_and_layout),
        residual.as_ref().map(Tensor::storage_and_layout),
    ];
    let [b1, b2, residual] = &views;
    let xs = xs.storage_and_layout();
    let xs = f32_slice(&xs)?;
    let result = feed_forward::feed_forward(
        xs,
        xs.len() / first.k().max(1),
        (first, b1.as_ref().map(f32_slice).transpose()?),
        activation,
        (second, b2.as_ref().map(f32_slice).transpose()?),
        residual.as_ref().map(f32_slice).transpose()?,
    );
    cpu_tensor(result, dims)
}

/// The same as [`feed_forward()`], layer by layer.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn feed_forward_plain(
    xs: &Tensor,
    (w1, b1): Layer,
    activation: Activation,
    (w2, b2): Layer,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let widened = linear(xs, w1, b1, activation, None)?;
    linear(&widened, w2, b2, Activation::None, residual)
}

fn output_shape(name: &str, xs: &Tensor, weight: &Matrix, bias: Option<&Tensor>) -> Result<Shape> {
    let (output, input) = weight.dims();
    let fits = xs.dim(D::Minus1)? == input && bias.is_none_or(|bias| bias.dims() == [output]);
    if !fits {
        candle_core::bail!(
            "{name}: input {:?}, weight {:?}, bias {:?} do not fit",
            xs.dims(),
            weight.dims(),
            bias.map(Tensor::dims)
        )
    }
    let mut dims = xs.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = output;
    }
    Ok(dims.into())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn no_rows_give_an_empty_result() -> Result<()> {
        let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        for set in InstructionSet::available() {
            let weight = Matrix::packed(set, &zeros((5, 3))?)?;
            let result = linear(&zeros((0, 3))?, &weight, None, Activation::None, None)?;
            assert_eq!(result.dims(), [0, 5]);
        }
        Ok(())
    }

    #[test]
    fn activations_equal_their_definitions_in_f64() -> Result<()> {
        // an odd width, so that whole vectors and parts of vectors are covered
        const WIDTH: usize = 33;
        let device = &Device::Cpu;
        let identity = Tensor::eye(WIDTH, DType::F32, device)?;
        for activation in [Activation::Relu, Activation::Gelu, Activation::GeluTanh] {
            // every range has its own scale; beyond the last one the products with the identity overflow
            for end in [0.01f32, 1.0, 4.0, 12.0, 1e3, 1e30] {
                let count = 1000 * WIDTH;
                let step = 2.0 * end / (count - 1) as f32;
                let xs: Vec<f32> = (0..count).map(|i| i as f32 * step - end).collect();
                let xs = Tensor::from_vec(xs, (1000, WIDTH), device)?;
                let exact = activate_plain(xs.to_dtype(DType::F64)?, activation)?;
                for set in InstructionSet::available() {
                    let weight = Matrix::packed(set, &identity)?;
                    let result = linear(&xs, &weight, None, activation, None)?;
                    let difference = (result.to_dtype(DType::F64)? - &exact)?
                        .abs()?
                        .max_all()?
                        .to_scalar::<f64>()?
                        / f64::from(end);
                    println!("{activation:?} {} to {end}: {difference:.1e}", set.name());
                    assert!(
                        difference < 1e-6,
                        "{activation:?} {} {end}: {difference}",
                        set.name()
                    );
                }
            }
        }
        Ok(())
    }

    #[test]
    fn an_error_names_the_shapes_that_do_not_fit() -> Result<()> {
        let weight = Matrix::new(Tensor::zeros((3, 4), DType::F32, &Device::Cpu)?)?;
        let xs = Tensor::zeros((2, 5), DType::F32, &Device::Cpu)?;
        let error = linear(&xs, &weight, None, Activation::None, None);
        assert!(error.is_err_and(|e| e.to_string().contains("[2, 5], weight (3, 4)")));
        Ok(())
    }
}
