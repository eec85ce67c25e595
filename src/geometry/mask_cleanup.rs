//! Fills small holes of a mask and removes its small islands, on spans of pixels.

use std::ops::Range;

use super::mask::{Mask, MaskRows, Runs};

/// Which holes of a mask are filled and which of its islands are removed. The default changes nothing.
///
/// It follows `remove_small_regions` of SAM's reference (`segment_anything/utils/amg.py`) as its mask generator uses it:
/// - Pixels are connected to their 8 neighbours, both set and unset ones.
/// - Holes are filled first. Then islands are removed, whose areas include the holes filled.
/// - Only a component that is smaller than the limit is changed. If all islands are smaller, the largest is kept, and
///   of several of the same area the topmost.
///
/// There are two differences. The reference's limit is a number of pixels; here it is a share of the area of the mask
/// before both steps. And the reference fills every small component of the background; here a hole must be enclosed,
/// so background that touches the border of the image is never filled.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MaskCleanup {
    /// Holes smaller than this share of the mask's area are filled; in percent, 0 fills none.
    pub fill_holes: f32,
    /// Islands smaller than this share of the mask's area are removed; in percent, 0 removes none.
    pub drop_islands: f32,
}

impl MaskCleanup {
    /// The mask without its small holes and islands, in the same size. The time is proportional to the number of rows and
    /// runs, not to the number of pixels.
    pub fn apply(self, mask: Mask) -> Mask {
        let area = mask.area() as f64;
        // a share that is not a number changes nothing, like 0
        let is_small = |component: &Component, percent: f32| {
            (component.area as f64) < f64::from(percent) / 100.0 * area
        };
        let mask = if self.fill_holes > 0.0 {
            let holes = Components::of(&mask, false);
            let fills = |_, hole: &Component| hole.is_enclosed && is_small(hole, self.fill_holes);
            holes.flip(mask, fills)
        } else {
            mask
        };
        if self.drop_islands > 0.0 {
            let islands = Components::of(&mask, true);
            let kept = islands.largest();
            islands.flip(mask, |root, island: &Component| {
                Some(root) != kept && is_small(island, self.drop_islands)
            })
        } else {
            mask
        }
    }
}

/// Connected pixels of the same value.
#[derive(Debug, Clone, Copy)]
struct Component {
    /// Number of pixels.
    area: usize,
    /// Whether none of the pixels is at the border of the image.
    is_enclosed: bool,
}

/// The components of a mask's set pixels, or of its unset pixels.
#[derive(Debug)]
struct Components {
    /// The value of the pixels.
    is_set: bool,
    /// The spans of the pixels.
    rows: MaskRows,
    /// For each span, an earlier span of the same component, or itself if it is the component's first span: its root.
    parents: Vec<usize>,
    /// For each root, its component. The entries of other spans have no meaning.
    components: Vec<Component>,
}

impl Components {
    /// Connects the pixels of `mask` that have the value `is_set`.
    fn of(mask: &Mask, is_set: bool) -> Self {
        let size = mask.size();
        let rows = if is_set {
            mask.rows()
        } else {
            mask.rows().inverse(size.width)
        };
        let (mut parents, mut components) = (vec![], vec![]);
        let mut above: &[Range<usize>] = &[];
        for y in 0..size.height {
            let row = rows.row(y);
            let is_outer = y == 0 || y + 1 == size.height;
            let first_above = parents.len() - above.len();
            let mut start = 0;
            for span in row {
                let index = parents.len();
                parents.push(index);
                components.push(Component {
                    area: span.len(),
                    is_enclosed: !is_outer && span.start > 0 && span.end < size.width,
                });
                // a span ends, or starts, one column beside its diagonal neighbour
                while above.get(start).is_some_and(|a| a.end < span.start) {
                    start += 1;
                }
                let is_neighbour = |a: &&Range<usize>| a.start <= span.end;
                let count = above[start..].iter().take_while(is_neighbour).count();
                for neighbour in start..start + count {
                    join(&mut parents, first_above + neighbour, index);
                }
                // the last one can also be a neighbour of the next span
                start += count.saturating_sub(1);
            }
            above = row;
        }
        for index in 0..parents.len() {
            let root = find_root(&mut parents, index);
            if root != index {
                let Component { area, is_enclosed } = components[index];
                components[root].area += area;
                components[root].is_enclosed &= is_enclosed;
            }
        }
        Self {
            is_set,
            rows,
            parents,
            components,
        }
    }

    /// The root of the largest component, the first of several; `None` without components.
    fn largest(&self) -> Option<usize> {
        let roots = (0..self.parents.len()).filter(|index| self.parents[*index] == *index);
        // of equal ones `max_by_key` returns the last
        roots.rev().max_by_key(|root| self.components[*root].area)
    }

