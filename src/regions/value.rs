//! The `value` of Label Studio's regions.

use std::sync::Arc;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::labeling::Shape;

/// The `value` of a region; it is serialized directly from these fields. Long contents, such as the run-length code
/// of a large mask, are shared by clones.
#[derive(Debug, Clone, PartialEq)]
pub enum RegionValue {
    /// A box.
    Rectangle {
        /// The left edge, in percent of the image's width, 0..100.
        x: f64,
        /// The top edge, in percent of the image's height, 0..100.
        y: f64,
        /// In percent of the image's width, 0..100.
        width: f64,
        /// In percent of the image's height, 0..100.
        height: f64,
        /// In degrees clockwise around the top left corner.
        rotation: u16,
        /// Its label.
        labels: Labels,
    },
    /// A mask.
    Brush {
        /// The bytes of [`brush_rle::encode`](super::brush_rle::encode).
        rle: Arc<[u8]>,
        /// Its label.
        labels: Labels,
    },
    /// A closed polygon.
    Polygon {
        /// The corners `[x, y]`, in percent of the image's width and height, 0..100.
        points: Arc<[[f64; 2]]>,
        /// Its label.
        labels: Labels,
    },
    /// A mask as an image.
    Bitmask {
        /// The URL of [`bitmask::data_url`](super::bitmask::data_url).
        image_data_url: Arc<str>,
        /// Its label.
        labels: Labels,
    },
    /// A closed outline of connected vertices.
    Vector {
        /// The vertices `[x, y]`, in percent of the image's width and height, 0..100.
        vertices: Arc<[[f64; 2]]>,
        /// Its label.
        labels: Labels,
    },
    /// An ellipse.
    Ellipse {
        /// The centre, in percent of the image's width, 0..100.
        x: f64,
        /// The centre, in percent of the image's height, 0..100.
        y: f64,
        /// The first half-axis, in percent of the image's width.
        radius_x: f64,
        /// The second half-axis, in percent of the image's height.
        radius_y: f64,
        /// In degrees clockwise around the centre.
        rotation: f64,
        /// Its label.
        labels: Labels,
    },
    /// A point.
    KeyPoint {
        /// In percent of the image's width, 0..100.
        x: f64,
        /// In percent of the image's height, 0..100.
        y: f64,
        /// The size of the drawn dot, in percent of the image's width.
        width: f64,
        /// Its label.
        labels: Labels,
    },
    /// The text of a text area.
    Text(String),
}

/// The label of a shape. The variant depends on the control, and decides the region's `type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Labels {
    /// The control has no labels, such as `<Rectangle>`: the region's type is `rectangle`.
    None,
    /// The control has its own labels, such as `<RectangleLabels>`: the region's type is `rectanglelabels`, even if
    /// no label matches.
    Own(Option<String>),
    /// A label of a separate `<Labels>` control: the region's type is `labels`, and it repeats the shape.
    Separate(String),
}

impl RegionValue {
    /// The `type` of a region with this value. It is also the key of the label in the value, if there is one.
    pub fn kind(&self) -> &'static str {
        let (shape, labels) = match self {
            Self::Rectangle { labels, .. } => (Shape::Rectangle, labels),
            Self::Brush { labels, .. } => (Shape::Brush, labels),
            Self::Polygon { labels, .. } => (Shape::Polygon, labels),
            Self::Bitmask { labels, .. } => (Shape::Bitmask, labels),
            Self::Vector { labels, .. } => (Shape::Vector, labels),
            Self::Ellipse { labels, .. } => (Shape::Ellipse, labels),
            Self::KeyPoint { labels, .. } => (Shape::KeyPoint, labels),
            Self::Text(_) => return "textarea",
        };
        match labels {
            Labels::None => shape.kind(),
            Labels::Own(_) => shape.labels_kind(),
            Labels::Separate(_) => "labels",
        }
    }

    /// Approximate size of the heap memory, in bytes, without the value itself.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Rectangle { .. } | Self::Ellipse { .. } | Self::KeyPoint { .. } => 0,
            Self::Brush { rle, .. } => rle.len(),
            Self::Polygon { points, .. } => size_of_val(&points[..]),
            Self::Bitmask { image_data_url, .. } => image_data_url.len(),
            Self::Vector { vertices, .. } => size_of_val(&vertices[..]),
            Self::Text(text) => text.len(),
        }
    }

    /// The name of its label.
    pub fn label(&self) -> Option<&str> {
        match self {
            Self::Rectangle { labels, .. }
            | Self::Brush { labels, .. }
            | Self::Polygon { labels, .. }
            | Self::Bitmask { labels, .. }
            | Self::Vector { labels, .. }
            | Self::Ellipse { labels, .. }
            | Self::KeyPoint { labels, .. } => labels.name(),
            Self::Text(_) => None,
        }
    }

    /// The same shape with other labels; a text is unchanged.
    pub(super) fn with_labels(mut self, new: Labels) -> Self {
        match &mut self {
            Self::Rectangle { labels, .. }
            | Self::Brush { labels, .. }
            | Self::Polygon { labels, .. }
            | Self::Bitmask { labels, .. }
            | Self::Vector { labels, .. }
            | Self::Ellipse { labels, .. }
            | Self::KeyPoint { labels, .. } => *labels = new,
            Self::Text(_) => {}
        }
        self
    }
}

