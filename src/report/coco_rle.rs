//! COCO's compressed run-length masks, as `pycocotools` reads and writes them.

use std::ops::Range;

use serde::Serialize;

use crate::geometry::{ImageSize, Mask, row_differences};

/// A mask as COCO files hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CocoRle {
    /// Height and width.
    pub size: [usize; 2],
    /// Run lengths, column by column, in six-bit characters.
    pub counts: String,
}

impl CocoRle {
    /// Encodes a mask.
    pub fn new(mask: &Mask) -> Self {
        let ImageSize { height, width } = mask.size();
        let mut ends = changes(mask);
        ends.sort_unstable();
        ends.push((height * width) as i64);
        let starts = std::iter::once(&0).chain(&ends);
        let runs: Vec<i64> = ends
            .iter()
            .zip(starts)
            .map(|(end, start)| end - start)
            .collect();
        Self {
            size: [height, width],
            counts: compress(&runs),
        }
    }
}

/// The pixels, numbered column by column, that differ from the one before them; the first one is
/// compared with an unset one.
fn changes(mask: &Mask) -> Vec<i64> {
    let ImageSize { height, width } = mask.size();
    let rows = mask.rows();
    // the pixel before the top of a column is the bottom of the column to the left
    let bottom = rows.row(height.saturating_sub(1)).iter();
    let before_top: Vec<Range<usize>> = bottom
        .map(|span| span.start + 1..(span.end + 1).min(width))
        .filter(|span| !span.is_empty())
        .collect();
    let mut changes = vec![];
    for y in 0..height {
        let above = match y {
            0 => &before_top[..],
            _ => rows.row(y - 1),
        };
        for (columns, _) in row_differences(rows.row(y), above) {
            changes.extend(columns.map(|x| (x * height + y) as i64));
        }
    }
    changes
}

/// From the fourth on, a run is told as the difference to the one two before; five bits to a
/// character, the lowest first, the sixth bit says that more follow (`rleToString` of pycocotools).
fn compress(runs: &[i64]) -> String {
    let mut text = String::new();
    for (i, run) in runs.iter().enumerate() {
        let mut rest = if i > 2 { run - runs[i - 2] } else { *run };
        loop {
            let five = (rest & 0x1f) as u8;
            rest >>= 5;
            // the sign is the highest of the last five bits
            let more = if five & 0x10 == 0 {
                rest != 0
            } else {
                rest != -1
            };
            text.push(char::from(48 + five + if more { 0x20 } else { 0 }));
            if !more {
                break;
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn changes_are_those_of_the_pixels_column_by_column() {
        let mut rng = StdRng::seed_from_u64(6);
        for case in 0..500 {
            let size = ImageSize {
                height: rng.random_range(0..9),
                width: rng.random_range(0..9),
            };
            let share = [0.0, 0.2, 0.5, 0.9, 1.0][case % 5];
            let pixels: Vec<bool> = (0..size.area()).map(|_| rng.random_bool(share)).collect();
            let columns = (0..size.width).flat_map(|x| (0..size.height).map(move |y| (y, x)));
            let columns: Vec<bool> = columns.map(|(y, x)| pixels[y * size.width + x]).collect();
            let mut before = false;
            let mut expected = vec![];
            for (i, pixel) in columns.into_iter().enumerate() {
                if pixel != before {
                    expected.push(i as i64);
                }
                before = pixel;
            }
            let mut changes = changes(&Mask::from_pixels(size, pixels));
            changes.sort_unstable();
            assert_eq!(changes, expected, "{size:?}");
        }
    }
}
