//! Regions of interest: rectangles that limit the search.

use serde_json::Value;

use super::smart_tools::{SmartToolShape, enclosing_box};
use crate::geometry::{ImageSize, Window};
use crate::labeling::{ImageTag, LabelingConfig, Page};

/// A rectangle that limits the search on one page.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Area {
    shape: SmartToolShape,
    /// The number of its page, from 0; `None` if the image tag shows a single image.
    page: Option<usize>,
}

/// Limit of the regions of interest per request: each one is a run of the detector.
const MAX_AREAS: usize = 32;

impl Area {
    /// Whether it is on a page.
    pub(super) fn is_on(&self, page: &Page) -> bool {
        // Label Studio puts a region without a number on the first page
        page.index.is_none() || page.index == Some(self.page.unwrap_or(0))
    }

    /// Its pixels; `None` if none of them is inside the image.
    pub(super) fn window(&self, size: ImageSize) -> Option<Window> {
        let (width, height) = (size.width as f32 / 100.0, size.height as f32 / 100.0);
        match self.shape {
            SmartToolShape::Rectangle {
                x,
                y,
                width: w,
                height: h,
                rotation,
            } => {
                let (origin, sides) = ((x * width, y * height), (w * width, h * height));
                Window::around(enclosing_box(origin, sides, rotation), size)
            }
            SmartToolShape::Point { .. } => None,
        }
    }
}

/// Whether a region was drawn with a control for regions of interest.
pub(super) fn is_area(region: &Value, config: &LabelingConfig) -> bool {
    let mut images = config.images.iter();
    images.any(|image| is_area_of(region, config, image))
}

fn is_area_of(region: &Value, config: &LabelingConfig, image: &ImageTag) -> bool {
    let name = region["from_name"].as_str();
    let mut controls = config.regions_of_interest(image);
    name.is_some_and(|name| controls.any(|control| control.name == name))
}

/// The regions of interest of an image: those that were just drawn, else those of the task's draft and annotation. Beyond
/// [`MAX_AREAS`], the oldest ones are left out.
pub(super) fn areas(
    config: &LabelingConfig,
    image: &ImageTag,
    context: &[Value],
    task: &[Value],
) -> Vec<Area> {
    let of = |regions: &[Value]| -> Vec<Area> {
        let drawn = regions
            .iter()
            .filter(|region| is_area_of(region, config, image));
        let mut areas: Vec<Area> = vec![];
        for region in drawn {
            let shape = SmartToolShape::from_region(region);
            let Some(shape @ SmartToolShape::Rectangle { .. }) = shape else {
                continue;
            };
            let page = page_of(region);
            let area = Area { shape, page };
            // the annotation and the draft hold the same region, and so do a shape and its label
            if !areas.contains(&area) {
                areas.push(area);
            }
        }
        if areas.len() > MAX_AREAS {
            tracing::warn!(
                drawn = areas.len(),
                used = MAX_AREAS,
                "too many regions of interest: only the last ones are searched"
            );
            areas.drain(..areas.len() - MAX_AREAS);
        }
        areas
    };
    let drawn = of(context);
    if drawn.is_empty() { of(task) } else { drawn }
}

/// The number of the page that a region belongs to, from 0.
pub(super) fn page_of(region: &Value) -> Option<usize> {
    let index = region["item_index"].as_u64()?;
    usize::try_from(index).ok()
}
