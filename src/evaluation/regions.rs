//! The objects in Label Studio's regions: those of annotations, which are true, and those of predictions.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use super::CocoBox;
use crate::geometry::{ImageSize, Mask};
use crate::regions::brush_rle;

/// A labeled shape of an annotation or a prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct LabeledShape {
    /// Its label.
    pub label: String,
    /// The score of a prediction, 0..1.
    pub score: Option<f32>,
    /// The number of its page, from 0.
    pub page: usize,
    /// The size of its image.
    pub size: ImageSize,
    /// Its outline.
    pub outline: Outline,
}

/// The outline of a shape.
#[derive(Debug, Clone, PartialEq)]
pub enum Outline {
    /// A rectangle. If it is rotated, this is the box around it.
    Box(CocoBox),
    /// A brush, a bitmask, a polygon, a vector or an ellipse.
    Mask(Arc<Mask>),
}

/// Number of corners of the polygon that stands for an ellipse.
const ELLIPSE_CORNERS: u32 = 72;

/// The labeled shapes of regions that belong to the image tag `to_name`. Regions without a label and points are left out; a
/// region with several labels is one shape for each of them.
///
/// # Errors
/// A region that cannot be read, with the reason.
pub fn labeled_shapes(regions: &[Value], to_name: &str) -> Result<Vec<LabeledShape>, String> {
    let mut shapes = vec![];
    for region in regions.iter().filter(|region| region["to_name"] == to_name) {
        let (kind, value) = (
            region["type"].as_str().unwrap_or_default(),
            &region["value"],
        );
        let labels = value[kind].as_array().filter(|_| kind.ends_with("labels"));
        let labels: Vec<&str> = labels
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if labels.is_empty() {
            continue;
        }
        let id = &region["id"];
        let size = |name: &str| region[name].as_u64().filter(|side| *side > 0);
        let (Some(width), Some(height)) = (size("original_width"), size("original_height")) else {
            return Err(format!(
                "the region {id} has no original_width and original_height"
            ));
        };
        let size = ImageSize {
            height: height as usize,
            width: width as usize,
        };
        let Some(outline) =
            outline(value, size).map_err(|error| format!("the region {id}: {error}"))?
        else {
            continue;
        };
        shapes.extend(labels.into_iter().map(|label| LabeledShape {
            label: label.to_owned(),
            score: region["score"].as_f64().map(|score| score as f32),
            page: region["item_index"].as_u64().unwrap_or(0) as usize,
            size,
            outline: outline.clone(),
        }));
    }
    Ok(shapes)
}

