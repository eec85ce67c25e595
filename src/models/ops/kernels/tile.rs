//! A tile of a matrix product with one packed factor: the core of every kernel that is not element by element.
//!
//! The product is `C = A B^T`, where `B` `[n, k]` (a weight in torch's layout, or the keys of an attention) is
//! packed into panels of as many rows as two vectors have lanes, and `A` is read as it lies. A tile of rows of
//! `A` and a panel stay in the caches while registers hold a block of `C` (Goto and van de Geijn 2008,
//! "Anatomy of high-performance matrix multiplication"). What a word of a panel holds, one number or two, and how
//! it is multiplied, is told in [`crate::words`].

#![allow(unsafe_code)]

use pulp::{Simd, WithSimd};

use crate::activation::Activation;
use crate::packed::{Kind, Panels, VECTORS};
use crate::simd::{gelu, load, load_part};
#[cfg(target_arch = "x86_64")]
use crate::words::DotPairs;
use crate::words::{Pairs, Singles, Words};

/// Words of a row that are summed up in registers at once: a panel of them fills half of the first-level cache, or
/// all of a small one.
pub(crate) const DEPTH_WORDS: usize = 256;

/// Rows of `A` that a task computes with at once: they stay in the second-level cache.
pub const TILE_ROWS: usize = 48;

/// How the product of a tile is finished: `activation(sum + bias + residual)`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Per row of the packed matrix.
    pub bias: Option<&'a [f32]>,
    pub activation: Activation,
    /// The number that belongs to the tile's first output, and the distance of rows.
    pub residual: Option<(*const f32, usize)>,
    /// Adds to what the output holds instead of replacing it.
    pub accumulate: bool,
}

/// One tile of a product: some rows of `A`, a range of depth, a range of panels.
#[derive(Debug, Clone, Copy)]
pub struct Tile<'a> {
    /// Rows of `A` and of `C`.
    pub rows: usize,
    /// The first row of `A` at the first depth of the range.
    pub a: *const f32,
    /// Numbers from one row of `A` to the next.
    pub a_stride: usize,
    pub b: Panels,
    /// First depth of `B`, and how many depths.
    pub depth: (usize, usize),
    /// First panel, and how many panels.
    pub panels: (usize, usize),
    /// The first row of `C` at the first panel's first column.
    pub c: *mut f32,
    /// Numbers from one row of `C` to the next.
    pub c_stride: usize,
    pub epilogue: Epilogue<'a>,
}

impl<'a> Tile<'a> {
    /// All of `rows` rows times all of `b`, without an epilogue.
    pub fn whole(
        rows: usize,
        (a, a_stride): (*const f32, usize),
        b: Panels,
        (c, c_stride): (*mut f32, usize),
    ) -> Self {
        Self {
            rows,
            a,
            a_stride,
            b,
            depth: (0, b.k),
            panels: (0, b.count()),
            c,
            c_stride,
            epilogue: Epilogue::default(),
        }
    }

    /// Computes the tile, in a function of its own: the blocks below would otherwise be compiled once more for every
    /// kernel that has a product in it.
    ///
    /// # Safety
    /// `a` must be valid for reads of `rows` rows of `depth.1` numbers, `c` for writes (and, where sums are
    /// accumulated, reads of initialised numbers) of `rows` rows of the panels' columns, and the residual for
    /// reads of the same; columns beyond `b.n` are not touched. Nothing else may write them meanwhile. The
    /// panels must still be there, and packed for vectors like those of `simd`.
    #[inline(always)]
    pub unsafe fn compute<S: Simd>(self, simd: S) {
        simd.vectorize(ComputeTile(self));
    }

