//! A task of Label Studio through the whole road: labeling config, image, prompt, models, regions. The
//! server and `annotate` both go this way; it knows no HTTP of its own.
//!
//! [`mod@interaction`] says what an annotator did, [`project`] what a project is known for, and this module carries a task
//! through the stages of the [`crate::pipeline`].

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

/// Tasks to predictions.
#[derive(Debug)]
pub struct Preannotator {
    projects: Projects,
    images: Images,
    stages: Stages,
    admission: Admission,
    /// Tasks of batches that are on their way.
    of_batches: Semaphore,
    metrics: Metrics,
}

/// A task, as far as it matters.
#[derive(Debug, Clone, Default)]
pub struct Task {
    /// Label Studio's number.
    pub id: Option<u64>,
    /// What it shows.
    pub data: Map<String, Value>,
    /// What its annotations and drafts hold; read only where a labeling config has thresholds.
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
    /// What the log says of a task in every line about it: its number, and once they are known the prompt's hash and the
    /// time that each stage took. The hash tells whether two lines are about the same prompt, where prompts themselves
    /// must not be read.
    pub fn span(&self) -> Span {
        // of the highest level, so that it is there whatever LOG_LEVEL is
        tracing::error_span!("task", id = self.id, prompt_hash = Empty, timings = Empty)
    }

    /// About the bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        let data = self
            .data
            .iter()
            .map(|(key, value)| key.len() + json_bytes(value));
        data.chain(self.regions.iter().map(json_bytes)).sum()
    }
}

/// About the bytes of memory that a JSON value takes.
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
    /// There is nothing to look for.
    #[error(transparent)]
    Prompt(#[from] EmptyPrompt),
    /// More than anybody types.
    #[error("the prompt has {0} bytes, and may have {MAX_PROMPT}: use fewer phrases")]
    LongPrompt(usize),
    /// Too many annotators wait.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The image cannot be had.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The models gave nothing.
    #[error(transparent)]
    Stage(#[from] Failed),
    /// A defect that cost this task, not the server.
    #[error(
        "making regions of what was found panicked, which is a defect of groundling; see its log"
    )]
    Regions,
}

/// One image to look at, and what for.
#[derive(Debug, Clone, PartialEq)]
struct Search {
    image: ImageTag,
    prompt: Prompt,
    unlabeled: Unlabeled,
    /// Whether the prompt is made of labels: then one the model cannot read is left out.
    is_of_labels: bool,
    urgency: Urgency,
}

/// The longest prompt that may be typed or set, in bytes: thousands of words.
const MAX_PROMPT: usize = 8 << 10;

/// Digits of a prompt's hash in the log.
const HASH: usize = 12;

/// Tasks of batches that are on their way at a time: while one is computed, the next is fetched.
const BATCH_AT_ONCE: usize = 2;

impl Preannotator {
    /// With room for `queue` requests of annotators.
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

    /// What is known of projects.
    pub fn projects(&self) -> &Projects {
        &self.projects
    }

    /// The models, or how far they are.
    pub fn loading(&self) -> &Loading {
        self.stages.loading()
    }

    /// The stages that tasks are carried through.
    pub fn stages(&self) -> &Stages {
        &self.stages
    }

    /// How many requests of annotators wait or are worked on.
    pub fn waiting(&self) -> usize {
        self.admission.count()
    }

    /// Lets go of results that are not to be kept; for times when nobody asks.
    pub async fn tidy(&self) {
        self.images.tidy().await;
        self.stages.tidy().await;
    }

    /// The memory that requests share.
    pub fn budget(&self) -> &Budget {
        self.images.budget()
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Everything that is counted, in Prometheus' text format.
    ///
    /// # Errors
    /// If the text cannot be written.
    pub fn render_metrics(&self) -> Result<String, std::fmt::Error> {
        let kept = self.images.usage().into_iter().chain(self.stages.usage());
        let steps = self.stages.scheduler().waiting();
        self.metrics
            .render(self.waiting(), steps, self.loading(), self.budget(), kept)
    }

    /// Answers what an annotator just did in the editor.
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

    /// Looks for the view's prompt; if the model could read it, it is remembered for the project's next
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

    /// Regions on their way out, with the memory that they take.
    fn answer(&self, result: Vec<Region>, score: f32, model_version: String) -> TaskPrediction {
        let bytes = result.iter().map(Region::bytes).sum();
        TaskPrediction {
            result,
            score,
            model_version,
            memory: self.budget().count(bytes),
        }
    }

    /// Looks at one image of a task.
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
            nms_iou = %options.nms_iou,
            max_detections = options.max_detections,
            label_thresholds = settings.label_thresholds.is_some(),
            found,
            regions = made.regions.len(),
            without_label = made.dropped,
            "predicted"
        );
        Ok(made)
    }

    /// Cuts out what was drawn with a smart tool.
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

    /// An annotator's request takes a place; others are bounded where they come from.
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

/// Notes where the time went, for the lines of the log that follow about the same task.
fn note(timings: &Timings) {
    Span::current().record("timings", tracing::field::display(timings));
}

/// Regions are made off the async threads; a panic there is no fault of the models.
async fn made<T: Send + 'static>(
    make: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PreannotationError> {
    off_thread(make)
        .await
        .map_err(|_: StageError| PreannotationError::Regions)
}

/// Results need somewhere to go.
fn needs_region_control(config: &LabelingConfig, image: &ImageTag) -> Result<(), LabelingError> {
    match config.region_controls(image).next() {
        Some(_) => Ok(()),
        None => Err(LabelingError::NoRegionControl(image.name.clone())),
    }
}
