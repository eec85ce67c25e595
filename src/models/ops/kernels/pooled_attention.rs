//! Attention in square windows of a map, with queries that were pooled to half of the rows and columns.

#![allow(unsafe_code)]

use crate::attention::{Query, Rows, Sizes, attend};
use crate::simd::InstructionSet;
use crate::window_attention::{OUTSIDE, PositionBias, WindowRows, Windows};

/// The inputs of one call.
struct PooledRows<'a> {
    query: &'a [f32],
    /// The windows of the pooled map.
    windows: Windows,
    /// For each window and index, the cell of the batch's pooled maps, or [`OUTSIDE`].
    cells: Vec<u32>,
    heads: usize,
    width: usize,
    /// The keys and values.
    all: WindowRows<'a>,
}

impl PooledRows<'_> {
    #[inline(always)]
    fn cell(&self, window: usize, index: usize) -> Option<usize> {
        let cell = self.cells[window * self.windows.tokens() + index];
        (cell != OUTSIDE).then_some(cell as usize)
    }
}

// SAFETY: every cell of the pooled maps is in exactly one window, and has the rows of all heads.
unsafe impl Rows for PooledRows<'_> {
    fn length(&self) -> usize {
        self.query.len()
    }

    #[inline(always)]
    fn query(&self, window: usize, head: usize, index: usize) -> &[f32] {
        match self.cell(window, index) {
            Some(cell) => &self.query[(cell * self.heads + head) * self.width..][..self.width],
            None => self.all.padding_query(head),
        }
    }

    #[inline(always)]
    fn key(&self, window: usize, head: usize, index: usize) -> &[f32] {
        self.all.key(window, head, index)
    }

    #[inline(always)]
    fn value(&self, window: usize, head: usize, index: usize) -> &[f32] {
        self.all.value(window, head, index)
    }

    #[inline(always)]
    fn output(&self, window: usize, head: usize, index: usize) -> Option<usize> {
        let cell = self.cell(window, index)?;
        Some((cell * self.heads + head) * self.width)
    }

    #[inline(always)]
    fn add_bias(&self, _: Query, _: usize, _: &mut [f32]) {}
}

/// Attention of the pooled cells of every window to all its tokens. `query` has `heads * width` numbers per cell of the
/// pooled map, and `qkv` `3 * heads * width` numbers per token, of which the keys and values are used; `padding_token`
/// has as many, for tokens beyond the map's edge. The map and the windows have even sizes, and no shift. Returns
/// `heads * width` numbers per cell.
pub fn pooled_window_attention(
    set: InstructionSet,
    query: &[f32],
    qkv: &[f32],
    padding_token: &[f32],
    windows: Windows,
    (heads, width): (usize, usize),
) -> Vec<f32> {
    let pooled = windows.halved();
    assert_eq!(
        query.len(),
        pooled.batch * pooled.height * pooled.width * heads * width,
        "the queries do not have half of the map's rows and columns"
    );
    let bias = PositionBias::None;
    let rows = PooledRows {
        query,
        windows: pooled,
        cells: pooled.all_tokens(),
        heads,
        width,
        all: WindowRows::new(qkv, padding_token, windows, (heads, width), bias),
    };
    let sizes = Sizes {
        groups: windows.count(),
        heads,
        queries: pooled.tokens(),
        keys: windows.tokens(),
        width,
    };
    attend(set, &rows, sizes)
}
