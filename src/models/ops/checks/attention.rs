//! Checks of the attention between two sequences of tokens.

use std::fmt;

use candle_core::{Device, Result, Tensor};

use super::{CallShape, Case, Check, Extent, Implementation, Random};
use crate::models::ops::MASKED;
use crate::models::ops::attention::{attention, attention_plain, with_kernel};

/// The bias that is added to the scores.
#[derive(Debug, Clone, Copy)]
enum Bias {
    None,
    /// Per key, the same for all queries: padding of a text.
    Keys,
    /// Per image, query and key: phrases of a text that do not attend to each other.
    Pairs,
    /// Per head, query and key.
    Heads,
}

/// The sizes of queries and keys. One of the two sides may have a single image that is shared by all.
#[derive(Debug, Clone, Copy)]
struct Attention {
    query_images: usize,
    images: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    /// Channels per head.
    width: usize,
    bias: Bias,
}

impl Attention {
    /// Attention of one image.
    fn new(queries: usize, keys: usize, heads: usize, width: usize, bias: Bias) -> Self {
        Self {
            query_images: 1,
            images: 1,
            queries,
            keys,
            heads,
            width,
            bias,
        }
    }
}

impl fmt::Display for Attention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}x{} to {}x{}, {} heads of {}",
            self.query_images, self.queries, self.images, self.keys, self.heads, self.width
        )?;
        f.write_str(match self.bias {
            Bias::None => "",
            Bias::Keys => ", bias of keys",
            Bias::Pairs => ", bias of pairs",
            Bias::Heads => ", bias of heads",
        })
    }
}

impl CallShape for Attention {
    fn draw(&self, random: &mut Random) -> Result<Box<dyn Case>> {
        let channels = self.heads * self.width;
        // large scores, so that the maximum differs between the blocks of keys
        let query = random.spread(3.0, (self.query_images, self.queries, channels))?;
        let key = random.spread(3.0, (self.images, self.keys, channels))?;
        let value = random.spread(1.0, (self.images, self.keys, channels))?;
        let (batch, queries, keys) = (self.query_images.max(self.images), self.queries, self.keys);
        let bias = match self.bias {
            Bias::None => None,
            Bias::Keys => Some(masked((1, 1, 1, keys), keys)?),
            Bias::Pairs => Some(masked((batch, 1, queries, keys), keys)?),
            Bias::Heads => Some(random.spread(2.0, (1, self.heads, queries, keys))?),
        };
        Ok(Box::new(AttentionCase {
            query,
            key,
            value,
            bias,
            heads: self.heads,
        }))
    }
}

/// 0, or the lowest finite value for about a third of the keys. The masked keys differ between rows, and never
/// include the first one.
fn masked(shape: (usize, usize, usize, usize), keys: usize) -> Result<Tensor> {
    let (a, b, c, _) = shape;
    let numbers: Vec<f32> = (0..a * b * c)
        .flat_map(|row| (0..keys).map(move |key| key > 0 && (row + key) % 3 == 1))
        .map(|is_masked| if is_masked { MASKED } else { 0.0 })
        .collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}

struct AttentionCase {
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Option<Tensor>,
    heads: usize,
}

impl Case for AttentionCase {
    fn run(&self, implementation: Implementation) -> Result<Vec<Tensor>> {
        let compute = |query: &Tensor, key: &Tensor, value: &Tensor, bias: Option<&Tensor>| {
            match implementation {
                Implementation::Kernel(set) => {
                    with_kernel(set, query, key, value, bias, self.heads)
                }
                Implementation::Plain => attention_plain(query, key, value, bias, self.heads),
                Implementation::Device(..) => attention(query, key, value, bias, self.heads),
            }
        };
        let result = compute(
            &implementation.to_target(&self.query)?,
            &implementation.to_target(&self.key)?,
            &implementation.to_target(&self.value)?,
            implementation
                .to_target_optional(self.bias.as_ref())?
                .as_ref(),
        )?;
        Ok(vec![result])
    }
}

/// The softmax amplifies rounding errors of large scores.
const TOLERANCE: f64 = 1e-5;
/// Scores of up to 50 are rounded to the dtype, and the exponential amplifies the rounding error.
const ROUNDINGS: f64 = 40.0;

pub(super) fn checks(extent: Extent) -> Vec<Check> {
    let check = |used_by, call_shape: Attention| {
        Check::published("attention", TOLERANCE, used_by, call_shape).with_roundings(ROUNDINGS)
    };
    let (text, queries) = (extent.of(256, 71), extent.of(900, 203));
    let image = extent.of(4096, 517);
    vec![
        check("BERT", Attention::new(text, text, 12, 64, Bias::Pairs)),
        check(
            "text enhancer",
            Attention::new(text, text, 4, 64, Bias::Pairs),
        ),
        check(
            "decoder, query to query",
            Attention::new(queries, queries, 8, 32, Bias::None),
        ),
        check(
            "decoder, query to text",
            Attention::new(queries, text, 8, 32, Bias::Keys),
        ),
        check(
            "SAM decoder, token to token",
            Attention {
                query_images: 4,
                images: 4,
                ..Attention::new(7, 7, 8, 32, Bias::None)
            },
        ),
        check(
            "SAM decoder, token to image",
            Attention {
                query_images: 4,
                ..Attention::new(7, image, 8, 16, Bias::None)
            },
        ),
        check(
            "SAM decoder, image to token",
            Attention {
                images: 4,
                ..Attention::new(image, 7, 8, 16, Bias::None)
            },
        ),
        Check::odd("attention", TOLERANCE, odd_shapes()).with_roundings(ROUNDINGS),
    ]
}

fn odd_shapes() -> Vec<Attention> {
    let mut call_shapes = vec![];
    for (query_images, images, queries, keys, heads, width) in [
        (1, 1, 1, 1, 1, 1),
        (2, 2, 7, 13, 3, 5),
        (3, 1, 4, 300, 2, 16),
        (1, 3, 300, 4, 2, 16),
        (1, 1, 301, 517, 2, 32),
    ] {
        for bias in [Bias::None, Bias::Keys, Bias::Pairs, Bias::Heads] {
            call_shapes.push(Attention {
                query_images,
                images,
                queries,
                keys,
                heads,
                width,
                bias,
            });
        }
    }
    call_shapes
}
