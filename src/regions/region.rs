//! A region, and how Label Studio represents a labeled shape.

use rand::Rng;
use rand::distr::Alphanumeric;
use serde::Serialize;
use utoipa::ToSchema;

use super::selection::Destination;
use super::value::{Labels, RegionValue};
use crate::geometry::ImageSize;
use crate::labeling::{ControlKind, ControlTag, ImageTag};

/// One region of a prediction, as Label Studio's editor reads it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs)] // Label Studio's own field names
pub struct Region {
    pub id: String,
    pub from_name: String,
    pub to_name: String,
    /// The type of the value.
    #[serde(rename = "type")]
    #[schema(schema_with = super::schema::region_types)]
    pub kind: &'static str,
    pub original_width: usize,
    pub original_height: usize,
    pub image_rotation: u16,
    pub value: RegionValue,
    /// 0..1; none for a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1, nullable = false)]
    pub score: Option<f32>,
}

impl Region {
    /// Approximate size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        let names = [&self.id, &self.from_name, &self.to_name];
        let names: usize = names.iter().map(|name| name.len()).sum();
        size_of::<Self>() + names + self.value.bytes()
    }

    /// A region with a new id, from a control of the image.
    fn new(
        from: &ControlTag,
        image: &ImageTag,
        size: ImageSize,
        value: RegionValue,
        score: Option<f32>,
    ) -> Self {
        Self {
            id: random_id(),
            from_name: from.name.clone(),
            to_name: image.name.clone(),
            kind: value.kind(),
            original_width: size.width,
            original_height: size.height,
            image_rotation: 0,
            value,
            score,
        }
    }
}

/// The regions of a shape at its destination. A control with its own labels gives one region. With a separate
/// `<Labels>` control, the shape is one region, and the label is a second one with the same id.
pub(super) fn labeled(
    shape: RegionValue,
    destination: &Destination,
    image: &ImageTag,
    size: ImageSize,
    score: Option<f32>,
) -> Vec<Region> {
    let control = destination.control.control;
    let region = |from, value| Region::new(from, image, size, value, score);
    match (control.kind, destination.label) {
        (ControlKind::ShapeLabels(_), label) => {
            let name = label.map(|(_, label)| label.name().to_owned());
            vec![region(control, shape.with_labels(Labels::Own(name)))]
        }
        (_, Some((labels, label))) => {
            let labeled = Labels::Separate(label.name().to_owned());
            let labeled = region(labels, shape.clone().with_labels(labeled));
            let id = labeled.id.clone();
            let shape = region(control, shape);
            vec![Region { id, ..shape }, labeled]
        }
        (_, None) => vec![region(control, shape)],
    }
}

/// The prompt as a region of a text area, as if the annotator had typed it.
pub fn prompt_region(prompt: &str, area: &ControlTag, image: &ImageTag, size: ImageSize) -> Region {
    let value = RegionValue::Text(prompt.to_owned());
    Region::new(area, image, size, value, None)
}

/// A random id of ten letters and digits. It must be unique, because accepting a region overwrites one with the same
/// id.
fn random_id() -> String {
    let characters = rand::rng().sample_iter(Alphanumeric);
    characters.take(10).map(char::from).collect()
}
