//! Masks, stored as runs of pixels.

use std::ops::Range;

use super::ImageSize;

/// Alternating run lengths of unset and set pixels, starting with unset ones. It builds a [`Mask`] without storing
/// single pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runs {
    /// Only the first length can be 0.
    lengths: Vec<u32>,
}

impl Default for Runs {
    /// No pixels.
    fn default() -> Self {
        Self { lengths: vec![0] }
    }
}

impl Runs {
    /// Appends `count` pixels of one value.
    pub fn push(&mut self, is_set: bool, count: u32) {
        if count == 0 {
            return;
        }
        let ends_set = self.lengths.len().is_multiple_of(2);
        match self.lengths.last_mut() {
            Some(last) if is_set == ends_set => *last += count,
            _ => self.lengths.push(count),
        }
    }

    /// Appends the pixels of `other`.
    pub fn extend(&mut self, other: &Self) {
        let mut lengths = other.lengths.iter();
        // pushing the first two merges them with the existing runs
        for (is_set, length) in [false, true].into_iter().zip(lengths.by_ref()) {
            self.push(is_set, *length);
        }
        self.lengths.extend(lengths);
    }

    /// Removes all pixels, and keeps the allocated memory.
    pub fn clear(&mut self) {
        self.lengths.clear();
        self.lengths.push(0);
    }
}

/// A mask of an image's size, stored as runs, so that masks of large photographs stay small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    size: ImageSize,
    runs: Vec<u32>,
}

impl Mask {
    /// Builds a mask from pixels, row by row. Pixels beyond the size are ignored; missing ones are unset.
    pub fn from_pixels(size: ImageSize, pixels: impl IntoIterator<Item = bool>) -> Self {
        let mut runs = Runs::default();
        for pixel in pixels.into_iter().take(size.area()) {
            runs.push(pixel, 1);
        }
        Self::from_runs(size, runs)
    }

    /// Builds a mask from runs of pixels, row by row. Pixels beyond the size are ignored; missing ones are unset.
    pub fn from_runs(size: ImageSize, mut runs: Runs) -> Self {
        let (mut missing, mut count) = (size.area(), 0);
        for length in &mut runs.lengths {
            if missing == 0 && count > 0 {
                break;
            }
            *length = (*length).min(missing as u32);
            missing -= *length as usize;
            count += 1;
        }
        runs.lengths.truncate(count);
        runs.push(false, missing as u32);
        Self {
            size,
            runs: runs.lengths,
        }
    }

    /// Builds a mask from the positions, row by row, of the pixels whose value differs from that of the pixel before. The
    /// first pixel is compared with an unset one. A position that is given twice has no effect.
    pub(super) fn from_changes(size: ImageSize, mut changes: Vec<usize>) -> Self {
        changes.sort_unstable();
        let (mut runs, mut start, mut is_set) = (Runs::default(), 0, false);
        for end in changes.into_iter().chain([size.area()]) {
            // an image has far fewer than 2^32 pixels
            runs.push(is_set, (end - start) as u32);
            (start, is_set) = (end, !is_set);
        }
        Self::from_runs(size, runs)
    }

    /// The size of the image.
    pub fn size(&self) -> ImageSize {
        self.size
    }

    /// Alternating lengths of unset and set runs, row by row, starting with an unset run, which may be empty.
    pub fn runs(&self) -> &[u32] {
        &self.runs
    }

    /// The pixels, row by row.
    pub fn pixels(&self) -> impl Iterator<Item = bool> + '_ {
        self.runs
            .iter()
            .enumerate()
            .flat_map(|(i, run)| std::iter::repeat_n(i % 2 == 1, *run as usize))
    }

    /// The set pixels of each row.
    pub fn rows(&self) -> MaskRows {
        let (width, height) = (self.size.width, self.size.height);
        let mut rows = MaskRows {
            spans: vec![],
            ends: Vec::with_capacity(height),
        };
        let mut at = 0;
        for (i, run) in self.runs.iter().enumerate() {
            let end = at + *run as usize;
            while i % 2 == 1 && at < end {
                let (row, column) = (at / width, at % width);
                rows.ends.resize(row, rows.spans.len());
                let count = (width - column).min(end - at);
                rows.spans.push(column..column + count);
                at += count;
            }
            at = end;
        }
        rows.ends.resize(height, rows.spans.len());
        rows
    }

    /// Number of set pixels.
    pub fn area(&self) -> usize {
        self.runs
            .iter()
            .skip(1)
            .step_by(2)
            .map(|run| *run as usize)
            .sum()
    }
}

/// The set pixels of a mask as spans of columns, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskRows {
    /// The spans of all rows, one row after the other.
    spans: Vec<Range<usize>>,
    /// For each row, the number of spans in it and all rows above it.
    ends: Vec<usize>,
}

impl MaskRows {
    /// The spans of a row from left to right, separated by unset pixels. Empty for a row outside the mask.
    pub fn row(&self, y: usize) -> &[Range<usize>] {
        let Some(end) = self.ends.get(y) else {
            return &[];
        };
        let start = y.checked_sub(1).map_or(0, |above| self.ends[above]);
        &self.spans[start..*end]
    }

