//! Bilinear sampling along one axis, as in `torch.nn.functional.interpolate` with `align_corners=false`.

/// Two neighbouring indices and the weight of the second one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tap {
    pub(super) first: u32,
    pub(super) second: u32,
    /// The weight of the second neighbour, 0..=1.
    pub(super) weight: f32,
}

/// The taps of the first `count` samples when an axis of `from` samples is resized to `to`. Their indices never
/// decrease.
pub(super) fn taps(from: usize, to: usize, count: usize) -> Vec<Tap> {
    let scale = from as f32 / to as f32;
    (0..count)
        .map(|i| {
            let at = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
            let first = (at as usize).min(from - 1);
            Tap {
                first: first as u32,
                second: (first + 1).min(from - 1) as u32,
                weight: (at - first as f32).clamp(0.0, 1.0),
            }
        })
        .collect()
}

impl Tap {
    /// Interpolates in `line`, which starts at index `offset` of the axis.
    pub(super) fn sample(&self, line: &[f32], offset: u32) -> f32 {
        let at = |index: u32| line[(index - offset) as usize];
        self.interpolate(at(self.first), at(self.second))
    }

    /// Interpolates between the values of the two neighbours.
    pub(super) fn interpolate(&self, first: f32, second: f32) -> f32 {
        first * (1.0 - self.weight) + second * self.weight
    }
}
