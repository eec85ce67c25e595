//! Computes image embeddings before an annotator needs them.

use std::sync::Arc;

use super::project::{Origin, ProjectSnapshot};
use super::{PreannotationError, Preannotator, Task};
use crate::labeling::{ImageTag, LabelingConfig, LabelingError, Page};
use crate::pipeline::scheduler::Urgency;
use crate::pipeline::stages::StageRequest;
use crate::pipeline::timings::Timings;
use crate::pipeline::warm::{EmbeddingStoreError, WarmError, WarmedImage};

/// The images of a project whose embeddings are computed ahead of time.
#[derive(Debug, Clone)]
pub struct WarmPlan {
    snapshot: ProjectSnapshot,
    images: Vec<ImageTag>,
}

/// Why an image could not be warmed.
#[derive(Debug, thiserror::Error)]
pub enum WarmingError {
    /// The image cannot be loaded, or a model stage failed.
    #[error(transparent)]
    Preannotation(#[from] PreannotationError),
    /// The embedding cannot be stored.
    #[error("the image embedding could not be stored: {0}")]
    Store(#[from] EmbeddingStoreError),
}

impl From<WarmError> for WarmingError {
    fn from(error: WarmError) -> Self {
        match error {
            WarmError::Stage(error) => Self::Preannotation(error.into()),
            WarmError::Store(error) => Self::Store(error),
        }
    }
}

impl WarmPlan {
    /// The image tags to warm in each task, in order.
    pub fn images(&self) -> &[ImageTag] {
        &self.images
    }

    /// The images to warm in a task, in order: those of every image tag, each an error if the task has none for it.
    pub fn pages(&self, task: &Task) -> Vec<Result<Page, WarmingError>> {
        let pages = self
            .images
            .iter()
            .flat_map(|image| match image.pages(&task.data) {
                Ok(pages) => pages.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            });
        let error = |error: LabelingError| PreannotationError::from(error).into();
        pages.map(|page| page.map_err(error)).collect()
    }
}

impl Preannotator {
    /// Plans the warming of a project: every image that takes regions.
    ///
    /// # Errors
    /// If no image of the labeling config has a region control.
    pub fn plan_warming(
        &self,
        origin: Origin,
        config: Arc<LabelingConfig>,
    ) -> Result<WarmPlan, PreannotationError> {
        let images: Vec<ImageTag> = config.images_with_regions().cloned().collect();
        if images.is_empty() {
            config.require_region_control(config.image()?)?;
        }
        let snapshot = self.projects.snapshot(origin, config, None);
        Ok(WarmPlan { snapshot, images })
    }

    /// Computes the embedding of one page of a task and writes it to disk, unless it is stored already.
    ///
    /// # Errors
    /// See [`WarmingError`].
    pub async fn warm(
        &self,
        plan: &WarmPlan,
        task: &Task,
        page: &Page,
    ) -> Result<WarmedImage, WarmingError> {
        let timings = Timings::default();
        let request = StageRequest {
            urgency: Urgency::Warming,
            timings: &timings,
        };
        let task_image = self.task_image(&plan.snapshot, task, &page.url).await;
        let task_image = task_image.map_err(PreannotationError::from)?;
        let warmed = self.stages.warm_on_disk(&task_image, request).await?;
        tracing::info!(is_new = warmed.is_new, timings = %timings, "the image embedding is stored");
        Ok(warmed)
    }
}
