//! Attention in square windows of a map, or in the whole map as one window.

#![allow(unsafe_code)]

use std::ops::Range;

use pulp::Simd;

use crate::attention::{Query, Rows, Sizes, attend};
use crate::packed::{Format, Packed};
use crate::simd::InstructionSet;
use crate::tile::Tile;

/// The windows of a map `[B, height, width]`. The last windows may extend beyond the map's edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Number of images.
    pub batch: usize,
    /// Number of rows of the map.
    pub height: usize,
    /// Number of columns of the map.
    pub width: usize,
    /// Number of rows of a window.
    pub window_height: usize,
    /// Number of columns of a window.
    pub window_width: usize,
    /// Rows and columns by which the map, padded to whole windows, is rolled to the top left before it is split.
    /// Tokens that are in one window only because of the roll do not attend to each other.
    pub shift: usize,
}

impl Windows {
    fn rows(&self) -> usize {
        self.height.div_ceil(self.window_height)
    }

    fn columns(&self) -> usize {
        self.width.div_ceil(self.window_width)
    }

    /// Number of windows of the batch.
    pub fn count(&self) -> usize {
        self.batch * self.rows() * self.columns()
    }

    /// Number of tokens of a window.
    pub fn tokens(&self) -> usize {
        self.window_height * self.window_width
    }

    /// The windows of a map with half of the rows and columns, each with half of the window's rows and columns.
    ///
    /// # Panics
    /// If a size is odd, or the windows are shifted.
    pub fn halved(&self) -> Self {
        let sizes = [
            self.height,
            self.width,
            self.window_height,
            self.window_width,
        ];
        assert!(
            self.shift == 0 && sizes.iter().all(|size| size.is_multiple_of(2)),
            "{self:?} cannot be halved"
        );
        Self {
            height: self.height / 2,
            width: self.width / 2,
            window_height: self.window_height / 2,
            window_width: self.window_width / 2,
            ..*self
        }
    }

    /// The image of a window, and its top left position in the rolled map.
    #[inline(always)]
    fn origin(&self, window: usize) -> (usize, usize, usize) {
        let columns = self.columns();
        let of_image = self.rows() * columns;
        let inside = window % of_image;
        (
            window / of_image,
            inside / columns * self.window_height,
            inside % columns * self.window_width,
        )
    }

    /// The token of the batch's maps for token `index` of a window; `None` beyond the map's edge.
    #[inline(always)]
    fn token(&self, window: usize, index: usize) -> Option<usize> {
        let (image, top, left) = self.origin(window);
        let (padded_height, padded_width) = (
            self.rows() * self.window_height,
            self.columns() * self.window_width,
        );
        let unroll = |position: usize, size: usize| {
            let position = position + self.shift;
            if position >= size {
                position - size
            } else {
                position
            }
        };
        let y = unroll(top + index / self.window_width, padded_height);
        let x = unroll(left + index % self.window_width, padded_width);
        (y < self.height && x < self.width).then(|| (image * self.height + y) * self.width + x)
    }

    /// For each window and index, the token of the batch's maps, or [`OUTSIDE`].
    pub(crate) fn all_tokens(&self) -> Vec<u32> {
        let count = self.tokens();
        let token = |(window, i)| self.token(window, i).map_or(OUTSIDE, |token| token as u32);
        (0..self.count())
            .flat_map(|window| (0..count).map(move |i| (window, i)))
            .map(token)
            .collect()
    }

    /// The part of the map that a token of a window comes from, if the window contains several parts.
    pub fn region(&self, window: usize, index: usize) -> usize {
        let (_, top, left) = self.origin(window);
        // unchanged, or rolled in from the other side
        let band = |position: usize, size: usize| usize::from(position >= size - self.shift);
        let y = top + index / self.window_width;
        let x = left + index % self.window_width;
        2 * band(y, self.rows() * self.window_height) + band(x, self.columns() * self.window_width)
    }

    /// Whether a window contains parts that were not neighbours before the roll.
    fn is_mixed(&self, window: usize) -> bool {
        let (_, top, left) = self.origin(window);
        self.shift > 0
            && (top + self.window_height == self.rows() * self.window_height
                || left + self.window_width == self.columns() * self.window_width)
    }
}

