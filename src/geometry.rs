//! Sizes, boxes and masks: plain data that every step of the road understands.

/// The size of an image in pixels, upright (after its EXIF orientation is applied).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSize {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl ImageSize {
    /// The size of a decoded image.
    pub fn of(image: &image::RgbImage) -> Self {
        Self {
            height: image.height() as usize,
            width: image.width() as usize,
        }
    }

    /// Number of pixels.
    pub fn area(self) -> usize {
        self.height * self.width
    }
}

/// A box in pixels: top left and bottom right corner, the latter exclusive.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub struct BoundingBox {
    pub x0: f32,
    pub y0: f32,
    pub x1: f32,
    pub y1: f32,
}

impl BoundingBox {
    /// From a centre and sides in 0..1 of an image to pixels.
    pub fn from_cxcywh([cx, cy, w, h]: [f32; 4], size: ImageSize) -> Self {
        let (width, height) = (size.width as f32, size.height as f32);
        Self {
            x0: (cx - 0.5 * w) * width,
            y0: (cy - 0.5 * h) * height,
            x1: (cx + 0.5 * w) * width,
            y1: (cy + 0.5 * h) * height,
        }
    }

    /// The corners `[x0, y0, x1, y1]`.
    pub fn corners(self) -> [f32; 4] {
        [self.x0, self.y0, self.x1, self.y1]
    }

    /// The part inside an image.
    pub fn clamped(self, size: ImageSize) -> Self {
        let (width, height) = (size.width as f32, size.height as f32);
        Self {
            x0: self.x0.clamp(0.0, width),
            y0: self.y0.clamp(0.0, height),
            x1: self.x1.clamp(0.0, width),
            y1: self.y1.clamp(0.0, height),
        }
    }

    /// Square pixels; 0 for a box turned inside out.
    pub fn area(self) -> f32 {
        (self.x1 - self.x0).max(0.0) * (self.y1 - self.y0).max(0.0)
    }

    /// Intersection over union, 0..1.
    pub fn iou(self, other: Self) -> f32 {
        let shared = Self {
            x0: self.x0.max(other.x0),
            y0: self.y0.max(other.y0),
            x1: self.x1.min(other.x1),
            y1: self.y1.min(other.y1),
        }
        .area();
        let union = self.area() + other.area() - shared;
        if union > 0.0 { shared / union } else { 0.0 }
    }
}

/// One thing the detector found.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// The phrase of the prompt that names it, as the user wrote it.
    pub phrase: String,
    /// The largest token probability, 0..1.
    pub score: f32,
    /// Where it is; may reach over the image's edge, as the reference's boxes do.
    pub bounding_box: BoundingBox,
}

/// A place in an image, in pixels from its top left corner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// To the right.
    pub x: f32,
    /// Down.
    pub y: f32,
    /// Whether it is on the object; else it is beside it.
    pub is_positive: bool,
}

/// What an annotator marked to have one object cut out: a box around it, points on and beside it, or
/// both.
#[derive(Debug, Clone, PartialEq, Default)]
#[allow(missing_docs)]
pub struct Mark {
    pub bounding_box: Option<BoundingBox>,
    pub points: Vec<Point>,
}

/// A mask of an image's size, kept as runs: masks of large photographs stay small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    size: ImageSize,
    runs: Vec<u32>,
}

impl Mask {
    /// From pixels row by row; pixels beyond the size are ignored, missing ones are unset.
    pub fn from_pixels(size: ImageSize, pixels: impl IntoIterator<Item = bool>) -> Self {
        let mut runs = vec![0u32];
        let mut is_set = false;
        let mut count = 0;
        for pixel in pixels.into_iter().take(size.area()) {
            if pixel != is_set {
                runs.push(0);
                is_set = pixel;
            }
            if let Some(run) = runs.last_mut() {
                *run += 1;
            }
            count += 1;
        }
        let missing = (size.area() - count) as u32;
        if missing > 0 {
            match runs.last_mut() {
                Some(run) if !is_set => *run += missing,
                _ => runs.push(missing),
            }
        }
        Self { size, runs }
    }

    /// The size of the image it belongs to.
    pub fn size(&self) -> ImageSize {
        self.size
    }

    /// Lengths of unset and set runs in turn, row by row, an unset one (possibly empty) first.
    pub fn runs(&self) -> &[u32] {
        &self.runs
    }

    /// The pixels row by row.
    pub fn pixels(&self) -> impl Iterator<Item = bool> + '_ {
        self.runs
            .iter()
            .enumerate()
            .flat_map(|(i, run)| std::iter::repeat_n(i % 2 == 1, *run as usize))
    }

    /// Number of set pixels.
    pub fn area(&self) -> usize {
        self.runs
            .iter()
            .skip(1)
            .step_by(2)
            .map(|run| *run as usize)
            .sum()
    }

    /// Intersection over union with a mask of the same size, 0..1; 1 for two empty ones.
    pub fn iou(&self, other: &Self) -> f32 {
        let (mut shared, mut union) = (0usize, 0usize);
        for (a, b) in self.pixels().zip(other.pixels()) {
            shared += usize::from(a && b);
            union += usize::from(a || b);
        }
        if union == 0 {
            1.0
        } else {
            shared as f32 / union as f32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_pixels_are_the_same_mask() {
        let size = ImageSize {
            height: 2,
            width: 3,
        };
        for pixels in [
            [false; 6],
            [true; 6],
            [true, false, true, true, false, false],
            [false, true, true, false, false, true],
        ] {
            let mask = Mask::from_pixels(size, pixels);
            assert!(mask.pixels().eq(pixels));
            assert_eq!(mask.runs().iter().sum::<u32>(), 6);
            assert_eq!(mask.area(), pixels.iter().filter(|p| **p).count());
        }
        let short = Mask::from_pixels(size, [true]);
        assert_eq!(short.runs(), [0, 1, 5]);
    }

    #[test]
    fn boxes_overlap_by_their_share() {
        let a = BoundingBox {
            x0: 0.0,
            y0: 0.0,
            x1: 2.0,
            y1: 2.0,
        };
        let b = BoundingBox {
            x0: 1.0,
            y0: 0.0,
            x1: 3.0,
            y1: 2.0,
        };
        assert!((a.iou(b) - 1.0 / 3.0).abs() < 1e-6);
        let nothing = BoundingBox {
            x0: 5.0,
            y0: 5.0,
            x1: 5.0,
            y1: 5.0,
        };
        assert_eq!(a.iou(nothing), 0.0);
    }
}