    /// Some of the rows.
    ///
    /// # Safety
    /// They must be the tile's.
    #[inline(always)]
    unsafe fn some_rows(self, first: usize, rows: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let residual =
                |(first_row, stride): (*const f32, usize)| (first_row.add(first * stride), stride);
            Self {
                rows,
                a: self.a.add(first * self.a_stride),
                c: self.c.add(first * self.c_stride),
                epilogue: Epilogue {
                    residual: self.epilogue.residual.map(residual),
                    ..self.epilogue
                },
                ..self
            }
        }
    }

    /// The tile in blocks of `ROWS` rows, where panels hold such words.
    ///
    /// # Safety
    /// See [`Tile::compute`].
    #[inline(always)]
    unsafe fn in_blocks<S: Simd, W: Words, const ROWS: usize>(self, simd: S) {
        debug_assert_eq!(self.b.width, VECTORS * S::F32_LANES);
        debug_assert!(self.depth.0.is_multiple_of(W::DEPTHS));
        let mut buffer = W::buffer();
        let mut row = 0;
        loop {
            let rows = (self.rows - row).min(W::MOST_ROWS);
            // SAFETY: rows of the tile.
            unsafe {
                self.some_rows(row, rows)
                    .in_depths::<S, W, ROWS>(simd, &mut buffer);
            }
            row += rows;
            if row >= self.rows {
                break;
            }
        }
    }

    /// The tile depth by depth; the buffer is for its rows.
    ///
    /// # Safety
    /// See [`Tile::compute`].
    #[inline(always)]
    unsafe fn in_depths<S: Simd, W: Words, const ROWS: usize>(
        self,
        simd: S,
        buffer: &mut W::Buffer,
    ) {
        let (first, depths) = self.depth;
        let mut start = 0;
        // a product of no depth still has a bias
        loop {
            let depth = (DEPTH_WORDS * W::DEPTHS).min(depths - start);
            let is_last = start + depth >= depths;
            let epilogue = match is_last {
                true => self.epilogue,
                false => Epilogue::default(),
            };
            // SAFETY: the numbers of the rows at these depths.
            let (a, a_stride) =
                unsafe { W::of_rows(buffer, self.rows, (self.a.add(start), self.a_stride), depth) };
            let part = Tile {
                a,
                a_stride,
                depth: (first + start, depth),
                epilogue: Epilogue {
                    accumulate: start > 0 || self.epilogue.accumulate,
                    ..epilogue
                },
                ..self
            };
            for panel in 0..self.panels.1 {
                let mut row = 0;
                // SAFETY: the rows and the panel are the tile's.
                unsafe {
                    while row + ROWS <= self.rows {
                        part.block::<S, W, ROWS>(simd, row, panel);
                        row += ROWS;
                    }
                    part.last_rows::<S, W>(simd, row, panel);
                    if is_last && self.epilogue.activation == Activation::Gelu {
                        simd.vectorize(GeluPanel(&part, panel));
                    }
                }
            }
            start += depth;
            if is_last {
                break;
            }
        }
    }

    /// The rows that do not fill a block.
    ///
    /// # Safety
    /// See [`Tile::block`].
    #[inline(always)]
    unsafe fn last_rows<S: Simd, W: Words>(&self, simd: S, mut row: usize, panel: usize) {
        // SAFETY: each block ends at the tile's last row.
        unsafe {
            if self.rows - row >= 6 {
                self.block::<S, W, 6>(simd, row, panel);
                row += 6;
            }
            match self.rows - row {
                0 => {}
                1 => self.block::<S, W, 1>(simd, row, panel),
                2 => self.block::<S, W, 2>(simd, row, panel),
                3 => self.block::<S, W, 3>(simd, row, panel),
                4 => self.block::<S, W, 4>(simd, row, panel),
                _ => self.block::<S, W, 5>(simd, row, panel),
            }
        }
    }

    /// `ROWS` rows of one panel. The tile's `A` consists of words already.
    ///
    /// # Safety
    /// See [`Tile::compute`]; the rows and the panel must be the tile's.
    #[inline(always)]
    unsafe fn block<S: Simd, W: Words, const ROWS: usize>(
        &self,
        simd: S,
        row: usize,
        panel: usize,
    ) {
        let lanes = S::F32_LANES;
        let width = VECTORS * lanes;
        let number = self.panels.0 + panel;
        let (first, depth) = self.depth;
        // SAFETY: the panel lies in the packed matrix, and the depth in the panel; the rows are the tile's.
        let sums: [_; ROWS] = unsafe {
            let words = number * self.b.k.div_ceil(W::DEPTHS) + first / W::DEPTHS;
            W::sums::<S, ROWS>(
                simd,
                (self.a.add(row * self.a_stride), self.a_stride),
                self.b.start.add(words * width),
                depth.div_ceil(W::DEPTHS),
            )
        };
        let valid = width.min(self.b.n - number * width);
        for v in 0..VECTORS {
            let count = valid.saturating_sub(v * lanes).min(lanes);
            let bias = match self.epilogue.bias {
                Some(bias) if count > 0 => {
                    simd.partial_load_f32s(&bias[number * width + v * lanes..][..count])
                }
                _ => simd.splat_f32s(0.0),
            };
            let column = panel * width + v * lanes;
            for (r, sums) in sums.iter().enumerate() {
                let sum = simd.add_f32s(sums[v], bias);
                // SAFETY: inside the tile's output and residual; columns beyond the matrix are left out.
                unsafe {
                    if count == lanes {
                        self.store(simd, row + r, column, sum);
                    } else if count > 0 {
                        self.store_part(simd, row + r, (column, count), sum);
                    }
                }
            }
        }
    }

    /// Finishes a vector of sums and stores it.
    ///
    /// # Safety
    /// See [`Tile::compute`]; the row and the columns must be the tile's.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, simd: S, row: usize, column: usize, mut sum: S::f32s) {
        let epilogue = &self.epilogue;
        // SAFETY: inside the tile's output and residual.
        unsafe {
            let out = self.c.add(row * self.c_stride + column);
            if epilogue.accumulate {
                sum = simd.add_f32s(sum, load::<S>(out));
            }
            if let Some((residual, stride)) = epilogue.residual {
                sum = simd.add_f32s(sum, load::<S>(residual.add(row * stride + column)));
            }
            if epilogue.activation == Activation::Relu {
                sum = simd.max_f32s(sum, simd.splat_f32s(0.0));
            }
            out.cast::<S::f32s>().write_unaligned(sum);
        }
    }

    /// [`Tile::store`] of the first `count` lanes.
    ///
    /// # Safety
    /// See [`Tile::store`].
    #[inline(always)]
    unsafe fn store_part<S: Simd>(
        &self,
        simd: S,
        row: usize,
        (column, count): (usize, usize),
        mut sum: S::f32s,
    ) {
        let epilogue = &self.epilogue;
        // SAFETY: inside the tile's output, which is initialised where it is read, and residual.
        unsafe {
            let out = self.c.add(row * self.c_stride + column);
            if epilogue.accumulate {
                sum = simd.add_f32s(sum, load_part(simd, out, count));
            }
            if let Some((residual, stride)) = epilogue.residual {
                let residual = residual.add(row * stride + column);
                sum = simd.add_f32s(sum, load_part(simd, residual, count));
            }
            if epilogue.activation == Activation::Relu {
                sum = simd.max_f32s(sum, simd.splat_f32s(0.0));
            }
            let lanes = (&raw const sum).cast::<f32>();
            out.copy_from_nonoverlapping(lanes, count);
        }
    }
}

