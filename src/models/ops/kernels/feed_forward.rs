//! Two linear layers with an activation between them, without storing the full hidden tensor.

#![allow(unsafe_code)]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::activation::Activation;
use crate::gemm::{Rows, product};
use crate::packed::{Packed, Panels};
use crate::scratch::{Scratch, SharedPointer, filled};
use crate::tile::{Epilogue, TILE_ROWS, Tile};

/// Hidden channels that are computed at once; with a tile's rows they fit into the second-level cache.
const HIDDEN_CHANNELS: usize = 512;

/// `W2 activation(W1 x + b1) + b2 + residual` for `rows` rows of `x`. The residual has the result's shape.
pub fn feed_forward(
    x: &[f32],
    rows: usize,
    (w1, b1): (&Packed, Option<&[f32]>),
    activation: Activation,
    (w2, b2): (&Packed, Option<&[f32]>),
    residual: Option<&[f32]>,
) -> Vec<f32> {
    let (input, hidden, output) = (w1.k(), w1.n(), w2.n());
    assert_eq!(
        (w2.k(), w2.set()),
        (hidden, w1.set()),
        "the layers do not fit each other"
    );
    assert_eq!(
        x.len(),
        rows * input,
        "the input does not have the given rows"
    );
    assert!(
        residual.is_none_or(|r| r.len() == rows * output),
        "the residual does not have the size of the result"
    );
    // with few rows, tiles are not faster; run the layers one by one, each split among the threads
    if rows < 4 * TILE_ROWS {
        let rows_of = |data, stride| Rows {
            data,
            count: rows,
            stride,
        };
        let widened = product(rows_of(x, input), w1, b1, activation, None);
        return product(
            rows_of(&widened, hidden),
            w2,
            b2,
            Activation::None,
            residual,
        );
    }
    let x = SharedPointer::new(x.as_ptr());
    let residual = SharedPointer::new(residual.map(<[f32]>::as_ptr));
    let tiles = rows.div_ceil(TILE_ROWS);
    let run = |c: SharedPointer<*mut f32>| {
        (0..tiles).into_par_iter().for_each(|tile| {
            let first = tile * TILE_ROWS;
            // SAFETY: the tile's rows are inside the input, the output and the residual.
            let tile = unsafe {
                FeedForwardTile {
                    rows: TILE_ROWS.min(rows - first),
                    x: x.get().add(first * input),
                    w1,
                    b1,
                    activation,
                    w2,
                    b2,
                    residual: residual.get().map(|r| r.add(first * output)),
                    c: c.get().add(first * output),
                }
            };
            w1.set().run(tile);
        });
    };
    // SAFETY: every tile writes all of its rows.
    unsafe { filled(rows * output, run) }
}

/// The rows of one task.
struct FeedForwardTile<'a> {
    rows: usize,
    x: *const f32,
    w1: &'a Packed,
    b1: Option<&'a [f32]>,
    activation: Activation,
    w2: &'a Packed,
    b2: Option<&'a [f32]>,
    residual: Option<*const f32>,
    c: *mut f32,
}

impl WithSimd for FeedForwardTile<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (input, hidden, output) = (self.w1.k(), self.w1.n(), self.w2.n());
        let width = Panels::width(S::F32_LANES);
        let step = HIDDEN_CHANNELS.next_multiple_of(width);
        let mut scratch = Scratch::take();
        let [widened] = scratch.parts([self.rows * step]);
        let mut start = 0;
        loop {
            let count = step.min(hidden - start);
            let is_last = start + count >= hidden;
            let widen = Tile {
                panels: (start / width, count.div_ceil(width)),
                epilogue: Epilogue {
                    bias: self.b1,
                    activation: self.activation,
                    ..Epilogue::default()
                },
                ..Tile::whole(
                    self.rows,
                    (self.x, input),
                    self.w1.panels(),
                    (widened.as_mut_ptr(), step),
                )
            };
            let narrow = Tile {
                depth: (start, count),
                epilogue: Epilogue {
                    bias: self.b2.filter(|_| is_last),
                    residual: self.residual.filter(|_| is_last).map(|r| (r, output)),
                    accumulate: start > 0,
                    ..Epilogue::default()
                },
                ..Tile::whole(
                    self.rows,
                    (widened.as_ptr(), step),
                    self.w2.panels(),
                    (self.c, output),
                )
            };
            // SAFETY: only this task uses the rows; hidden numbers are written before they are read.
            unsafe {
                widen.compute(simd);
                narrow.compute(simd);
            }
            start += count;
            if is_last {
                break;
            }
        }
    }
}
