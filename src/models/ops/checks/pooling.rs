//! Checks of max pooling, and of windowed attention with pooled queries.

use std::fmt;

use candle_core::{Result, Tensor};

use super::{CallShape, Case, Check, Extent, Implementation, Random};
use crate::models::ops::Windows;
use crate::models::ops::pooled_attention::{
    pooled_window_attention, pooled_window_attention_plain, pooled_with_kernel,
};
use crate::models::ops::pooling::{max_pool_with_kernel, max_pool2x2, max_pool2x2_plain};

/// The pooling of some channels of maps `[batch, rows, columns, all]`.
#[derive(Debug, Clone, Copy)]
struct Pooling {
    batch: usize,
    /// `(rows, columns)`.
    map: (usize, usize),
    /// The first channel, and the number of channels.
    channels: (usize, usize),
    all: usize,
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.batch > 1 {
            write!(f, "{}x", self.batch)?;
        }
        write!(f, "{}x{}x{}", self.map.0, self.map.1, self.channels.1)?;
        if self.channels.1 < self.all {
            write!(f, " of {}", self.all)?;
        }
        Ok(())
    }
}

impl CallShape for Pooling {
    fn draw(&self, random: &mut Random) -> Result<Box<dyn Case>> {
        let (height, width) = self.map;
        Ok(Box::new(PoolingCase {
            xs: random.spread(1.0, (self.batch, height, width, self.all))?,
            channels: self.channels,
        }))
    }
}

struct PoolingCase {
    xs: Tensor,
    channels: (usize, usize),
}

impl Case for PoolingCase {
    fn run(&self, implementation: Implementation) -> Result<Vec<Tensor>> {
        let (first, count) = self.channels;
        let xs = implementation
            .to_target(&self.xs)?
            .narrow(3, first, count)?;
        let result = match implementation {
            Implementation::Kernel(set) => max_pool_with_kernel(set, &xs),
            Implementation::Plain => max_pool2x2_plain(&xs),
            Implementation::Device(..) => max_pool2x2(&xs),
        };
        Ok(vec![result?])
    }
}

/// The sizes of an attention with pooled queries in square windows.
#[derive(Debug, Clone, Copy)]
struct PooledAttention {
    batch: usize,
    /// `(rows, columns)` of the maps before pooling.
    map: (usize, usize),
    /// Number of rows, and of columns, of a window before pooling.
    window: usize,
    heads: usize,
    /// Channels per head.
    width: usize,
}

impl fmt::Display for PooledAttention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.batch > 1 {
            write!(f, "{}x", self.batch)?;
        }
        write!(
            f,
            "{}x{}, windows of {}, {} heads of {}",
            self.map.0, self.map.1, self.window, self.heads, self.width
        )
    }
}

impl CallShape for PooledAttention {
    fn draw(&self, random: &mut Random) -> Result<Box<dyn Case>> {
        let (height, width) = self.map;
        let channels = self.heads * self.width;
        Ok(Box::new(PooledCase {
            query: random.spread(1.0, (self.batch, height / 2, width / 2, channels))?,
            qkv: random.spread(1.0, (self.batch, height, width, 3 * channels))?,
            padding_token: random.spread(1.0, 3 * channels)?,
            heads: self.heads,
            windows: Windows {
                batch: self.batch,
                height,
                width,
                window_height: self.window,
                window_width: self.window,
                shift: 0,
            },
        }))
    }
}

struct PooledCase {
    query: Tensor,
    qkv: Tensor,
    padding_token: Tensor,
    heads: usize,
    windows: Windows,
}

impl Case for PooledCase {
    fn run(&self, implementation: Implementation) -> Result<Vec<Tensor>> {
        let query = implementation.to_target(&self.query)?;
        let qkv = implementation.to_target(&self.qkv)?;
        let padding_token = implementation.to_target(&self.padding_token)?;
        let (heads, windows) = (self.heads, self.windows);
        let result = match implementation {
            Implementation::Kernel(set) => {
                pooled_with_kernel(set, &query, &qkv, &padding_token, heads, windows)
            }
            Implementation::Plain => {
                pooled_window_attention_plain(&query, &qkv, &padding_token, heads, windows)
            }
            Implementation::Device(..) => {
                pooled_window_attention(&query, &qkv, &padding_token, heads, windows)
            }
        };
        Ok(vec![result?])
    }
}

/// The softmax amplifies rounding errors of the scores.
const TOLERANCE: f64 = 1e-5;
/// Scores are rounded to the dtype, and the exponential amplifies the rounding error.
const ROUNDINGS: f64 = 20.0;

pub(super) fn checks(extent: Extent) -> Vec<Check> {
    let pooling = |used_by, full: usize, channels| {
        let side = extent.of(full, full / 8 + 2);
        let call_shape = Pooling {
            batch: 1,
            map: (side, side),
            channels: (0, channels),
            all: 3 * channels,
        };
        // the largest of some numbers is one of them
        Check::published("max_pool2x2", 0.0, used_by, call_shape)
    };
    let attention = |used_by, full: usize, window, (heads, width)| {
        let side = extent.of(full, full / 8 + 2);
        let call_shape = PooledAttention {
            batch: 1,
            map: (side, side),
            window,
            heads,
            width,
        };
        Check::published("pooled_window_attention", TOLERANCE, used_by, call_shape)
            .with_roundings(ROUNDINGS)
    };
    vec![
        pooling("SAM 2 Tiny, stage 2", 256, 192),
        pooling("SAM 2 Large, stage 4", 64, 1152),
        Check::odd("max_pool2x2", 0.0, odd_poolings()),
        attention("SAM 2 Tiny, stage 2", 256, 8, (2, 96)),
        attention("SAM 2 Tiny, stage 3", 128, 4, (4, 96)),
        attention("SAM 2 Tiny, stage 4", 64, 14, (8, 96)),
        attention("SAM 2 Base+, stage 2", 256, 8, (4, 56)),
        attention("SAM 2 Large, stage 4", 64, 16, (16, 72)),
        Check::odd("pooled_window_attention", TOLERANCE, odd_attentions())
            .with_roundings(ROUNDINGS),
    ]
}

fn odd_poolings() -> Vec<Pooling> {
    [
        (1, (2, 2), (0, 1), 1),
        (2, (4, 6), (0, 3), 9),
        (2, (6, 2), (5, 21), 30),
        (1, (10, 14), (0, 48), 48),
    ]
    .map(|(batch, map, channels, all)| Pooling {
        batch,
        map,
        channels,
        all,
    })
    .to_vec()
}

fn odd_attentions() -> Vec<PooledAttention> {
    [
        (1, (2, 2), 2, 1, 1),
        (2, (8, 8), 4, 2, 8),
        (2, (10, 6), 4, 3, 7),
        (1, (6, 14), 14, 2, 72),
        (1, (18, 20), 8, 1, 56),
        // more keys than the attention multiplies at once
        (1, (20, 20), 20, 2, 96),
    ]
    .map(|(batch, map, window, heads, width)| PooledAttention {
        batch,
        map,
        window,
        heads,
        width,
    })
    .to_vec()
}
