//! Rectangles of whole pixels: the parts of an image that are searched.

use std::borrow::Cow;

use image::RgbImage;

use super::{BoundingBox, ImageSize, Mask, Runs};

/// A rectangle of whole pixels inside an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// Left edge.
    pub x: usize,
    /// Top edge.
    pub y: usize,
    /// Columns, at least 1.
    pub width: usize,
    /// Rows, at least 1.
    pub height: usize,
}

impl Window {
    /// The whole image.
    pub fn whole(size: ImageSize) -> Self {
        Self {
            x: 0,
            y: 0,
            width: size.width,
            height: size.height,
        }
    }

    /// The smallest window that contains the part of a box inside the image; `None` if that part has no area.
    pub fn around(bounding_box: BoundingBox, size: ImageSize) -> Option<Self> {
        let b = bounding_box.clamped(size);
        // a box with coordinates that are not numbers has no area either
        if b.area() > 0.0 {
            let (x, y) = (b.x0.floor() as usize, b.y0.floor() as usize);
            let right = (b.x1.ceil() as usize).min(size.width);
            let bottom = (b.y1.ceil() as usize).min(size.height);
            Some(Self {
                x,
                y,
                width: right - x,
                height: bottom - y,
            })
        } else {
            None
        }
    }

    /// The smallest window that contains both.
    pub fn union(self, other: Self) -> Self {
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let right = (self.x + self.width).max(other.x + other.width);
        let bottom = (self.y + self.height).max(other.y + other.height);
        Self {
            x,
            y,
            width: right - x,
            height: bottom - y,
        }
    }

    /// Its size.
    pub fn size(self) -> ImageSize {
        ImageSize {
            height: self.height,
            width: self.width,
        }
    }

    /// Its edges as a box in the image.
    pub fn bounding_box(self) -> BoundingBox {
        let (x0, y0) = (self.x as f32, self.y as f32);
        BoundingBox {
            x0,
            y0,
            x1: x0 + self.width as f32,
            y1: y0 + self.height as f32,
        }
    }

    /// Moves a box from the coordinates of the window to those of the image.
    pub fn to_image(self, b: BoundingBox) -> BoundingBox {
        b.moved(self.x as f32, self.y as f32)
    }

    /// Moves a box from the coordinates of the image to those of the window.
    pub fn to_window(self, b: BoundingBox) -> BoundingBox {
        b.moved(-(self.x as f32), -(self.y as f32))
    }

    /// Moves a mask of the window's size to an image of this size.
    pub fn mask_to_image(self, mask: &Mask, size: ImageSize) -> Mask {
        let rows = mask.rows();
        let (mut runs, mut end) = (Runs::default(), 0);
        for y in 0..self.height {
            let row = (self.y + y) * size.width + self.x;
            for span in rows.row(y) {
                // an image has far fewer than 2^32 pixels
                runs.push(false, (row + span.start - end) as u32);
                runs.push(true, span.len() as u32);
                end = row + span.end;
            }
        }
        Mask::from_runs(size, runs)
    }

    /// The pixels of the window: a copy, unless it is the whole image.
    pub fn pixels(self, image: &RgbImage) -> Cow<'_, RgbImage> {
        if self == Self::whole(ImageSize::of(image)) {
            return Cow::Borrowed(image);
        }
        // the sides of a decoded image are far below 2^32
        let (x, y) = (self.x as u32, self.y as u32);
        let (width, height) = (self.width as u32, self.height as u32);
        Cow::Owned(image::imageops::crop_imm(image, x, y, width, height).to_image())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: ImageSize = ImageSize {
        height: 50,
        width: 100,
    };

    fn window(corners: [f32; 4]) -> Option<[usize; 4]> {
        let [x0, y0, x1, y1] = corners;
        let window = Window::around(BoundingBox { x0, y0, x1, y1 }, SIZE)?;
        Some([window.x, window.y, window.width, window.height])
    }

    #[test]
    fn a_window_contains_the_part_of_its_box_inside_the_image() {
        assert_eq!(window([10.2, 5.0, 20.1, 9.5]), Some([10, 5, 11, 5]));
        assert_eq!(window([-5.0, 40.0, 500.0, 60.0]), Some([0, 40, 100, 10]));
        assert_eq!(window([99.9, 49.9, 100.0, 50.0]), Some([99, 49, 1, 1]));
        assert_eq!(window([100.0, 0.0, 120.0, 10.0]), None);
        assert_eq!(window([20.0, 5.0, 20.0, 9.0]), None);
        assert_eq!(window([f32::NAN, 0.0, 10.0, 10.0]), None);
    }

    #[test]
    fn a_mask_moves_to_its_place_in_the_image() {
        let window = Window {
            x: 98,
            y: 48,
            width: 2,
            height: 2,
        };
        let pixels = [true, true, false, true];
        let mask = window.mask_to_image(&Mask::from_pixels(window.size(), pixels), SIZE);
        assert_eq!(mask.size(), SIZE);
        let set: Vec<usize> = (0..)
            .zip(mask.pixels())
            .filter_map(|(i, p)| p.then_some(i))
            .collect();
        assert_eq!(set, [4898, 4899, 4999]);
        let whole = Window::whole(SIZE);
        assert_eq!(whole.mask_to_image(&mask, SIZE), mask);
        let empty = Mask::from_pixels(window.size(), []);
        assert_eq!(window.mask_to_image(&empty, SIZE).area(), 0);
    }

    #[test]
    fn boxes_move_between_the_window_and_the_image() {
        let window = Window {
            x: 30,
            y: 10,
            width: 20,
            height: 20,
        };
        let object = BoundingBox {
            x0: 1.0,
            y0: 2.0,
            x1: 3.0,
            y1: 4.0,
        };
        let moved = window.to_image(object);
        assert_eq!(moved.corners(), [31.0, 12.0, 33.0, 14.0]);
        assert_eq!(window.to_window(moved), object);
    }
}