    /// Changes the value of the components of `mask` that `is_flipped` selects by their root and size.
    fn flip(mut self, mask: Mask, is_flipped: impl Fn(usize, &Component) -> bool) -> Mask {
        let flips: Vec<bool> = (0..self.parents.len())
            .map(|index| {
                let root = find_root(&mut self.parents, index);
                is_flipped(root, &self.components[root])
            })
            .collect();
        if !flips.contains(&true) {
            return mask;
        }
        let (size, mut flips, mut runs) = (mask.size(), flips.iter(), Runs::default());
        for y in 0..size.height {
            let mut end = 0;
            let row = self.rows.row(y);
            // `row` is first: zip must not take a flip of the next row
            for (span, flip) in row.iter().zip(&mut flips) {
                runs.push(!self.is_set, (span.start - end) as u32);
                runs.push(self.is_set != *flip, span.len() as u32);
                end = span.end;
            }
            runs.push(!self.is_set, (size.width - end) as u32);
        }
        Mask::from_runs(size, runs)
    }
}

/// The root of a span's component. It shortens the path to the root.
fn find_root(parents: &mut [usize], mut index: usize) -> usize {
    while parents[index] != index {
        parents[index] = parents[parents[index]];
        index = parents[index];
    }
    index
}

/// Makes one component of the components of two spans.
fn join(parents: &mut [usize], a: usize, b: usize) {
    let (a, b) = (find_root(parents, a), find_root(parents, b));
    parents[a.max(b)] = a.min(b);
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::geometry::ImageSize;

    fn mask(rows: &[&str]) -> Mask {
        let size = ImageSize {
            height: rows.len(),
            width: rows.first().map_or(0, |row| row.len()),
        };
        Mask::from_pixels(
            size,
            rows.iter().flat_map(|row| row.bytes()).map(|c| c == b'#'),
        )
    }

    fn fill(percent: f32) -> MaskCleanup {
        MaskCleanup {
            fill_holes: percent,
            ..MaskCleanup::default()
        }
    }

    fn drop(percent: f32) -> MaskCleanup {
        MaskCleanup {
            drop_islands: percent,
            ..MaskCleanup::default()
        }
    }

    #[test]
    fn only_enclosed_holes_below_the_limit_are_filled() {
        // enclosed holes of 1 and of 2 pixels; the unset pixel below is open at a corner
        let holes = mask(&[
            "########.", //
            "#.##..##.",
            "########.",
            "......#.#",
            "......##.",
        ]);
        assert_eq!(holes.area(), 25);
        let small_filled = mask(&[
            "########.", //
            "####..##.",
            "########.",
            "......#.#",
            "......##.",
        ]);
        let filled = mask(&[
            "########.", //
            "########.",
            "########.",
            "......#.#",
            "......##.",
        ]);
        assert_eq!(fill(4.0).apply(holes.clone()), holes, "1 of 25 is 4 %");
        assert_eq!(fill(4.1).apply(holes.clone()), small_filled);
        assert_eq!(fill(8.0).apply(holes.clone()), small_filled);
        assert_eq!(fill(8.1).apply(holes.clone()), filled);
        assert_eq!(fill(1e9).apply(holes), filled);
    }

    #[test]
    fn islands_below_the_limit_are_removed_but_the_largest_is_kept() {
        // islands of 6, 3 and 1 pixels; two of them hang together by corners
        let islands = mask(&[
            "##....#", //
            "##...#.", "##....#", "...#...",
        ]);
        assert_eq!(islands.area(), 10);
        let two = mask(&[
            "##....#", //
            "##...#.", "##....#", ".......",
        ]);
        let one = mask(&[
            "##.....", //
            "##.....", "##.....", ".......",
        ]);
        assert_eq!(
            drop(10.0).apply(islands.clone()),
            islands,
            "1 of 10 is 10 %"
        );
        assert_eq!(drop(10.1).apply(islands.clone()), two);
        assert_eq!(drop(30.1).apply(islands.clone()), one);
        assert_eq!(drop(1e9).apply(islands), one);
        let equal = mask(&["#.#", "...", "#.#"]);
        assert_eq!(drop(1e9).apply(equal), mask(&["#..", "...", "..."]));
    }

    #[test]
    fn holes_are_filled_before_islands_are_removed() {
        // the ring has 8 of 17 pixels, 9 with its hole; the bar has 9
        let ring_and_bar = mask(&[
            "###......", //
            "#.#......",
            "###......",
            ".........",
            "#########",
        ]);
        let both = MaskCleanup {
            fill_holes: 10.0,
            drop_islands: 50.0,
        };
        let filled_ring = mask(&[
            "###......", //
            "###......",
            "###......",
            ".........",
            "#########",
        ]);
        assert_eq!(
            both.apply(ring_and_bar.clone()),
            filled_ring,
            "9 of 17 each"
        );
        let bar = mask(&[
            ".........", //
            ".........",
            ".........",
            ".........",
            "#########",
        ]);
        assert_eq!(drop(50.0).apply(ring_and_bar), bar, "8 of 17");
    }

    #[test]
    fn without_a_limit_or_pixels_nothing_changes() {
        let holes_and_islands = mask(&["###.", "#.#.", "###.", "...#"]);
        for percent in [0.0, -1.0, f32::NAN] {
            let none = MaskCleanup {
                fill_holes: percent,
                drop_islands: percent,
            };
            assert_eq!(none.apply(holes_and_islands.clone()), holes_and_islands);
        }
        let all = MaskCleanup {
            fill_holes: 100.0,
            drop_islands: 100.0,
        };
        for unchanged in [
            mask(&[]),
            mask(&["", ""]),
            mask(&["...", "...", "..."]),
            mask(&["###", "###", "###"]),
        ] {
            assert_eq!(all.apply(unchanged.clone()), unchanged);
        }
    }

    /// A plain implementation on pixels: a flood fill of each component.
    fn plain(cleanup: MaskCleanup, mask: &Mask) -> Mask {
        let (size, area) = (mask.size(), mask.area() as f64);
        let mut pixels: Vec<bool> = mask.pixels().collect();
        let limit = |percent: f32| f64::from(percent) / 100.0 * area;
        for component in components(&pixels, size, false) {
            let is_inner = |i: &usize| {
                let (y, x) = (i / size.width, i % size.width);
                y > 0 && x > 0 && y + 1 < size.height && x + 1 < size.width
            };
            let is_small = (component.len() as f64) < limit(cleanup.fill_holes);
            if is_small && component.iter().all(is_inner) {
                component.iter().for_each(|i| pixels[*i] = true);
            }
        }
        let islands = components(&pixels, size, true);
        let largest = islands.iter().map(Vec::len).max();
        let kept = islands
            .iter()
            .position(|island| Some(island.len()) == largest);
        for (index, island) in islands.iter().enumerate() {
            if (island.len() as f64) < limit(cleanup.drop_islands) && Some(index) != kept {
                island.iter().for_each(|i| pixels[*i] = false);
            }
        }
        Mask::from_pixels(size, pixels)
    }

    /// The components of a value, in the order of their first pixels.
    fn components(pixels: &[bool], size: ImageSize, is_set: bool) -> Vec<Vec<usize>> {
        let mut is_open: Vec<bool> = pixels.iter().map(|pixel| *pixel == is_set).collect();
        let mut found = vec![];
        for first in 0..pixels.len() {
            let (mut component, mut queue) = (vec![], vec![first]);
            while let Some(i) = queue.pop() {
                if !std::mem::take(&mut is_open[i]) {
                    continue;
                }
                component.push(i);
                let (y, x) = (i / size.width, i % size.width);
                for y in y.saturating_sub(1)..(y + 2).min(size.height) {
                    for x in x.saturating_sub(1)..(x + 2).min(size.width) {
                        queue.push(y * size.width + x);
                    }
                }
            }
            if !component.is_empty() {
                found.push(component);
            }
        }
        found
    }

    #[test]
    fn random_masks_are_cleaned_as_by_a_flood_fill() {
        let mut random = StdRng::seed_from_u64(11);
        let mut changed = [0; 2];
        for _ in 0..3_000 {
            let size = ImageSize {
                height: random.random_range(1..=24),
                width: random.random_range(1..=24),
            };
            let (share, repeats) = (
                random.random_range(0.05..0.95),
                random.random_range(0.0..0.9),
            );
            let mut pixels: Vec<bool> = vec![];
            for i in 0..size.area() {
                // neighbours are often equal, so that there are components of all sizes
                let above = i.checked_sub(size.width).map(|above| pixels[above]);
                let left = (i % size.width > 0).then(|| pixels[i - 1]);
                let neighbour = if random.random_bool(0.5) { above } else { left };
                pixels.push(match neighbour {
                    Some(value) if random.random_bool(repeats) => value,
                    _ => random.random_bool(share),
                });
            }
            let mask = Mask::from_pixels(size, pixels);
            let mut percent = || match random.random_range(0..4) {
                0 => 0.0,
                1 => 1e6,
                _ => random.random_range(0.0..30.0),
            };
            let cleanup = MaskCleanup {
                fill_holes: percent(),
                drop_islands: percent(),
            };
            let cleaned = cleanup.apply(mask.clone());
            assert_eq!(cleaned, plain(cleanup, &mask), "{cleanup:?} of {mask:?}");
            for (of_kind, one) in [
                (0, fill(cleanup.fill_holes)),
                (1, drop(cleanup.drop_islands)),
            ] {
                changed[of_kind] += usize::from(one.apply(mask.clone()) != mask);
            }
        }
        assert!(changed.iter().all(|count| *count > 500), "{changed:?}");
    }
}