/// The position bias that is added to the scores of a window.
#[derive(Debug, Clone, Copy)]
pub enum PositionBias<'a> {
    /// No bias.
    None,
    /// `[heads, N, N]`: per head, query and key.
    Table(&'a [f32]),
    /// Products of the query with tables, indexed by the distance in rows and in columns.
    Relative(&'a RelativePositions),
}

/// Packed decomposed relative positions. For every row (column) of a window, a matrix that is multiplied with the
/// queries of this row (column), and gives their biases for each row (column) of keys.
#[derive(Debug, Clone)]
pub struct RelativePositions {
    by_row: Vec<Packed>,
    by_column: Vec<Packed>,
}

impl RelativePositions {
    /// Packs tables `[extent, extent, width]`, indexed by query and key position. They are multiplied by the square
    /// root of the width, because the queries are already divided by it.
    pub fn new(
        set: InstructionSet,
        (by_row, rows): (&[f32], usize),
        (by_column, columns): (&[f32], usize),
        width: usize,
    ) -> Self {
        let scale = (width as f32).sqrt();
        let pack = |table: &[f32], extent: usize| {
            table
                .chunks_exact(extent * width)
                .map(|keys| {
                    let keys: Vec<f32> = keys.iter().map(|value| value * scale).collect();
                    Packed::of_rows(set, Format::F32, &keys, (extent, width), width)
                })
                .collect()
        };
        Self {
            by_row: pack(by_row, rows),
            by_column: pack(by_column, columns),
        }
    }
}

/// The inputs of one call.
pub(crate) struct WindowRows<'a> {
    windows: Windows,
    qkv: &'a [f32],
    /// The contents of a token beyond the map's edge.
    padding_token: &'a [f32],
    bias: PositionBias<'a>,
    heads: usize,
    width: usize,
    /// For each window and index, the token of the batch's maps, or [`OUTSIDE`].
    tokens: Vec<u32>,
    /// For each window with mixed parts, the region of each token.
    regions: Vec<Option<Vec<usize>>>,
}

/// Marks a token of a window beyond the map's edge.
pub(crate) const OUTSIDE: u32 = u32::MAX;

impl<'a> WindowRows<'a> {
    /// Checks the sizes; see [`window_attention`] for the arguments.
    pub(crate) fn new(
        qkv: &'a [f32],
        padding_token: &'a [f32],
        windows: Windows,
        (heads, width): (usize, usize),
        bias: PositionBias<'a>,
    ) -> Self {
        let channels = heads * width;
        let maps = windows.batch * windows.height * windows.width;
        assert_eq!(
            qkv.len(),
            maps * 3 * channels,
            "the tokens do not have the given size"
        );
        assert_eq!(
            padding_token.len(),
            3 * channels,
            "the padding token has other channels than the map"
        );
        let tokens = windows.tokens();
        let regions = match windows.shift {
            0 => vec![],
            _ => (0..windows.count())
                .map(|window| {
                    windows
                        .is_mixed(window)
                        .then(|| (0..tokens).map(|i| windows.region(window, i)).collect())
                })
                .collect(),
        };
        Self {
            windows,
            tokens: windows.all_tokens(),
            qkv,
            padding_token,
            bias,
            heads,
            width,
            regions,
        }
    }

    /// The queries of one head of a token beyond the map's edge.
    #[inline(always)]
    pub(crate) fn padding_query(&self, head: usize) -> &[f32] {
        &self.padding_token[head * self.width..][..self.width]
    }

    #[inline(always)]
    fn token(&self, window: usize, index: usize) -> Option<usize> {
        let token = self.tokens[window * self.windows.tokens() + index];
        (token != OUTSIDE).then_some(token as usize)
    }

    #[inline(always)]
    fn row(&self, part: usize, window: usize, head: usize, index: usize) -> &[f32] {
        let channels = self.heads * self.width;
        let at = part * channels + head * self.width;
        match self.token(window, index) {
            Some(token) => &self.qkv[token * 3 * channels + at..][..self.width],
            None => &self.padding_token[at..][..self.width],
        }
    }
}

