//! Polygons to masks, with exactly the pixels that `pycocotools` sets.

use std::cmp::Ordering;

use super::{ImageSize, Mask};

/// The boundary is drawn on a grid that is finer than the pixels by this factor.
const SCALE: f64 = 5.0;

impl Mask {
    /// The pixels inside at least one of the polygons, whose corners are `[x, y]` in pixels. Where a polygon intersects
    /// itself, the even-odd rule holds. Parts outside the image are cut off.
    ///
    /// The result equals `rleFrPoly` and `rleMerge` of pycocotools (`common/maskApi.c`) on x86-64, where products and sums
    /// are rounded one by one. The time depends on the lengths of the edges, so corners should not be far outside the
    /// image.
    pub fn from_polygons<'a>(
        size: ImageSize,
        polygons: impl IntoIterator<Item = &'a [[f64; 2]]>,
    ) -> Self {
        let filled = polygons.into_iter().map(|corners| fill(size, corners));
        match filled.reduce(|all, polygon| all.union(&polygon)) {
            Some(columns) => columns.transposed(),
            None => Self::from_pixels(size, []),
        }
    }
}

/// The transposed mask of one polygon.
fn fill(size: ImageSize, corners: &[[f64; 2]]) -> Mask {
    let on_grid = |coordinate: f64| i64::from((SCALE * coordinate + 0.5) as i32);
    let corners: Vec<[i64; 2]> = corners.iter().map(|corner| corner.map(on_grid)).collect();
    let following = corners.iter().cycle().skip(1);
    let edges = corners.iter().zip(following);
    let mut boundary = edges.flat_map(|(from, to)| edge(*from, *to));
    let mut changes = vec![];
    if let Some(mut before) = boundary.next() {
        for point in boundary {
            changes.extend(crossing(size, before, point));
            before = point;
        }
    }
    let transposed = ImageSize {
        height: size.width,
        width: size.height,
    };
    Mask::from_changes(transposed, changes)
}

/// The points of the grid on the edge between two corners, both included. They are computed from left to right, or from
/// top to bottom, whatever the direction of the edge is.
fn edge(from: [i64; 2], to: [i64; 2]) -> impl Iterator<Item = [i64; 2]> {
    let (dx, dy) = ((from[0] - to[0]).abs(), (from[1] - to[1]).abs());
    // the axis with one point for each step, and the other one
    let (main, other) = if dx >= dy { (0, 1) } else { (1, 0) };
    let is_backward = from[main] > to[main];
    let (start, end) = if is_backward { (to, from) } else { (from, to) };
    let steps = end[main] - start[main];
    let slope = match steps {
        0 => 0.0,
        _ => (end[other] - start[other]) as f64 / steps as f64,
    };
    (0..=steps).map(move |step| {
        let step = if is_backward { steps - step } else { step };
        let mut point = start;
        point[main] += step;
        point[other] = (start[other] as f64 + slope * step as f64 + 0.5) as i64;
        point
    })
}

/// The position, column by column, where the boundary crosses the centre of a column between two successive points.
fn crossing(size: ImageSize, before: [i64; 2], point: [i64; 2]) -> Option<usize> {
    let x = match point[0].cmp(&before[0]) {
        Ordering::Less => point[0],
        Ordering::Equal => return None,
        Ordering::Greater => point[0] - 1,
    };
    let to_pixels = |coordinate: i64| (coordinate as f64 + 0.5) / SCALE - 0.5;
    let x = to_pixels(x);
    if x.floor() != x || x < 0.0 || x > size.width as f64 - 1.0 {
        return None;
    }
    let y = to_pixels(point[1].min(before[1]));
    let y = y.clamp(0.0, size.height as f64).ceil();
    Some(x as usize * size.height + y as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: ImageSize = ImageSize {
        height: 4,
        width: 5,
    };

    /// The columns of the set pixels of each row.
    fn filled(polygons: &[&[[f64; 2]]]) -> Vec<Vec<usize>> {
        let rows = Mask::from_polygons(SIZE, polygons.iter().copied()).rows();
        let columns = |y| rows.row(y).iter().cloned().flatten().collect();
        (0..SIZE.height).map(columns).collect()
    }

    fn rectangle(x0: f64, y0: f64, x1: f64, y1: f64) -> [[f64; 2]; 4] {
        [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    }

    #[test]
    fn a_rectangle_has_the_pixels_between_its_edges() {
        let expected = [vec![], vec![1, 2], vec![1, 2], vec![]];
        let corners = rectangle(1.0, 1.0, 3.0, 3.0);
        assert_eq!(filled(&[&corners]), expected);
        let reversed: Vec<[f64; 2]> = corners.into_iter().rev().collect();
        assert_eq!(filled(&[&reversed]), expected);
        let everything = rectangle(-7.0, -7.0, 50.0, 50.0);
        assert_eq!(filled(&[&everything]), vec![vec![0, 1, 2, 3, 4]; 4]);
    }

    #[test]
    fn several_polygons_are_joined() {
        let (left, right) = (rectangle(0.0, 0.0, 3.0, 1.0), rectangle(2.0, 0.0, 5.0, 2.0));
        let expected = [vec![0, 1, 2, 3, 4], vec![2, 3, 4], vec![], vec![]];
        assert_eq!(filled(&[&left, &right]), expected);
    }

    #[test]
    fn a_polygon_without_area_in_the_image_has_no_pixels() {
        let nothing = vec![Vec::<usize>::new(); 4];
        let outside = rectangle(-9.0, 0.0, -3.0, 4.0);
        let below = rectangle(0.0, 6.0, 5.0, 9.0);
        let point = [[2.0, 2.0]; 3];
        let not_numbers = [[f64::NAN, 1.0], [1.0, f64::NAN], [f64::NAN; 2]];
        for corners in [&outside[..], &below, &point, &not_numbers, &[]] {
            assert_eq!(filled(&[corners]), nothing, "{corners:?}");
        }
        assert_eq!(filled(&[]), nothing);
    }
}