/// The GELU of what a tile has stored for one of its panels: a pass of its own, because it needs all the registers
/// that the sums are held in.
struct GeluPanel<'a>(&'a Tile<'a>, usize);

impl WithSimd for GeluPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(tile, panel) = self;
        let lanes = S::F32_LANES;
        let width = VECTORS * lanes;
        let valid = width.min(tile.b.n - (tile.panels.0 + panel) * width);
        for row in 0..tile.rows {
            for first in (0..valid).step_by(lanes) {
                let count = lanes.min(valid - first);
                // SAFETY: columns of the tile's output, which are written by now.
                unsafe {
                    let out = tile.c.add(row * tile.c_stride + panel * width + first);
                    if count == lanes {
                        let x = gelu(simd, load::<S>(out));
                        out.cast::<S::f32s>().write_unaligned(x);
                    } else {
                        let x = gelu(simd, load_part(simd, out, count));
                        out.copy_from_nonoverlapping((&raw const x).cast(), count);
                    }
                }
            }
        }
    }
}

/// [`Tile::compute`] as a kernel.
pub(crate) struct ComputeTile<'a>(pub(crate) Tile<'a>);

impl ComputeTile<'_> {
    /// # Safety
    /// See [`Tile::compute`].
    #[inline(always)]
    unsafe fn with_words<S: Simd, W: Words>(self, simd: S) {
        // SAFETY: the caller's promise.
        unsafe {
            if S::REGISTER_COUNT >= 32 {
                self.0.in_blocks::<S, W, 12>(simd);
            } else {
                self.0.in_blocks::<S, W, 6>(simd);
            }
        }
    }
}

impl WithSimd for ComputeTile<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // SAFETY: whoever made the tile promises what `Tile::compute` asks for.
        unsafe {
            match self.0.b.kind {
                Kind::Singles => self.with_words::<S, Singles>(simd),
                #[cfg(target_arch = "x86_64")]
                Kind::DotPairs if S::F32_LANES == 16 => self.with_words::<S, DotPairs>(simd),
                Kind::Pairs | Kind::DotPairs => self.with_words::<S, Pairs>(simd),
            }
        }
    }
}
