//! Checks of the sampling of deformable attention.

use std::fmt;

use candle_core::{Result, Tensor};

use super::{CallShape, Case, Check, Extent, Implementation, Random};
use crate::models::ops::Sampling;
use crate::models::ops::deformable_sampling::{
    deformable_sampling, deformable_sampling_plain, with_kernel,
};

/// (height, width) of the map of each level.
type Levels = &'static [(usize, usize)];

/// The sizes of a call.
#[derive(Debug, Clone, Copy)]
struct Samples {
    batch: usize,
    queries: usize,
    heads: usize,
    /// Channels per head.
    width: usize,
    points: usize,
    levels: Levels,
    /// 2 if the references are centres, 4 if they are boxes.
    coordinates: usize,
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.batch > 1 {
            write!(f, "{}x", self.batch)?;
        }
        write!(
            f,
            "{} queries, {} heads of {}, {} points on {} levels, {}",
            self.queries,
            self.heads,
            self.width,
            self.points,
            self.levels.len(),
            if self.coordinates == 2 {
                "centres"
            } else {
                "boxes"
            }
        )
    }
}

impl CallShape for Samples {
    fn draw(&self, random: &mut Random) -> Result<Box<dyn Case>> {
        let (batch, queries, levels) = (self.batch, self.queries, self.levels.len());
        let numbers = self.heads * levels * self.points * 3;
        Ok(Box::new(SamplesCase {
            value: random.spread(1.0, (batch, self.heads, cells(self.levels), self.width))?,
            // some positions are outside the maps
            samples: random.spread(2.0, (batch, queries, numbers))?,
            reference: random.between(-0.2, 1.2, (batch, queries, levels, self.coordinates))?,
            sampling: Sampling {
                heads: self.heads,
                points: self.points,
                shapes: self.levels,
            },
        }))
    }
}

fn cells(levels: Levels) -> usize {
    levels.iter().map(|(rows, columns)| rows * columns).sum()
}

struct SamplesCase {
    value: Tensor,
    samples: Tensor,
    reference: Tensor,
    sampling: Sampling<'static>,
}

impl Case for SamplesCase {
    fn run(&self, implementation: Implementation) -> Result<Vec<Tensor>> {
        let (value, samples) = (
            implementation.to_target(&self.value)?,
            implementation.to_target(&self.samples)?,
        );
        let (reference, sampling) = (implementation.to_target(&self.reference)?, self.sampling);
        let result = match implementation {
            Implementation::Kernel(set) => with_kernel(set, &value, &samples, &reference, sampling),
            Implementation::Plain => {
                deformable_sampling_plain(&value, &samples, &reference, sampling)
            }
            Implementation::Device(..) => {
                deformable_sampling(&value, &samples, &reference, sampling)
            }
        };
        Ok(vec![result?])
    }
}

/// In a map of 134 columns, rounding moves a position by up to about 3e-5 of a cell; the error is this times the
/// difference between neighbouring cells.
const TOLERANCE: f64 = 1e-4;

/// The levels of an image of 800x1066 pixels.
const LEVELS: Levels = &[(100, 134), (50, 67), (25, 34), (13, 17)];
/// The levels of a smaller image.
const SMALL_LEVELS: Levels = &[(21, 27), (11, 14), (6, 7), (3, 4)];

pub(super) fn checks(extent: Extent) -> Vec<Check> {
    let levels = extent.of(LEVELS, SMALL_LEVELS);
    let check = |used_by, queries, coordinates| {
        let call_shape = Samples {
            batch: 1,
            queries,
            heads: 8,
            width: 32,
            points: 4,
            levels,
            coordinates,
        };
        Check::published("deformable_sampling", TOLERANCE, used_by, call_shape)
    };
    vec![
        check("encoder layer", cells(levels), 2),
        check("decoder layer", extent.of(900, 203), 4),
        Check::odd("deformable_sampling", TOLERANCE, odd_shapes()),
    ]
}

fn odd_shapes() -> Vec<Samples> {
    let shapes: [(usize, usize, usize, usize, usize, Levels); 4] = [
        (1, 1, 1, 1, 1, &[(1, 1)]),
        (2, 11, 3, 8, 4, &[(5, 7), (3, 4), (1, 2)]),
        (1, 70, 2, 32, 4, &[(9, 13), (1, 1)]),
        (2, 3, 2, 13, 3, &[(4, 1), (2, 6), (1, 1), (1, 1), (3, 3)]),
    ];
    let mut call_shapes = vec![];
    for (batch, queries, heads, width, points, levels) in shapes {
        for coordinates in [2, 4] {
            call_shapes.push(Samples {
                batch,
                queries,
                heads,
                width,
                points,
                levels,
                coordinates,
            });
        }
    }
    call_shapes
}
