//! A convolution to many channels and a linear layer to few, without storing the wide map (Gupta and Tan 2020,
//! "EfficientNet-EdgeTPU"; `FusedMBConv` of EfficientViT).

#![allow(unsafe_code)]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::activation::Activation;
use crate::convolution::{MapSize, PatchProduct};
use crate::packed::{Packed, Panels};
use crate::patches::{Division, Patches};
use crate::scratch::{Scratch, SharedPointer, filled};
use crate::tile::{Epilogue, Tile};

/// Wide channels that are computed at once; with a task's patches they fit into the second-level cache.
const WIDE_CHANNELS: usize = 512;

/// The layers of a block.
#[derive(Debug, Clone, Copy)]
pub struct Layers<'a> {
    /// `[wide, side * side * C]`
    pub kernel: &'a Packed,
    /// `[wide]`
    pub bias: Option<&'a [f32]>,
    /// Rows, and columns, of the kernel; an odd number.
    pub side: usize,
    pub stride: usize,
    pub activation: Activation,
    /// `[output, wide]`
    pub narrow: &'a Packed,
    /// `[output]`
    pub narrow_bias: Option<&'a [f32]>,
}

/// `narrow(activation(convolve(xs))) + residual`: `[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), output]`,
/// which is also the residual's shape.
pub fn fused_convolution(
    xs: &[f32],
    map: MapSize,
    layers: Layers,
    residual: Option<&[f32]>,
) -> Vec<f32> {
    let patches = Patches::new(xs, map, layers.side, layers.stride);
    let (wide, output) = (layers.kernel.n(), layers.narrow.n());
    assert_eq!(
        layers.kernel.k(),
        patches.depth(),
        "the kernel has other channels than the map"
    );
    assert_eq!(
        (layers.narrow.k(), layers.narrow.set()),
        (wide, layers.kernel.set()),
        "the layers do not fit each other"
    );
    assert!(
        layers.bias.is_none_or(|bias| bias.len() == wide)
            && layers.narrow_bias.is_none_or(|bias| bias.len() == output),
        "a bias has another length"
    );
    let cells = patches.cells();
    assert!(
        residual.is_none_or(|residual| residual.len() == cells * output),
        "the residual does not have the size of the result"
    );
    let division = patches.division();
    let run = |out: SharedPointer<*mut f32>| {
        (0..cells.div_ceil(division.cells))
            .into_par_iter()
            .for_each(|task| {
                let first = task * division.cells;
                layers.kernel.set().run(Cells {
                    patches,
                    division,
                    layers,
                    residual,
                    first,
                    count: division.cells.min(cells - first),
                    out,
                });
            });
    };
    // SAFETY: every task writes all of its cells.
    unsafe { filled(cells * output, run) }
}

/// The output cells of one task.
struct Cells<'a> {
    patches: Patches<'a>,
    division: Division,
    layers: Layers<'a>,
    residual: Option<&'a [f32]>,
    first: usize,
    count: usize,
    out: SharedPointer<*mut f32>,
}

impl WithSimd for Cells<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let layers = &self.layers;
        let (wide, output) = (layers.kernel.n(), layers.narrow.n());
        let panel = Panels::width(S::F32_LANES);
        let step = WIDE_CHANNELS.min(wide).next_multiple_of(panel);
        let mut scratch = Scratch::take();
        let [gathered, widened] =
            scratch.parts([self.division.gathered(&self.patches), self.count * step]);
        let at = self.first * output;
        let residual = self.residual.map(|r| &r[at..][..self.count * output]);
        let mut start = 0;
        loop {
            let count = step.min(wide - start);
            let is_last = start + count >= wide;
            let widen = PatchProduct {
                patches: self.patches,
                division: self.division,
                cells: (self.first, self.count),
                kernel: layers.kernel.panels(),
                panels: (start / panel, count.div_ceil(panel)),
                bias: layers.bias,
                activation: layers.activation,
                out: (widened.as_mut_ptr(), step),
            };
            let narrow = Tile {
                depth: (start, count),
                epilogue: Epilogue {
                    bias: layers.narrow_bias.filter(|_| is_last),
                    residual: residual.filter(|_| is_last).map(|r| (r.as_ptr(), output)),
                    accumulate: start > 0,
                    ..Epilogue::default()
                },
                ..Tile::whole(
                    self.count,
                    (widened.as_ptr(), step),
                    layers.narrow.panels(),
                    (self.out.get().wrapping_add(at), output),
                )
            };
            // SAFETY: only this task writes these cells; wide channels are written before they are read.
            unsafe {
                widen.compute(simd, gathered, start > 0);
                narrow.compute(simd);
            }
            start += count;
            if is_last {
                break;
            }
        }
    }
}
