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
    /// In pixels; none for a message, which belongs to no image. The same holds for the next two.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub original_width: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub original_height: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub image_rotation: Option<u16>,
    /// The number of the page, from 0, if the image tag shows several.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub item_index: Option<usize>,
    /// Whether the annotator cannot change it; written only if so.
    #[serde(skip_serializing_if = "is_false")]
    pub readonly: bool,
    pub value: RegionValue,
    /// 0..1; none for a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1, nullable = false)]
    pub score: Option<f32>,
}

/// Where a region belongs.
#[derive(Debug, Clone, Copy)]
pub struct ImagePage<'a> {
    /// The image tag.
    pub image: &'a ImageTag,
    /// The number of the page, from 0; `None` if the tag shows a single image.
    pub page: Option<usize>,
    /// The size of the image.
    pub size: ImageSize,
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
        image_page: ImagePage,
        value: RegionValue,
        score: Option<f32>,
    ) -> Self {
        Self {
            id: random_id(),
            from_name: from.name.clone(),
            to_name: image_page.image.name.clone(),
            kind: value.kind(),
            original_width: Some(image_page.size.width),
            original_height: Some(image_page.size.height),
            image_rotation: Some(0),
            item_index: image_page.page,
            readonly: false,
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
    image_page: ImagePage,
    score: Option<f32>,
) -> Vec<Region> {
    let control = destination.control.control;
    let region = |from, value| Region::new(from, image_page, value, score);
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
pub fn prompt_region(prompt: &str, area: &ControlTag, image_page: ImagePage) -> Region {
    let value = RegionValue::Text(prompt.to_owned());
    Region::new(area, image_page, value, None)
}

/// A message as a region of a text area for messages. It belongs to the object tag of the text area, and the annotator
/// cannot change it.
pub fn status_region(message: &str, area: &ControlTag) -> Region {
    let value = RegionValue::Text(message.to_owned());
    Region {
        id: random_id(),
        from_name: area.name.clone(),
        to_name: area.to_names.first().cloned().unwrap_or_default(),
        kind: value.kind(),
        original_width: None,
        original_height: None,
        image_rotation: None,
        item_index: None,
        readonly: true,
        value,
        score: None,
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the signature that serde calls
fn is_false(value: &bool) -> bool {
    !value
}

/// A random id of ten letters and digits. It must be unique, because accepting a region overwrites one with the same
/// id.
pub fn random_id() -> String {
    let characters = rand::rng().sample_iter(Alphanumeric);
    characters.take(10).map(char::from).collect()
}
