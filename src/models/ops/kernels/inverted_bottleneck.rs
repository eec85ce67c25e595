//! A wide depthwise convolution between two linear layers, without storing the wide maps (Sandler et al. 2018,
//! "MobileNetV2", <https://arxiv.org/abs/1801.04381>).

#![allow(unsafe_code)]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::activation::Activation;
use crate::convolution::MapSize;
use crate::depthwise::Line;
use crate::packed::Packed;
use crate::scratch::{Scratch, SharedPointer, filled};
use crate::tile::{Epilogue, Tile};

/// Rows of the result that a task computes.
const TASK_ROWS: usize = 32;
/// Columns of the result that a task computes; three rows of the wide map fit into the second-level cache.
const TASK_COLUMNS: usize = 64;

/// The weights of a block.
#[derive(Debug, Clone, Copy)]
pub struct Layers<'a> {
    /// `[hidden, C]`
    pub widen: &'a Packed,
    /// `[hidden]`
    pub widen_bias: &'a [f32],
    /// `[9, hidden]`
    pub kernel: &'a [f32],
    /// `[hidden]`
    pub kernel_bias: &'a [f32],
    /// 1 or 2.
    pub stride: usize,
    /// `[output, hidden]`
    pub narrow: &'a Packed,
    /// `[output]`
    pub narrow_bias: &'a [f32],
}

/// `activation(narrow(gelu(depthwise(gelu(widen(xs))))) + residual)`: `[B, H, W, C]` to
/// `[B, ceil(H / stride), ceil(W / stride), output]`, which is also the residual's shape.
pub fn inverted_bottleneck(
    xs: &[f32],
    map: MapSize,
    layers: Layers,
    residual: Option<&[f32]>,
    activation: Activation,
) -> Vec<f32> {
    let stride = layers.stride;
    let (rows, columns) = (map.height.div_ceil(stride), map.width.div_ceil(stride));
    let (hidden, output) = (layers.widen.n(), layers.narrow.n());
    let length = map.batch * rows * columns * output;
    let size = map.batch * map.height * map.width * map.channels;
    assert_eq!(
        (xs.len(), layers.widen.k()),
        (size, map.channels),
        "the map does not have the given size"
    );
    assert_eq!(
        (layers.narrow.k(), layers.narrow.set()),
        (hidden, layers.widen.set()),
        "the layers do not fit each other"
    );
    let biases = (
        layers.widen_bias.len(),
        layers.kernel.len(),
        layers.kernel_bias.len(),
        layers.narrow_bias.len(),
    );
    assert_eq!(
        biases,
        (hidden, 9 * hidden, hidden, output),
        "a bias or the kernel has another length"
    );
    assert!(
        residual.is_none_or(|r| r.len() == length),
        "the residual does not have the size of the result"
    );
    let (down, across) = (rows.div_ceil(TASK_ROWS), columns.div_ceil(TASK_COLUMNS));
    let run = |out: SharedPointer<*mut f32>| {
        (0..map.batch * down * across)
            .into_par_iter()
            .for_each(|task| {
                let image = task / (down * across);
                let (band, block) = (task / across % down, task % across);
                let top = band * TASK_ROWS;
                let left = block * TASK_COLUMNS;
                let of_image = map.height * map.width * map.channels;
                layers.widen.set().run(Block {
                    xs: &xs[image * of_image..][..of_image],
                    map,
                    layers,
                    residual,
                    activation,
                    rows: (top, rows.min(top + TASK_ROWS)),
                    columns: (left, columns.min(left + TASK_COLUMNS)),
                    first_cell: image * rows * columns,
                    out,
                });
            });
    };
    // SAFETY: every task writes all of its cells.
    unsafe { filled(length, run) }
}

/// A rectangle of the result, computed by one task.
struct Block<'a> {
    /// The pixels of one image.
    xs: &'a [f32],
    map: MapSize,
    layers: Layers<'a>,
    residual: Option<&'a [f32]>,
    activation: Activation,
    rows: (usize, usize),
    columns: (usize, usize),
    /// The index of the image's first cell in the result.
    first_cell: usize,
    out: SharedPointer<*mut f32>,
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let layers = &self.layers;
        let MapSize {
            height,
            width,
            channels,
            ..
        } = self.map;
        let (hidden, stride) = (layers.widen.n(), layers.stride);
        let count = self.columns.1 - self.columns.0;
        // the columns of the wide map under the kernel
        let first = (self.columns.0 * stride).saturating_sub(1);
        let last = ((self.columns.1 - 1) * stride + 2).min(width);
        let wide = last - first;
        let mut scratch = Scratch::take();
        let [first_row, second_row, third_row, convolved] =
            scratch.parts([wide * hidden, wide * hidden, wide * hidden, count * hidden]);
        let wide_rows = [first_row, second_row, third_row];
        // the first row of the wide map that is not computed yet
        let mut next = (self.rows.0 * stride).saturating_sub(1);
        for row in self.rows.0..self.rows.1 {
            let end = (row * stride + 2).min(height);
            for y in next..end {
                let tile = Tile {
                    epilogue: Epilogue {
                        bias: Some(layers.widen_bias),
                        activation: Activation::Gelu,
                        ..Epilogue::default()
                    },
                    ..Tile::whole(
                        wide,
                        (
                            self.xs[(y * width + first) * channels..][..wide * channels].as_ptr(),
                            channels,
                        ),
                        layers.widen.panels(),
                        (wide_rows[y % 3].as_mut_ptr(), hidden),
                    )
                };
                // SAFETY: pixels of the image, and one of the buffered rows.
                unsafe { tile.compute(simd) };
            }
            next = end;
            let input_rows = [0, 1, 2].map(|k| {
                let y = (row * stride + k).wrapping_sub(1);
                (y < height).then(|| &*wide_rows[y % 3])
            });
            let line = Line::<3> {
                rows: input_rows,
                width: wide,
                left: usize::from(self.columns.0 == 0),
                kernel: layers.kernel,
                bias: layers.kernel_bias,
                stride,
                activation: Activation::Gelu,
                columns: count,
                output: convolved.as_mut_ptr(),
            };
            // SAFETY: the line is as long as the buffer.
            unsafe { line.convolve(simd) };
            let columns = width.div_ceil(stride);
            let output = layers.narrow.n();
            let at = (self.first_cell + row * columns + self.columns.0) * output;
            let residual = self.residual.map(|r| &r[at..][..count * output]);
            let tile = Tile {
                epilogue: Epilogue {
                    bias: Some(layers.narrow_bias),
                    activation: self.activation,
                    residual: residual.map(|r| (r.as_ptr(), output)),
                    ..Epilogue::default()
                },
                ..Tile::whole(
                    count,
                    (convolved.as_ptr(), hidden),
                    layers.narrow.panels(),
                    (self.out.get().wrapping_add(at), output),
                )
            };
            // SAFETY: only this task writes these cells.
            unsafe { tile.compute(simd) };
        }
    }
}
