//! One factor of a matrix product, packed into panels in the order in which the product reads it.

use rayon::prelude::*;

use crate::scratch::AlignedBuffer;
use crate::simd::InstructionSet;
use crate::words::bf16_pair;

/// Vectors per row of a panel.
pub(crate) const VECTORS: usize = 2;

/// The number format of a packed matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// 32 bits.
    #[default]
    F32,
    /// Rounded to 8 significant bits, and so are the numbers that are multiplied with them. Needs half the memory.
    Bf16,
}

/// The content of a panel's words: see [`crate::words`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum WordKind {
    /// One f32.
    F32,
    /// Two bf16 numbers.
    Bf16,
    /// Two bf16 numbers, for a CPU with an instruction for products of bf16 pairs.
    Bf16Dot,
}

/// The panels of a matrix `[n, k]`. A panel has as many of the `n` rows as its width, side by side, word by word. The
/// last panel is padded with zeros.
#[derive(Debug, Clone, Copy)]
pub struct Panels {
    pub(crate) start: *const f32,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) width: usize,
    pub(crate) kind: WordKind,
}

impl Panels {
    /// Matrix rows per panel, for vectors with this many lanes.
    pub const fn width(lanes: usize) -> usize {
        VECTORS * lanes
    }

    /// Size of the panels of a matrix `[n, k]`, in numbers.
    pub fn size(lanes: usize, n: usize, k: usize) -> usize {
        n.next_multiple_of(Self::width(lanes)) * k
    }

    /// Packs `n` rows of `k` numbers into `panels`; `row` returns each row.
    pub fn pack_rows<'a>(
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
        Self::of_f32(panels, lanes, (n, k))
    }

    /// Packs the transpose of `k` rows of `n` numbers into `panels`.
    pub fn pack_columns<'a>(
        panels: &mut [f32],
        lanes: usize,
        (n, k): (usize, usize),
        row: impl Fn(usize) -> &'a [f32],
    ) -> Self {
        let width = Self::width(lanes);
        for depth in 0..k {
            pack_column(panels, width, (depth, k), &row(depth)[..n]);
        }
        Self::of_f32(panels, lanes, (n, k))
    }

    fn of_f32(panels: &[f32], lanes: usize, (n, k): (usize, usize)) -> Self {
        Self {
            start: panels.as_ptr(),
            n,
            k,
            width: Self::width(lanes),
            kind: WordKind::F32,
        }
    }

    /// Number of panels.
    pub fn count(&self) -> usize {
        self.n.div_ceil(self.width)
    }
}

/// Packs one panel: `rows` of the matrix become its columns.
#[inline(always)]
fn pack_panel_of_rows<'a>(
    panel: &mut [f32],
    width: usize,
    rows: std::ops::Range<usize>,
    row: &impl Fn(usize) -> &'a [f32],
) {
    // with constant widths, so that each depth is gathered in registers
    match width {
        8 => gather_columns::<8>(panel, rows, row),
        16 => gather_columns::<16>(panel, rows, row),
        _ => gather_columns::<32>(panel, rows, row),
    }
}

#[inline(always)]
fn gather_columns<'a, const WIDTH: usize>(
    panel: &mut [f32],
    rows: std::ops::Range<usize>,
    row: &impl Fn(usize) -> &'a [f32],
) {
    let (panel, _) = panel.as_chunks_mut::<WIDTH>();
    let depths = panel.len();
    for first in (0..WIDTH).step_by(GATHERED_COLUMNS) {
        if rows.start + first >= rows.end {
            // nothing but padding, which is half of a panel for a small window
            for out in panel.iter_mut() {
                out[first..first + GATHERED_COLUMNS].fill(0.0);
            }
            continue;
        }
        let columns: [&[f32]; GATHERED_COLUMNS] = std::array::from_fn(|i| {
            let number = rows.start + first + i;
            if number < rows.end {
                &row(number)[..depths]
            } else {
                &[]
            }
        });
        let is_complete = rows.start + first + GATHERED_COLUMNS <= rows.end;
        for (depth, out) in panel.iter_mut().enumerate() {
            let out = &mut out[first..first + GATHERED_COLUMNS];
            for (out, column) in out.iter_mut().zip(&columns) {
                *out = if is_complete {
                    column[depth]
                } else {
                    // padding of the last panel
                    column.get(depth).copied().unwrap_or_default()
                };
            }
        }
    }
}

/// Columns of a panel that are gathered at once.
const GATHERED_COLUMNS: usize = 8;

