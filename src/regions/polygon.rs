//! Converts masks to polygons.
//!
//! The boundary is traced along the edges between pixels, so an outline with zero tolerance covers exactly the mask.
//! The outline is then simplified (Douglas and Peucker 1973). The editor does not support holes: a hole that is large
//! enough is connected to the outline around it by a seam of zero width.

use crate::geometry::{Mask, row_differences};

type Ring = Vec<[f32; 2]>;

/// Minimum area of a part, as a share of the mask's largest part, and of a hole, as a share of the part around it.
/// Smaller ones are removed as noise.
const MIN_AREA_SHARE: f32 = 0.02;

/// The outlines of a mask's parts in pixels, the largest part first, each with at least three corners. No point of
/// the boundary is farther than `tolerance` pixels from its outline. A tolerance that is not finite counts as 0.
pub fn outlines(mask: &Mask, tolerance: f32) -> Vec<Ring> {
    // simplification that leaves too few corners is repeated with half the tolerance; an infinite tolerance would
    // never end
    let tolerance = if tolerance.is_finite() {
        tolerance
    } else {
        0.0
    };
    let (mut parts, mut holes): (Vec<Ring>, Vec<Ring>) = boundaries(mask)
        .into_iter()
        .partition(|ring| signed_area(ring) > 0.0);
    parts.sort_by(|a, b| signed_area(b).total_cmp(&signed_area(a)));
    let largest = parts.first().map_or(0.0, |ring| signed_area(ring));
    parts.retain(|ring| signed_area(ring) >= MIN_AREA_SHARE * largest);
    let mut outlines: Vec<Ring> = parts.iter().map(|ring| simplify(ring, tolerance)).collect();
    // in a noisy mask nearly all holes are too small for every part; skip the search for the part around them
    let smallest = parts.last().map_or(0.0, |ring| signed_area(ring));
    holes.retain(|hole| -signed_area(hole) >= MIN_AREA_SHARE * smallest);
    for hole in &holes {
        // parts do not overlap: the smallest part around a hole is the one that contains it
        let surrounding = (0..parts.len())
            .rev()
            .find(|i| contains(&parts[*i], inner_point(hole)));
        if let Some(i) = surrounding
            && -signed_area(hole) >= MIN_AREA_SHARE * signed_area(&parts[i])
        {
            outlines[i] = join(&outlines[i], &simplify(hole, tolerance));
        }
    }
    outlines.retain(|ring| ring.len() >= 3);
    outlines
}

/// The outline of a mask as one ring, for formats that have no parts: further parts are joined by seams of zero width, like
/// holes. `None` for an empty mask. `tolerance` as in [`outlines`].
pub fn outline(mask: &Mask, tolerance: f32) -> Option<Ring> {
    let parts = outlines(mask, tolerance).into_iter();
    parts.reduce(|joined, part| join(&joined, &part))
}

/// Directions along pixel edges, each a right turn from the one before: right, down, left, up.
const DIRECTIONS: [(isize, isize); 4] = [(1, 0), (0, 1), (-1, 0), (0, -1)];

/// Every boundary as a ring of pixel corners, with the mask on the right side. The signed area is positive around
/// parts and negative around holes. Parts that touch only at a corner are separate.
fn boundaries(mask: &Mask) -> Vec<Ring> {
    let rows = mask.rows();
    let is_used = |y: &usize| !rows.row(*y).is_empty();
    let height = mask.size().height;
    let (Some(top), Some(bottom)) = ((0..height).find(is_used), (0..height).rfind(is_used)) else {
        return vec![];
    };
    let spans = || (top..=bottom).flat_map(|y| rows.row(y));
    let left = spans().map(|span| span.start).min().unwrap_or(0);
    let right = spans().map(|span| span.end).max().unwrap_or(0);
    let mut corners = Corners::new((left, top), (right, bottom + 1));
    for y in top..=bottom {
        let row = rows.row(y);
        for span in row {
            corners.add_edge((span.end, y), DOWN);
            corners.add_edge((span.start, y + 1), UP);
        }
        let above = y.checked_sub(1).map_or(&[][..], |above| rows.row(above));
        for (columns, _) in row_differences(row, above).filter(|(_, is_set)| *is_set) {
            columns.for_each(|x| corners.add_edge((x, y), RIGHT));
        }
        for (columns, _) in row_differences(row, rows.row(y + 1)).filter(|(_, is_set)| *is_set) {
            columns.for_each(|x| corners.add_edge((x + 1, y + 1), LEFT));
        }
    }
    // the first corner of a boundary, in row order, is at the left or right end of a span below it
    let mut rings = vec![];
    for y in top..=bottom {
        for x in rows.row(y).iter().flat_map(|span| [span.start, span.end]) {
            while let Some(ring) = corners.trace((x, y)) {
                rings.push(ring);
            }
        }
    }
    rings
}

