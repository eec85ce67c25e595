//! Depthwise convolutions of channels-last maps.

#![allow(unsafe_code)]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::activation::{Activation, activate};
use crate::convolution::MapSize;
use crate::scratch::{SharedPointer, filled};
use crate::simd::{InstructionSet, load, load_part, multiply_add};

/// Maximum number of cells of a kernel.
const MAX_CELLS: usize = 25;

/// Convolves every channel with its own kernel `[SIDE * SIDE, C]`, where `SIDE` is 3 or 5, with zero padding of half of
/// it. Returns `[B, ceil(H / stride), ceil(W / stride), C]`.
pub fn depthwise_convolve<const SIDE: usize>(
    set: InstructionSet,
    xs: &[f32],
    map: MapSize,
    (kernel, bias): (&[f32], &[f32]),
    stride: usize,
    activation: Activation,
) -> Vec<f32> {
    let MapSize {
        batch,
        height,
        width,
        channels,
    } = map;
    assert_eq!(
        xs.len(),
        batch * height * width * channels,
        "the map does not have the given size"
    );
    assert_eq!(
        (kernel.len(), bias.len()),
        (SIDE * SIDE * channels, channels),
        "the kernel or the bias has other channels than the map"
    );
    let (rows, columns) = (height.div_ceil(stride), width.div_ceil(stride));
    let line_length = width * channels;
    let run = |output: SharedPointer<*mut f32>| {
        (0..batch * rows).into_par_iter().for_each(|line| {
            let (image, row) = (line / rows, line % rows);
            // a row at the edge of the map has no neighbour on one side
            let input_rows = std::array::from_fn(|k| {
                let y = (row * stride + k).wrapping_sub(SIDE / 2);
                let at = (image * height + y.min(height)) * line_length;
                (y < height).then(|| &xs[at..][..line_length])
            });
            set.run(ConvolveLine(Line::<SIDE> {
                rows: input_rows,
                width,
                left: SIDE / 2,
                kernel,
                bias,
                stride,
                activation,
                columns,
                output: output.get().wrapping_add(line * columns * channels),
            }));
        });
    };
    // SAFETY: every task writes all of its line.
    unsafe { filled(batch * rows * columns * channels, run) }
}

/// One line of the result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'a, const SIDE: usize> {
    /// The rows of pixels under the kernel; `None` outside the map.
    pub(crate) rows: [Option<&'a [f32]>; SIDE],
    /// Number of pixels in these rows.
    pub(crate) width: usize,
    /// Number of kernel columns that are left of these rows at the first pixel.
    pub(crate) left: usize,
    /// `[SIDE * SIDE, C]`
    pub(crate) kernel: &'a [f32],
    /// `[C]`
    pub(crate) bias: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) activation: Activation,
    /// Number of pixels in the result.
    pub(crate) columns: usize,
    pub(crate) output: *mut f32,
}

struct ConvolveLine<'a, const SIDE: usize>(Line<'a, SIDE>);

impl<const SIDE: usize> WithSimd for ConvolveLine<'_, SIDE> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // SAFETY: the line is part of the output.
        unsafe { self.0.convolve(simd) };
    }
}

impl<const SIDE: usize> Line<'_, SIDE> {
    /// Computes the line.
    ///
    /// # Safety
    /// `output` must be valid for writes of `columns` pixels, and nothing else may write them at the same time.
    #[inline(always)]
    pub(crate) unsafe fn convolve<S: Simd>(&self, simd: S) {
        const { assert!(SIDE * SIDE <= MAX_CELLS) };
        let channels = self.bias.len();
        assert_eq!(
            self.kernel.len(),
            SIDE * SIDE * channels,
            "the kernel has other channels than the bias"
        );
        for row in self.rows.iter().flatten() {
            assert!(
                row.len() >= self.width * channels,
                "an input row is too short"
            );
        }
        let lanes = S::F32_LANES;
        for column in 0..self.columns {
            // the kernel cells inside the map, and the pixels under them
            let mut cells = [(0usize, [].as_slice()); MAX_CELLS];
            let mut count = 0;
            for k in 0..SIDE * SIDE {
                let x = (column * self.stride + k % SIDE).wrapping_sub(self.left);
                if let Some(row) = self.rows[k / SIDE].filter(|_| x < self.width) {
                    cells[count] = (k * channels, &row[x * channels..][..channels]);
                    count += 1;
                }
            }
            let cells = &cells[..count];
            for first in (0..channels).step_by(lanes) {
                let valid = lanes.min(channels - first);
                // SAFETY: `valid` channels from `first` on are inside the bias, every kernel cell, every pixel, and
                // the output's line.
                unsafe {
                    let out = self.output.add(column * channels + first);
                    let at = |data: &[f32], from: usize| data.as_ptr().wrapping_add(from + first);
                    if valid == lanes {
                        let mut sum = load::<S>(at(self.bias, 0));
                        for (kernel, pixel) in cells {
                            let kernel = load::<S>(at(self.kernel, *kernel));
                            sum = multiply_add(simd, kernel, load::<S>(at(pixel, 0)), sum);
                        }
                        let sum = activate(simd, self.activation, sum);
                        out.cast::<S::f32s>().write_unaligned(sum);
                    } else {
                        let mut sum = load_part(simd, at(self.bias, 0), valid);
                        for (kernel, pixel) in cells {
                            let kernel = load_part(simd, at(self.kernel, *kernel), valid);
                            let pixel = load_part(simd, at(pixel, 0), valid);
                            sum = multiply_add(simd, kernel, pixel, sum);
                        }
                        let sum = activate(simd, self.activation, sum);
                        out.copy_from_nonoverlapping((&raw const sum).cast(), valid);
                    }
                }
            }
        }
    }
}