/// The outline of a region's value; `None` if it has no area.
fn outline(value: &Value, size: ImageSize) -> Result<Option<Outline>, String> {
    let number = |name: &str| value[name].as_f64();
    if let Some(rle) = value["rle"].as_array() {
        let bytes: Option<Vec<u8>> = rle.iter().map(byte).collect();
        let mask = bytes.and_then(|bytes| brush_rle::decode(&bytes, size));
        let mask = mask.ok_or("its rle is damaged, or not that of an image of this size")?;
        return Ok(Some(Outline::Mask(Arc::new(mask))));
    }
    if let Some(url) = value["imageDataURL"].as_str() {
        return Ok(Some(Outline::Mask(Arc::new(bitmask(url, size)?))));
    }
    let pixels = |x: f64, y: f64| {
        [
            x / 100.0 * size.width as f64,
            y / 100.0 * size.height as f64,
        ]
    };
    if let Some(points) = value["points"].as_array().or(value["vertices"].as_array()) {
        let corner = |point: &Value| {
            let (x, y) = match point {
                Value::Array(pair) => (pair.first()?.as_f64()?, pair.get(1)?.as_f64()?),
                point => (point["x"].as_f64()?, point["y"].as_f64()?),
            };
            Some(pixels(x, y))
        };
        let corners: Option<Vec<[f64; 2]>> = points.iter().map(corner).collect();
        let corners = corners.ok_or("its points must be [x, y] in percent")?;
        return Ok(polygon(&corners, size));
    }
    if let (Some(x), Some(y), Some(a), Some(b)) = (
        number("x"),
        number("y"),
        number("radiusX"),
        number("radiusY"),
    ) {
        let (centre, [a, b]) = (pixels(x, y), pixels(a, b));
        let turn = number("rotation").unwrap_or(0.0).to_radians();
        let corners: Vec<[f64; 2]> = (0..ELLIPSE_CORNERS)
            .map(|i| {
                let angle = f64::from(i) / f64::from(ELLIPSE_CORNERS) * std::f64::consts::TAU;
                let (dx, dy) = (a * angle.cos(), b * angle.sin());
                [
                    centre[0] + dx * turn.cos() - dy * turn.sin(),
                    centre[1] + dx * turn.sin() + dy * turn.cos(),
                ]
            })
            .collect();
        return Ok(polygon(&corners, size));
    }
    let (Some(x), Some(y), Some(width), Some(height)) =
        (number("x"), number("y"), number("width"), number("height"))
    else {
        return Ok(None);
    };
    if value.get("height").is_none() || (width <= 0.0 && height <= 0.0) {
        return Ok(None);
    }
    let ([x, y], [width, height]) = (pixels(x, y), pixels(width, height));
    let turn = number("rotation").unwrap_or(0.0).to_radians();
    // around the top left corner
    let corners = [[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]].map(|[dx, dy]| {
        [
            x + dx * turn.cos() - dy * turn.sin(),
            y + dx * turn.sin() + dy * turn.cos(),
        ]
    });
    let range = |axis: usize| {
        let values = corners.iter().map(|corner| corner[axis]);
        (
            values.clone().fold(f64::INFINITY, f64::min),
            values.fold(f64::NEG_INFINITY, f64::max),
        )
    };
    let ((left, right), (top, bottom)) = (range(0), range(1));
    Ok(Some(Outline::Box(CocoBox([
        left,
        top,
        right - left,
        bottom - top,
    ]))))
}

fn byte(value: &Value) -> Option<u8> {
    u8::try_from(value.as_u64()?).ok()
}

fn polygon(corners: &[[f64; 2]], size: ImageSize) -> Option<Outline> {
    // the time to fill a polygon grows with the length of its edges
    let corners: Vec<[f64; 2]> = corners
        .iter()
        .map(|[x, y]| {
            [
                x.clamp(0.0, size.width as f64),
                y.clamp(0.0, size.height as f64),
            ]
        })
        .collect();
    (corners.len() > 2)
        .then(|| Outline::Mask(Arc::new(Mask::from_polygons(size, [corners.as_slice()]))))
}

/// The opaque pixels of a PNG, as the editor draws them.
fn bitmask(url: &str, size: ImageSize) -> Result<Mask, String> {
    let data = url.strip_prefix("data:image/png;base64,");
    let data = data.ok_or("its imageDataURL must begin with data:image/png;base64,")?;
    let file = BASE64_STANDARD
        .decode(data)
        .map_err(|error| format!("its imageDataURL: {error}"))?;
    let image = image::load_from_memory_with_format(&file, image::ImageFormat::Png);
    let image = image.map_err(|error| format!("its imageDataURL: {error}"))?;
    if (image.width() as usize, image.height() as usize) != (size.width, size.height) {
        return Err("its imageDataURL has another size than its image".to_owned());
    }
    let has_alpha = image.color().has_alpha();
    let image = image.into_rgba8();
    let is_set = |pixel: &image::Rgba<u8>| match has_alpha {
        true => pixel[3] > 0,
        false => pixel[0] > 0,
    };
    Ok(Mask::from_pixels(size, image.pixels().map(is_set)))
}

