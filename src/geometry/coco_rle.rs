//! COCO's compressed run-length masks, as in `pycocotools`.

use serde::{Deserialize, Serialize};

use super::{ImageSize, Mask, Runs};

/// Limit of the pixels of a decoded mask, far more than any photograph has. Without it, a few characters could encode
/// a run of any length.
pub(crate) const MAX_PIXELS: usize = 1 << 27;

/// Limit of the height and width of a decoded mask, because each row takes memory even if it is narrow.
pub(crate) const MAX_SIDE: usize = 1 << 20;

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
        let columns = mask.transposed();
        let runs: Vec<i64> = columns.runs().iter().copied().map(i64::from).collect();
        Self {
            size: [height, width],
            counts: compress(&runs),
        }
    }

    /// Decodes a mask. `None` if the counts are invalid, do not fill the size, or the size is too large.
    pub fn mask(&self) -> Option<Mask> {
        let [height, width] = self.size;
        let runs = expand(&self.counts)?.into_iter().map(u64::try_from);
        let runs: Vec<u64> = runs.collect::<Result<_, _>>().ok()?;
        mask_of_counts(ImageSize { height, width }, &runs)
    }
}

/// The mask of COCO's uncompressed counts: the lengths of unset and set runs in turn, column by column, starting with an
/// unset one. `None` if they do not fill the size, or the size is too large.
pub fn mask_of_counts(size: ImageSize, counts: &[u64]) -> Option<Mask> {
    if !is_supported(size) {
        return None;
    }
    let (mut runs, mut missing) = (Runs::default(), size.area() as u64);
    for (i, count) in counts.iter().enumerate() {
        missing = missing.checked_sub(*count)?;
        // at most `MAX_PIXELS`
        runs.push(i % 2 == 1, *count as u32);
    }
    let columns = ImageSize {
        height: size.width,
        width: size.height,
    };
    (missing == 0).then(|| Mask::from_runs(columns, runs).transposed())
}

/// Whether masks of this size are decoded.
pub(crate) fn is_supported(size: ImageSize) -> bool {
    let ImageSize { height, width } = size;
    height.max(width) <= MAX_SIDE && size.area() <= MAX_PIXELS
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
    use super::*;

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

    #[test]
    fn uncompressed_counts_are_decoded_column_by_column() {
        let size = ImageSize {
            height: 2,
            width: 3,
        };
        let mask = |counts: &[u64]| mask_of_counts(size, counts);
        let expected = Mask::from_pixels(size, [false, true, false, true, false, true]);
        assert_eq!(mask(&[1, 2, 2, 1]), Some(expected.clone()));
        // runs may be empty
        assert_eq!(mask(&[1, 0, 0, 2, 2, 1, 0]), Some(expected));
        for counts in [&[1, 2, 2][..], &[1, 2, 2, 2], &[u64::MAX, u64::MAX], &[]] {
            assert_eq!(mask(counts), None, "{counts:?}");
        }
    }
}
