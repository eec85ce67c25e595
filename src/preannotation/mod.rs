//! Takes a task of Label Studio through all steps: labeling config, image, prompt, models, regions. The server and
//! the `annotate` command share this code; it does not depend on HTTP.
//!
//! [`mod@interaction`] parses what an annotator did, [`project`] holds the settings of each project, and this module
//! runs a task through the stages of the [`crate::pipeline`].

pub mod admission;
mod batch;
pub mod interaction;
pub mod project;
mod warming;

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tracing::Span;
use tracing::field::Empty;
use utoipa::ToSchema;

use self::admission::{Admission, Busy};
pub use self::batch::{BatchPlan, Outcome};
use self::interaction::{Drawn, Interaction, interaction, marks, numbers, text_of};
use self::project::View;
use self::project::settings::Numbers;
pub use self::project::{Defaults, Origin, Projects};
pub use self::warming::{WarmPlan, WarmingError};
use crate::budget::{Budget, Reservation};
use crate::labeling::{ImageTag, LabelingConfig, LabelingError, Shape};
use crate::media::{Digest, ImageRequest, Images, MediaError, Picture};
use crate::metrics::Metrics;
use crate::pipeline::loading::Loading;
use crate::pipeline::scheduler::Urgency;
use crate::pipeline::stages::{Asker, Failed, Query, StageError, Stages, off_thread};
use crate::pipeline::timings::Timings;
use crate::prompt::{EmptyPrompt, Prompt};
use crate::regions::scores::mean;
use crate::regions::{Region, Regions, Style, Unlabeled, cutouts, regions};

/// Turns tasks into predictions.
#[derive(Debug)]
pub struct Preannotator {
    projects: Projects,
    images: Images,
    stages: Stages,
    admission: Admission,
    /// Bounds the tasks of batches in progress.
    of_batches: Semaphore,
    metrics: Metrics,
}

/// The parts of a task that predictions need.
#[derive(Debug, Clone, Default)]
pub struct Task {
    /// The task's id in Label Studio.
    pub id: Option<u64>,
    /// The task's data.
    pub data: Map<String, Value>,
    /// The regions of its annotations and drafts; read only if the labeling config has threshold controls.
    pub regions: Vec<Value>,
}

/// What Label Studio stores or shows for a task.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskPrediction {
    /// Boxes, masks, polygons.
    pub result: Vec<Region>,
    /// The mean of the detections' scores, 0..1.
    #[schema(minimum = 0, maximum = 1)]
    pub score: f32,
    /// What made it.
    pub model_version: String,
    /// The memory that it takes.
    #[serde(skip)]
    pub memory: Reservation,
}

impl Task {
    /// The tracing span of a task. Every log line about the task carries its id and, once they are known, the
    /// prompt's hash and the time of each stage. The hash shows whether two lines are about the same prompt without
    /// logging the prompt itself.
    pub fn span(&self) -> Span {
        // at the highest level, so that no LOG_LEVEL filters it out
        tracing::error_span!("task", id = self.id, prompt_hash = Empty, timings = Empty)
    }

    /// Approximate size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        let data = self
            .data
            .iter()
            .map(|(key, value)| key.len() + json_bytes(value));
        data.chain(self.regions.iter().map(json_bytes)).sum()
    }
}

/// Approximate size of a JSON value in memory, in bytes.
fn json_bytes(value: &Value) -> usize {
    let inside: usize = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(json_bytes).sum(),
        Value::Object(fields) => {
            let fields = fields.iter();
            fields
                .map(|(key, value)| size_of::<String>() + key.len() + json_bytes(value))
                .sum()
        }
    };
    size_of::<Value>() + inside
}

/// Why a task has no prediction.
#[derive(Debug, thiserror::Error)]
pub enum PreannotationError {
    /// The labeling config cannot be used.
    #[error(transparent)]
    Labeling(#[from] LabelingError),
    /// The prompt is empty.
    #[error(transparent)]
    Prompt(#[from] EmptyPrompt),
    /// The prompt is longer than `MAX_PROMPT`.
    #[error("the prompt has {0} bytes, and may have {MAX_PROMPT}: use fewer phrases")]
    LongPrompt(usize),
    /// Too many annotator requests are in progress.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The image cannot be loaded.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// A model stage failed.
    #[error(transparent)]
    Stage(#[from] Failed),
    /// A defect: building the regions panicked. Only this task fails; the server continues.
    #[error(
        "making regions of what was found panicked, which is a defect of groundling; see its log"
    )]
    Regions,
}

/// One image to search, and its prompt.
#[derive(Debug, Clone, PartialEq)]
struct Search {
    image: ImageTag,
    prompt: Prompt,
    unlabeled: Unlabeled,
    /// Whether the prompt is made of labels. Labels that the model cannot encode are then left out.
    is_of_labels: bool,
    urgency: Urgency,
}

/// Limit of a typed or configured prompt, in bytes; this is thousands of words.
const MAX_PROMPT: usize = 8 << 10;

/// Number of digits of a prompt's hash in the log.
const HASH: usize = 12;

/// Tasks of batches in progress at a time: while one is computed, the next one is fetched.
const BATCH_AT_ONCE: usize = 2;

impl Preannotator {
    /// Admits at most `queue` annotator requests at a time.
    pub fn new(projects: Projects, images: Images, stages: Stages, queue: usize) -> Self {
        Self {
            projects,
            images,
            stages,
            admission: Admission::new(queue),
            of_batches: Semaphore::new(BATCH_AT_ONCE),
            metrics: Metrics::default(),
        }
    }

