//! One factor of a matrix product, packed into panels: the order in which the product reads it.

use rayon::prelude::*;

use super::scratch::Aligned;
use super::simd::InstructionSet;

/// Vectors in a row of a panel.
pub(super) const VECTORS: usize = 2;

/// Where the panels of a matrix `[n, k]` lie: of its `n` rows, as many as a panel is wide are side by side, depth
/// after depth; zeros fill up the last panel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panels {
    pub(super) start: *const f32,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) width: usize,
}

impl Panels {
    /// Rows that a panel has with vectors of this many lanes.
    pub(crate) const fn width(lanes: usize) -> usize {
        VECTORS * lanes
    }

    /// Numbers that the panels of a matrix `[n, k]` take.
    pub(crate) fn size(lanes: usize, n: usize, k: usize) -> usize {
        n.next_multiple_of(Self::width(lanes)) * k
    }

    /// Packs `n` rows of `k` numbers into `panels`; `row` gives each of them.
    pub(crate) fn pack_rows<'a>(
        panels: &mut [f32],
        lanes: usize,
        (n, k): (usize, usize),
        row: impl Fn(usize) -> &'a [f32],
    ) -> Self {
        let width = Self::width(lanes);
        if k > 0 {
            for (panel, first) in panels.chunks_mut(width * k).zip((0..n).step_by(width)) {
                pack_panel_of_rows(panel, width, first..n.min(first + width), &row);
            }
        }
        Self {
            start: panels.as_ptr(),
            n,
            k,
            width,
        }
    }

    /// Packs the transpose of `k` rows of `n` numbers into `panels`.
    pub(crate) fn pack_columns<'a>(
        panels: &mut [f32],
        lanes: usize,
        (n, k): (usize, usize),
        row: impl Fn(usize) -> &'a [f32],
    ) -> Self {
        let width = Self::width(lanes);
        if k > 0 {
            for depth in 0..k {
                let row = &row(depth)[..n];
                for (i, part) in row.chunks(width).enumerate() {
                    let out = &mut panels[(i * k + depth) * width..][..width];
                    out[..part.len()].copy_from_slice(part);
                    out[part.len()..].fill(0.0);
                }
            }
        }
        Self {
            start: panels.as_ptr(),
            n,
            k,
            width,
        }
    }

    /// How many panels there are.
    pub(crate) fn count(&self) -> usize {
        self.n.div_ceil(self.width)
    }
}

/// One panel: `rows` of the matrix become its columns.
fn pack_panel_of_rows<'a>(
    panel: &mut [f32],
    width: usize,
    rows: std::ops::Range<usize>,
    row: &impl Fn(usize) -> &'a [f32],
) {
    let count = rows.len();
    for (j, number) in rows.enumerate() {
        for (out, value) in panel.iter_mut().skip(j).step_by(width).zip(row(number)) {
            *out = *value;
        }
    }
    for out in panel.chunks_mut(width) {
        out[count..].fill(0.0);
    }
}

/// A matrix `[n, k]` in panels for one instruction set.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    set: InstructionSet,
    n: usize,
    k: usize,
    width: usize,
    numbers: Aligned,
}

impl Packed {
    /// Packs `n` rows of `k` numbers, `stride` numbers apart.
    pub(crate) fn of_rows(
        set: InstructionSet,
        rows: &[f32],
        (n, k): (usize, usize),
        stride: usize,
    ) -> Self {
        let lanes = set.lanes();
        let width = Panels::width(lanes);
        let mut numbers = Aligned::zeros(Panels::size(lanes, n, k));
        if n * k > 0 {
            let row = |i: usize| &rows[i * stride..][..k];
            numbers
                .as_mut_slice()
                .par_chunks_mut(width * k)
                .take(n.div_ceil(width))
                .enumerate()
                .for_each(|(i, panel)| {
                    pack_panel_of_rows(panel, width, i * width..n.min((i + 1) * width), &row);
                });
        }
        Self {
            set,
            n,
            k,
            width,
            numbers,
        }
    }

    /// Packs the transpose of `k` rows of `n` numbers, `stride` numbers apart.
    pub(crate) fn of_columns(
        set: InstructionSet,
        rows: &[f32],
        (n, k): (usize, usize),
        stride: usize,
    ) -> Self {
        let lanes = set.lanes();
        let mut numbers = Aligned::zeros(Panels::size(lanes, n, k));
        Panels::pack_columns(numbers.as_mut_slice(), lanes, (n, k), |i| {
            &rows[i * stride..][..n]
        });
        Self {
            set,
            n,
            k,
            width: Panels::width(lanes),
            numbers,
        }
    }

    /// The panels, for as long as the matrix lives.
    pub(crate) fn panels(&self) -> Panels {
        Panels {
            start: self.numbers.as_ptr(),
            n: self.n,
            k: self.k,
            width: self.width,
        }
    }

    /// Rows: the columns of the product.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// Numbers of a row: the depth of the product.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// The instruction set it is packed for.
    pub(crate) fn set(&self) -> InstructionSet {
        self.set
    }
}
