//! Draws rectangles, lines and masks on an image.

use image::{Rgb, RgbImage};

use crate::geometry::{BoundingBox, Mask, row_differences};

/// Opacity of a mask's fill, of 255.
const MASK_OPACITY: u32 = 110;

/// A rectangle of pixels; the right and bottom edges are exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rect {
    pub(super) left: i64,
    pub(super) top: i64,
    pub(super) right: i64,
    pub(super) bottom: i64,
}

impl Rect {
    /// A rectangle with this corner and size.
    pub(super) fn new(left: i64, top: i64, (width, height): (i64, i64)) -> Self {
        Self {
            left,
            top,
            right: left + width,
            bottom: top + height,
        }
    }

    /// A whole image.
    pub(super) fn of_image(image: &RgbImage) -> Self {
        let size = (i64::from(image.width()), i64::from(image.height()));
        Self::new(0, 0, size)
    }

    /// The pixels of a box that was clamped to its image.
    pub(super) fn of_box(b: BoundingBox) -> Self {
        let [left, top, right, bottom] = b.corners().map(|v| v.round() as i64);
        Self {
            left,
            top,
            right,
            bottom,
        }
    }

    pub(super) fn width(self) -> i64 {
        self.right - self.left
    }

    pub(super) fn height(self) -> i64 {
        self.bottom - self.top
    }

    /// Whether the two have a pixel in common.
    pub(super) fn overlaps(self, other: Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }

    /// Whether the other is inside.
    pub(super) fn contains(self, other: Self) -> bool {
        self.left <= other.left
            && self.top <= other.top
            && other.right <= self.right
            && other.bottom <= self.bottom
    }

    /// The rectangle with `pixels` more on each side.
    pub(super) fn grown(self, pixels: i64) -> Self {
        Self {
            left: self.left - pixels,
            top: self.top - pixels,
            right: self.right + pixels,
            bottom: self.bottom + pixels,
        }
    }

    /// The point of the rectangle that is nearest to another point.
    pub(super) fn nearest_to(self, (x, y): (i64, i64)) -> (i64, i64) {
        let last = |end: i64, start: i64| (end - 1).max(start);
        (
            x.clamp(self.left, last(self.right, self.left)),
            y.clamp(self.top, last(self.bottom, self.top)),
        )
    }

    pub(super) fn centre(self) -> (i64, i64) {
        ((self.left + self.right) / 2, (self.top + self.bottom) / 2)
    }
}

/// Fills the part of a rectangle that is inside the image.
pub(super) fn fill(canvas: &mut RgbImage, rect: Rect, color: Rgb<u8>) {
    let whole = Rect::of_image(canvas);
    // inside the image, so none is negative
    let columns = rect.left.max(0) as u32..rect.right.clamp(0, whole.right) as u32;
    let rows = rect.top.max(0) as u32..rect.bottom.clamp(0, whole.bottom) as u32;
    for y in rows {
        for x in columns.clone() {
            canvas.put_pixel(x, y, color);
        }
    }
}

/// Draws the edges of a rectangle inside of it, `line` pixels wide.
pub(super) fn frame(canvas: &mut RgbImage, rect: Rect, color: Rgb<u8>, line: i64) {
    let Rect {
        left,
        top,
        right,
        bottom,
    } = rect;
    let (width, height) = (rect.width(), rect.height());
    for edge in [
        Rect::new(left, top, (width, line)),
        Rect::new(left, bottom - line, (width, line)),
        Rect::new(left, top, (line, height)),
        Rect::new(right - line, top, (line, height)),
    ] {
        fill(canvas, edge, color);
    }
}

/// Draws a straight line, `line` pixels wide.
pub(super) fn straight(
    canvas: &mut RgbImage,
    from: (i64, i64),
    to: (i64, i64),
    color: Rgb<u8>,
    line: i64,
) {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let steps = dx.abs().max(dy.abs()).max(1);
    for step in 0..=steps {
        let (x, y) = (from.0 + dx * step / steps, from.1 + dy * step / steps);
        let dot = Rect::new(x - line / 2, y - line / 2, (line, line));
        fill(canvas, dot, color);
    }
}

