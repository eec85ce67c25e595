//! Products of whole matrices, split into tiles among the threads.

#![allow(unsafe_code)]

use rayon::prelude::*;

use crate::activation::Activation;
use crate::packed::Packed;
use crate::scratch::{SharedPointer, filled};
use crate::tile::{ComputeTile, Epilogue, TILE_ROWS, Tile};

/// A factor of a product: `count` rows of numbers, `stride` numbers apart.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// The numbers, from the first row on.
    pub data: &'a [f32],
    /// Number of rows.
    pub count: usize,
    /// Numbers from one row to the next.
    pub stride: usize,
}

/// `activation(A B^T + bias + residual)`, in rows of `b.n()` numbers. The residual has the same number of rows, or a
/// divisor of it; it is then repeated.
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
        "A is too short for its rows"
    );
    assert!(
        bias.is_none_or(|bias| bias.len() == n),
        "the bias does not have one number per column"
    );
    // number of rows after which the residual repeats
    let period = residual.map_or(rows, |residual| residual.len() / n.max(1));
    assert!(
        residual.is_none_or(|r| r.len() == period * n && rows.is_multiple_of(period.max(1))),
        "the residual cannot be repeated to the size of the result"
    );
    let of_period = period.div_ceil(TILE_ROWS);
    let (count, width) = (b.panels().count(), b.panels().width);
    let (a, panels) = (
        SharedPointer::new(data.as_ptr()),
        SharedPointer::new(b.panels()),
    );
    let residual = SharedPointer::new(residual.map(<[f32]>::as_ptr));
    // with few rows, the panels are split too, so that every thread has work
    let tiles = of_period * (rows / period.max(1));
    let groups = match tiles {
        0..8 => count.min(16usize.div_ceil(tiles.max(1))).max(1),
        _ => 1,
    };
    let group = count.div_ceil(groups);
    let tasks = tiles * groups;
    let run = |output: SharedPointer<*mut f32>| {
        let task = |index: usize| {
            let tile = index / groups;
            // tiles start again at each repetition of the residual
            let in_period = tile % of_period * TILE_ROWS;
            let first_row = tile / of_period * period + in_period;
            let first_panel = (index % groups * group).min(count);
            let at = first_row * n + first_panel * width;
            let residual_at = in_period * n + first_panel * width;
            // SAFETY: the tile's rows and columns are inside the matrices, whose sizes are checked above; no other
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

/// `A B^T + bias`, with each image's rows split into `heads` matrices:
/// `[images, heads, rows / images, b.n() / heads]`.
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
    assert_eq!(
        (heads * head_width, images * rows),
        (n, a.count),
        "the rows or columns cannot be split evenly"
    );
    if !head_width.is_multiple_of(b.panels().width) {
        // heads do not start at panel boundaries
        let unsplit = product(a, b, bias, Activation::None, None);
        let mut output = vec![0.0; unsplit.len()];
        for (row, numbers) in unsplit.chunks_exact(n.max(1)).enumerate() {
            for (head, numbers) in numbers.chunks_exact(head_width).enumerate() {
                let output_row = ((row / rows) * heads + head) * rows + row % rows;
                output[output_row * head_width..][..head_width].copy_from_slice(numbers);
            }
        }
        return output;
    }
    let Rows { data, stride, .. } = a;
    assert!(
        a.count == 0 || data.len() >= (a.count - 1) * stride + k,
        "A is too short for its rows"
    );
    assert!(
        bias.is_none_or(|bias| bias.len() == n),
        "the bias does not have one number per column"
    );
    let (a, panels) = (
        SharedPointer::new(data.as_ptr()),
        SharedPointer::new(b.panels()),
    );
    let tiles = rows.div_ceil(TILE_ROWS);
    let of_head = head_width / b.panels().width;
    let run = |output: SharedPointer<*mut f32>| {
        (0..images * tiles).into_par_iter().for_each(|task| {
            let (image, first) = (task / tiles, task % tiles * TILE_ROWS);
            for head in 0..heads {
                // SAFETY: the tile's rows are inside A; only this task writes this head's part of the output.
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
