//! Searches one image tag of a task for a prompt: all its pages, or one of them.

use tracing::Span;

use super::admission::{Busy, Permit};
use super::areas::Area;
use super::project::ProjectSnapshot;
use super::project::settings::{ControlThresholds, SearchThresholds};
use super::searched::labeled_objects;
use super::{ImageSink, PreannotationError, Preannotator, SearchedImage, Task};
use crate::geometry::Detection;
use crate::labeling::{ImageTag, LabelingError, Page};
use crate::media::{Digest, ImageRequest, MediaError, TaskImage};
use crate::pipeline::Query;
use crate::pipeline::scheduler::Urgency;
use crate::pipeline::stages::{StageError, StageRequest, off_thread};
use crate::pipeline::timings::Timings;
use crate::prompt::Prompt;
use crate::regions::scores::mean;
use crate::regions::{Region, RegionOptions, Regions, Unlabeled, regions};

/// One image tag to search, and its prompt.
#[derive(Debug, Clone)]
pub(super) struct Search {
    pub(super) image: ImageTag,
    /// The number of the page to search, from 0; `None`: all pages.
    pub(super) page: Option<usize>,
    /// The regions of interest, on any page. A page without one is searched everywhere.
    pub(super) areas: Vec<Area>,
    pub(super) prompt: Prompt,
    pub(super) unlabeled: Unlabeled,
    /// Whether the prompt is made of labels. Labels that the model cannot encode are then left out.
    pub(super) is_from_labels: bool,
    pub(super) urgency: Urgency,
    /// Also takes the images with their objects.
    pub(super) images: Option<ImageSink>,
}

/// What a search found.
#[derive(Debug, Default)]
pub(super) struct SearchResult {
    pub(super) regions: Vec<Region>,
    /// The scores of the detections that have regions.
    scores: Vec<f32>,
    /// The phrases of the detections that have regions.
    pub(super) phrases: Vec<String>,
    /// Number of detections without any region, because no label matched.
    pub(super) dropped: usize,
    /// The best candidate below the thresholds, if nothing was detected on some page.
    pub(super) best_rejected: Option<Detection>,
    /// The box threshold that applied.
    pub(super) box_threshold: f32,
}

impl SearchResult {
    /// Number of detections that have regions.
    pub(super) fn objects(&self) -> usize {
        self.scores.len()
    }

    /// The mean of the detections' scores, 0..1; 0 without detections.
    pub(super) fn score(&self) -> f32 {
        mean(self.scores.iter().copied())
    }

    fn add(&mut self, page: Regions, best_rejected: Option<Detection>) {
        self.regions.extend(page.regions);
        self.scores.extend(page.scores);
        self.phrases.extend(page.phrases);
        self.dropped += page.dropped;
        let score = |best: &Option<Detection>| best.as_ref().map_or(0.0, |best| best.score);
        if score(&best_rejected) > score(&self.best_rejected) {
            self.best_rejected = best_rejected;
        }
    }
}

/// Number of digits of a prompt's hash in the log.
const HASH_DIGITS: usize = 12;

impl Preannotator {
    /// Runs detection and segmentation on the pages of an image tag.
    pub(super) async fn search(
        &self,
        snapshot: &ProjectSnapshot,
        search: &Search,
        controls: ControlThresholds,
        task: &Task,
    ) -> Result<SearchResult, PreannotationError> {
        let hash = Digest::of(search.prompt.to_string().as_bytes()).to_string();
        Span::current().record("prompt_hash", &hash[..HASH_DIGITS]);
        let thresholds = snapshot.thresholds(controls, &search.image, &search.prompt);
        let pages = match search.page {
            Some(_) => vec![page(&search.image, search.page, task)?],
            None => search.image.pages(&task.data)?,
        };
        let _permit = self.admit(search.urgency)?;
        let mut result = SearchResult {
            box_threshold: thresholds.options.box_threshold,
            ..SearchResult::default()
        };
        for page in &pages {
            let (found, best) = self
                .search_page(snapshot, search, &thresholds, task, page)
                .await?;
            result.add(found, best);
        }
        Ok(result)
    }

