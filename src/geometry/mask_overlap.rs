//! The common pixels of two masks, computed on their runs.

use super::{Mask, Runs};

impl Mask {
    /// Number of pixels that are set in both masks, which have the same size.
    pub fn intersection_area(&self, other: &Self) -> usize {
        self.common_runs(other)
            .filter(|(_, is_set, other_is_set)| *is_set && *other_is_set)
            .map(|(length, ..)| length as usize)
            .sum()
    }

    /// The pixels that are set in at least one of two masks of the same size.
    pub fn union(&self, other: &Self) -> Self {
        let mut runs = Runs::default();
        for (length, is_set, other_is_set) in self.common_runs(other) {
            runs.push(is_set || other_is_set, length);
        }
        Self::from_runs(self.size(), runs)
    }

    /// Intersection over union with a mask of the same size, 0..1; 1 if both are empty.
    pub fn iou(&self, other: &Self) -> f32 {
        let intersection = self.intersection_area(other);
        let union = self.area() + other.area() - intersection;
        if union == 0 {
            1.0
        } else {
            intersection as f32 / union as f32
        }
    }

    /// The runs of both masks, divided where either of them changes: the length, and whether each mask is set.
    fn common_runs<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (u32, bool, bool)> + 'a {
        let runs = |mask: &'a Self| {
            let lengths = mask.runs().iter().enumerate();
            lengths.map(|(i, length)| (*length, i % 2 == 1))
        };
        let (mut a_runs, mut b_runs) = (runs(self), runs(other));
        let ((mut a, mut a_is_set), (mut b, mut b_is_set)) = ((0, false), (0, false));
        std::iter::from_fn(move || {
            while a == 0 {
                (a, a_is_set) = a_runs.next()?;
            }
            while b == 0 {
                (b, b_is_set) = b_runs.next()?;
            }
            let length = a.min(b);
            a -= length;
            b -= length;
            Some((length, a_is_set, b_is_set))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ImageSize;

    #[test]
    fn overlaps_are_those_of_the_pixels() {
        let size = ImageSize {
            height: 2,
            width: 3,
        };
        let pixels = |pattern: u32| (0..6).map(move |i| pattern >> i & 1 == 1);
        for a in 0..64 {
            for b in 0..64 {
                let [mask, other] = [a, b].map(|pattern| Mask::from_pixels(size, pixels(pattern)));
                let (intersection, union) = ((a & b).count_ones(), (a | b).count_ones());
                assert_eq!(mask.intersection_area(&other), intersection as usize);
                assert_eq!(
                    mask.union(&other),
                    Mask::from_pixels(size, pixels(a | b)),
                    "{a} {b}"
                );
                let iou = match union {
                    0 => 1.0,
                    _ => intersection as f32 / union as f32,
                };
                assert_eq!(mask.iou(&other), iou);
            }
        }
    }
}
