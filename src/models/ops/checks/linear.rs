//! Checks of linear layers, alone and in pairs.

use std::fmt;

use candle_core::{Result, Tensor};

use super::{CallShape, Case, Check, Extent, Implementation, Random};
use crate::models::ops::{Activation, Matrix, feed_forward, linear, linear_by_heads};

/// The residual that is added to a layer's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Residual {
    None,
    /// It has the output's shape.
    Full,
    /// It has the shape of one image, and is added to all images.
    OfOneImage,
}

/// A layer on `images * rows` rows.
#[derive(Debug, Clone, Copy)]
struct Layer {
    images: usize,
    rows: usize,
    input: usize,
    output: usize,
    has_bias: bool,
    activation: Activation,
    residual: Residual,
}

impl Layer {
    /// A layer with a bias, without residual and activation.
    fn new(rows: usize, input: usize, output: usize) -> Self {
        Self {
            images: 1,
            rows,
            input,
            output,
            has_bias: true,
            activation: Activation::None,
            residual: Residual::None,
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.images > 1 {
            write!(f, "{}x", self.images)?;
        }
        write!(f, "{}x{} to {}", self.rows, self.input, self.output)?;
        if !self.has_bias {
            f.write_str(", no bias")?;
        }
        match self.residual {
            Residual::None => {}
            Residual::Full => f.write_str(", residual")?,
            Residual::OfOneImage => f.write_str(", residual of one image")?,
        }
        match self.activation {
            Activation::None => Ok(()),
            activation => write!(f, ", {activation:?}"),
        }
    }
}

impl CallShape for Layer {
    fn draw(&self, random: &mut Random) -> Result<Box<dyn Case>> {
        let (rows, output) = (self.rows, self.output);
        let residual = match self.residual {
            Residual::None => None,
            Residual::Full => Some(random.spread(1.0, (self.images, rows, output))?),
            Residual::OfOneImage => Some(random.spread(1.0, (1, rows, output))?),
        };
        let bias = self.has_bias.then(|| random.spread(1.0, output));
        Ok(Box::new(LayerCase {
            xs: random.spread(1.0, (self.images, rows, self.input))?,
            weight: random.weight(output, self.input)?,
            bias: bias.transpose()?,
            activation: self.activation,
            residual,
        }))
    }
}

struct LayerCase {
    xs: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    activation: Activation,
    residual: Option<Tensor>,
}

impl Case for LayerCase {
    fn run(&self, implementation: Implementation) -> Result<Vec<Tensor>> {
        let weight = implementation.matrix(&self.weight)?;
        let xs = implementation.to_target(&self.xs)?;
        let bias = implementation.to_target_optional(self.bias.as_ref())?;
        let residual = implementation.to_target_optional(self.residual.as_ref())?;
        let (bias, residual) = (bias.as_ref(), residual.as_ref());
        let result = linear(&xs, &weight, bias, self.activation, residual)?;
        Ok(vec![result])
    }
}

/// A layer on `images * rows` rows whose output is split into heads.
#[derive(Debug, Clone, Copy)]
struct Heads {
    images: usize,
    rows: usize,
    input: usize,
    heads: usize,
    /// Output channels per head.
    width: usize,
}

impl fmt::Display for Heads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.images > 1 {
            write!(f, "{}x", self.images)?;
        }
        let Self {
            rows,
            input,
            heads,
            width,
            ..
        } = self;
        write!(f, "{rows}x{input} to {heads} heads of {width}")
    }
}

impl CallShape for Heads {
    fn draw(&self, random: &mut Random) -> Result<Box<dyn Case>> {
        let output = self.heads * self.width;
        Ok(Box::new(HeadsCase {
            xs: random.spread(1.0, (self.images, self.rows, self.input))?,
            weight: random.weight(output, self.input)?,
            bias: random.spread(1.0, output)?,
            heads: self.heads,
        }))
    }
}

