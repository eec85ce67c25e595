//! Max pooling of channels-last maps.

#![allow(unsafe_code)]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::convolution::MapSize;
use crate::scratch::{SharedPointer, filled};
use crate::simd::{InstructionSet, load, load_part};

/// The largest of every 2x2 block of pixels, channel by channel: `[B, H, W, C]` to `[B, H / 2, W / 2, C]`. `stride` is
/// the number of numbers from one pixel to the next; it is larger than `C` if the map is a part of a wider one.
pub fn max_pool2x2(set: InstructionSet, xs: &[f32], map: MapSize, stride: usize) -> Vec<f32> {
    let MapSize {
        batch,
        height,
        width,
        channels,
    } = map;
    let pixels = batch * height * width;
    assert!(
        pixels == 0 || stride >= channels && xs.len() >= (pixels - 1) * stride + channels,
        "the map does not have the given size"
    );
    assert!(
        height.is_multiple_of(2) && width.is_multiple_of(2),
        "the map has an odd size"
    );
    let (lines, columns) = (batch * height / 2, width / 2);
    let run = |output: SharedPointer<*mut f32>| {
        // two input lines per task; images follow each other without a gap
        (0..lines).into_par_iter().for_each(|line| {
            let first = 2 * line * width;
            set.run(PoolLine {
                xs,
                rows: [first, first + width],
                stride,
                channels,
                columns,
                output: output.get().wrapping_add(line * columns * channels),
            });
        });
    };
    // SAFETY: every task writes all of its line.
    unsafe { filled(lines * columns * channels, run) }
}

/// One line of the result.
struct PoolLine<'a> {
    xs: &'a [f32],
    /// The first pixel of each of the two lines.
    rows: [usize; 2],
    stride: usize,
    channels: usize,
    columns: usize,
    output: *mut f32,
}

impl WithSimd for PoolLine<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (channels, lanes) = (self.channels, S::F32_LANES);
        for column in 0..self.columns {
            let [top, bottom] = self.rows.map(|row| row + 2 * column);
            let block = [top, top + 1, bottom, bottom + 1]
                .map(|pixel| &self.xs[pixel * self.stride..][..channels]);
            for first in (0..channels).step_by(lanes) {
                let valid = lanes.min(channels - first);
                // SAFETY: `valid` channels from `first` on are inside every pixel and the output's line.
                unsafe {
                    let out = self.output.add(column * channels + first);
                    let at = |i: usize| block[i].as_ptr().add(first);
                    if valid == lanes {
                        let mut largest = load::<S>(at(0));
                        for i in 1..4 {
                            largest = simd.max_f32s(largest, load::<S>(at(i)));
                        }
                        out.cast::<S::f32s>().write_unaligned(largest);
                    } else {
                        let mut largest = load_part(simd, at(0), valid);
                        for i in 1..4 {
                            largest = simd.max_f32s(largest, load_part(simd, at(i), valid));
                        }
                        out.copy_from_nonoverlapping((&raw const largest).cast(), valid);
                    }
                }
            }
        }
    }
}