    async fn search_page(
        &self,
        snapshot: &ProjectSnapshot,
        search: &Search,
        thresholds: &SearchThresholds,
        task: &Task,
        page: &Page,
    ) -> Result<(Regions, Option<Detection>), PreannotationError> {
        let (config, image) = (&snapshot.config, &search.image);
        let settings = &snapshot.settings;
        let mut controls = config.region_controls(image);
        let images = search.images.as_ref();
        let needs_masks = controls.any(|c| c.shape.needs_mask());
        let with_masks =
            settings.segment && (needs_masks || images.is_some_and(|sink| sink.with_masks));
        let timings = Timings::default();
        let request = StageRequest {
            urgency: search.urgency,
            timings: &timings,
        };
        let predicted = async {
            let image = self.task_image(snapshot, task, &page.url).await?;
            let areas = search.areas.iter().filter(|area| area.is_on(page));
            let query = Query {
                thresholds: thresholds.phrases.clone(),
                areas: areas.filter_map(|area| area.window(image.size)).collect(),
                tiling: settings.tiling,
                with_masks,
                skips_unencodable: search.is_from_labels,
                ..Query::new(search.prompt.clone(), thresholds.options)
            };
            let areas = query.areas.len();
            let prediction = self.stages.predict(&image, &query, request).await?;
            let pixels = match images {
                Some(_) => Some(image.pixels().await?),
                None => None,
            };
            Ok::<_, PreannotationError>((prediction, areas, pixels))
        };
        let predicted = predicted.await;
        record_timings(&timings);
        let (prediction, areas, pixels) = predicted?;
        let memory = self.budget().reserve_unchecked(prediction.bytes());
        self.metrics
            .record_prediction(prediction.objects.len(), &timings);
        let best_rejected = prediction.best_rejected.clone();
        let style = RegionOptions {
            unlabeled: search.unlabeled,
            polygon_tolerance: settings.polygon_tolerance,
            page: page.index,
        };
        let (config, image) = (config.clone(), image.clone());
        let detections = prediction.objects.len();
        let cleanup = settings.cleanup;
        let build = move || {
            let prediction = prediction.with_clean_masks(cleanup);
            let built = regions(&prediction, &config, &image, &style);
            let searched = pixels.map(|pixels| {
                let objects = labeled_objects(prediction, &config, &image);
                (pixels, objects)
            });
            (built, searched)
        };
        let (built, searched) = build_regions(build).await?;
        self.metrics.record_regions(built.regions.len());
        let options = &thresholds.options;
        tracing::info!(
            prompt = %search.prompt,
            page = page.index,
            areas,
            tiles = %settings.tiling.tiles,
            box_threshold = %options.box_threshold,
            text_threshold = %options.text_threshold,
            nms_iou = %options.nms_iou_threshold,
            max_detections = options.max_detections,
            label_thresholds = !thresholds.phrases.is_empty(),
            detections,
            regions = built.regions.len(),
            without_label = built.dropped,
            "predicted"
        );
        if let (Some(sink), Some((pixels, objects))) = (images, searched) {
            let searched = SearchedImage {
                task: task.id,
                url: page.url.clone(),
                pixels,
                objects,
                _memory: memory,
            };
            // the receiver says itself why it has closed
            let _ = sink.sender.send(searched).await;
        }
        Ok((built, best_rejected))
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

/// The page of a task that an action in the editor is on. Without a number, and for a tag with a single image, it is the
/// first one.
pub(super) fn page(
    image: &ImageTag,
    number: Option<usize>,
    task: &Task,
) -> Result<Page, LabelingError> {
    let mut pages = image.pages(&task.data)?;
    let number = number.filter(|_| image.is_list).unwrap_or(0);
    let count = pages.len();
    if number >= count {
        let image = image.name.clone();
        return Err(LabelingError::NoSuchPage {
            image,
            number,
            count,
        });
    }
    Ok(pages.swap_remove(number))
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
