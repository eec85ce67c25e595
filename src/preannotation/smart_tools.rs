//! Shapes that are drawn with smart tools, and the segmenter's prompts for them.

use serde_json::Value;

use crate::geometry::{BoundingBox, ImageSize, Point, SegmentPrompt};

/// A shape drawn with a smart tool; coordinates and lengths in percent of the image.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub enum SmartToolShape {
    Rectangle {
        x: f32,
        y: f32,
        width: f32,
        height: f32,
        /// Degrees clockwise around the top left corner.
        rotation: f32,
    },
    Point {
        x: f32,
        y: f32,
        is_foreground: bool,
    },
}

/// Limit of a coordinate, in percent of the image, and of a rotation, in degrees. It is far more than any editor
/// sends, and keeps the values in pixels finite.
const MAX_COORDINATE: f32 = 1e6;

impl SmartToolShape {
    /// The shape of a region; `None` if the region is not a rectangle or a keypoint, or a coordinate is implausible.
    pub(super) fn from_region(region: &Value) -> Option<Self> {
        let value = &region["value"];
        let is_plausible = |n: &f32| n.abs() <= MAX_COORDINATE;
        let coordinate = |key: &str| value[key].as_f64().map(|n| n as f32).filter(is_plausible);
        let (x, y) = (coordinate("x")?, coordinate("y")?);
        match region["type"].as_str()? {
            "rectanglelabels" | "rectangle" => Some(Self::Rectangle {
                x,
                y,
                width: coordinate("width")?,
                height: coordinate("height")?,
                rotation: Some(number(&value["rotation"])).filter(is_plausible)?,
            }),
            "keypointlabels" | "keypoint" => Some(Self::Point {
                x,
                y,
                is_foreground: region["is_positive"].as_bool().unwrap_or(true),
            }),
            _ => None,
        }
    }
}

fn number(value: &Value) -> f32 {
    value.as_f64().unwrap_or(0.0) as f32
}

/// Converts drawn shapes to prompts of the segmenter, in pixels: one prompt per rectangle, and one for all points.
/// With exactly one rectangle the points are added to its prompt and refine it.
pub fn segment_prompts(drawn: &[SmartToolShape], size: ImageSize) -> Vec<SegmentPrompt> {
    let (width, height) = (size.width as f32 / 100.0, size.height as f32 / 100.0);
    let (mut prompts, mut points) = (vec![], vec![]);
    for shape in drawn {
        match *shape {
            SmartToolShape::Point {
                x,
                y,
                is_foreground,
            } => points.push(Point {
                x: x * width,
                y: y * height,
                is_foreground,
            }),
            SmartToolShape::Rectangle {
                x,
                y,
                width: w,
                height: h,
                rotation,
            } => prompts.push(SegmentPrompt {
                bounding_box: Some(enclosing_box(
                    (x * width, y * height),
                    (w * width, h * height),
                    rotation,
                )),
                points: vec![],
            }),
        }
    }
    match prompts.as_mut_slice() {
        [only] => only.points = points,
        _ if !points.is_empty() => prompts.push(SegmentPrompt {
            bounding_box: None,
            points,
        }),
        _ => {}
    }
    prompts
}

/// The axis-aligned bounding box of a box that is rotated around its top left corner. Width and height may be
/// negative, because a box can be drawn from any corner.
pub(super) fn enclosing_box((x, y): (f32, f32), (w, h): (f32, f32), degrees: f32) -> BoundingBox {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let corners = [(0.0, 0.0), (w, 0.0), (0.0, h), (w, h)];
    let rotated = corners.map(|(dx, dy)| (x + dx * cos - dy * sin, y + dx * sin + dy * cos));
    let low = |pick: fn(&(f32, f32)) -> f32| rotated.iter().map(pick).fold(f32::MAX, f32::min);
    let high = |pick: fn(&(f32, f32)) -> f32| rotated.iter().map(pick).fold(f32::MIN, f32::max);
    BoundingBox {
        x0: low(|p| p.0),
        y0: low(|p| p.1),
        x1: high(|p| p.0),
        y1: high(|p| p.1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_and_rectangles_become_prompts_in_pixels() {
        let size = ImageSize {
            height: 100,
            width: 200,
        };
        let point = |x: f32, is_foreground: bool| SmartToolShape::Point {
            x,
            y: 50.0,
            is_foreground,
        };
        let prompts = segment_prompts(&[point(10.0, true), point(20.0, false)], size);
        assert_eq!(prompts.len(), 1);
        let points = &prompts[0].points;
        assert_eq!((points[0].x, points[0].y), (20.0, 50.0));
        assert!(points[0].is_foreground && !points[1].is_foreground);

        let rectangle = |rotation: f32| SmartToolShape::Rectangle {
            x: 50.0,
            y: 50.0,
            width: 10.0,
            height: 10.0,
            rotation,
        };
        let boxed = |rotation| {
            segment_prompts(&[rectangle(rotation)], size)[0]
                .bounding_box
                .unwrap()
                .corners()
        };
        assert_eq!(boxed(0.0), [100.0, 50.0, 120.0, 60.0]);
        let rotated = boxed(90.0);
        for (found, expected) in rotated.iter().zip([90.0, 50.0, 100.0, 70.0]) {
            assert!((found - expected).abs() < 1e-3, "{rotated:?}");
        }
        let both = segment_prompts(&[rectangle(0.0), point(10.0, true)], size);
        assert!(both.len() == 1 && both[0].points.len() == 1);
        assert_eq!(
            segment_prompts(&[rectangle(0.0), rectangle(0.0), point(10.0, true)], size).len(),
            3
        );
    }
}