/// Draws a mask: a translucent fill, and an outline in the full colour, `line` pixels wide, so that a mask which is only one
/// pixel thin is visible too.
pub(super) fn mask(canvas: &mut RgbImage, mask: &Mask, color: Rgb<u8>, line: i64) {
    let rows = mask.rows();
    let height = mask.size().height;
    for y in 0..height {
        for x in rows.row(y).iter().cloned().flatten() {
            blend(canvas, (x as i64, y as i64), color, MASK_OPACITY);
        }
    }
    let before = (line - 1) / 2;
    // the part of the outline around some neighbouring boundary pixels of a row
    let mut outline = |columns: std::ops::Range<usize>, y: usize| {
        let size = (columns.len() as i64 + line - 1, line);
        let part = Rect::new(columns.start as i64 - before, y as i64 - before, size);
        fill(canvas, part, color);
    };
    for y in 0..height {
        let row = rows.row(y);
        for span in row {
            outline(span.start..span.start + 1, y);
            outline(span.end - 1..span.end, y);
        }
        // the rows beyond the image are unset
        let above = y.checked_sub(1).map_or(&[][..], |above| rows.row(above));
        for neighbour in [above, rows.row(y + 1)] {
            for (columns, is_set) in row_differences(row, neighbour) {
                if is_set {
                    outline(columns, y);
                }
            }
        }
    }
}

/// Blends a colour over a pixel with an opacity of up to 255; a position outside the image is skipped.
pub(super) fn blend(canvas: &mut RgbImage, (x, y): (i64, i64), color: Rgb<u8>, opacity: u32) {
    let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else {
        return;
    };
    if let Some(pixel) = canvas.get_pixel_mut_checked(x, y) {
        for (level, new) in pixel.0.iter_mut().zip(color.0) {
            let mixed = u32::from(*level) * (255 - opacity) + u32::from(new) * opacity;
            *level = ((mixed + 127) / 255) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ImageSize;

    const RED: Rgb<u8> = Rgb([255, 0, 0]);

    /// The number of pixels in the full colour, and of all that changed.
    fn drawn(mask_rows: &[&str], line: i64) -> (usize, usize) {
        let size = ImageSize {
            height: mask_rows.len(),
            width: mask_rows[0].len(),
        };
        let pixels = mask_rows.concat();
        let wanted = Mask::from_pixels(size, pixels.chars().map(|c| c == '#'));
        let mut canvas = RgbImage::new(size.width as u32, size.height as u32);
        mask(&mut canvas, &wanted, RED, line);
        let count = |is: &dyn Fn(&Rgb<u8>) -> bool| canvas.pixels().filter(|p| is(p)).count();
        (count(&|p| *p == RED), count(&|p| p.0[0] > 0))
    }

    #[test]
    fn a_mask_has_an_outline_in_the_full_colour_around_a_translucent_fill() {
        let square = [".......", ".#####.", ".#####.", ".#####.", "......."];
        assert_eq!(drawn(&square, 1), (12, 15));
        // the outline of three pixels covers the square and one pixel around it
        assert_eq!(drawn(&square, 3), (35, 35));
        // one that touches the edges of the image
        assert_eq!(drawn(&["####", "####", "####"], 1), (10, 12));
    }

    #[test]
    fn a_thin_mask_is_drawn_in_the_full_colour() {
        assert_eq!(drawn(&["......", ".####.", "......"], 1), (4, 4));
        assert_eq!(drawn(&["......", ".####.", "......"], 2), (10, 10));
        assert_eq!(drawn(&["#.....", ".#....", "..#..."], 1), (3, 3));
        assert_eq!(drawn(&["......", "......"], 5), (0, 0));
    }

    #[test]
    fn nothing_is_drawn_outside_the_image() {
        let mut canvas = RgbImage::new(6, 4);
        fill(&mut canvas, Rect::new(-5, -5, (3, 3)), RED);
        fill(&mut canvas, Rect::new(8, 1, (3, 3)), RED);
        assert!(canvas.pixels().all(|p| p.0 == [0; 3]));
        frame(&mut canvas, Rect::new(-2, -2, (20, 20)), RED, 3);
        straight(&mut canvas, (-4, 2), (12, 2), RED, 1);
        let row = |y: u32| (0..6).filter(|x| *canvas.get_pixel(*x, y) == RED).count();
        assert_eq!([row(0), row(1), row(2), row(3)], [6, 1, 6, 1]);
        blend(&mut canvas, (-1, 0), RED, 255);
        blend(&mut canvas, (0, 4), RED, 255);
    }
}