impl Outline {
    /// The box around it; `None` for an empty mask.
    pub fn bounding_box(&self) -> Option<CocoBox> {
        match self {
            Self::Box(bounding_box) => Some(*bounding_box),
            Self::Mask(mask) => {
                let rows = mask.rows();
                let set = (0..mask.size().height).filter(|y| !rows.row(*y).is_empty());
                let (top, bottom) = (set.clone().next()?, set.clone().next_back()?);
                let left = set
                    .clone()
                    .filter_map(|y| rows.row(y).first().map(|span| span.start))
                    .min()?;
                let right = set
                    .filter_map(|y| rows.row(y).last().map(|span| span.end))
                    .max()?;
                let sides = [left, top, right - left, bottom + 1 - top];
                Some(CocoBox(sides.map(|side| side as f64)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::regions::bitmask::data_url;

    const SIZE: ImageSize = ImageSize {
        height: 100,
        width: 200,
    };

    fn shapes(kind: &str, mut value: Value) -> Result<Vec<LabeledShape>, String> {
        value[kind] = json!(["cup"]);
        let region = json!({"id": "r", "type": kind, "to_name": "i", "value": value, "score": 0.5,
            "original_width": SIZE.width, "original_height": SIZE.height, "item_index": 2});
        labeled_shapes(&[region], "i")
    }

    #[test]
    fn every_shape_has_its_area() {
        let square = (0..SIZE.area())
            .map(|i| (20..60).contains(&(i % 200)) && (10..30).contains(&(i / 200)));
        let square = Mask::from_pixels(SIZE, square);
        let cases = [
            (
                "rectanglelabels",
                json!({"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0}),
            ),
            (
                "labels",
                json!({"x": 30, "y": 10, "width": 10, "height": 40, "rotation": 90}),
            ),
            (
                "brushlabels",
                json!({"format": "rle", "rle": brush_rle::encode(&square)}),
            ),
            ("bitmasklabels", json!({"imageDataURL": data_url(&square)})),
            (
                "polygonlabels",
                json!({"points": [[10, 10], [30, 10], [30, 30], [10, 30]]}),
            ),
            (
                "vectorlabels",
                json!({"vertices": [{"x": 10, "y": 10}, {"x": 30, "y": 10}, {"x": 30, "y": 30}, {"x": 10, "y": 30}]}),
            ),
        ];
        for (kind, value) in cases {
            let shapes = shapes(kind, value).unwrap();
            assert_eq!(shapes.len(), 1, "{kind}");
            assert_eq!(
                (shapes[0].label.as_str(), shapes[0].score, shapes[0].page),
                ("cup", Some(0.5), 2)
            );
            let found = shapes[0].outline.bounding_box().unwrap().0;
            for (found, expected) in found.into_iter().zip([20.0, 10.0, 40.0, 20.0]) {
                assert!(
                    (found - expected).abs() < 1e-6,
                    "{kind}: {found} {expected}"
                );
            }
            if let Outline::Mask(mask) = &shapes[0].outline {
                assert_eq!(**mask, square, "{kind}");
            }
        }
        let ellipse = shapes(
            "ellipselabels",
            json!({"x": 50, "y": 50, "radiusX": 10, "radiusY": 40, "rotation": 90}),
        );
        let Outline::Mask(mask) = &ellipse.unwrap()[0].outline else {
            panic!("an ellipse is a mask");
        };
        let area = std::f64::consts::PI * 20.0 * 40.0;
        assert!(
            (mask.area() as f64 / area - 1.0).abs() < 0.02,
            "{}",
            mask.area()
        );
    }

    #[test]
    fn what_cannot_be_compared_is_left_out_and_what_is_damaged_is_named() {
        for (kind, value) in [
            ("keypointlabels", json!({"x": 1, "y": 1, "width": 1})),
            ("polygonlabels", json!({"points": [[1, 1], [2, 2]]})),
        ] {
            assert_eq!(shapes(kind, value).unwrap(), [], "{kind}");
        }
        let unlabeled = json!({"id": "r", "type": "rectangle", "to_name": "i", "value": {"x": 1, "y": 1, "width": 5, "height": 5}});
        assert_eq!(labeled_shapes(&[unlabeled], "i").unwrap(), []);
        for (kind, value) in [
            ("brushlabels", json!({"rle": [1, 2, 3]})),
            ("brushlabels", json!({"rle": [1, 2, 300]})),
            (
                "bitmasklabels",
                json!({"imageDataURL": "data:image/png;base64,AAAA"}),
            ),
            (
                "polygonlabels",
                json!({"points": [[1, 1], [2, "x"], [3, 3]]}),
            ),
        ] {
            let error = shapes(kind, value).unwrap_err();
            assert!(error.contains("the region \"r\""), "{error}");
        }
    }
}