struct HeadsCase {
    xs: Tensor,
    weight: Tensor,
    bias: Tensor,
    heads: usize,
}

impl Case for HeadsCase {
    fn run(&self, implementation: Implementation) -> Result<Vec<Tensor>> {
        let weight = implementation.matrix(&self.weight)?;
        let (xs, bias) = (
            implementation.to_target(&self.xs)?,
            implementation.to_target(&self.bias)?,
        );
        Ok(vec![linear_by_heads(
            &xs,
            &weight,
            Some(&bias),
            self.heads,
        )?])
    }
}

/// Two layers with biases and a residual on `rows` rows.
#[derive(Debug, Clone, Copy)]
struct Pair {
    rows: usize,
    input: usize,
    hidden: usize,
    output: usize,
    activation: Activation,
}

impl Pair {
    /// A pair that widens and then narrows to the input width.
    fn new(rows: usize, width: usize, hidden: usize, activation: Activation) -> Self {
        Self {
            rows,
            input: width,
            hidden,
            output: width,
            activation,
        }
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}x{} to {} to {}, {:?}",
            self.rows, self.input, self.hidden, self.output, self.activation
        )
    }
}

impl CallShape for Pair {
    fn draw(&self, random: &mut Random) -> Result<Box<dyn Case>> {
        Ok(Box::new(PairCase {
            xs: random.spread(1.0, (self.rows, self.input))?,
            first: (
                random.weight(self.hidden, self.input)?,
                random.spread(1.0, self.hidden)?,
            ),
            activation: self.activation,
            second: (
                random.weight(self.output, self.hidden)?,
                random.spread(1.0, self.output)?,
            ),
            residual: random.spread(1.0, (self.rows, self.output))?,
        }))
    }
}

struct PairCase {
    xs: Tensor,
    first: (Tensor, Tensor),
    activation: Activation,
    second: (Tensor, Tensor),
    residual: Tensor,
}

impl Case for PairCase {
    fn run(&self, implementation: Implementation) -> Result<Vec<Tensor>> {
        let layer = |(weight, bias): &(Tensor, Tensor)| -> Result<(Matrix, Tensor)> {
            let weight = implementation.matrix(weight)?;
            Ok((weight, implementation.to_target(bias)?))
        };
        let (first, second) = (layer(&self.first)?, layer(&self.second)?);
        let result = feed_forward(
            &implementation.to_target(&self.xs)?,
            (&first.0, Some(&first.1)),
            self.activation,
            (&second.0, Some(&second.1)),
            Some(&implementation.to_target(&self.residual)?),
        )?;
        Ok(vec![result])
    }
}

/// Rounding of f32 over sums of up to a few thousand products.
const TOLERANCE: f64 = 5e-6;

