//! Converts an object's geometry to region values without labels. Pixels become percent here.

use std::sync::Arc;

use super::value::{Labels, RegionValue};
use super::{bitmask, brush_rle, ellipse, polygon};
use crate::geometry::{BoundingBox, ImageSize, Mask};
use crate::labeling::Shape;
use crate::pipeline::DetectedObject;

/// The values of an object for a control of this shape. Returns none if the box has no area inside the image, or if
/// the mask is empty or missing. `tolerance` as in [`mask_values`].
pub(super) fn object_values(
    object: &DetectedObject,
    size: ImageSize,
    shape: Shape,
    tolerance: f32,
) -> Vec<RegionValue> {
    match (shape, &object.mask) {
        (Shape::Rectangle, _) => rectangle(object.detection.bounding_box, size)
            .into_iter()
            .collect(),
        (_, Some(mask)) => mask_values(&mask.mask, shape, tolerance),
        (Shape::KeyPoint, None) => centre(object.detection.bounding_box, size)
            .into_iter()
            .collect(),
        (_, None) => vec![],
    }
}

/// A mask as a brush stroke, a bitmask, polygons, vectors, an ellipse or a point. Outlines are at most `tolerance` percent of the image's
/// longer side away from the mask's boundary. Returns none for an empty mask.
pub(super) fn mask_values(mask: &Mask, shape: Shape, tolerance: f32) -> Vec<RegionValue> {
    if mask.area() == 0 {
        return vec![];
    }
    match shape {
        Shape::Brush => vec![brush(mask)],
        Shape::Bitmask => vec![RegionValue::Bitmask {
            image_data_url: bitmask::data_url(mask).into(),
            labels: Labels::None,
        }],
        Shape::Polygon => outlines(mask, tolerance)
            .map(|points| RegionValue::Polygon {
                points,
                labels: Labels::None,
            })
            .collect(),
        Shape::Vector => outlines(mask, tolerance)
            .map(|vertices| RegionValue::Vector {
                vertices,
                labels: Labels::None,
            })
            .collect(),
        Shape::Ellipse => ellipse::of_mask(mask)
            .map(|ellipse| ellipse_value(&ellipse, mask.size()))
            .into_iter()
            .collect(),
        Shape::KeyPoint => ellipse::inner_point(mask)
            .map(|(x, y)| key_point(x, y, mask.size()))
            .into_iter()
            .collect(),
        Shape::Rectangle => vec![],
    }
}

/// The size of a point's dot, in percent of the image's width: Label Studio's default.
const DOT_PERCENT: f64 = 0.5;

fn key_point(x: f32, y: f32, size: ImageSize) -> RegionValue {
    RegionValue::KeyPoint {
        x: percent(x, size.width),
        y: percent(y, size.height),
        width: DOT_PERCENT,
        labels: Labels::None,
    }
}

/// The centre of the part of a box inside the image.
fn centre(b: BoundingBox, size: ImageSize) -> Option<RegionValue> {
    let b = b.clamped(size);
    (b.area() > 0.0).then(|| key_point((b.x0 + b.x1) / 2.0, (b.y0 + b.y1) / 2.0, size))
}

/// Label Studio draws the half-axes in pixels of the image and then turns the ellipse.
fn ellipse_value(ellipse: &ellipse::Ellipse, size: ImageSize) -> RegionValue {
    RegionValue::Ellipse {
        x: percent(ellipse.x, size.width),
        y: percent(ellipse.y, size.height),
        radius_x: percent(ellipse.radius_x, size.width),
        radius_y: percent(ellipse.radius_y, size.height),
        rotation: f64::from(ellipse.degrees),
        labels: Labels::None,
    }
}

fn rectangle(b: BoundingBox, size: ImageSize) -> Option<RegionValue> {
    let b = b.clamped(size);
    if b.area() <= 0.0 {
        return None;
    }
    let (x, y) = (percent(b.x0, size.width), percent(b.y0, size.height));
    Some(RegionValue::Rectangle {
        x,
        y,
        width: percent(b.x1, size.width) - x,
        height: percent(b.y1, size.height) - y,
        rotation: 0,
        labels: Labels::None,
    })
}

fn brush(mask: &Mask) -> RegionValue {
    RegionValue::Brush {
        rle: brush_rle::encode(mask).into(),
        labels: Labels::None,
    }
}

/// The outline of each part of the mask, in percent of the image's width and height.
fn outlines(mask: &Mask, tolerance: f32) -> impl Iterator<Item = Arc<[[f64; 2]]>> {
    let size = mask.size();
    let pixels = tolerance / 100.0 * size.width.max(size.height) as f32;
    let corner = move |[x, y]: &[f32; 2]| [percent(*x, size.width), percent(*y, size.height)];
    let outlines = polygon::outlines(mask, pixels).into_iter();
    outlines.map(move |ring| ring.iter().map(corner).collect())
}

fn percent(pixels: f32, size: usize) -> f64 {
    f64::from(pixels) * 100.0 / size as f64
}
