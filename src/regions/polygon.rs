//! Masks to outlines.
//!
//! The boundary is followed along the edges between pixels, so an outline of no tolerance covers exactly
//! the mask, and is then thinned out (Douglas and Peucker 1973). The editor knows no holes: one that
//! matters is joined to the outline around it by a seam without width.

use crate::geometry::Mask;

type Ring = Vec<[f32; 2]>;

/// Parts of a mask smaller than this share of its largest are specks, and so are holes smaller than this
/// share of the part they are in.
const SPECK: f32 = 0.02;

/// The outlines of a mask's parts in pixels, the largest first, each of at least three corners; no point
/// of the boundary is farther than `tolerance` pixels from them.
pub fn outlines(mask: &Mask, tolerance: f32) -> Vec<Ring> {
    let (mut parts, holes): (Vec<Ring>, Vec<Ring>) = boundaries(mask)
        .into_iter()
        .partition(|ring| signed_area(ring) > 0.0);
    parts.sort_by(|a, b| signed_area(b).total_cmp(&signed_area(a)));
    let largest = parts.first().map_or(0.0, |ring| signed_area(ring));
    parts.retain(|ring| signed_area(ring) >= SPECK * largest);
    let mut outlines: Vec<Ring> = parts.iter().map(|ring| simplify(ring, tolerance)).collect();
    for hole in &holes {
        // parts are apart from each other: the smallest around a hole is the one it is in
        let around = (0..parts.len())
            .rev()
            .find(|i| contains(&parts[*i], beside(hole)));
        if let Some(i) = around
            && -signed_area(hole) >= SPECK * signed_area(&parts[i])
        {
            outlines[i] = joined(&outlines[i], &simplify(hole, tolerance));
        }
    }
    outlines.retain(|ring| ring.len() >= 3);
    outlines
}

/// Directions along pixel edges, each the right turn of the one before: right, down, left, up.
const STEPS: [(isize, isize); 4] = [(1, 0), (0, 1), (-1, 0), (0, -1)];

/// Every boundary as corners between pixels, the mask to the right: around parts the signed area is
/// positive, around holes negative. Parts that touch at a corner only are apart.
fn boundaries(mask: &Mask) -> Vec<Ring> {
    let size = mask.size();
    let (width, height) = (size.width as isize, size.height as isize);
    let pixels: Vec<bool> = mask.pixels().collect();
    let is_set = |x: isize, y: isize| {
        x >= 0 && y >= 0 && x < width && y < height && pixels[(y * width + x) as usize]
    };
    // one bit per direction that a boundary leaves a corner in
    let stride = width + 1;
    let at = |x: isize, y: isize| (y * stride + x) as usize;
    let mut edges = vec![0u8; (stride * (height + 1)) as usize];
    for y in 0..height {
        for x in (0..width).filter(|x| is_set(*x, y)) {
            for (direction, from, other) in [
                (0, (x, y), (x, y - 1)),
                (1, (x + 1, y), (x + 1, y)),
                (2, (x + 1, y + 1), (x, y + 1)),
                (3, (x, y + 1), (x - 1, y)),
            ] {
                if !is_set(other.0, other.1) {
                    edges[at(from.0, from.1)] |= 1 << direction;
                }
            }
        }
    }
    let mut left = edges.clone();
    let mut rings = vec![];
    for start in 0..edges.len() {
        while left[start] != 0 {
            let first = left[start].trailing_zeros() as usize;
            rings.push(follow(&edges, &mut left, start, first, stride));
        }
    }
    rings
}

/// One boundary from an edge back to it; its edges are taken out of `left`.
fn follow(edges: &[u8], left: &mut [u8], start: usize, first: usize, stride: isize) -> Ring {
    let (mut corner, mut direction) = (start, first);
    let mut ring = vec![];
    loop {
        left[corner] &= !(1 << direction);
        let (dx, dy) = STEPS[direction];
        corner = (corner as isize + dy * stride + dx) as usize;
        // a right turn first keeps to the same pixel where two touch at a corner
        let turns = [direction + 1, direction, direction + 3].map(|turn| turn % 4);
        let next = turns.into_iter().find(|d| edges[corner] & (1 << d) != 0);
        let next = next.unwrap_or(first);
        if next != direction {
            let (x, y) = (corner as isize % stride, corner as isize / stride);
            ring.push([x as f32, y as f32]);
        }
        direction = next;
        if (corner, direction) == (start, first) {
            return ring;
        }
    }
}