const RIGHT: usize = 0;
const DOWN: usize = 1;
const LEFT: usize = 2;
const UP: usize = 3;

/// The pixel corners of a mask, and the directions in which boundaries leave each corner.
struct Corners {
    left_top: (usize, usize),
    stride: usize,
    /// The low four bits: one bit per direction. The high four bits: the same, cleared once the edge is part of a
    /// ring.
    edges: Vec<u8>,
}

impl Corners {
    /// Covers the corners from `left_top` to `right_bottom`, both included.
    fn new(left_top: (usize, usize), right_bottom: (usize, usize)) -> Self {
        let stride = right_bottom.0 - left_top.0 + 1;
        Self {
            left_top,
            stride,
            edges: vec![0; stride * (right_bottom.1 - left_top.1 + 1)],
        }
    }

    fn index(&self, (x, y): (usize, usize)) -> usize {
        (y - self.left_top.1) * self.stride + x - self.left_top.0
    }

    fn add_edge(&mut self, corner: (usize, usize), direction: usize) {
        let at = self.index(corner);
        self.edges[at] |= 0x11 << direction;
    }

    /// Traces the boundary that starts with the first unused edge at `start`, until it returns to this edge.
    fn trace(&mut self, start: (usize, usize)) -> Option<Ring> {
        let unused = self.edges[self.index(start)] >> 4;
        if unused == 0 {
            return None;
        }
        let first = unused.trailing_zeros() as usize;
        let (mut corner, mut direction) = (self.index(start), first);
        let (start, mut ring) = (corner, vec![]);
        loop {
            self.edges[corner] &= !(0x10 << direction);
            let (dx, dy) = DIRECTIONS[direction];
            corner = corner.wrapping_add_signed(dy * self.stride as isize + dx);
            // trying the right turn first stays on the same pixel where two pixels touch at a corner
            let turns = [direction + 1, direction, direction + 3].map(|turn| turn % 4);
            let next = turns
                .into_iter()
                .find(|d| self.edges[corner] & (1 << d) != 0);
            let next = next.unwrap_or(first);
            if next != direction {
                let (x, y) = (corner % self.stride, corner / self.stride);
                let (left, top) = self.left_top;
                ring.push([(left + x) as f32, (top + y) as f32]);
            }
            direction = next;
            if (corner, direction) == (start, first) {
                return Some(ring);
            }
        }
    }
}

/// Signed area of a ring: positive if the inside is on the right, with y pointing down.
fn signed_area(ring: &[[f32; 2]]) -> f32 {
    let next = ring.iter().cycle().skip(1);
    let twice: f64 = ring
        .iter()
        .zip(next)
        .map(|(a, b)| f64::from(a[0]) * f64::from(b[1]) - f64::from(b[0]) * f64::from(a[1]))
        .sum();
    (twice / 2.0) as f32
}

/// The centre of the pixel to the right of a boundary's first edge; this pixel is in the mask.
fn inner_point(ring: &[[f32; 2]]) -> [f32; 2] {
    let ([x0, y0], [x1, y1]) = (ring[0], ring[1]);
    let (dx, dy) = (
        (x1 - x0).signum() * f32::from(x1 != x0),
        (y1 - y0).signum() * f32::from(y1 != y0),
    );
    [x0 + 0.5 * (dx - dy), y0 + 0.5 * (dy + dx)]
}

