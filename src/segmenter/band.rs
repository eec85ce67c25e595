//! Upscales a few rows of a mask directly to runs. Pixels are computed only where the signs of the logits do not
//! decide them.
//!
//! An output pixel is interpolated from pixels of the model's input, which are interpolated from logits. These are
//! four interpolations in a row, each of the form `a * (1 - weight) + b * weight` with a weight of 0..=1.
//!
//! - If all logits are NaN, negative or zero, the pixel is unset. Products with a weight that is not negative are then
//!   NaN, negative or zero again (`-inf * 0` is NaN), and so are their sums; none of them is greater than 0.
//! - If all logits are in [`SURELY_SET`], the pixel is set. Either `weight` or the rounded `1 - weight` is at least one
//!   half. So the result of an interpolation is at least half its smaller operand (halving is exact, rounding is
//!   monotone) and at most twice its larger one. After four interpolations the result is still positive and finite.
//!
//! All other pixels are computed with the same operations in the same order as in the full maps.

use std::ops::{Range, RangeInclusive};

use super::bilinear::Tap;
use super::scaling::{Band, Scaling};
use crate::geometry::Runs;

/// Logits that stay positive and finite through four interpolations.
const SURELY_SET: RangeInclusive<f32> = 16.0 * f32::MIN_POSITIVE..=f32::MAX / 16.0;

/// At least one logit is greater than zero: a pixel that depends on it may be set.
const MAY_SET: u8 = 1;
/// At least one logit is not in [`SURELY_SET`]: a pixel that depends on it may be unset.
const MAY_UNSET: u8 = 2;

/// A square map of logits.
pub(super) struct LogitMap<'a> {
    logits: &'a [f32],
    /// Number of rows, and of columns.
    pub(super) side: usize,
    /// The flags [`MAY_SET`] and [`MAY_UNSET`] of each logit.
    signs: Vec<u8>,
}

impl<'a> LogitMap<'a> {
    /// A map of `side * side` logits, row by row.
    pub(super) fn new(logits: &'a [f32]) -> Self {
        let sign = |logit: &f32| {
            let may_set = if *logit > 0.0 { MAY_SET } else { 0 };
            let is_surely_set = *logit >= *SURELY_SET.start() && *logit <= *SURELY_SET.end();
            may_set | if is_surely_set { 0 } else { MAY_UNSET }
        };
        Self {
            logits,
            side: logits.len().isqrt(),
            signs: logits.iter().map(sign).collect(),
        }
    }

    fn row(&self, index: u32) -> &[f32] {
        &self.logits[index as usize * self.side..][..self.side]
    }
}

/// Computes the bands one by one, and reuses its buffers.
#[derive(Default)]
pub(super) struct BandScaler {
    /// For each column of logits, the combined flags of all rows of the band.
    signs: Vec<u8>,
    /// The runs of each row of the band.
    runs: Vec<Runs>,
    tile: Tile,
}

impl BandScaler {
    /// Appends the rows of a band to `runs`.
    pub(super) fn append(
        &mut self,
        map: &LogitMap,
        scaling: &Scaling,
        column_bands: &[Band],
        band: &Band,
        runs: &mut Runs,
    ) {
        self.signs.clear();
        self.signs.resize(map.side, 0);
        for row in band.logits.clone() {
            let row = &map.signs[row * map.side..][..map.side];
            for (sign, logit) in self.signs.iter_mut().zip(row) {
                *sign |= logit;
            }
        }
        let height = band.output.len();
        let may_set = |sign: &u8| sign & MAY_SET != 0;
        // outside these columns of logits, no pixel is set
        let (Some(first), Some(last)) = (
            self.signs.iter().position(may_set),
            self.signs.iter().rposition(may_set),
        ) else {
            for _ in 0..height {
                runs.push(false, scaling.width() as u32);
            }
            return;
        };
        self.runs.resize_with(height, Runs::default);
        self.runs.iter_mut().for_each(Runs::clear);
        let start = column_bands.partition_point(|columns| columns.logits.end <= first);
        let end = column_bands.partition_point(|columns| columns.logits.start <= last);
        let signs = |columns: &Band| {
            let signs = self.signs[columns.logits.clone()].iter();
            signs.fold(0, |all, sign| all | sign)
        };
        let mut done = 0;
        for group in column_bands[start..end].chunk_by(|a, b| signs(a) == signs(b)) {
            let columns = group[0].output.start..group[group.len() - 1].output.end;
            for row in &mut self.runs {
                row.push(false, (columns.start - done) as u32);
            }
            done = columns.end;
            match signs(&group[0]) {
                MAY_SET | MAY_UNSET => {
                    for row in &mut self.runs {
                        row.push(signs(&group[0]) == MAY_SET, columns.len() as u32);
                    }
                }
                _ => self
                    .tile
                    .append(map, scaling, band, columns, &mut self.runs),
            }
        }
        for row in &mut self.runs {
            row.push(false, (scaling.width() - done) as u32);
            runs.extend(row);
        }
    }
}

