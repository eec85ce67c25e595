//! COCO's compressed run-length masks, as in `pycocotools`.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::geometry::{ImageSize, Mask, row_differences};

/// Limit of the pixels of a decoded mask, far more than any photograph has. Without it, a few characters could encode
/// a run of any length.
const MAX_PIXELS: usize = 1 << 27;

/// A mask in the format of COCO files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CocoRle {
    /// `[height, width]`.
    pub size: [usize; 2],
    /// Run lengths in column-major order, encoded in six-bit characters.
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

    /// Decodes a mask. `None` if the counts are invalid, do not fill the size, or the size is too large.
    pub fn mask(&self) -> Option<Mask> {
        let [height, width] = self.size;
        let size = ImageSize { height, width };
        // the rows of a mask take memory even if it has no columns
        if height.max(1).checked_mul(width.max(1))? > MAX_PIXELS {
            return None;
        }
        let area = size.area();
        let mut columns = vec![];
        for (i, run) in expand(&self.counts)?.into_iter().enumerate() {
            let end = columns.len().checked_add(usize::try_from(run).ok()?)?;
            if end > area {
                return None;
            }
            columns.resize(end, i % 2 == 1);
        }
        if columns.len() != area {
            return None;
        }
        let pixels = (0..height).flat_map(|y| (0..width).map(move |x| x * height + y));
        Some(Mask::from_pixels(size, pixels.map(|pixel| columns[pixel])))
    }
}

/// The column-major indices of the pixels that differ from the pixel before them. The first pixel is compared with an
/// unset one.
fn changes(mask: &Mask) -> Vec<i64> {
    let ImageSize { height, width } = mask.size();
    let rows = mask.rows();
    // the pixel before the top of a column is the bottom of the column to its left
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

/// Encodes run lengths. From the fourth run on, the difference to the run two before is encoded. Each character holds
/// five bits, the lowest first; the sixth bit is set if more characters follow (`rleToString` of pycocotools).
fn compress(runs: &[i64]) -> String {
    let mut text = String::new();
    for (i, run) in runs.iter().enumerate() {
        let mut rest = if i > 2 { run - runs[i - 2] } else { *run };
        loop {
            let five = (rest & 0x1f) as u8;
            rest >>= 5;
            // the highest of the last five bits is the sign
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

/// Decodes the output of [`compress`]; `None` if a character is invalid or the last run is incomplete.
fn expand(text: &str) -> Option<Vec<i64>> {
    let mut runs: Vec<i64> = vec![];
    let (mut value, mut shift) = (0i64, 0);
    for character in text.bytes() {
        let bits = i64::from(character.checked_sub(48).filter(|bits| *bits < 64)?);
        if shift > 55 {
            return None;
        }
        value |= (bits & 0x1f) << shift;
        shift += 5;
        if bits & 0x20 != 0 {
            continue;
        }
        if bits & 0x10 != 0 {
            value |= -1 << shift;
        }
        if runs.len() > 2 {
            value = value.checked_add(runs[runs.len() - 2])?;
        }
        runs.push(value);
        (value, shift) = (0, 0);
    }
    (shift == 0).then_some(runs)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn changes_equal_a_column_by_column_search() {
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

    #[test]
    fn invalid_counts_are_not_decoded() {
        let rle = |size, counts: &str| CocoRle {
            size,
            counts: counts.to_owned(),
        };
        // runs of lengths 2 and 4
        assert_eq!(rle([2, 3], "24").mask().map(|mask| mask.area()), Some(4));
        for (size, counts) in [
            ([2, 3], "23"),
            ([2, 3], "25"),
            ([2, 3], "2P"),
            ([2, 3], "2\u{7f}"),
            ([2, 3], "2O"),
            ([2, 3], "2oooooooooooooooooo0"),
        ] {
            assert_eq!(rle(size, counts).mask(), None, "{counts}");
        }
        let many = compress(&[1 << 40]);
        for size in [[1 << 40, 1], [usize::MAX, 2]] {
            assert_eq!(rle(size, &many).mask(), None, "{size:?}");
        }
        for size in [[usize::MAX, 0], [0, usize::MAX]] {
            assert_eq!(rle(size, "0").mask(), None, "{size:?}");
        }
    }
}
