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

/// Limit of drawn shapes per request. Each point is a token of the mask decoder, whose attention compares all tokens
/// with each other; each rectangle is one run of the decoder.
pub(super) const MAX_SHAPES: usize = 64;

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
                is_foreground: is_foreground(region),
            }),
            _ => None,
        }
    }
}

/// Whether a point is on the object. Label Studio's smart tools say it beside the value, its capability protocol inside the
/// value, and other clients in `meta`; a point that does not say it is on the object.
fn is_foreground(region: &Value) -> bool {
    let forms = [
        &region["is_positive"],
        &region["value"]["positive"],
        &region["value"]["is_positive"],
        &region["meta"]["is_positive"],
        &region["meta"]["positive"],
    ];
    forms.into_iter().find_map(Value::as_bool).unwrap_or(true)
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

/// Converts shapes that mark a single object to one prompt, in pixels: the last rectangle, which replaces earlier ones, and
/// all points. `None` if only the background is marked.
pub(super) fn one_object(drawn: &[SmartToolShape], size: ImageSize) -> Option<SegmentPrompt> {
    let is_rectangle = |shape: &&SmartToolShape| matches!(shape, SmartToolShape::Rectangle { .. });
    let points = drawn.iter().filter(|shape| !is_rectangle(shape)).copied();
    let rectangle = drawn.iter().rfind(is_rectangle).copied();
    let shapes: Vec<SmartToolShape> = rectangle.into_iter().chain(points).collect();
    let prompt = segment_prompts(&shapes, size).into_iter().next()?;
    let has_object =
        prompt.bounding_box.is_some() || prompt.points.iter().any(|point| point.is_foreground);
    has_object.then_some(prompt)
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
    use serde_json::json;

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

    #[test]
    fn every_form_of_a_negative_point_is_read() {
        let is_foreground = |extra: serde_json::Value| {
            let mut region = json!({"type": "keypointlabels", "value": {"x": 1, "y": 2, "width": 0.2,
                "keypointlabels": ["Cup"], "labels": ["Cup"]}});
            for (key, value) in extra.as_object().unwrap() {
                match (key.as_str(), value.as_object()) {
                    ("value", Some(fields)) => {
                        region["value"]
                            .as_object_mut()
                            .unwrap()
                            .extend(fields.clone());
                    }
                    _ => region[key] = value.clone(),
                }
            }
            match SmartToolShape::from_region(&region).unwrap() {
                SmartToolShape::Point { is_foreground, .. } => is_foreground,
                other @ SmartToolShape::Rectangle { .. } => panic!("{other:?}"),
            }
        };
        for sign in [true, false] {
            assert_eq!(is_foreground(json!({"is_positive": sign})), sign);
            assert_eq!(is_foreground(json!({"value": {"positive": sign}})), sign);
            assert_eq!(is_foreground(json!({"value": {"is_positive": sign}})), sign);
            assert_eq!(is_foreground(json!({"meta": {"is_positive": sign}})), sign);
        }
        assert!(is_foreground(json!({})));
        assert!(is_foreground(json!({"is_positive": null, "meta": null})));
    }

    #[test]
    fn all_marks_of_one_object_are_one_prompt() {
        let size = ImageSize {
            height: 100,
            width: 100,
        };
        let rectangle = |x: f32| SmartToolShape::Rectangle {
            x,
            y: 10.0,
            width: 20.0,
            height: 20.0,
            rotation: 0.0,
        };
        let point = |is_foreground: bool| SmartToolShape::Point {
            x: 15.0,
            y: 15.0,
            is_foreground,
        };
        let shapes = [rectangle(50.0), point(true), rectangle(10.0), point(false)];
        let prompt = one_object(&shapes, size).unwrap();
        assert_eq!(prompt.points.len(), 2);
        assert_eq!(
            prompt.bounding_box.unwrap().corners(),
            [10.0, 10.0, 30.0, 30.0]
        );
        assert!(one_object(&[point(false)], size).is_none());
        assert!(one_object(&[], size).is_none());
        assert!(one_object(&[point(false), point(true)], size).is_some());
    }
}