/// The part of a band that has to be computed: both scalings, row by row.
#[derive(Default)]
struct Tile {
    /// Rows of logits, resampled to the columns of the model's input.
    logits: LinePair,
    /// A row of the model's input.
    input: Vec<f32>,
    /// Rows of the model's input, resampled to the columns of the image.
    inputs: LinePair,
}

impl Tile {
    /// Appends the pixels of these columns to the runs of each row of the band.
    fn append(
        &mut self,
        map: &LogitMap,
        scaling: &Scaling,
        band: &Band,
        columns: Range<usize>,
        runs: &mut [Runs],
    ) {
        let [input_rows, rows] = &scaling.rows;
        let [input_columns, output_columns] = &scaling.columns;
        let columns = &output_columns[columns];
        let (Some(left), Some(right)) = (columns.first(), columns.last()) else {
            return;
        };
        let input_columns = &input_columns[left.first as usize..=right.second as usize];
        let Self {
            logits,
            input,
            inputs,
        } = self;
        logits.invalidate();
        inputs.invalidate();
        for (row, runs) in rows[band.output.clone()].iter().zip(runs) {
            let (first, second) = inputs.lines(row, |index, line| {
                let row = input_rows[index as usize];
                let (first, second) = logits.lines(&row, |index, line| {
                    let map_row = map.row(index);
                    line.extend(input_columns.iter().map(|column| column.sample(map_row, 0)));
                });
                input.clear();
                let pairs = first.iter().zip(second);
                input.extend(pairs.map(|(first, second)| row.interpolate(*first, *second)));
                line.extend(
                    columns
                        .iter()
                        .map(|column| column.sample(input, left.first)),
                );
            });
            let mut run = (false, 0);
            for (first, second) in first.iter().zip(second) {
                let is_set = row.interpolate(*first, *second) > 0.0;
                if is_set != run.0 {
                    runs.push(run.0, run.1);
                    run = (is_set, 0);
                }
                run.1 += 1;
            }
            runs.push(run.0, run.1);
        }
    }
}

/// The two lines that a tap interpolates between. The next tap often needs the same lines.
#[derive(Default)]
struct LinePair {
    lines: [Vec<f32>; 2],
    indices: [Option<u32>; 2],
}

impl LinePair {
    /// Marks both lines as missing.
    fn invalidate(&mut self) {
        self.indices = [None; 2];
    }

    /// The lines of a tap. `compute` writes a missing line to an empty vector.
    fn lines(
        &mut self,
        tap: &Tap,
        mut compute: impl FnMut(u32, &mut Vec<f32>),
    ) -> (&[f32], &[f32]) {
        if self.indices[1] == Some(tap.first) {
            self.lines.swap(0, 1);
            self.indices.swap(0, 1);
        }
        for (i, index) in [tap.first, tap.second].into_iter().enumerate() {
            if self.indices[i] != Some(index) {
                self.lines[i].clear();
                compute(index, &mut self.lines[i]);
                self.indices[i] = Some(index);
            }
        }
        (&self.lines[0], &self.lines[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights with the largest rounding error or underflow.
    const WEIGHTS: [f32; 9] = [
        0.0,
        1e-45,
        1e-38,
        f32::EPSILON / 4.0,
        0.5,
        0.499_999_97,
        0.500_000_06,
        0.999_999_94,
        1.0,
    ];

    fn interpolations(a: f32, b: f32) -> impl Iterator<Item = f32> {
        WEIGHTS.into_iter().map(move |weight| {
            let tap = Tap {
                first: 0,
                second: 1,
                weight,
            };
            tap.interpolate(a, b)
        })
    }

    /// The smallest and the largest result of all four-fold interpolations between the numbers.
    fn extremes(numbers: &[f32]) -> (f32, f32) {
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        let mut values = numbers.to_vec();
        for _ in 0..4 {
            let pairs = values.iter().flat_map(|a| values.iter().map(|b| (*a, *b)));
            let next: Vec<f32> = pairs.flat_map(|(a, b)| interpolations(a, b)).collect();
            assert!(next.iter().all(|value| !value.is_nan()));
            low = next.iter().copied().fold(f32::INFINITY, f32::min);
            high = next.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            values = vec![low, high];
        }
        (low, high)
    }

    #[test]
    fn surely_set_logits_stay_positive_and_finite() {
        let (low, high) = extremes(&[*SURELY_SET.start(), 1.0, *SURELY_SET.end()]);
        assert!(low > 0.0, "{low:e}");
        assert!(high.is_finite(), "{high:e}");
    }

    #[test]
    fn logits_that_are_not_positive_stay_not_positive() {
        let mut values = vec![
            0.0,
            -0.0,
            -1e-45,
            -1.0,
            f32::MIN,
            f32::NEG_INFINITY,
            f32::NAN,
        ];
        for _ in 0..2 {
            let pairs = values.iter().flat_map(|a| values.iter().map(|b| (*a, *b)));
            let next: Vec<f32> = pairs.flat_map(|(a, b)| interpolations(a, b)).collect();
            assert!(next.iter().all(|value| *value <= 0.0 || value.is_nan()));
            values.extend(next.into_iter().step_by(13));
        }
    }
}