// SAFETY: every token of the maps is in exactly one window, and has the rows of all heads.
unsafe impl Rows for WindowRows<'_> {
    fn length(&self) -> usize {
        self.qkv.len() / 3
    }

    #[inline(always)]
    fn query(&self, window: usize, head: usize, index: usize) -> &[f32] {
        self.row(0, window, head, index)
    }

    #[inline(always)]
    fn key(&self, window: usize, head: usize, index: usize) -> &[f32] {
        self.row(1, window, head, index)
    }

    #[inline(always)]
    fn value(&self, window: usize, head: usize, index: usize) -> &[f32] {
        self.row(2, window, head, index)
    }

    #[inline(always)]
    fn output(&self, window: usize, head: usize, index: usize) -> Option<usize> {
        let token = self.token(window, index)?;
        Some((token * self.heads + head) * self.width)
    }

    fn prepared(&self, queries: usize) -> usize {
        match self.bias {
            PositionBias::Relative(_) => {
                queries * (self.windows.window_height + self.windows.window_width)
            }
            _ => 0,
        }
    }

    #[inline(always)]
    fn prepare<S: Simd>(
        &self,
        simd: S,
        _head: usize,
        queries: Range<usize>,
        scaled: &[f32],
        prepared: &mut [f32],
    ) {
        let PositionBias::Relative(positions) = self.bias else {
            return;
        };
        let (rows, columns, width) = (
            self.windows.window_height,
            self.windows.window_width,
            self.width,
        );
        let (by_row, by_column) = prepared.split_at_mut(queries.len() * rows);
        let relative = RelativeProduct {
            scaled,
            width,
            first: queries.start,
            count: queries.len(),
        };
        let mut first = queries.start;
        while first < queries.end {
            let y = first / columns;
            let count = ((y + 1) * columns).min(queries.end) - first;
            relative.compute(simd, (first, count, 1), &positions.by_row[y], by_row);
            first += count;
        }
        for (x, table) in positions.by_column.iter().enumerate() {
            let first = queries.start + (x + columns - queries.start % columns) % columns;
            if first < queries.end {
                let count = (queries.end - first).div_ceil(columns);
                relative.compute(simd, (first, count, columns), table, by_column);
            }
        }
    }

    #[inline(always)]
    fn add_bias(&self, query: Query, first_key: usize, scores: &mut [f32]) {
        let tokens = self.windows.tokens();
        match self.bias {
            PositionBias::None => {}
            PositionBias::Table(table) => {
                let at = (query.head * tokens + query.index) * tokens + first_key;
                for (score, bias) in scores.iter_mut().zip(&table[at..]) {
                    *score += bias;
                }
            }
            PositionBias::Relative(_) => {
                let (rows, columns) = (self.windows.window_height, self.windows.window_width);
                let index = query.index - query.first;
                let queries = query.prepared.len() / (rows + columns);
                let (by_row, by_column) = query.prepared.split_at(queries * rows);
                let by_row = &by_row[index * rows..][..rows];
                let by_column = &by_column[index * columns..][..columns];
                let mut key = first_key;
                let mut rest = &mut *scores;
                while !rest.is_empty() {
                    let (y, x) = (key / columns, key % columns);
                    let count = (columns - x).min(rest.len());
                    let (line, after) = rest.split_at_mut(count);
                    for (score, bias) in line.iter_mut().zip(&by_column[x..]) {
                        *score += by_row[y] + bias;
                    }
                    key += count;
                    rest = after;
                }
            }
        }
        if let Some(regions) = self.regions.get(query.group).and_then(Option::as_ref) {
            let own_region = regions[query.index];
            for (score, region) in scores.iter_mut().zip(&regions[first_key..]) {
                // the reference's value
                *score += if *region == own_region { 0.0 } else { -100.0 };
            }
        }
    }
}

/// Queries that are multiplied with the tables of relative positions.
struct RelativeProduct<'a> {
    /// `[count, width]`.
    scaled: &'a [f32],
    width: usize,
    /// The index of the first query.
    first: usize,
    count: usize,
}

impl RelativeProduct<'_> {
    /// Multiplies `count` queries from `first` on, `step` apart, with a table, and writes their rows of `out`.
    #[inline(always)]
    fn compute<S: Simd>(
        &self,
        simd: S,
        (first, count, step): (usize, usize, usize),
        table: &Packed,
        out: &mut [f32],
    ) {
        let (extent, width) = (table.n(), self.width);
        let at = first - self.first;
        let last = at + (count - 1) * step;
        assert!(
            last < self.count && out.len() >= (last + 1) * extent,
            "the queries or the output are too short"
        );
        let tile = Tile::whole(
            count,
            (self.scaled[at * width..].as_ptr(), step * width),
            table.panels(),
            (out[at * extent..].as_mut_ptr(), step * extent),
        );
        // SAFETY: all queries are in range, as asserted, and each has its own row.
        unsafe { tile.compute(simd) };
    }
}

/// Attention among the tokens of every window. `qkv` has `3 * heads * width` numbers per token: the queries of all
/// heads, then the keys, then the values. `padding_token` has as many numbers, for tokens beyond the map's edge.
/// Returns `heads * width` numbers per token.
pub fn window_attention(
    set: InstructionSet,
    qkv: &[f32],
    padding_token: &[f32],
    windows: Windows,
    (heads, width): (usize, usize),
    bias: PositionBias,
) -> Vec<f32> {
    let rows = WindowRows::new(qkv, padding_token, windows, (heads, width), bias);
    let sizes = Sizes {
        groups: windows.count(),
        heads,
        queries: windows.tokens(),
        keys: windows.tokens(),
        width,
    };
    attend(set, &rows, sizes)
}
