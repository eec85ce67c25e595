//! Checks of windowed attention.

use std::fmt;

use candle_core::{Result, Tensor};

use super::{CallShape, Case, Check, Extent, Implementation, Random};
use crate::models::ops::window_attention::{window_attention, window_attention_plain, with_kernel};
use crate::models::ops::{PositionBias, Windows};

/// The position bias that is added to the scores of a window.
#[derive(Debug, Clone, Copy)]
enum Positions {
    None,
    /// Per head, query and key.
    Table,
    /// Decomposed into rows and columns.
    Relative,
}

/// The sizes of a call with square windows.
#[derive(Debug, Clone, Copy)]
struct WindowAttention {
    batch: usize,
    /// `(rows, columns)` of the maps.
    map: (usize, usize),
    /// Number of rows, and of columns, of a window.
    window: usize,
    shift: usize,
    heads: usize,
    /// Channels per head.
    width: usize,
    positions: Positions,
}

impl fmt::Display for WindowAttention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.batch > 1 {
            write!(f, "{}x", self.batch)?;
        }
        write!(
            f,
            "{}x{}, windows of {}, {} heads of {}",
            self.map.0, self.map.1, self.window, self.heads, self.width
        )?;
        if self.shift > 0 {
            write!(f, ", shift {}", self.shift)?;
        }
        f.write_str(match self.positions {
            Positions::None => "",
            Positions::Table => ", table",
            Positions::Relative => ", relative positions",
        })
    }
}

impl CallShape for WindowAttention {
    fn draw(&self, random: &mut Random) -> Result<Box<dyn Case>> {
        let (height, width) = self.map;
        let channels = 3 * self.heads * self.width;
        let windows = Windows {
            batch: self.batch,
            height,
            width,
            window_height: self.window,
            window_width: self.window,
            shift: self.shift,
        };
        let tokens = windows.tokens();
        let positions = match self.positions {
            Positions::None => None,
            Positions::Table => {
                let table = random.spread(1.0, (self.heads, tokens, tokens))?;
                Some(PositionBias::Table(table))
            }
            Positions::Relative => {
                let shape = (self.window, self.window, self.width);
                Some(PositionBias::Relative {
                    by_row: random.spread(0.5, shape)?,
                    by_column: random.spread(0.5, shape)?,
                    packed: None,
                })
            }
        };
        Ok(Box::new(WindowCase {
            qkv: random.spread(1.0, (self.batch, height, width, channels))?,
            padding_token: random.spread(1.0, channels)?,
            heads: self.heads,
            windows,
            positions,
        }))
    }
}

struct WindowCase {
    qkv: Tensor,
    padding_token: Tensor,
    heads: usize,
    windows: Windows,
    /// Not packed for a kernel.
    positions: Option<PositionBias>,
}

impl Case for WindowCase {
    fn run(&self, implementation: Implementation) -> Result<Vec<Tensor>> {
        if let Implementation::Kernel(set) = implementation {
            let positions = match &self.positions {
                Some(PositionBias::Relative {
                    by_row, by_column, ..
                }) => Some(PositionBias::relative_for_set(
                    set,
                    by_row.clone(),
                    by_column.clone(),
                )?),
                positions => positions.clone(),
            };
            let (qkv, padding_token, positions) =
                (&self.qkv, &self.padding_token, positions.as_ref());
            let result = with_kernel(set, qkv, padding_token, self.heads, self.windows, positions)?;
            return Ok(vec![result]);
        }
        let positions = match &self.positions {
            None => None,
            Some(PositionBias::Table(table)) => {
                Some(PositionBias::Table(implementation.to_target(table)?))
            }
            Some(PositionBias::Relative {
                by_row, by_column, ..
            }) => Some(PositionBias::Relative {
                by_row: implementation.to_target(by_row)?,
                by_column: implementation.to_target(by_column)?,
                packed: None,
            }),
        };
        let compute = match implementation {
            Implementation::Device(..) => window_attention,
            _ => window_attention_plain,
        };
        let result = compute(
            &implementation.to_target(&self.qkv)?,
            &implementation.to_target(&self.padding_token)?,
            self.heads,
            self.windows,
            positions.as_ref(),
        )?;
        Ok(vec![result])
    }
}