    /// The settings and prompts of projects.
    pub fn projects(&self) -> &Projects {
        &self.projects
    }

    /// The loading state of the models.
    pub fn loading(&self) -> &Loading {
        self.stages.loading()
    }

    /// The pipeline's stages.
    pub fn stages(&self) -> &Stages {
        &self.stages
    }

    /// Number of annotator requests that wait or are computed.
    pub fn waiting(&self) -> usize {
        self.admission.count()
    }

    /// Frees cached results that should not be kept. Call it when the server is idle.
    pub async fn tidy(&self) {
        self.images.tidy().await;
        self.stages.tidy().await;
    }

    /// The memory budget that requests share.
    pub fn budget(&self) -> &Budget {
        self.images.budget()
    }

    /// The counters of the server.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// All metrics in the Prometheus text format.
    ///
    /// # Errors
    /// If the text cannot be written.
    pub fn render_metrics(&self) -> Result<String, std::fmt::Error> {
        let kept = self.images.usage().into_iter().chain(self.stages.usage());
        let steps = self.stages.scheduler().waiting();
        self.metrics
            .render(self.waiting(), steps, self.loading(), self.budget(), kept)
    }

    /// Answers an annotator's action in the editor.
    ///
    /// # Errors
    /// See [`PreannotationError`].
    pub async fn interact(
        &self,
        origin: &Origin,
        config: &Arc<LabelingConfig>,
        task: &Task,
        context: &[Value],
    ) -> Result<TaskPrediction, PreannotationError> {
        let view = |prompt| self.projects.view(origin.clone(), config.clone(), prompt);
        let nothing = || self.answer(vec![], 0.0, view(None).version);
        match interaction(context, config)? {
            Interaction::Nothing => Ok(nothing()),
            Interaction::Unusable(reason) => {
                tracing::warn!("answered with nothing: {reason}");
                Ok(nothing())
            }
            Interaction::Drawing {
                drawn,
                label,
                image,
            } => self.cut_out(view(None), image, task, &drawn, label).await,
            Interaction::Prompt { text, image } => {
                self.look_for(view(Some(&text)), image, task, context).await
            }
            Interaction::Threshold => {
                let image = config.image()?;
                let area = config.text_area(image)?;
                let typed = text_of(&area.name, &task.regions);
                let view = view(typed.as_deref());
                match view.prompt {
                    Some(_) => self.look_for(view, image, task, context).await,
                    None => {
                        tracing::info!("a threshold, and no prompt was typed yet");
                        Ok(nothing())
                    }
                }
            }
        }
    }

    /// Searches for the view's prompt. If the model can encode the prompt, it is remembered for the project's next
    /// tasks.
    async fn look_for(
        &self,
        view: View,
        image: &ImageTag,
        task: &Task,
        context: &[Value],
    ) -> Result<TaskPrediction, PreannotationError> {
        let text = view.prompt.as_deref().unwrap_or_default();
        if text.len() > MAX_PROMPT {
            return Err(PreannotationError::LongPrompt(text.len()));
        }
        let search = Search {
            image: image.clone(),
            prompt: Prompt::parse(text)?,
            unlabeled: Unlabeled::Keep,
            is_of_labels: false,
            urgency: Urgency::Annotator,
        };
        needs_region_control(&view.config, image)?;
        let numbers = numbers(&view.config, context, &task.regions);
        let found = self.find(&view, &search, numbers, task).await?;
        self.projects.typed(&view.origin.project, text).done().await;
        Ok(self.answer(found.regions, found.score, view.version))
    }

    /// Builds the answer, and counts its memory in the budget.
    fn answer(&self, result: Vec<Region>, score: f32, model_version: String) -> TaskPrediction {
        let bytes = result.iter().map(Region::bytes).sum();
        TaskPrediction {
            result,
            score,
            model_version,
            memory: self.budget().count(bytes),
        }
    }

