//! Depthwise 3x3 convolution of channels-last maps.

#![allow(unsafe_code)]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::convolution::Map;
use super::gemm::{Activation, activate, load, load_part};
use super::scratch::{Shared, filled};
use super::simd::InstructionSet;

/// Convolves every channel with its own kernel `[9, C]`, zero-padded by one. Returns `[B, ceil(H / stride), ceil(W
/// / stride), C]`.
pub(crate) fn depthwise_conv3x3(
    set: InstructionSet,
    xs: &[f32],
    map: Map,
    (kernel, bias): (&[f32], &[f32]),
    stride: usize,
    activation: Activation,
) -> Vec<f32> {
    let Map {
        batch,
        height,
        width,
        channels,
    } = map;
    assert_eq!(xs.len(), batch * height * width * channels, "map");
    assert_eq!(
        (kernel.len(), bias.len()),
        (9 * channels, channels),
        "kernel"
    );
    let (rows, columns) = (height.div_ceil(stride), width.div_ceil(stride));
    let run = |output: Shared<*mut f32>| {
        (0..batch * rows).into_par_iter().for_each(|line| {
            let image = line / rows;
            set.run(Line {
                xs: &xs[image * height * width * channels..][..height * width * channels],
                map,
                kernel,
                bias,
                stride,
                activation,
                row: line % rows,
                columns,
                output: Shared::new(output.get().wrapping_add(line * columns * channels)),
            });
        });
    };
    // SAFETY: every task writes its line.
    unsafe { filled(batch * rows * columns * channels, run) }
}

/// One line of the result.
struct Line<'a> {
    xs: &'a [f32],
    map: Map,
    kernel: &'a [f32],
    bias: &'a [f32],
    stride: usize,
    activation: Activation,
    row: usize,
    columns: usize,
    output: Shared<*mut f32>,
}

impl WithSimd for Line<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Map {
            height,
            width,
            channels,
            ..
        } = self.map;
        let lanes = S::F32_LANES;
        for column in 0..self.columns {
            // the cells of the kernel that lie in the map, and the pixels below them
            let mut cells = [(0usize, 0usize); 9];
            let mut count = 0;
            for k in 0..9 {
                // a pixel at the edge has no neighbour there
                let y = (self.row * self.stride + k / 3).wrapping_sub(1);
                let x = (column * self.stride + k % 3).wrapping_sub(1);
                if y < height && x < width {
                    cells[count] = (k * channels, (y * width + x) * channels);
                    count += 1;
                }
            }
            let cells = &cells[..count];
            for first in (0..channels).step_by(lanes) {
                let valid = lanes.min(channels - first);
                // SAFETY: `valid` channels from `first` on are in the bias, in every cell of the kernel, in every
                // pixel, and in the output's line.
                unsafe {
                    let out = self.output.get().add(column * channels + first);
                    let at = |data: &[f32], from: usize| data.as_ptr().wrapping_add(from + first);
                    if valid == lanes {
                        let mut sum = load::<S>(at(self.bias, 0));
                        for (kernel, pixel) in cells {
                            let kernel = load::<S>(at(self.kernel, *kernel));
                            let pixel = load::<S>(at(self.xs, *pixel));
                            sum = simd.mul_add_e_f32s(kernel, pixel, sum);
                        }
                        let sum = activate(simd, self.activation, sum);
                        out.cast::<S::f32s>().write_unaligned(sum);
                    } else {
                        let mut sum = load_part(simd, at(self.bias, 0), valid);
                        for (kernel, pixel) in cells {
                            let kernel = load_part(simd, at(self.kernel, *kernel), valid);
                            let pixel = load_part(simd, at(self.xs, *pixel), valid);
                            sum = simd.mul_add_e_f32s(kernel, pixel, sum);
                        }
                        let sum = activate(simd, self.activation, sum);
                        out.copy_from_nonoverlapping((&raw const sum).cast(), valid);
                    }
                }
            }
        }
    }
}
