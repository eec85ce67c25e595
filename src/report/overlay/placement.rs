//! Places the labels of boxes so that no two of them overlap and none leaves the picture.

use super::canvas::Rect;

/// How far a label may be moved away from its box, in heights and quarters of the width of the label.
const SHIFTS: (i64, i64) = (12, 8);
/// The smallest distance of two labels in pixels, so that those of the same colour are told apart.
const GAP: i64 = 1;

/// A label that needs a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct WantedLabel {
    /// The box that it belongs to, inside the picture.
    pub(super) target: Rect,
    /// Width and height in pixels.
    pub(super) size: (i64, i64),
}

/// The place of each label, in the given order; an earlier label has the better place. `None` where the picture has no
/// room near the box.
pub(super) fn place(wanted: &[WantedLabel], picture: Rect) -> Vec<Option<Rect>> {
    let mut taken: Vec<Rect> = vec![];
    let places = wanted.iter().map(|label| {
        let is_free = |place: &Rect| {
            let room = place.grown(GAP);
            picture.contains(*place) && !taken.iter().any(|other| other.overlaps(room))
        };
        let place = candidates(label, picture).find(is_free);
        taken.extend(place);
        place
    });
    places.collect()
}

/// The places of a label, the best one first: above the box, below it, inside a box that is large enough, and then moved
/// away from the box, near places first. A place may be outside the picture.
fn candidates(label: &WantedLabel, picture: Rect) -> impl Iterator<Item = Rect> {
    let WantedLabel { target, size } = *label;
    let (width, height) = size;
    let at = move |left: i64, top: i64| {
        // a label beside the right edge of the picture moves to the left
        let left = left.min(picture.right - width).max(picture.left);
        Rect::new(left, top, size)
    };
    let in_row = move |top: i64| [at(target.left, top), at(target.right - width, top)];
    let beside = [target.top - height, target.bottom].map(in_row);
    let inside = [target.top + GAP, target.bottom - height - GAP].map(in_row);
    let covers_little = target.width() >= width && target.height() >= 2 * height;
    let (inside_first, inside_last) = match covers_little {
        true => (inside.as_flattened().to_vec(), vec![]),
        false => (vec![], inside.as_flattened().to_vec()),
    };
    let start = at(
        target.left,
        (target.top - height).clamp(picture.top, (picture.bottom - height).max(picture.top)),
    );
    let first = beside.as_flattened().to_vec().into_iter();
    // the shifts are computed only if no place before them is free
    let shifted = std::iter::once_with(move || shifted(start)).flatten();
    first.chain(inside_first).chain(shifted).chain(inside_last)
}

/// Places around a place, the nearest one first.
fn shifted(start: Rect) -> Vec<Rect> {
    let (width, height) = (start.width(), start.height());
    let (rows, columns) = SHIFTS;
    let step = (width / 4).max(1);
    let moves = (-rows..=rows).flat_map(|y| (-columns..=columns).map(move |x| (x, y)));
    let mut moves: Vec<(i64, i64)> = moves.map(|(x, y)| (x * step, y * (height + GAP))).collect();
    moves.sort_by_key(|(x, y)| x * x + y * y);
    let moved = moves.into_iter();
    moved
        .map(|(x, y)| Rect::new(start.left + x, start.top + y, (width, height)))
        .collect()
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const PICTURE: (i64, i64) = (640, 480);

    fn placed(wanted: &[WantedLabel]) -> Vec<Option<Rect>> {
        place(wanted, Rect::new(0, 0, PICTURE))
    }

    fn label(target: Rect) -> WantedLabel {
        WantedLabel {
            target,
            size: (80, 20),
        }
    }

    #[test]
    fn a_label_is_above_its_box_else_below_else_inside() {
        let place = |target| placed(&[label(target)])[0];
        let inner = Rect::new(100, 100, (200, 100));
        assert_eq!(place(inner), Some(Rect::new(100, 80, (80, 20))));
        let at_top = Rect::new(100, 10, (200, 100));
        assert_eq!(place(at_top), Some(Rect::new(100, 110, (80, 20))));
        let whole = Rect::new(0, 0, PICTURE);
        assert_eq!(place(whole), Some(Rect::new(0, 1, (80, 20))));
        let at_right = Rect::new(620, 100, (20, 20));
        assert_eq!(place(at_right), Some(Rect::new(560, 80, (80, 20))));
    }

    #[test]
    fn labels_of_equal_boxes_have_places_of_their_own() {
        let target = Rect::new(100, 100, (200, 100));
        let places = placed(&[label(target); 6]);
        let tops: Vec<i64> = places.iter().flatten().map(|place| place.top).collect();
        assert_eq!(tops, [80, 80, 200, 200, 101, 101]);
    }

    #[test]
    fn labels_in_a_crowded_picture_neither_overlap_nor_leave_it() {
        let mut random = StdRng::seed_from_u64(3);
        for count in [20, 60, 400] {
            let boxes = (0..count).map(|_| {
                let (width, height) = (random.random_range(2..200), random.random_range(2..200));
                let left = random.random_range(0..=PICTURE.0 - width);
                let top = random.random_range(0..=PICTURE.1 - height);
                WantedLabel {
                    target: Rect::new(left, top, (width, height)),
                    size: (random.random_range(40..140), 18),
                }
            });
            let wanted: Vec<WantedLabel> = boxes.collect();
            let places = placed(&wanted);
            assert_eq!(places.len(), count);
            for (place, label) in places.iter().zip(&wanted) {
                if let Some(place) = place {
                    assert_eq!((place.width(), place.height()), label.size);
                    assert!(Rect::new(0, 0, PICTURE).contains(*place), "{place:?}");
                }
            }
            let found: Vec<Rect> = places.into_iter().flatten().collect();
            for (i, a) in found.iter().enumerate() {
                let overlapping = found[i + 1..].iter().find(|b| a.overlaps(**b));
                assert_eq!(overlapping, None, "{a:?}");
            }
            // as many as there is room for
            let least = count.min(100);
            assert!(found.len() >= least, "{} of {count}", found.len());
        }
    }

    #[test]
    fn a_label_that_is_larger_than_the_picture_has_no_place() {
        let wanted = WantedLabel {
            target: Rect::new(0, 0, (10, 10)),
            size: (700, 20),
        };
        assert_eq!(placed(&[wanted]), [None]);
    }
}