impl Labels {
    fn name(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Own(name) => name.as_deref(),
            Self::Separate(name) => Some(name),
        }
    }
}

impl Serialize for RegionValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            Self::Rectangle {
                x,
                y,
                width,
                height,
                rotation,
                ..
            } => {
                map.serialize_entry("x", x)?;
                map.serialize_entry("y", y)?;
                map.serialize_entry("width", width)?;
                map.serialize_entry("height", height)?;
                map.serialize_entry("rotation", rotation)?;
            }
            Self::Brush { rle, .. } => {
                map.serialize_entry("format", "rle")?;
                // serde serializes a byte slice as a list of numbers
                map.serialize_entry("rle", &rle[..])?;
            }
            Self::Polygon { points, .. } => {
                map.serialize_entry("points", &points[..])?;
                map.serialize_entry("closed", &true)?;
            }
            Self::Bitmask { image_data_url, .. } => {
                map.serialize_entry("imageDataURL", &image_data_url[..])?;
            }
            Self::Vector { vertices, .. } => {
                map.serialize_entry("vertices", &Vertices(vertices))?;
                map.serialize_entry("closed", &true)?;
            }
            Self::Ellipse {
                x,
                y,
                radius_x,
                radius_y,
                rotation,
                ..
            } => {
                map.serialize_entry("x", x)?;
                map.serialize_entry("y", y)?;
                map.serialize_entry("radiusX", radius_x)?;
                map.serialize_entry("radiusY", radius_y)?;
                map.serialize_entry("rotation", rotation)?;
            }
            Self::KeyPoint { x, y, width, .. } => {
                map.serialize_entry("x", x)?;
                map.serialize_entry("y", y)?;
                map.serialize_entry("width", width)?;
            }
            Self::Text(text) => map.serialize_entry("text", &[text])?,
        }
        if let Some(label) = self.label() {
            map.serialize_entry(self.kind(), &[label])?;
        }
        map.end()
    }
}

/// The vertices of an outline as Label Studio reads them: each one names the one before it.
struct Vertices<'a>(&'a [[f64; 2]]);

/// One vertex.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Vertex {
    id: String,
    x: f64,
    y: f64,
    /// `None` for the first vertex.
    prev_point_id: Option<String>,
    is_bezier: bool,
}

impl Serialize for Vertices<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let id = |index: usize| format!("v{index}");
        serializer.collect_seq(self.0.iter().enumerate().map(|(i, [x, y])| Vertex {
            id: id(i),
            x: *x,
            y: *y,
            prev_point_id: i.checked_sub(1).map(id),
            is_bezier: false,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_brush_are_serialized_as_numbers() {
        let bytes: Vec<u8> = (0..=255).collect();
        let value = RegionValue::Brush {
            rle: bytes.clone().into(),
            labels: Labels::None,
        };
        let written = serde_json::to_string(&value).unwrap();
        let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
        let expected = format!(r#"{{"format":"rle","rle":[{}]}}"#, numbers.join(","));
        assert_eq!(written, expected);
    }
}