    /// The unset pixels of a mask of `width` columns.
    pub(super) fn inverse(&self, width: usize) -> Self {
        let mut inverse = Self {
            spans: vec![],
            ends: Vec::with_capacity(self.ends.len()),
        };
        for y in 0..self.ends.len() {
            let mut start = 0;
            for span in self.row(y).iter().chain([&(width..width)]) {
                if start < span.start {
                    inverse.spans.push(start..span.start);
                }
                start = span.end;
            }
            inverse.ends.push(inverse.spans.len());
        }
        inverse
    }
}

/// The columns where two rows of spans differ, from left to right, and whether the first row is set there.
pub fn row_differences<'a>(
    a: &'a [Range<usize>],
    b: &'a [Range<usize>],
) -> impl Iterator<Item = (Range<usize>, bool)> + 'a {
    let edges = |spans: &'a [Range<usize>]| {
        let edges = spans.iter().flat_map(|span| [span.start, span.end]);
        edges.peekable()
    };
    let (mut a, mut b) = (edges(a), edges(b));
    let (mut a_is_set, mut b_is_set, mut start) = (false, false, 0);
    std::iter::from_fn(move || {
        loop {
            let end = match (a.peek(), b.peek()) {
                (Some(a), Some(b)) => *a.min(b),
                (Some(end), None) | (None, Some(end)) => *end,
                (None, None) => return None,
            };
            let span = (start..end, a_is_set);
            let differs = a_is_set != b_is_set && start < end;
            a_is_set ^= a.next_if_eq(&end).is_some();
            b_is_set ^= b.next_if_eq(&end).is_some();
            start = end;
            if differs {
                return Some(span);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_returns_the_pixels_it_was_built_from() {
        let size = ImageSize {
            height: 2,
            width: 3,
        };
        for pixels in [
            [false; 6],
            [true; 6],
            [true, false, true, true, false, false],
            [false, true, true, false, false, true],
        ] {
            let mask = Mask::from_pixels(size, pixels);
            assert!(mask.pixels().eq(pixels));
            assert_eq!(mask.runs().iter().sum::<u32>(), 6);
            assert_eq!(mask.area(), pixels.iter().filter(|p| **p).count());
        }
        let short = Mask::from_pixels(size, [true]);
        assert_eq!(short.runs(), [0, 1, 5]);
    }

    #[test]
    fn runs_of_several_parts_are_merged_and_cut_to_the_size() {
        let size = ImageSize {
            height: 2,
            width: 4,
        };
        let mask = |pieces: &[&[(bool, u32)]]| {
            let mut runs = Runs::default();
            for piece in pieces {
                let mut part = Runs::default();
                for (is_set, count) in *piece {
                    part.push(*is_set, *count);
                }
                runs.extend(&part);
            }
            Mask::from_runs(size, runs)
        };
        assert_eq!(mask(&[]).runs(), [8]);
        assert_eq!(mask(&[&[], &[(false, 3)], &[(false, 5)]]).runs(), [8]);
        assert_eq!(mask(&[&[(true, 3)], &[(true, 5)]]).runs(), [0, 8]);
        assert_eq!(
            mask(&[&[(false, 1), (true, 2)], &[(true, 1)], &[(true, 0)]]).runs(),
            [1, 3, 4]
        );
        assert_eq!(
            mask(&[
                &[(true, 1), (false, 1)],
                &[(false, 1), (true, 1), (false, 1)]
            ])
            .runs(),
            [0, 1, 2, 1, 4]
        );
        assert_eq!(
            mask(&[&[(true, 6), (false, 1), (true, 4), (false, 9)]]).runs(),
            [0, 6, 1, 1],
            "cut to the size"
        );
        let empty = ImageSize {
            height: 0,
            width: 4,
        };
        let mut runs = Runs::default();
        runs.push(true, 2);
        assert_eq!(Mask::from_runs(empty, runs).runs(), [0]);
    }

    #[test]
    fn spans_and_their_differences_are_those_of_the_pixels() {
        let size = ImageSize {
            height: 4,
            width: 5,
        };
        for pattern in 0u32..1 << 10 {
            // two rows with all patterns, one row that is set, one that is not
            let is_set = |y: usize, x: usize| y == 2 || y < 2 && pattern >> (5 * y + x) & 1 == 1;
            let pixels = (0..4).flat_map(|y| (0..5).map(move |x| (y, x)));
            let mask = Mask::from_pixels(size, pixels.map(|(y, x)| is_set(y, x)));
            let rows = mask.rows();
            for y in 0..4 {
                let spans = rows.row(y);
                let columns: Vec<usize> = spans.iter().cloned().flatten().collect();
                let expected: Vec<usize> = (0..5).filter(|x| is_set(y, *x)).collect();
                assert_eq!(columns, expected);
                assert!(spans.windows(2).all(|pair| pair[0].end < pair[1].start));
            }
            assert!(rows.row(4).is_empty() && rows.row(usize::MAX).is_empty());
            let differences: Vec<_> = row_differences(rows.row(0), rows.row(1))
                .flat_map(|(columns, is_set)| columns.map(move |x| (x, is_set)))
                .collect();
            let differs = |x: &usize| is_set(0, *x) != is_set(1, *x);
            let expected = (0..5).filter(differs).map(|x| (x, is_set(0, x)));
            assert_eq!(differences, expected.collect::<Vec<_>>());
        }
    }
}
