//! Searches one image of a task for a prompt.

use tracing::Span;

use super::admission::{Busy, Permit};
use super::project::ProjectSnapshot;
use super::project::settings::ControlThresholds;
use super::{PreannotationError, Preannotator, Task};
use crate::labeling::ImageTag;
use crate::media::{Digest, ImageRequest, MediaError, TaskImage};
use crate::pipeline::scheduler::Urgency;
use crate::pipeline::stages::{Query, StageError, StageRequest, off_thread};
use crate::pipeline::timings::Timings;
use crate::prompt::Prompt;
use crate::regions::{RegionOptions, Regions, Unlabeled, regions};

/// One image to search, and its prompt.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Search {
    pub(super) image: ImageTag,
    pub(super) prompt: Prompt,
    pub(super) unlabeled: Unlabeled,
    /// Whether the prompt is made of labels. Labels that the model cannot encode are then left out.
    pub(super) is_from_labels: bool,
    pub(super) urgency: Urgency,
}

/// Number of digits of a prompt's hash in the log.
const HASH_DIGITS: usize = 12;

impl Preannotator {
    /// Runs detection and segmentation on one image of a task.
    pub(super) async fn predict_image(
        &self,
        snapshot: &ProjectSnapshot,
        search: &Search,
        thresholds: ControlThresholds,
        task: &Task,
    ) -> Result<Regions, PreannotationError> {
        let (config, image) = (&snapshot.config, &search.image);
        let hash = Digest::of(search.prompt.to_string().as_bytes()).to_string();
        Span::current().record("prompt_hash", &hash[..HASH_DIGITS]);
        let url = image.url(&task.data)?;
        let settings = snapshot.settings(thresholds, image);
        let mut controls = config.region_controls(image);
        let query = Query {
            prompt: search.prompt.clone(),
            options: settings.options,
            with_masks: settings.segment && controls.any(|c| c.shape.needs_mask()),
            skips_unencodable: search.is_from_labels,
        };
        let timings = Timings::default();
        let request = StageRequest {
            urgency: search.urgency,
            timings: &timings,
        };
        let _permit = self.admit(search.urgency)?;
        let predicted = async {
            let image = self.task_image(snapshot, task, &url).await?;
            Ok::<_, PreannotationError>(self.stages.predict(&image, &query, request).await?)
        };
        let predicted = predicted.await;
        record_timings(&timings);
        let prediction = predicted?;
        let _masks = self.budget().reserve_unchecked(prediction.bytes());
        self.metrics
            .record_prediction(prediction.objects.len(), &timings);
        let style = RegionOptions {
            unlabeled: search.unlabeled,
            default_label_threshold: settings.default_label_threshold,
            polygon_tolerance: snapshot.polygon_tolerance,
        };
        let (config, image) = (config.clone(), image.clone());
        let detections = prediction.objects.len();
        let build = move || regions(&prediction, &config, &image, &style);
        let built = build_regions(build).await?;
        self.metrics.record_regions(built.regions.len());
        let options = &query.options;
        tracing::info!(
            prompt = %search.prompt,
            box_threshold = %options.box_threshold,
            text_threshold = %options.text_threshold,
            nms_iou = %options.nms_iou_threshold,
            max_detections = options.max_detections,
            label_thresholds = settings.default_label_threshold.is_some(),
            detections,
            regions = built.regions.len(),
            without_label = built.dropped,
            "predicted"
        );
        Ok(built)
    }

    /// Annotator requests need a permit; other requests are bounded by their callers.
    pub(super) fn admit(&self, urgency: Urgency) -> Result<Option<Permit>, Busy> {
        match urgency {
            Urgency::Annotator => self.admission.acquire().map(Some),
            _ => Ok(None),
        }
    }

    /// Looks up an image of a task: its digest and its size, and the pixels when they are needed.
    pub(super) async fn task_image<'a>(
        &'a self,
        snapshot: &'a ProjectSnapshot,
        task: &Task,
        url: &'a str,
    ) -> Result<TaskImage<'a>, MediaError> {
        let request = ImageRequest {
            value: url,
            label_studio: &snapshot.label_studio,
            task: task.id,
            login: snapshot.origin.login.as_ref(),
        };
        self.images.look_up(request).await
    }
}

/// Records the stage times in the task's span, for later log lines about the same task.
pub(super) fn record_timings(timings: &Timings) {
    Span::current().record("timings", tracing::field::display(timings));
}

/// Builds regions outside the async threads. A panic there becomes [`PreannotationError::Regions`].
pub(super) async fn build_regions<T: Send + 'static>(
    build: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PreannotationError> {
    off_thread(build)
        .await
        .map_err(|_: StageError| PreannotationError::Regions)
}