fn contains(ring: &[[f32; 2]], [x, y]: [f32; 2]) -> bool {
    let next = ring.iter().cycle().skip(1);
    let crossings = ring.iter().zip(next).filter(|(a, b)| {
        (a[1] > y) != (b[1] > y) && x < (b[0] - a[0]) * (y - a[1]) / (b[1] - a[1]) + a[0]
    });
    crossings.count() % 2 == 1
}

/// Removes corners as long as no removed corner is farther than `tolerance` from the result.
fn simplify(ring: &[[f32; 2]], tolerance: f32) -> Ring {
    let farthest_from = |from: [f32; 2]| {
        let squared = |p: [f32; 2]| (p[0] - from[0]).powi(2) + (p[1] - from[1]).powi(2);
        let ranked = ring.iter().enumerate();
        let farthest = ranked.max_by(|a, b| squared(*a.1).total_cmp(&squared(*b.1)));
        farthest.map_or(0, |(i, _)| i)
    };
    if ring.len() <= 4 {
        return ring.to_vec();
    }
    // two corners far apart, which are always kept
    let first = farthest_from(ring[0]);
    let second = farthest_from(ring[first]);
    let mut is_kept = vec![false; ring.len()];
    is_kept[first] = true;
    is_kept[second] = true;
    let (low, high) = (first.min(second), first.max(second));
    let mut spans = vec![(low, high), (high, low + ring.len())];
    while let Some((from, to)) = spans.pop() {
        let (a, b) = (ring[from % ring.len()], ring[to % ring.len()]);
        let distances = (from + 1..to).map(|i| (i, distance(ring[i % ring.len()], a, b)));
        if let Some((i, d)) = distances.max_by(|a, b| a.1.total_cmp(&b.1))
            && d > tolerance
        {
            is_kept[i % ring.len()] = true;
            spans.extend([(from, i), (i, to)]);
        }
    }
    let simplified: Ring = (0..ring.len())
        .filter(|i| is_kept[*i])
        .map(|i| ring[i])
        .collect();
    if simplified.len() < 3 {
        return simplify(ring, tolerance / 2.0);
    }
    simplified
}

/// Distance from the point `p` to the segment from `a` to `b`.
fn distance(p: [f32; 2], a: [f32; 2], b: [f32; 2]) -> f32 {
    let (dx, dy) = (b[0] - a[0], b[1] - a[1]);
    let length = dx * dx + dy * dy;
    let along = if length > 0.0 {
        (((p[0] - a[0]) * dx + (p[1] - a[1]) * dy) / length).clamp(0.0, 1.0)
    } else {
        0.0
    };
    (p[0] - a[0] - along * dx).hypot(p[1] - a[1] - along * dy)
}

