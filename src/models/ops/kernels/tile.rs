//! A tile of a matrix product with one packed factor: the core of every kernel that is not element-wise.
//!
//! The product is `C = A B^T`. `B` `[n, k]` (a weight in torch's layout, or the keys of an attention) is packed into
//! panels, each with as many rows as two vectors have lanes; `A` is read in place. A tile of rows of `A` and a panel
//! stay in the caches, while registers hold a block of `C` (Goto and van de Geijn 2008, "Anatomy of high-performance
//! matrix multiplication"). [`crate::words`] defines what a word of a panel holds, one number or two, and how it is
//! multiplied.

#![allow(unsafe_code)]

use pulp::{Simd, WithSimd};

use crate::activation::{Activation, Function, Gelu, GeluTanh};
use crate::packed::{Panels, VECTORS, WordKind};
use crate::simd::{load, load_part};
#[cfg(target_arch = "x86_64")]
use crate::words::Bf16DotWords;
use crate::words::{Bf16Words, F32Words, Words};

/// Words of a row that are summed in registers at once. A panel of them fills half of the first-level cache, or all
/// of a small one.
pub(crate) const DEPTH_WORDS: usize = 256;

/// Rows of `A` that a task processes at once; they fit into the second-level cache.
pub const TILE_ROWS: usize = 48;

/// The last step of a tile's product: `activation(sum + bias + residual)`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// One number per row of the packed matrix.
    pub bias: Option<&'a [f32]>,
    pub activation: Activation,
    /// A pointer to the number for the tile's first output, and the stride of rows.
    pub residual: Option<(*const f32, usize)>,
    /// Whether to add to the output instead of replacing it.
    pub accumulate: bool,
}

/// One tile of a product: some rows of `A`, a range of depths, and a range of panels.
#[derive(Debug, Clone, Copy)]
pub struct Tile<'a> {
    /// Number of rows of `A` and of `C`.
    pub rows: usize,
    /// The first row of `A`, at the first depth of the range.
    pub a: *const f32,
    /// Numbers from one row of `A` to the next.
    pub a_stride: usize,
    pub b: Panels,
    /// The first depth of `B`, and the number of depths.
    pub depth: (usize, usize),
    /// The first panel, and the number of panels.
    pub panels: (usize, usize),
    /// The first row of `C`, at the first panel's first column.
    pub c: *mut f32,
    /// Numbers from one row of `C` to the next.
    pub c_stride: usize,
    pub epilogue: Epilogue<'a>,
}

impl<'a> Tile<'a> {
    /// A tile of all of `rows` rows times all of `b`, without an epilogue.
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

    /// Computes the tile. It is a separate function, so that the blocks below are not compiled again for every kernel
    /// that contains a product.
    ///
    /// # Safety
    /// `a` must be valid for reads of `rows` rows of `depth.1` numbers. `c` must be valid for writes of `rows` rows
    /// of the panels' columns, and, if sums are accumulated, for reads of initialised numbers there. The residual
    /// must be valid for reads of the same size. Columns beyond `b.n` are not accessed. Nothing else may write this
    /// memory at the same time. The panels must still exist, and must be packed for vectors like those of `simd`.
    #[inline(always)]
    pub unsafe fn compute<S: Simd>(self, simd: S) {
        simd.vectorize(ComputeTile(self));
    }