    /// Runs detection and segmentation on one image of a task.
    async fn find(
        &self,
        view: &View,
        search: &Search,
        numbers: Numbers,
        task: &Task,
    ) -> Result<Regions, PreannotationError> {
        let (config, image) = (&view.config, &search.image);
        let hash = Digest::of(search.prompt.to_string().as_bytes()).to_string();
        Span::current().record("prompt_hash", &hash[..HASH]);
        let url = image.url(&task.data)?;
        let settings = view.settings(numbers, image);
        let mut controls = config.region_controls(image);
        let query = Query {
            prompt: search.prompt.clone(),
            options: settings.options,
            with_masks: settings.segment && controls.any(|c| c.shape != Shape::Rectangle),
            skips_unreadable: search.is_of_labels,
        };
        let timings = Timings::default();
        let asker = Asker {
            urgency: search.urgency,
            timings: &timings,
        };
        let _place = self.enter(search.urgency)?;
        let predicted = async {
            let picture = self.picture(view, task, &url).await?;
            Ok::<_, PreannotationError>(self.stages.predict(&picture, &query, asker).await?)
        };
        let predicted = predicted.await;
        note(&timings);
        let prediction = predicted?;
        let _masks = self.budget().count(prediction.bytes());
        self.metrics.looked_at(prediction.objects.len(), &timings);
        let style = Style {
            unlabeled: search.unlabeled,
            label_thresholds: settings.label_thresholds,
            polygon_tolerance: view.polygon_tolerance,
        };
        let (config, image) = (config.clone(), image.clone());
        let found = prediction.objects.len();
        let made = made(move || regions(&prediction, &config, &image, &style)).await?;
        self.metrics.regions(made.regions.len());
        let options = &query.options;
        tracing::info!(
            prompt = %search.prompt,
            box_threshold = %options.box_threshold,
            text_threshold = %options.text_threshold,
            nms_iou = %options.nms_iou_threshold,
            max_detections = options.max_detections,
            label_thresholds = settings.label_thresholds.is_some(),
            found,
            regions = made.regions.len(),
            without_label = made.dropped,
            "predicted"
        );
        Ok(made)
    }

    /// Segments what was drawn with a smart tool.
    async fn cut_out(
        &self,
        view: View,
        image: &ImageTag,
        task: &Task,
        drawn: &[Drawn],
        label: Option<String>,
    ) -> Result<TaskPrediction, PreannotationError> {
        let mut controls = view.config.region_controls(image);
        if !controls.any(|control| control.shape != Shape::Rectangle) {
            tracing::warn!(
                "smart tools make masks, and the labeling config has neither <BrushLabels> nor <PolygonLabels> for them"
            );
            return Ok(self.answer(vec![], 0.0, view.version));
        }
        let url = image.url(&task.data)?;
        let timings = Timings::default();
        let asker = Asker {
            urgency: Urgency::Annotator,
            timings: &timings,
        };
        let _place = self.enter(asker.urgency)?;
        let cut_out = async {
            let picture = self.picture(&view, task, &url).await?;
            let marks = marks(drawn, picture.size);
            Ok::<_, PreannotationError>(self.stages.cut_out(&picture, marks, asker).await?)
        };
        let cut_out = cut_out.await;
        note(&timings);
        let masks = cut_out?;
        self.metrics.looked_at(0, &timings);
        let _masks = self
            .budget()
            .count(masks.iter().map(|scored| scored.bytes()).sum());
        let style = Style {
            unlabeled: Unlabeled::Keep,
            label_thresholds: None,
            polygon_tolerance: view.polygon_tolerance,
        };
        let (config, image) = (view.config.clone(), image.clone());
        let make = move || cutouts(&masks, label.as_deref(), &config, &image, &style);
        let regions = made(make).await?;
        let score = mean(regions.iter().filter_map(|region| region.score));
        self.metrics.regions(regions.len());
        tracing::info!(drawn = drawn.len(), regions = regions.len(), "cut out");
        Ok(self.answer(regions, score, view.version))
    }

    /// Annotator requests need a permit; other requests are bounded by their callers.
    fn enter(&self, urgency: Urgency) -> Result<Option<admission::Place>, Busy> {
        match urgency {
            Urgency::Annotator => self.admission.enter().map(Some),
            Urgency::Opened | Urgency::Batch | Urgency::Warming => Ok(None),
        }
    }

    async fn picture<'a>(
        &'a self,
        view: &'a View,
        task: &Task,
        url: &'a str,
    ) -> Result<Picture<'a>, MediaError> {
        let request = ImageRequest {
            value: url,
            label_studio: &view.label_studio,
            task: task.id,
            login: view.origin.login.as_ref(),
        };
        self.images.look_up(request).await
    }
}

/// Records the stage times in the task's span, for later log lines about the same task.
fn note(timings: &Timings) {
    Span::current().record("timings", tracing::field::display(timings));
}

/// Builds regions outside the async threads. A panic there becomes [`PreannotationError::Regions`].
async fn made<T: Send + 'static>(
    make: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PreannotationError> {
    off_thread(make)
        .await
        .map_err(|_: StageError| PreannotationError::Regions)
}

/// Fails if no control of the image takes regions.
fn needs_region_control(config: &LabelingConfig, image: &ImageTag) -> Result<(), LabelingError> {
    match config.region_controls(image).next() {
        Some(_) => Ok(()),
        None => Err(LabelingError::NoRegionControl(image.name.clone())),
    }
}