/// Positive where the inside is to the right, in coordinates that grow downwards.
fn signed_area(ring: &[[f32; 2]]) -> f32 {
    let next = ring.iter().cycle().skip(1);
    let twice: f64 = ring
        .iter()
        .zip(next)
        .map(|(a, b)| f64::from(a[0]) * f64::from(b[1]) - f64::from(b[0]) * f64::from(a[1]))
        .sum();
    (twice / 2.0) as f32
}

/// The middle of the pixel to the right of a boundary's first edge: one of the mask.
fn beside(ring: &[[f32; 2]]) -> [f32; 2] {
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

/// Leaves out corners as long as none is farther than `tolerance` from what stays.
fn simplify(ring: &[[f32; 2]], tolerance: f32) -> Ring {
    let far = |from: [f32; 2]| {
        let squared = |p: [f32; 2]| (p[0] - from[0]).powi(2) + (p[1] - from[1]).powi(2);
        let ranked = ring.iter().enumerate();
        let farthest = ranked.max_by(|a, b| squared(*a.1).total_cmp(&squared(*b.1)));
        farthest.map_or(0, |(i, _)| i)
    };
    if ring.len() <= 4 {
        return ring.to_vec();
    }
    // two corners that stay, far apart
    let first = far(ring[0]);
    let second = far(ring[first]);
    let mut stays = vec![false; ring.len()];
    stays[first] = true;
    stays[second] = true;
    let (low, high) = (first.min(second), first.max(second));
    let mut spans = vec![(low, high), (high, low + ring.len())];
    while let Some((from, to)) = spans.pop() {
        let (a, b) = (ring[from % ring.len()], ring[to % ring.len()]);
        let distances = (from + 1..to).map(|i| (i, distance(ring[i % ring.len()], a, b)));
        if let Some((i, d)) = distances.max_by(|a, b| a.1.total_cmp(&b.1))
            && d > tolerance
        {
            stays[i % ring.len()] = true;
            spans.extend([(from, i), (i, to)]);
        }
    }
    let kept: Ring = (0..ring.len())
        .filter(|i| stays[*i])
        .map(|i| ring[i])
        .collect();
    if kept.len() < 3 {
        return simplify(ring, tolerance / 2.0);
    }
    kept
}

/// From a point to a stretch.
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

/// An outline with a hole in it, as one ring: to the hole's nearest corner, around it, and back.
fn joined(outline: &[[f32; 2]], hole: &[[f32; 2]]) -> Ring {
    let pairs = (0..outline.len()).flat_map(|i| (0..hole.len()).map(move |j| (i, j)));
    let squared = |(i, j): (usize, usize)| {
        (outline[i][0] - hole[j][0]).powi(2) + (outline[i][1] - hole[j][1]).powi(2)
    };
    let nearest = pairs.min_by(|a, b| squared(*a).total_cmp(&squared(*b)));
    let Some((i, j)) = nearest else {
        return outline.to_vec();
    };
    [&outline[..=i], &hole[j..], &hole[..=j], &outline[i..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ImageSize;

    fn mask(rows: &[&str]) -> Mask {
        let size = ImageSize {
            height: rows.len(),
            width: rows[0].len(),
        };
        Mask::from_pixels(size, rows.concat().chars().map(|c| c == '#'))
    }

    /// Pixels whose middle is inside of an odd number of the rings.
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
    fn without_tolerance_an_outline_covers_exactly_the_mask() {
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
    }

    #[test]
    fn a_hole_belongs_to_the_part_around_it() {
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
            "the frame with its hole, and the island"
        );
    }

    #[test]
    fn a_ring_keeps_its_hole_and_loses_specks() {
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
