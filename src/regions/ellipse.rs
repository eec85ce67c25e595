//! The ellipse and the point that stand for a mask.

use crate::geometry::Mask;

/// An ellipse, in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ellipse {
    /// The centre, from the left edge.
    pub(super) x: f32,
    /// The centre, from the top edge.
    pub(super) y: f32,
    /// The longer half-axis.
    pub(super) radius_x: f32,
    /// The shorter half-axis.
    pub(super) radius_y: f32,
    /// The direction of the longer half-axis, clockwise from the right, -90..90.
    pub(super) degrees: f32,
}

/// The area, the centre and the covariance of the pixels of a mask.
struct Moments {
    x: f64,
    y: f64,
    xx: f64,
    yy: f64,
    xy: f64,
}

/// The ellipse with the same centre and second moments as a mask; `None` for an empty mask. A mask that is an ellipse is
/// returned exactly: the variance along a half-axis `a` of a filled ellipse is `a² / 4`.
pub(super) fn of_mask(mask: &Mask) -> Option<Ellipse> {
    let Moments { x, y, xx, yy, xy } = moments(mask)?;
    // the eigenvalues of the covariance are the variances along the axes
    let (mean, difference) = ((xx + yy) / 2.0, (xx - yy) / 2.0);
    let spread = difference.hypot(xy);
    let radius = |variance: f64| (2.0 * variance.max(0.0).sqrt()) as f32;
    Some(Ellipse {
        x: x as f32,
        y: y as f32,
        radius_x: radius(mean + spread),
        radius_y: radius(mean - spread),
        degrees: (0.5 * xy.atan2(difference)).to_degrees() as f32,
    })
}

/// A pixel of a mask close to its centre: the centre of the pixels if it is set, else the middle of the longest span of
/// the nearest row. In pixels, as the centre of a pixel; `None` for an empty mask.
pub(super) fn inner_point(mask: &Mask) -> Option<(f32, f32)> {
    let Moments { x, y, .. } = moments(mask)?;
    let rows = mask.rows();
    let column = x as usize;
    if rows
        .row(y as usize)
        .iter()
        .any(|span| span.contains(&column))
    {
        return Some((x as f32, y as f32));
    }
    let is_set = |row: usize| !rows.row(row).is_empty();
    let nearest = (0..mask.size().height)
        .filter(|row| is_set(*row))
        .min_by(|a, b| {
            let distance = |row: usize| (row as f64 + 0.5 - y).abs();
            distance(*a).total_cmp(&distance(*b))
        })?;
    let longest = rows.row(nearest).iter().max_by_key(|span| span.len())?;
    let middle = (longest.start + longest.end) as f32 / 2.0;
    Some((middle, nearest as f32 + 0.5))
}

/// Sums over spans: the time grows with the number of spans, not with the area.
fn moments(mask: &Mask) -> Option<Moments> {
    let (mut area, mut sum_x, mut sum_y) = (0.0, 0.0, 0.0);
    let (mut sum_xx, mut sum_yy, mut sum_xy) = (0.0, 0.0, 0.0);
    let rows = mask.rows();
    for row in 0..mask.size().height {
        let y = row as f64 + 0.5;
        for span in rows.row(row) {
            let (start, end) = (span.start as f64, span.end as f64);
            let count = end - start;
            // the integrals of 1, x and x² from start to end: a pixel is a square, not a point
            let (x, xx) = (
                (end * end - start * start) / 2.0,
                (end.powi(3) - start.powi(3)) / 3.0,
            );
            area += count;
            sum_x += x;
            sum_y += count * y;
            sum_xx += xx;
            sum_yy += count * (y * y + 1.0 / 12.0);
            sum_xy += x * y;
        }
    }
    if area == 0.0 {
        return None;
    }
    let (x, y) = (sum_x / area, sum_y / area);
    Some(Moments {
        x,
        y,
        xx: sum_xx / area - x * x,
        yy: sum_yy / area - y * y,
        xy: sum_xy / area - x * y,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ImageSize;

    const SIZE: ImageSize = ImageSize {
        height: 300,
        width: 400,
    };

    fn mask(is_set: impl Fn(f32, f32) -> bool) -> Mask {
        let pixels = (0..SIZE.area()).map(|i| {
            let (x, y) = ((i % SIZE.width) as f32, (i / SIZE.width) as f32);
            is_set(x + 0.5, y + 0.5)
        });
        Mask::from_pixels(SIZE, pixels)
    }

    #[test]
    fn the_ellipse_of_an_elliptic_mask_is_the_ellipse() {
        for degrees in [-80.0_f32, -30.0, 0.0, 20.0, 45.0, 75.0] {
            let (sin, cos) = degrees.to_radians().sin_cos();
            let found = of_mask(&mask(|x, y| {
                let (dx, dy) = (x - 180.0, y - 140.0);
                let (along, across) = (dx * cos + dy * sin, dy * cos - dx * sin);
                (along / 90.0).powi(2) + (across / 40.0).powi(2) < 1.0
            }));
            let found = found.unwrap();
            for (value, expected, tolerance) in [
                (found.x, 180.0, 0.1),
                (found.y, 140.0, 0.1),
                (found.radius_x, 90.0, 0.3),
                (found.radius_y, 40.0, 0.3),
                (found.degrees, degrees, 0.3),
            ] {
                assert!((value - expected).abs() < tolerance, "{degrees}: {found:?}");
            }
        }
    }

    #[test]
    fn a_point_lies_on_its_mask() {
        let disc = mask(|x, y| (x - 100.0).hypot(y - 90.0) < 50.0);
        let (x, y) = inner_point(&disc).unwrap();
        assert!((x - 100.0).abs() < 0.1 && (y - 90.0).abs() < 0.1);
        // the centre of a ring is not set
        let ring = mask(|x, y| (40.0..50.0).contains(&(x - 100.0).hypot(y - 90.0)));
        let (x, y) = inner_point(&ring).unwrap();
        let index = y as usize * SIZE.width + x as usize;
        assert!(ring.pixels().nth(index).unwrap(), "{x} {y}");
        let empty = mask(|_, _| false);
        assert!(inner_point(&empty).is_none() && of_mask(&empty).is_none());
    }
}
