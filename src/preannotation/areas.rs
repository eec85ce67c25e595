//! Regions of interest: rectangles that limit the search.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

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

/// The regions of interest that were drawn in the last seconds with the smart tool, which sends them at once. Label Studio
/// saves a draft up to [`DRAFT_DELAY`] after a change, so a prompt that is typed before that comes without them.
#[derive(Debug, Default)]
pub(super) struct RecentAreas(Mutex<HashMap<Key, (Instant, Vec<Area>)>>);

/// A task of a project.
type Key = (String, Option<u64>);

/// How long a draft may lack what was drawn: the editor saves at most every 5 s, and a save takes a moment.
const DRAFT_DELAY: Duration = Duration::from_secs(10);
/// Limit of the tasks that are remembered, because any client can make up tasks.
const MAX_RECENT: usize = 1000;

impl RecentAreas {
    /// Remembers what was just drawn in a task.
    pub(super) fn remember(&self, project: &str, task: Option<u64>, areas: Vec<Area>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (drawn, _)| drawn.elapsed() < DRAFT_DELAY);
        if all.len() >= MAX_RECENT {
            return;
        }
        all.insert((project.to_owned(), task), (Instant::now(), areas));
    }

    /// What was drawn in a task in the last seconds; empty if nothing was.
    pub(super) fn of_task(&self, project: &str, task: Option<u64>) -> Vec<Area> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = all.get(&(project.to_owned(), task));
        let recent = recent.filter(|(drawn, _)| drawn.elapsed() < DRAFT_DELAY);
        recent.map(|(_, areas)| areas.clone()).unwrap_or_default()
    }
}

/// The regions of interest of an image among the regions of a context or of a task. Beyond [`MAX_AREAS`], the oldest ones
/// are left out.
pub(super) fn areas(config: &LabelingConfig, image: &ImageTag, regions: &[Value]) -> Vec<Area> {
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
}

/// The number of the page that a region belongs to, from 0.
pub(super) fn page_of(region: &Value) -> Option<usize> {
    let index = region["item_index"].as_u64()?;
    usize::try_from(index).ok()
}
