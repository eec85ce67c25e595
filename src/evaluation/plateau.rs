//! Score thresholds with the same result.

/// A range of thresholds that have the same F1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plateau {
    pub(super) f1: f64,
    /// The lowest threshold.
    pub(super) low: f32,
    /// A threshold that is too high.
    pub(super) high: f32,
}

impl Plateau {
    /// The distance between its ends.
    pub(super) fn width(self) -> f32 {
        self.high - self.low
    }

    /// A number with few decimals in the middle half of the range.
    pub(super) fn middle(self) -> f32 {
        let (low, high) = (f64::from(self.low), f64::from(self.high));
        let middle = (low + high) / 2.0;
        let mut rounded = (2..=7).map(|decimals| {
            let scale = 10f64.powi(decimals);
            (middle * scale).round() / scale
        });
        let is_near = |rounded: &f64| (rounded - middle).abs() <= (high - low) / 4.0;
        let rounded = rounded.find(is_near).unwrap_or(middle) as f32;
        // of two neighbouring numbers, no number is between
        if rounded < self.high {
            rounded
        } else {
            self.low
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_has_as_few_decimals_as_stay_near_it() {
        for (low, high, expected) in [
            (0.4, 0.8, 0.6),
            (0.1, 0.3333, 0.22),
            // 0.31 is inside, but near the end
            (0.3001, 0.3101, 0.305),
            (0.50001, 0.50003, 0.50002),
            (0.0, 0.001, 0.0005),
            (0.25, 0.25f32.next_up(), 0.25),
            (0.25f32.next_down(), 0.25, 0.25f32.next_down()),
        ] {
            let plateau = Plateau { f1: 0.5, low, high };
            assert_eq!(plateau.middle(), expected, "{low}..{high}");
            assert!((low..high).contains(&plateau.middle()));
        }
    }
}