/// The widest layers have a half or a quarter of the published rows, because the portable kernels would take minutes
/// for all.
pub(super) fn checks(extent: Extent) -> Vec<Check> {
    let layer = |used_by, layer: Layer| Check::published("linear", TOLERANCE, used_by, layer);
    let pair = |used_by, pair: Pair| Check::published("feed_forward", TOLERANCE, used_by, pair);
    let (relu, gelu) = (Activation::Relu, Activation::Gelu);
    vec![
        layer(
            "Swin-T stage 1, query key value",
            Layer::new(extent.of(53_400, 535), 96, 288),
        ),
        layer(
            "Swin-T patch merging 2",
            Layer {
                has_bias: false,
                ..Layer::new(extent.of(3350, 131), 768, 384)
            },
        ),
        layer(
            "Swin-B stage 4, attention output",
            Layer {
                residual: Residual::Full,
                ..Layer::new(extent.of(850, 85), 1024, 1024)
            },
        ),
        layer("BERT, query", Layer::new(extent.of(256, 23), 768, 768)),
        layer(
            "deformable attention, offsets and weights",
            Layer::new(extent.of(17_821, 401), 256, 384),
        ),
        layer(
            "box head",
            Layer {
                activation: relu,
                ..Layer::new(extent.of(900, 90), 256, 256)
            },
        ),
        layer(
            "box head, last layer",
            Layer::new(extent.of(900, 90), 256, 4),
        ),
        layer(
            "SAM ViT-L, query key value",
            Layer::new(extent.of(1024, 45), 1024, 3072),
        ),
        layer(
            "SAM decoder, image key with positions",
            Layer {
                images: 4,
                residual: Residual::OfOneImage,
                ..Layer::new(extent.of(4096, 99), 256, 128)
            },
        ),
        layer(
            "MobileSAM stage 1, widening",
            Layer {
                activation: gelu,
                ..Layer::new(extent.of(65_536, 655), 64, 256)
            },
        ),
        layer(
            "MobileSAM stage 1, narrowing",
            Layer {
                activation: gelu,
                residual: Residual::Full,
                ..Layer::new(extent.of(65_536, 655), 256, 64)
            },
        ),
        Check::odd("linear", TOLERANCE, odd_layers()),
        Check::published(
            "linear_by_heads",
            TOLERANCE,
            "deformable attention, values",
            Heads {
                images: 1,
                rows: extent.of(17_821, 401),
                input: 256,
                heads: 8,
                width: 32,
            },
        ),
        Check::odd("linear_by_heads", TOLERANCE, odd_heads()),
        pair(
            "Swin-T stage 1",
            Pair::new(extent.of(53_400, 535), 96, 384, gelu),
        ),
        pair(
            "Swin-B stage 3",
            Pair::new(extent.of(3350, 131), 512, 2048, gelu),
        ),
        pair("BERT", Pair::new(extent.of(256, 23), 768, 3072, gelu)),
        pair(
            "encoder layer",
            Pair::new(extent.of(8911, 401), 256, 2048, relu),
        ),
        pair("SAM ViT-B", Pair::new(extent.of(2048, 45), 768, 3072, gelu)),
        pair(
            "SAM ViT-L",
            Pair::new(extent.of(1024, 45), 1024, 4096, gelu),
        ),
        pair("SAM decoder, 4 boxes", Pair::new(28, 256, 2048, relu)),
        Check::odd("feed_forward", TOLERANCE, odd_pairs()),
    ]
}

fn odd_layers() -> Vec<Layer> {
    let mut layers = vec![];
    for (rows, input, output) in [
        (1, 1, 1),
        (7, 5, 33),
        (13, 64, 49),
        (101, 300, 47),
        (97, 1031, 16),
        (200, 17, 256),
    ] {
        for activation in [
            Activation::None,
            Activation::Relu,
            Activation::Gelu,
            Activation::GeluTanh,
        ] {
            for (has_bias, residual) in [
                (false, Residual::None),
                (true, Residual::Full),
                (true, Residual::OfOneImage),
            ] {
                layers.push(Layer {
                    images: if residual == Residual::None { 1 } else { 2 },
                    rows,
                    input,
                    output,
                    has_bias,
                    activation,
                    residual,
                });
            }
        }
    }
    layers
}

fn odd_heads() -> Vec<Heads> {
    [(1, 1, 1, 1, 1), (2, 101, 7, 3, 5), (2, 49, 33, 2, 64)]
        .map(|(images, rows, input, heads, width)| Heads {
            images,
            rows,
            input,
            heads,
            width,
        })
        .to_vec()
}

fn odd_pairs() -> Vec<Pair> {
    let mut pairs = vec![];
    for (rows, input, hidden, output) in [
        (1, 2, 3, 4),
        (400, 20, 37, 18),
        (500, 33, 1100, 48),
        (385, 8, 512, 16),
    ] {
        for activation in [Activation::Relu, Activation::Gelu, Activation::GeluTanh] {
            pairs.push(Pair {
                rows,
                input,
                hidden,
                output,
                activation,
            });
        }
    }
    pairs
}