/// Packs one depth of all panels, each of which has `k` depths.
#[inline(always)]
fn pack_column(panels: &mut [f32], width: usize, depth: (usize, usize), row: &[f32]) {
    match width {
        8 => scatter_row::<8>(panels, depth, row),
        16 => scatter_row::<16>(panels, depth, row),
        _ => scatter_row::<32>(panels, depth, row),
    }
}

#[inline(always)]
fn scatter_row<const WIDTH: usize>(panels: &mut [f32], (depth, k): (usize, usize), row: &[f32]) {
    let (panels, _) = panels.as_chunks_mut::<WIDTH>();
    let (parts, rest) = row.as_chunks::<WIDTH>();
    for (i, part) in parts.iter().enumerate() {
        panels[i * k + depth] = *part;
    }
    if !rest.is_empty() {
        let mut part = [0.0; WIDTH];
        part[..rest.len()].copy_from_slice(rest);
        panels[parts.len() * k + depth] = part;
    }
}

/// Packs one panel of bf16 pairs: `rows` of `k` numbers become its columns.
fn pack_panel_of_bf16<'a>(
    panel: &mut [f32],
    width: usize,
    rows: std::ops::Range<usize>,
    row: &impl Fn(usize) -> &'a [f32],
) {
    for (column, number) in rows.enumerate() {
        for (words, numbers) in panel.chunks_exact_mut(width).zip(row(number).chunks(2)) {
            let second = numbers.get(1).copied().unwrap_or_default();
            words[column] = f32::from_bits(bf16_pair(numbers[0], second));
        }
    }
}

/// A matrix `[n, k]` in panels for one instruction set.
#[derive(Debug, Clone)]
pub struct Packed {
    set: InstructionSet,
    kind: WordKind,
    n: usize,
    k: usize,
    width: usize,
    words: AlignedBuffer,
}

impl Packed {
    /// Packs `n` rows of `k` numbers, `stride` numbers apart.
    pub fn of_rows(
        set: InstructionSet,
        format: Format,
        rows: &[f32],
        (n, k): (usize, usize),
        stride: usize,
    ) -> Self {
        let width = Panels::width(set.lanes());
        let kind = match format {
            Format::F32 => WordKind::F32,
            Format::Bf16 if set.has_bf16_products() => WordKind::Bf16Dot,
            Format::Bf16 => WordKind::Bf16,
        };
        let depth = match kind {
            WordKind::F32 => k,
            WordKind::Bf16 | WordKind::Bf16Dot => k.div_ceil(2),
        };
        let mut words = AlignedBuffer::zeros(n.next_multiple_of(width) * depth);
        if n * k > 0 {
            let row = |i: usize| &rows[i * stride..][..k];
            words
                .as_mut_slice()
                .par_chunks_mut(width * depth)
                .take(n.div_ceil(width))
                .enumerate()
                .for_each(|(i, panel)| {
                    let rows = i * width..n.min((i + 1) * width);
                    match kind {
                        WordKind::F32 => pack_panel_of_rows(panel, width, rows, &row),
                        WordKind::Bf16 | WordKind::Bf16Dot => {
                            pack_panel_of_bf16(panel, width, rows, &row);
                        }
                    }
                });
        }
        Self {
            set,
            kind,
            n,
            k,
            width,
            words,
        }
    }

    /// Packs the transpose of `k` rows of `n` numbers, `stride` numbers apart, in f32.
    pub fn of_columns(
        set: InstructionSet,
        rows: &[f32],
        (n, k): (usize, usize),
        stride: usize,
    ) -> Self {
        let lanes = set.lanes();
        let mut words = AlignedBuffer::zeros(Panels::size(lanes, n, k));
        Panels::pack_columns(words.as_mut_slice(), lanes, (n, k), |i| {
            &rows[i * stride..][..n]
        });
        Self {
            set,
            kind: WordKind::F32,
            n,
            k,
            width: Panels::width(lanes),
            words,
        }
    }

    /// The panels; they are valid as long as the matrix exists.
    pub fn panels(&self) -> Panels {
        Panels {
            start: self.words.as_ptr(),
            n: self.n,
            k: self.k,
            width: self.width,
            kind: self.kind,
        }
    }

    /// Number of rows, which are the columns of the product.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Numbers per row, which is the depth of the product.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The instruction set that it is packed for.
    pub fn set(&self) -> InstructionSet {
        self.set
    }
}
