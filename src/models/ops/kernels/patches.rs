//! The patches of a map under the kernel of a convolution, gathered as rows of a matrix product (im2col).

use std::ops::Range;

use pulp::Simd;

use crate::convolution::MapSize;
use crate::simd::copy;
use crate::tile::TILE_ROWS;

/// Size of the patches that a task gathers at once, in numbers; they fit into the second-level cache.
const GATHERED_NUMBERS: usize = 48 << 10;

/// Maximum number of cells that a task gathers at once.
const MAX_CELLS: usize = 192;

/// A map, and a square kernel that moves over it. The map is padded with zeros by half of the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patches<'a> {
    xs: &'a [f32],
    map: MapSize,
    /// Rows, and columns, of the kernel; an odd number.
    side: usize,
    stride: usize,
}

impl<'a> Patches<'a> {
    /// Checks the sizes.
    pub(crate) fn new(xs: &'a [f32], map: MapSize, side: usize, stride: usize) -> Self {
        assert_eq!(
            xs.len(),
            map.batch * map.height * map.width * map.channels,
            "the map does not have the given size"
        );
        assert!(
            side % 2 == 1 && stride > 0,
            "the kernel has no centre, or does not move"
        );
        Self {
            xs,
            map,
            side,
            stride,
        }
    }

    /// Rows and columns of the result.
    fn result(&self) -> (usize, usize) {
        (
            self.map.height.div_ceil(self.stride),
            self.map.width.div_ceil(self.stride),
        )
    }

    /// Cells of the result, of all images.
    pub(crate) fn cells(&self) -> usize {
        let (rows, columns) = self.result();
        self.map.batch * rows * columns
    }

    /// Numbers per pixel.
    pub(crate) fn channels(&self) -> usize {
        self.map.channels
    }

    /// Pixels per patch.
    pub(crate) fn pixels(&self) -> usize {
        self.side * self.side
    }

    /// Numbers per patch.
    pub(crate) fn depth(&self) -> usize {
        self.pixels() * self.map.channels
    }

    /// How the cells and the pixels of the patches are divided.
    pub(crate) fn division(&self) -> Division {
        let (all, channels) = (self.pixels(), self.map.channels.max(1));
        // patches that would leave room for only a few cells are gathered in parts
        let fitting = (GATHERED_NUMBERS / TILE_ROWS / channels).max(1);
        let mut pixels = all.div_ceil(all.div_ceil(fitting));
        if pixels < all && !channels.is_multiple_of(2) {
            // numbers may be stored in pairs
            pixels = pixels.next_multiple_of(2).min(all);
        }
        // enough tasks for all threads
        let of_thread = self.cells().div_ceil(4 * rayon::current_num_threads());
        let fitting = (GATHERED_NUMBERS / (pixels * channels)).clamp(6, MAX_CELLS);
        let cells = match fitting.min(of_thread) {
            // registers hold blocks of 6 or 12 rows
            cells @ 0..12 => cells.clamp(1, 6),
            cells => cells / 12 * 12,
        };
        Division { cells, pixels }
    }

    /// Copies the given pixels of the patches of the cells from `first` on to the rows of `out`.
    #[inline(always)]
    pub(crate) fn gather<S: Simd>(
        &self,
        simd: S,
        first: usize,
        pixels: Range<usize>,
        out: &mut [f32],
    ) {
        let MapSize {
            height,
            width,
            channels,
            ..
        } = self.map;
        let (rows, columns) = self.result();
        let (side, half) = (self.side, self.side / 2);
        let row_length = pixels.len() * channels;
        if row_length == 0 {
            return;
        }
        let (mut image, mut row) = (first / (rows * columns), first / columns % rows);
        let mut column = first % columns;
        for out in out.chunks_exact_mut(row_length) {
            // the kernel's columns that are inside the map
            let left = column * self.stride;
            let inside = half.saturating_sub(left)..side.min(width + half - left);
            let mut rest = out;
            for k in pixels.start / side..pixels.end.div_ceil(side) {
                let kernel_columns = pixels.start.max(k * side) - k * side
                    ..pixels.end.min((k + 1) * side) - k * side;
                let (line, after) = rest.split_at_mut(kernel_columns.len() * channels);
                rest = after;
                let y = (row * self.stride + k).wrapping_sub(half);
                let start = inside.start.max(kernel_columns.start);
                let end = inside.end.min(kernel_columns.end);
                if y >= height || start >= end {
                    line.fill(0.0);
                    continue;
                }
                let at = ((image * height + y) * width + left + start - half) * channels;
                let pixels = &self.xs[at..][..(end - start) * channels];
                if pixels.len() == line.len() {
                    copy(simd, pixels, line);
                    continue;
                }
                let (before, rest) = line.split_at_mut((start - kernel_columns.start) * channels);
                let (line, after) = rest.split_at_mut(pixels.len());
                before.fill(0.0);
                line.copy_from_slice(pixels);
                after.fill(0.0);
            }
            column += 1;
            if column == columns {
                column = 0;
                row += 1;
                if row == rows {
                    row = 0;
                    image += 1;
                }
            }
        }
    }
}

/// How the work of a convolution is divided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Division {
    /// Cells of a task.
    pub(crate) cells: usize,
    /// Pixels of a patch that are gathered at once.
    pub(crate) pixels: usize,
}

impl Division {
    /// Size of the buffer for a task's patches, in numbers.
    pub(crate) fn gathered(&self, patches: &Patches) -> usize {
        self.cells * self.pixels * patches.channels()
    }
}
