//! Matrix products with one packed factor: the core of every kernel that is not element by element.
//!
//! The product is `C = A B^T`, where `B` `[n, k]` (a weight in torch's layout, or the keys of an attention) is
//! packed into panels of as many rows as two vectors have lanes, and `A` is read as it lies. A tile of rows of
//! `A` and a panel stay in the caches while registers hold a block of `C` (Goto and van de Geijn 2008,
//! "Anatomy of high-performance matrix multiplication").

#![allow(unsafe_code)]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::packed::{Packed, Panels, VECTORS};
use crate::scratch::{Shared, filled};
use crate::simd::{gelu, multiply_add};

/// Depth that is summed up in registers at once: a panel of it fills half of the first-level cache.
const DEPTH: usize = 256;

/// Rows of `A` that a task computes with at once: they stay in the second-level cache.
pub const TILE_ROWS: usize = 48;

/// What is done to a sum before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
    /// `x (1 + erf(x / sqrt 2)) / 2`.
    Gelu,
}

#[inline(always)]
pub fn activate<S: Simd>(simd: S, activation: Activation, x: S::f32s) -> S::f32s {
    match activation {
        Activation::None => x,
        Activation::Relu => simd.max_f32s(x, simd.splat_f32s(0.0)),
        Activation::Gelu => gelu(simd, x),
    }
}

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

    /// # Safety
    /// See [`Tile::compute`].
    #[inline(always)]
    unsafe fn blocks<S: Simd, const ROWS: usize>(self, simd: S) {
        debug_assert_eq!(self.b.width, VECTORS * S::F32_LANES);
        let (first, depths) = self.depth;
        let mut start = 0;
        // a product of no depth still has a bias
        loop {
            let depth = DEPTH.min(depths - start);
            let is_last = start + depth >= depths;
            let epilogue = match is_last {
                true => self.epilogue,
                false => Epilogue::default(),
            };
            let part = Tile {
                // SAFETY: within the first row.
                a: unsafe { self.a.add(start) },
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
                        part.block::<S, ROWS>(simd, row, panel);
                        row += ROWS;
                    }
                    part.last_rows::<S>(simd, row, panel);
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
    /// See [`Tile::compute`].
    #[inline(always)]
    unsafe fn last_rows<S: Simd>(&self, simd: S, mut row: usize, panel: usize) {
        // SAFETY: each block ends at the tile's last row.
        unsafe {
            if self.rows - row >= 6 {
                self.block::<S, 6>(simd, row, panel);
                row += 6;
            }
            match self.rows - row {
                0 => {}
                1 => self.block::<S, 1>(simd, row, panel),
                2 => self.block::<S, 2>(simd, row, panel),
                3 => self.block::<S, 3>(simd, row, panel),
                4 => self.block::<S, 4>(simd, row, panel),
                _ => self.block::<S, 5>(simd, row, panel),
            }
        }
    }

    /// `ROWS` rows of one panel.
    ///
    /// # Safety
    /// See [`Tile::compute`]; the rows and the panel must be the tile's.
    #[inline(always)]
    unsafe fn block<S: Simd, const ROWS: usize>(&self, simd: S, row: usize, panel: usize) {
        let lanes = S::F32_LANES;
        let width = VECTORS * lanes;
        let number = self.panels.0 + panel;
        let (first, depth) = self.depth;
        // SAFETY: the panel lies in the packed matrix, and the depth in the panel; the rows are the tile's.
        let (b, rows): (*const f32, [*const f32; ROWS]) = unsafe {
            (
                self.b.start.add((number * self.b.k + first) * width),
                std::array::from_fn(|r| self.a.add((row + r) * self.a_stride)),
            )
        };
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
        let mut done = 0;
        // SAFETY: as above.
        unsafe {
            while done + UNROLLED <= depth {
                for step in done..done + UNROLLED {
                    add_depth::<S, ROWS>(simd, b.add(step * width), rows, step, &mut sums);
                }
                done += UNROLLED;
            }
            while done < depth {
                add_depth::<S, ROWS>(simd, b.add(done * width), rows, done, &mut sums);
                done += 1;
            }
        }
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

/// Depths between two looks at the loop's end.
const UNROLLED: usize = 4;

/// Adds the products of one depth: a row of a panel with a number of every row of `A`.
///
/// # Safety
/// `b` must be valid for reads of a panel's row, and every row for reads at `depth`.
#[inline(always)]
unsafe fn add_depth<S: Simd, const ROWS: usize>(
    simd: S,
    b: *const f32,
    rows: [*const f32; ROWS],
    depth: usize,
    sums: &mut [[S::f32s; VECTORS]; ROWS],
) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut columns = [simd.splat_f32s(0.0); VECTORS];
        for (v, column) in columns.iter_mut().enumerate() {
            *column = load::<S>(b.add(v * S::F32_LANES));
        }
        for (sums, row) in sums.iter_mut().zip(rows) {
            let a = simd.splat_f32s(*row.add(depth));
            for (sum, column) in sums.iter_mut().zip(columns) {
                *sum = multiply_add(simd, a, column, *sum);
            }
        }
    }
}

/// # Safety
/// `from` must be valid for reads of a vector.
#[inline(always)]
pub unsafe fn load<S: Simd>(from: *const f32) -> S::f32s {
    // SAFETY: the caller's promise; a vector is plain numbers.
    unsafe { from.cast::<S::f32s>().read_unaligned() }
}

/// The first `count` lanes; the others are zero.
///
/// # Safety
/// `from` must be valid for reads of `count` numbers.
#[inline(always)]
pub unsafe fn load_part<S: Simd>(simd: S, from: *const f32, count: usize) -> S::f32s {
    // SAFETY: the caller's promise.
    simd.partial_load_f32s(unsafe { std::slice::from_raw_parts(from, count) })
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

/// A factor of a product: `rows` rows of numbers, `stride` apart.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    pub data: &'a [f32],
    pub count: usize,
    pub stride: usize,
}

/// `activation(A B^T + bias + residual)`: rows of `b.n()` numbers. The residual has as many rows, or a fraction of
/// them, and is then added again and again.
pub fn product(
    a: Rows,
    b: &Packed,
    bias: Option<&[f32]>,
    activation: Activation,
    residual: Option<&[f32]>,
) -> Vec<f32> {
    let (n, k) = (b.n(), b.k());
    let Rows {
        data,
        count: rows,
        stride,
    } = a;
    assert!(
        rows == 0 || data.len() >= (rows - 1) * stride + k,
        "rows of A"
    );
    assert!(bias.is_none_or(|bias| bias.len() == n), "bias");
    // rows with the same residual
    let period = residual.map_or(rows, |residual| residual.len() / n.max(1));
    assert!(
        residual.is_none_or(|r| r.len() == period * n && rows.is_multiple_of(period.max(1))),
        "residual"
    );
    let of_period = period.div_ceil(TILE_ROWS);
    let (count, width) = (b.panels().count(), b.panels().width);
    let (a, panels) = (Shared::new(data.as_ptr()), Shared::new(b.panels()));
    let residual = Shared::new(residual.map(<[f32]>::as_ptr));
    // few rows are shared out by panels too, so that every thread has something to do
    let tiles = of_period * (rows / period.max(1));
    let groups = match tiles {
        0..8 => count.min(16usize.div_ceil(tiles.max(1))).max(1),
        _ => 1,
    };
    let group = count.div_ceil(groups);
    let tasks = tiles * groups;
    let run = |output: Shared<*mut f32>| {
        let task = |index: usize| {
            let tile = index / groups;
            // rows are cut anew where the residual begins again
            let in_period = tile % of_period * TILE_ROWS;
            let first_row = tile / of_period * period + in_period;
            let first_panel = (index % groups * group).min(count);
            let at = first_row * n + first_panel * width;
            let residual_at = in_period * n + first_panel * width;
            // SAFETY: the tile's rows and columns lie in the matrices, whose sizes are checked above; no other
            // task writes this part of the output.
            let tile = unsafe {
                Tile {
                    rows: TILE_ROWS.min(period - in_period),
                    a: a.get().add(first_row * stride),
                    a_stride: stride,
                    b: panels.get(),
                    depth: (0, k),
                    panels: (first_panel, group.min(count - first_panel)),
                    c: output.get().wrapping_add(at),
                    c_stride: n,
                    epilogue: Epilogue {
                        bias,
                        activation,
                        residual: residual.get().map(|r| (r.wrapping_add(residual_at), n)),
                        accumulate: false,
                    },
                }
            };
            b.set().run(ComputeTile(tile));
        };
        if rows * n * k < 1 << 15 {
            (0..tasks).for_each(task);
        } else {
            (0..tasks).into_par_iter().for_each(task);
        }
    };
    // SAFETY: the tasks write every row and column.
    unsafe { filled(rows * n, run) }
}

/// `A B^T + bias`, each image's rows cut into `heads` matrices: `[images, heads, rows / images, b.n() / heads]`.
pub fn product_by_heads(
    a: Rows,
    images: usize,
    b: &Packed,
    bias: Option<&[f32]>,
    heads: usize,
) -> Vec<f32> {
    let (n, k) = (b.n(), b.k());
    let head_width = n / heads.max(1);
    let rows = a.count / images.max(1);
    assert_eq!((heads * head_width, images * rows), (n, a.count), "heads");
    if !head_width.is_multiple_of(b.panels().width) {
        // a head does not begin with a panel
        let whole = product(a, b, bias, Activation::None, None);
        let mut output = vec![0.0; whole.len()];
        for (row, numbers) in whole.chunks_exact(n.max(1)).enumerate() {
            for (head, numbers) in numbers.chunks_exact(head_width).enumerate() {
                let place = ((row / rows) * heads + head) * rows + row % rows;
                output[place * head_width..][..head_width].copy_from_slice(numbers);
            }
        }
        return output;
    }
    let Rows { data, stride, .. } = a;
    assert!(
        a.count == 0 || data.len() >= (a.count - 1) * stride + k,
        "rows of A"
    );
    assert!(bias.is_none_or(|bias| bias.len() == n), "bias");
    let (a, panels) = (Shared::new(data.as_ptr()), Shared::new(b.panels()));
    let tiles = rows.div_ceil(TILE_ROWS);
    let of_head = head_width / b.panels().width;
    let run = |output: Shared<*mut f32>| {
        (0..images * tiles).into_par_iter().for_each(|task| {
            let (image, first) = (task / tiles, task % tiles * TILE_ROWS);
            for head in 0..heads {
                // SAFETY: the tile's rows lie in A; its part of the output is this task's and head's alone.
                let tile = unsafe {
                    let at = ((image * heads + head) * rows + first) * head_width;
                    Tile {
                        panels: (head * of_head, of_head),
                        epilogue: Epilogue {
                            bias,
                            ..Epilogue::default()
                        },
                        ..Tile::whole(
                            TILE_ROWS.min(rows - first),
                            (a.get().add((image * rows + first) * stride), stride),
                            panels.get(),
                            (output.get().add(at), head_width),
                        )
                    }
                };
                b.set().run(ComputeTile(tile));
            }
        });
    };
    // SAFETY: the tasks write every row of every head.
    unsafe { filled(images * rows * n, run) }
}

/// [`Tile::compute`] as a kernel.
struct ComputeTile<'a>(Tile<'a>);

impl WithSimd for ComputeTile<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // SAFETY: whoever made the tile promises what `Tile::compute` asks for.
        unsafe {
            if S::REGISTER_COUNT >= 32 {
                self.0.blocks::<S, 12>(simd);
            } else {
                self.0.blocks::<S, 6>(simd);
            }
        }
    }
}
