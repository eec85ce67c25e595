//! One annotation of a COCO file.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::coco_segmentation::Segmentation;
use super::{CocoBox, TrueObject};
use crate::geometry::ImageSize;

/// The fields of an annotation that are used.
#[derive(Deserialize)]
struct Annotation {
    image_id: u64,
    category_id: u64,
    bbox: CocoBox,
    segmentation: Option<Segmentation>,
    #[serde(default)]
    iscrowd: Flag,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "it must be 0 or 1")]
enum Flag {
    Number(u64),
    Bool(bool),
}

impl Default for Flag {
    fn default() -> Self {
        Self::Bool(false)
    }
}

/// The object of an annotation, or what is wrong with it.
pub(super) fn true_object(
    json: &RawValue,
    images: &HashMap<u64, ImageSize>,
    categories: &HashMap<u64, &str>,
) -> Result<TrueObject, String> {
    let annotation: Annotation = from_json(json)?;
    let Annotation {
        image_id,
        category_id,
        bbox,
        segmentation,
        iscrowd,
    } = annotation;
    let missing = |what: &str, id: u64, list: &str| {
        format!("its {what} is {id}, but no element of {list} has this id")
    };
    let size = images
        .get(&image_id)
        .ok_or_else(|| missing("image_id", image_id, "images"))?;
    let label = categories
        .get(&category_id)
        .ok_or_else(|| missing("category_id", category_id, "categories"))?;
    let [_, _, width, height] = bbox.0;
    if width < 0.0 || height < 0.0 {
        return Err(format!(
            "its bbox is {:?}; it must be [x, y, width, height], and no size can be negative",
            bbox.0
        ));
    }
    let mask = match segmentation {
        Some(segmentation) => segmentation.mask(*size)?,
        None => None,
    };
    Ok(TrueObject {
        image: image_id,
        label: (*label).to_owned(),
        bounding_box: bbox,
        mask: mask.map(Arc::new),
        is_crowd: match iscrowd {
            Flag::Number(number) => number != 0,
            Flag::Bool(is_crowd) => is_crowd,
        },
    })
}

/// Reads a part of the file; the error names the field.
fn from_json<T: DeserializeOwned>(json: &RawValue) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_str(json.get());
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        // a position would be that in the annotation, not in the file
        let message = error.into_inner().to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        match path.as_str() {
            "." => message.to_owned(),
            _ => format!("{path}: {message}"),
        }
    })
}

/// An annotation in errors: its id, or its place in the list.
pub(super) fn name_of_annotation(json: &RawValue, index: usize) -> String {
    #[derive(Deserialize)]
    struct Id {
        id: serde_json::Value,
    }
    match from_json(json) {
        Ok(Id { id }) => format!("annotation {id}"),
        Err(_) => format!("annotations[{index}], which has no id"),
    }
}
