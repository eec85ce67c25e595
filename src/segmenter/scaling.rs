//! The two scalings of a mask: from logits to the model's input, and from there to the image.

use std::ops::Range;

use super::bilinear::{Tap, taps};
use super::image_processor::{Fit, Frame};
use crate::geometry::ImageSize;

/// The taps of both scalings, for rows and for columns: from logits to the model's input, and from there to the
/// image.
pub(super) struct Scaling {
    pub(super) rows: [Vec<Tap>; 2],
    pub(super) columns: [Vec<Tap>; 2],
}

impl Scaling {
    /// The scaling of a map of `side` rows and columns to an input of `input_side`, and of the input's unpadded part
    /// to the image. The map of a stretched image is scaled to the image directly, as in SAM 2: its first scaling
    /// changes nothing.
    pub(super) fn new(side: usize, input_side: usize, frame: Frame) -> Self {
        let original = frame.original;
        let whole = ImageSize {
            height: side,
            width: side,
        };
        let (input_side, resized) = match frame.fit {
            Fit::LongestSide => (input_side, frame.resized),
            Fit::Stretched => (side, whole),
        };
        Self {
            rows: [
                taps(side, input_side, resized.height),
                taps(resized.height, original.height, original.height),
            ],
            columns: [
                taps(side, input_side, resized.width),
                taps(resized.width, original.width, original.width),
            ],
        }
    }

    /// All rows of the image, grouped into bands that depend on the same few rows of logits.
    pub(super) fn row_bands(&self) -> Vec<Band> {
        group_taps(&self.rows)
    }

    /// All columns of the image, grouped in the same way.
    pub(super) fn column_bands(&self) -> Vec<Band> {
        group_taps(&self.columns)
    }

    /// Number of columns of the image.
    pub(super) fn width(&self) -> usize {
        self.columns[1].len()
    }
}

/// Consecutive rows (or columns) of the image, and the rows (or columns) of logits that they depend on.
#[derive(Debug, Clone)]
pub(super) struct Band {
    pub(super) output: Range<usize>,
    pub(super) logits: Range<usize>,
}

/// Groups consecutive outputs whose logits start at the same index.
fn group_taps([to_input, to_output]: &[Vec<Tap>; 2]) -> Vec<Band> {
    let mut bands: Vec<Band> = vec![];
    for (i, tap) in to_output.iter().enumerate() {
        let start = to_input[tap.first as usize].first as usize;
        let end = to_input[tap.second as usize].second as usize + 1;
        match bands.last_mut() {
            Some(last) if last.logits.start == start => {
                last.output.end = i + 1;
                last.logits.end = end;
            }
            _ => bands.push(Band {
                output: i..i + 1,
                logits: start..end,
            }),
        }
    }
    bands
}