/// Connects another ring to an outline, as one ring: along the outline to the corner nearest to the other ring, around that
/// ring, and back. The other ring is a hole, or another part.
fn join(outline: &[[f32; 2]], other: &[[f32; 2]]) -> Ring {
    let pairs = (0..outline.len()).flat_map(|i| (0..other.len()).map(move |j| (i, j)));
    let squared = |(i, j): (usize, usize)| {
        (outline[i][0] - other[j][0]).powi(2) + (outline[i][1] - other[j][1]).powi(2)
    };
    let nearest = pairs.min_by(|a, b| squared(*a).total_cmp(&squared(*b)));
    let Some((i, j)) = nearest else {
        return outline.to_vec();
    };
    [&outline[..=i], &other[j..], &other[..=j], &outline[i..]].concat()
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
            width: rows[0].len(),
        };
        Mask::from_pixels(size, rows.concat().chars().map(|c| c == '#'))
    }

    /// Pixels whose centre is inside an odd number of rings.
    fn filled(rings: &[Ring], size: ImageSize) -> Mask {
        let is_inside = |x: usize, y: usize| {
            let inside = rings
                .iter()
                .filter(|r| contains(r, [x as f32 + 0.5, y as f32 + 0.5]));
            inside.count() % 2 == 1
        };
        let pixels = (0..size.height).flat_map(|y| (0..size.width).map(move |x| (x, y)));
        Mask::from_pixels(size, pixels.map(|(x, y)| is_inside(x, y)))
    }

    #[test]
    fn outlines_without_tolerance_cover_exactly_the_mask() {
        for rows in [
            vec!["#"],
            vec!["...", ".#.", "..."],
            vec!["####", "####"],
            vec!["##..", ".##.", "..##", "#..#"],
            vec!["#####", "#...#", "#.#.#", "#...#", "#####"],
            vec![".###.", "##.##", "#...#", "##.##", ".###."],
        ] {
            let mask = mask(&rows);
            let rings = outlines(&mask, 0.0);
            assert_eq!(filled(&rings, mask.size()), mask, "{rows:?} {rings:?}");
        }
        assert!(outlines(&mask(&["...", "..."]), 1.0).is_empty());
        for tolerance in [f32::NAN, f32::INFINITY, f32::MAX] {
            assert!(!outlines(&mask(&["##", "#."]), tolerance).is_empty());
        }
    }

    #[test]
    fn outlines_without_tolerance_cover_random_masks_exactly() {
        let mut rng = StdRng::seed_from_u64(9);
        for case in 0..300 {
            let size = ImageSize {
                height: rng.random_range(1..8),
                width: rng.random_range(1..8),
            };
            let share = [0.1, 0.5, 0.9][case % 3];
            let pixels: Vec<bool> = (0..size.area()).map(|_| rng.random_bool(share)).collect();
            let mask = Mask::from_pixels(size, pixels);
            let rings = outlines(&mask, 0.0);
            assert_eq!(filled(&rings, size), mask, "{rings:?}");
        }
    }

    #[test]
    fn one_outline_covers_all_parts_and_leaves_out_their_holes() {
        let mask = mask(&[
            "####..##", "#..#..##", "#..#....", "####..#.", ".......#", "###.....",
        ]);
        let ring = outline(&mask, 0.0).unwrap();
        assert_eq!(filled(&[ring], mask.size()), mask);
        assert_eq!(outline(&self::mask(&["..", ".."]), 0.0), None);
    }

    #[test]
    fn a_hole_is_joined_to_the_part_around_it() {
        let mask = mask(&[
            "#######", "##....#", "#.##..#", "#.##..#", "#.....#", "#######",
        ]);
        let rings = outlines(&mask, 0.0);
        let areas: Vec<usize> = rings
            .iter()
            .map(|ring| filled(std::slice::from_ref(ring), mask.size()).area())
            .collect();
        assert_eq!(
            areas,
            [mask.area() - 4, 4],
            "the frame with its hole, and the part inside of the hole"
        );
    }

    #[test]
    fn a_mask_with_many_small_holes_has_one_outline() {
        let size = ImageSize {
            height: 1000,
            width: 1000,
        };
        let holes = Mask::from_pixels(
            size,
            (0..size.area()).map(|i| i % 2 == 0 || i / 1000 % 2 == 0),
        );
        let rings = outlines(&holes, 1.0);
        assert_eq!(rings.len(), 1);
    }

    #[test]
    fn large_holes_are_kept_and_small_parts_are_removed() {
        let size = ImageSize {
            height: 100,
            width: 120,
        };
        let pixels = (0..size.height).flat_map(|y| {
            (0..size.width).map(move |x| {
                let r = (x as f32 - 60.0).hypot(y as f32 - 50.0);
                (20.0..45.0).contains(&r) || (x < 2 && y < 2)
            })
        });
        let ring = Mask::from_pixels(size, pixels);
        let rings = outlines(&ring, 1.0);
        assert_eq!(rings.len(), 1);
        assert!((8..80).contains(&rings[0].len()), "{}", rings[0].len());
        let iou = filled(&rings, size).iou(&ring);
        assert!(iou > 0.95, "{iou}");
        let coarse = outlines(&ring, 5.0);
        assert!(coarse[0].len() < rings[0].len());
    }
}
