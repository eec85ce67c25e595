//! Sizes, boxes, points and masks: plain data that all modules share.

pub mod coco_rle;
mod filled_polygon;
mod mask;
mod mask_cleanup;
mod mask_overlap;
mod transposed_mask;
mod window;

pub use self::mask::{Mask, MaskRows, Runs, row_differences};
pub use self::mask_cleanup::MaskCleanup;
pub use self::window::Window;

/// The size of an image in pixels, after its EXIF orientation is applied.
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

/// A box in pixels: the top left corner, and the exclusive bottom right corner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BoundingBox {
    /// Left edge.
    pub x0: f32,
    /// Top edge.
    pub y0: f32,
    /// Right edge, exclusive.
    pub x1: f32,
    /// Bottom edge, exclusive.
    pub y1: f32,
}

impl BoundingBox {
    /// Converts a centre and a size in 0..1 of the image to pixels.
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

    /// The part of the box inside an image.
    pub fn clamped(self, size: ImageSize) -> Self {
        let (width, height) = (size.width as f32, size.height as f32);
        Self {
            x0: self.x0.clamp(0.0, width),
            y0: self.y0.clamp(0.0, height),
            x1: self.x1.clamp(0.0, width),
            y1: self.y1.clamp(0.0, height),
        }
    }

    /// The area in square pixels; 0 if a corner is beyond its opposite.
    pub fn area(self) -> f32 {
        (self.x1 - self.x0).max(0.0) * (self.y1 - self.y0).max(0.0)
    }

    /// The common part of two boxes; its area is 0 if there is none.
    pub fn intersection(self, other: Self) -> Self {
        Self {
            x0: self.x0.max(other.x0),
            y0: self.y0.max(other.y0),
            x1: self.x1.min(other.x1),
            y1: self.y1.min(other.y1),
        }
    }

    /// The smallest box that contains both.
    pub fn union(self, other: Self) -> Self {
        Self {
            x0: self.x0.min(other.x0),
            y0: self.y0.min(other.y0),
            x1: self.x1.max(other.x1),
            y1: self.y1.max(other.y1),
        }
    }

    /// The box moved to the right and down, in pixels.
    pub fn moved(self, x: f32, y: f32) -> Self {
        Self {
            x0: self.x0 + x,
            y0: self.y0 + y,
            x1: self.x1 + x,
            y1: self.y1 + y,
        }
    }

    /// Intersection over union, 0..1.
    pub fn iou(self, other: Self) -> f32 {
        let intersection = self.intersection(other).area();
        let union = self.area() + other.area() - intersection;
        if union > 0.0 {
            intersection / union
        } else {
            0.0
        }
    }
}

/// An object that the detector found.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// The phrase of the prompt that names it, as the user wrote it; `None` if no token exceeds the text threshold.
    pub phrase: Option<String>,
    /// The largest token probability, 0..1.
    pub score: f32,
    /// The box; it may extend beyond the image, as the reference's boxes do.
    pub bounding_box: BoundingBox,
}

impl Detection {
    /// The phrase and the score as text for people.
    pub fn describe(&self) -> String {
        match &self.phrase {
            Some(phrase) => format!("{phrase} {:.2}", self.score),
            None => format!("{:.2}", self.score),
        }
    }
}

/// A point in an image, in pixels from the top left corner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Distance from the left edge.
    pub x: f32,
    /// Distance from the top edge.
    pub y: f32,
    /// Whether the point is on the object (true) or on the background (false).
    pub is_foreground: bool,
}

/// A prompt of the segmenter for one object, drawn by an annotator: a box around it, points on and off it, or both.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SegmentPrompt {
    /// A box around the object.
    pub bounding_box: Option<BoundingBox>,
    /// Points on the object and on the background.
    pub points: Vec<Point>,
}

impl SegmentPrompt {
    /// The prompt after each point that was added, in order; the last one is the prompt itself. It begins with the first
    /// point that is on the object, because points on the background alone mark nothing; with a box, it begins with the
    /// first point.
    pub fn history(&self) -> Vec<Self> {
        let first = match self.bounding_box {
            Some(_) => Some(0),
            None => self.points.iter().position(|point| point.is_foreground),
        };
        let first = first.unwrap_or(0) + 1;
        let after = |count: usize| Self {
            bounding_box: self.bounding_box,
            points: self.points.iter().take(count).copied().collect(),
        };
        let history: Vec<Self> = (first..=self.points.len()).map(after).collect();
        match history.is_empty() {
            true => vec![self.clone()],
            false => history,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_iou_of_boxes_is_their_intersection_over_their_union() {
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
        let empty = BoundingBox {
            x0: 5.0,
            y0: 5.0,
            x1: 5.0,
            y1: 5.0,
        };
        assert_eq!(a.iou(empty), 0.0);
    }

    #[test]
    fn the_history_of_a_prompt_begins_with_a_point_on_the_object() {
        let point = |x: f32, is_foreground: bool| Point {
            x,
            y: 0.0,
            is_foreground,
        };
        let points = vec![point(1.0, false), point(2.0, true), point(3.0, false)];
        let counts = |prompt: &SegmentPrompt| -> Vec<usize> {
            let history = prompt.history();
            assert_eq!(history.last(), Some(prompt));
            history.iter().map(|prompt| prompt.points.len()).collect()
        };
        let mut prompt = SegmentPrompt {
            bounding_box: None,
            points,
        };
        assert_eq!(counts(&prompt), [2, 3]);
        prompt.bounding_box = Some(BoundingBox {
            x0: 0.0,
            y0: 0.0,
            x1: 1.0,
            y1: 1.0,
        });
        assert_eq!(counts(&prompt), [1, 2, 3]);
        prompt.points.clear();
        assert_eq!(counts(&prompt), [0]);
    }
}
