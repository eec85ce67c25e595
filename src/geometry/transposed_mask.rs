//! Masks with rows and columns exchanged: COCO's masks are stored column by column.

use std::ops::Range;

use super::{ImageSize, Mask, row_differences};

impl Mask {
    /// The mask with rows and columns exchanged. Its runs are those of this mask column by column.
    ///
    /// The time depends on the number of rows and runs, not on the number of pixels.
    pub fn transposed(&self) -> Self {
        let ImageSize { height, width } = self.size();
        let size = ImageSize {
            height: width,
            width: height,
        };
        Self::from_changes(size, column_changes(self))
    }
}

/// The positions, column by column, of the pixels that differ from the pixel before them. The first pixel is compared
/// with an unset one. They are not sorted.
fn column_changes(mask: &Mask) -> Vec<usize> {
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
            changes.extend(columns.map(|x| x * height + y));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn a_transposed_mask_has_the_pixels_column_by_column() {
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
            let mask = Mask::from_pixels(size, pixels);
            let transposed = mask.transposed();
            let expected = ImageSize {
                height: size.width,
                width: size.height,
            };
            assert_eq!(transposed, Mask::from_pixels(expected, columns), "{size:?}");
            assert_eq!(transposed.transposed(), mask, "{size:?}");
        }
    }
}
