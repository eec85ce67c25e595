//! Convolutions of channels-last maps as matrix products.

#![allow(unsafe_code)]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::activation::Activation;
use crate::packed::Packed;
use crate::scratch::{Scratch, SharedPointer, filled};
use crate::tile::{Epilogue, Tile};

/// Size of the patches that a task gathers at once, in numbers; they fit into the second-level cache.
const GATHERED_NUMBERS: usize = 48 << 10;

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

/// A 3x3 convolution with a zero padding of one. `kernel` is `[output, 9 * C]`, row by row with channels last.
/// Returns `[B, ceil(H / stride), ceil(W / stride), output]`.
pub fn conv3x3(
    xs: &[f32],
    map: MapSize,
    kernel: &Packed,
    bias: Option<&[f32]>,
    stride: usize,
    activation: Activation,
) -> Vec<f32> {
    let size = map.batch * map.height * map.width * map.channels;
    assert_eq!(xs.len(), size, "the map does not have the given size");
    assert_eq!(
        kernel.k(),
        9 * map.channels,
        "the kernel has other channels"
    );
    let (rows, columns) = (map.height.div_ceil(stride), map.width.div_ceil(stride));
    let cells = map.batch * rows * columns;
    let count = (GATHERED_NUMBERS / kernel.k().max(1)).clamp(6, 96) / 6 * 6;
    let run = |output: SharedPointer<*mut f32>| {
        (0..cells.div_ceil(count)).into_par_iter().for_each(|task| {
            let first = task * count;
            kernel.set().run(Patches {
                xs,
                map,
                kernel,
                bias,
                stride,
                activation,
                first,
                count: count.min(cells - first),
                output,
            });
        });
    };
    // SAFETY: every task writes all of its cells.
    unsafe { filled(cells * kernel.n(), run) }
}

/// The output cells of one task.
struct Patches<'a> {
    xs: &'a [f32],
    map: MapSize,
    kernel: &'a Packed,
    bias: Option<&'a [f32]>,
    stride: usize,
    activation: Activation,
    first: usize,
    count: usize,
    output: SharedPointer<*mut f32>,
}

impl WithSimd for Patches<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let MapSize {
            height,
            width,
            channels,
            ..
        } = self.map;
        let columns = width.div_ceil(self.stride);
        let rows = height.div_ceil(self.stride);
        let depth = self.kernel.k();
        let mut scratch = Scratch::take();
        let [patches] = scratch.parts([self.count * depth]);
        for (i, patch) in patches.chunks_exact_mut(depth.max(1)).enumerate() {
            let cell = self.first + i;
            let image = cell / (rows * columns);
            let (row, column) = (cell / columns % rows, cell % columns);
            for (k, out) in patch.chunks_exact_mut(channels).enumerate() {
                let y = (row * self.stride + k / 3).wrapping_sub(1);
                let x = (column * self.stride + k % 3).wrapping_sub(1);
                if y < height && x < width {
                    let at = ((image * height + y) * width + x) * channels;
                    out.copy_from_slice(&self.xs[at..at + channels]);
                } else {
                    out.fill(0.0);
                }
            }
        }
        let n = self.kernel.n();
        // SAFETY: only this task writes these cells.
        unsafe {
            let tile = Tile {
                epilogue: Epilogue {
                    bias: self.bias,
                    activation: self.activation,
                    ..Epilogue::default()
                },
                ..Tile::whole(
                    self.count,
                    (patches.as_ptr(), depth),
                    self.kernel.panels(),
                    (self.output.get().add(self.first * n), n),
                )
            };
            tile.compute(simd);
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