    /// A tile of some of the rows.
    ///
    /// # Safety
    /// The rows must be inside the tile.
    #[inline(always)]
    unsafe fn some_rows(self, first: usize, rows: usize) -> Self {
        // SAFETY: guaranteed by the caller.
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

    /// Computes the tile in blocks of `ROWS` rows, for panels with words of type `W`.
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
            let rows = (self.rows - row).min(W::MAX_ROWS);
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

    /// Computes the tile in steps of depth. `buffer` is for its rows.
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
        // a product with no depth still has a bias
        loop {
            let depth = (DEPTH_WORDS * W::DEPTHS).min(depths - start);
            let is_last = start + depth >= depths;
            let epilogue = match is_last {
                true => self.epilogue,
                false => Epilogue::default(),
            };
            // SAFETY: the numbers of the rows at these depths.
            let (a, a_stride) = unsafe {
                W::to_words(buffer, self.rows, (self.a.add(start), self.a_stride), depth)
            };
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
                // SAFETY: the rows and the panel are inside the tile.
                unsafe {
                    while row + ROWS <= self.rows {
                        part.block::<S, W, ROWS>(simd, row, panel);
                        row += ROWS;
                    }
                    part.last_rows::<S, W>(simd, row, panel);
                    if is_last && self.epilogue.activation.is_separate_pass() {
                        simd.vectorize(ActivatePanel(&part, panel));
                    }
                }
            }
            start += depth;
            if is_last {
                break;
            }
        }
    }

    /// Computes the rows that do not fill a block.
    ///
    /// # Safety
    /// See [`Tile::block`].
    #[inline(always)]
    unsafe fn last_rows<S: Simd, W: Words>(&self, simd: S, mut row: usize, panel: usize) {
        // SAFETY: no block goes beyond the tile's last row.
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

    /// Computes `ROWS` rows of one panel. The tile's `A` already consists of words.
    ///
    /// # Safety
    /// See [`Tile::compute`]; the rows and the panel must be inside the tile.
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
        // SAFETY: the panel is inside the packed matrix, the depth is inside the panel, and the rows are inside the
        // tile.
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
                // SAFETY: inside the tile's output and residual; columns beyond the matrix are skipped.
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

    /// Applies the epilogue to a vector of sums and stores it.
    ///
    /// # Safety
    /// See [`Tile::compute`]; the row and the columns must be inside the tile.
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

    /// Like [`Tile::store`], for the first `count` lanes.
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
        // SAFETY: inside the tile's residual and output, which is initialised where it is read.
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

/// Applies the activation to the stored results of one of a tile's panels. It is a separate pass, because it needs the
/// registers that hold the sums.
struct ActivatePanel<'a>(&'a Tile<'a>, usize);

impl ActivatePanel<'_> {
    #[inline(always)]
    fn apply<S: Simd, F: Function>(self, simd: S) {
        let Self(tile, panel) = self;
        let lanes = S::F32_LANES;
        let width = VECTORS * lanes;
        let valid = width.min(tile.b.n - (tile.panels.0 + panel) * width);
        for row in 0..tile.rows {
            for first in (0..valid).step_by(lanes) {
                let count = lanes.min(valid - first);
                // SAFETY: columns of the tile's output, which are already written.
                unsafe {
                    let out = tile.c.add(row * tile.c_stride + panel * width + first);
                    if count == lanes {
                        let x = F::apply(simd, load::<S>(out));
                        out.cast::<S::f32s>().write_unaligned(x);
                    } else {
                        let x = F::apply(simd, load_part(simd, out, count));
                        out.copy_from_nonoverlapping((&raw const x).cast(), count);
                    }
                }
            }
        }
    }
}

impl WithSimd for ActivatePanel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // selected outside of the loops
        match self.0.epilogue.activation {
            Activation::Gelu => self.apply::<S, Gelu>(simd),
            Activation::GeluTanh => self.apply::<S, GeluTanh>(simd),
            Activation::None | Activation::Relu => {}
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
        // SAFETY: guaranteed by the caller.
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
        // SAFETY: whoever created the tile guarantees the requirements of `Tile::compute`.
        unsafe {
            match self.0.b.kind {
                WordKind::F32 => self.with_words::<S, F32Words>(simd),
                #[cfg(target_arch = "x86_64")]
                WordKind::Bf16Dot if S::F32_LANES == 16 => self.with_words::<S, Bf16DotWords>(simd),
                WordKind::Bf16 | WordKind::Bf16Dot => self.with_words::<S, Bf16Words>(simd),
            }
        }
    }
}