/// The softmax amplifies rounding errors of the scores.
const TOLERANCE: f64 = 1e-5;
/// Scores, and position biases of up to 20, are rounded to the dtype, and the exponential amplifies the rounding
/// error.
const ROUNDINGS: f64 = 20.0;

pub(super) fn checks(extent: Extent) -> Vec<Check> {
    let (none, table, relative) = (Positions::None, Positions::Table, Positions::Relative);
    let check = |used_by, map, (window, shift), (heads, width), positions| {
        let call_shape = WindowAttention {
            batch: 1,
            map,
            window,
            shift,
            heads,
            width,
            positions,
        };
        Check::published("window_attention", TOLERANCE, used_by, call_shape)
            .with_roundings(ROUNDINGS)
    };
    let stage_1 = extent.of((200, 267), (20, 27));
    let stage_3 = extent.of((50, 67), (17, 25));
    let stage_4 = extent.of((25, 34), (12, 17));
    let sam = extent.of((64, 64), (17, 29));
    let hiera = extent.of((256, 256), (34, 26));
    vec![
        check("Swin-T stage 1", stage_1, (7, 0), (3, 32), table),
        check("Swin-T stage 1, shifted", stage_1, (7, 3), (3, 32), table),
        check("Swin-T stage 4, shifted", stage_4, (7, 3), (24, 32), table),
        check("Swin-B stage 1, shifted", stage_1, (12, 6), (4, 32), table),
        check("Swin-B stage 3, shifted", stage_3, (12, 6), (16, 32), table),
        check("SAM ViT-B, windows", sam, (14, 0), (12, 64), relative),
        check("SAM ViT-L, windows", sam, (14, 0), (16, 64), relative),
        // with all heads, the plain implementation would need gigabytes
        check(
            extent.of(
                "SAM ViT-B, global, 2 of 12 heads",
                "SAM ViT-B, global, 2 of 12 heads, smaller",
            ),
            extent.of((64, 64), (24, 24)),
            (extent.of(64, 24), 0),
            (2, 64),
            relative,
        ),
        check(
            "MobileSAM stage 2",
            extent.of((128, 128), (19, 19)),
            (7, 0),
            (4, 32),
            table,
        ),
        check("MobileSAM stage 3", sam, (14, 0), (5, 32), table),
        check("MobileSAM stage 4", sam, (7, 0), (10, 32), table),
        check("SAM 2 Tiny, stage 1", hiera, (8, 0), (1, 96), none),
        check("SAM 2 Tiny, stage 3", sam, (14, 0), (4, 96), none),
        check(
            extent.of(
                "SAM 2 Tiny, global, 2 of 4 heads",
                "SAM 2 Tiny, global, 2 of 4 heads, smaller",
            ),
            extent.of((64, 64), (24, 24)),
            (extent.of(64, 24), 0),
            (2, 96),
            none,
        ),
        check(
            extent.of(
                "SAM 2 Large, global, 2 of 8 heads",
                "SAM 2 Large, global, 2 of 8 heads, smaller",
            ),
            extent.of((64, 64), (24, 24)),
            (extent.of(64, 24), 0),
            (2, 72),
            none,
        ),
        Check::odd("window_attention", TOLERANCE, odd_shapes()).with_roundings(ROUNDINGS),
    ]
}

fn odd_shapes() -> Vec<WindowAttention> {
    let mut call_shapes = vec![];
    for (batch, map, window, shift, heads, width) in [
        (1, (1, 1), 1, 0, 1, 1),
        (1, (7, 7), 7, 3, 2, 8),
        (2, (9, 20), 7, 3, 3, 4),
        (2, (5, 3), 4, 0, 2, 16),
        (1, (13, 11), 5, 2, 1, 7),
        (1, (20, 20), 20, 0, 2, 16),
        // widths that end in a part of a vector, or of a panel
        (1, (18, 18), 18, 0, 1, 56),
        (1, (9, 13), 4, 0, 2, 72),
    ] {
        for positions in [Positions::None, Positions::Table, Positions::Relative] {
            call_shapes.push(WindowAttention {
                batch,
                map,
                window,
                shift,
                heads,
                width,
                positions,
            });
        }
    }
    call_shapes
}
