//! Convolutions of channels-last maps as matrix products.

#![allow(unsafe_code)]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::activation::Activation;
use crate::packed::{Packed, Panels};
use crate::patches::{Division, Patches};
use crate::scratch::{Scratch, SharedPointer, filled};
use crate::tile::{Epilogue, Tile};

/// The sizes of a map `[B, H, W, C]`.
#[derive(Debug, Clone, Copy)]
pub struct MapSize {
    /// Number of images.
    pub batch: usize,
    /// Number of rows.
    pub height: usize,
    /// Number of columns.
    pub width: usize,
    /// Numbers per pixel.
    pub channels: usize,
}

/// A convolution with a square kernel of `side` rows and columns, an odd number, and zero padding of half of it.
/// `kernel` is `[output, side * side * C]`, row by row with channels last. Returns
/// `[B, ceil(H / stride), ceil(W / stride), output]`.
pub fn convolve(
    xs: &[f32],
    map: MapSize,
    (side, stride): (usize, usize),
    kernel: &Packed,
    bias: Option<&[f32]>,
    activation: Activation,
) -> Vec<f32> {
    let patches = Patches::new(xs, map, side, stride);
    assert_eq!(
        kernel.k(),
        patches.depth(),
        "the kernel has other channels than the map"
    );
    let cells = patches.cells();
    let division = patches.division();
    let run = |output: SharedPointer<*mut f32>| {
        (0..cells.div_ceil(division.cells))
            .into_par_iter()
            .for_each(|task| {
                let first = task * division.cells;
                kernel.set().run(Cells {
                    patches,
                    division,
                    kernel,
                    bias,
                    activation,
                    first,
                    count: division.cells.min(cells - first),
                    output,
                });
            });
    };
    // SAFETY: every task writes all of its cells.
    unsafe { filled(cells * kernel.n(), run) }
}

/// The output cells of one task.
struct Cells<'a> {
    patches: Patches<'a>,
    division: Division,
    kernel: &'a Packed,
    bias: Option<&'a [f32]>,
    activation: Activation,
    first: usize,
    count: usize,
    output: SharedPointer<*mut f32>,
}

impl WithSimd for Cells<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let mut scratch = Scratch::take();
        let [gathered] = scratch.parts([self.division.gathered(&self.patches)]);
        let (n, panels) = (self.kernel.n(), self.kernel.panels());
        let product = PatchProduct {
            patches: self.patches,
            division: self.division,
            cells: (self.first, self.count),
            kernel: panels,
            panels: (0, panels.count()),
            bias: self.bias,
            activation: self.activation,
            out: (self.output.get().wrapping_add(self.first * n), n),
        };
        // SAFETY: only this task writes these cells.
        unsafe { product.compute(simd, gathered, false) };
    }
}

/// Some panels of a convolution, for some cells.
pub(crate) struct PatchProduct<'a> {
    pub(crate) patches: Patches<'a>,
    pub(crate) division: Division,
    /// The first cell, and the number of cells.
    pub(crate) cells: (usize, usize),
    pub(crate) kernel: Panels,
    /// The first panel, and the number of panels.
    pub(crate) panels: (usize, usize),
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) activation: Activation,
    /// The output for the first cell and panel, and the numbers from one cell to the next.
    pub(crate) out: (*mut f32, usize),
}

impl PatchProduct<'_> {
    /// Gathers the patches in `gathered`, part by part, and adds up the products. If the patches have one part and
    /// `is_gathered`, they are still there from an earlier product.
    ///
    /// # Safety
    /// The output must be valid for writes of the panels' columns of all cells, and nothing else may write them at the
    /// same time. The panels must still exist, and must be packed for vectors like those of `simd`.
    #[inline(always)]
    pub(crate) unsafe fn compute<S: Simd>(&self, simd: S, gathered: &mut [f32], is_gathered: bool) {
        let channels = self.patches.channels();
        let all = self.patches.pixels();
        let (first, count) = self.cells;
        let mut start = 0;
        while start < all {
            let end = all.min(start + self.division.pixels);
            let (depth, is_last) = ((end - start) * channels, end == all);
            let gathered = &mut gathered[..count * depth];
            if !(is_gathered && start == 0 && is_last) {
                self.patches.gather(simd, first, start..end, gathered);
            }
            let tile = Tile {
                depth: (start * channels, depth),
                panels: self.panels,
                epilogue: Epilogue {
                    bias: self.bias.filter(|_| is_last),
                    activation: match is_last {
                        true => self.activation,
                        false => Activation::None,
                    },
                    residual: None,
                    accumulate: start > 0,
                },
                ..Tile::whole(count, (gathered.as_ptr(), depth), self.kernel, self.out)
            };
            // SAFETY: guaranteed by the caller; the patches are gathered.
            unsafe { tile.compute(simd) };
            start = end;
        }
    }
}

/// A transposed convolution with kernel size 2 and stride 2. Each of `kernels` `[2 * output, C]` computes one row of
/// every 2x2 block, the left pixel's channels first. `bias` is `[2 * output]`. `addend` has the size of the result or of
/// one image of it, and is added before the activation. Returns `[B, 2 H, 2 W, output]`.
pub fn upscale2x(
    xs: &[f32],
    map: MapSize,
    kernels: [&Packed; 2],
    bias: &[f32],
    addend: Option<&[f32]>,
    activation: Activation,
) -> Vec<f32> {
    let MapSize {
        width, channels, ..
    } = map;
    let lines = map.batch * map.height;
    assert_eq!(
        xs.len(),
        lines * width * channels,
        "the map does not have the given size"
    );
    let n = kernels[0].n();
    assert!(
        kernels
            .iter()
            .all(|kernel| (kernel.n(), kernel.k()) == (n, channels)),
        "the kernels have different sizes, or other channels than the map"
    );
    let line_length = width * n;
    // lines after which the addend repeats
    let period = addend.map_or(2 * lines, |addend| addend.len() / line_length.max(1));
    assert!(
        addend.is_none_or(|a| a.len() == period * line_length)
            && (period == 2 * map.height || period == 2 * lines),
        "the addend does not have the size of the result or of one image"
    );
    let run = |output: SharedPointer<*mut f32>| {
        (0..2 * lines).into_par_iter().for_each(|line| {
            let kernel = kernels[line % 2];
            kernel.set().run(Line {
                xs: &xs[line / 2 * width * channels..][..width * channels],
                width,
                kernel,
                bias,
                addend: addend.map(|a| &a[line % period * line_length..][..line_length]),
                activation,
                // SAFETY: a line of the output.
                output: unsafe { output.get().add(line * line_length) },
            });
        });
    };
    // SAFETY: every task writes all of its line.
    unsafe { filled(2 * lines * line_length, run) }
}

/// One line of an upscaled map.
struct Line<'a> {
    xs: &'a [f32],
    width: usize,
    kernel: &'a Packed,
    bias: &'a [f32],
    addend: Option<&'a [f32]>,
    activation: Activation,
    output: *mut f32,
}

impl WithSimd for Line<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let tile = Tile {
            epilogue: Epilogue {
                bias: Some(self.bias),
                activation: self.activation,
                residual: self.addend.map(|a| (a.as_ptr(), self.kernel.n())),
                ..Epilogue::default()
            },
            ..Tile::whole(
                self.width,
                (self.xs.as_ptr(), self.kernel.k()),
                self.kernel.panels(),
                (self.output, self.kernel.n()),
            )
        };
        // SAFETY: only this task writes the line.
        unsafe { tile.compute(simd) };
    }
}
