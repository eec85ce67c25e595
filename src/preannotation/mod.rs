//! A task of Label Studio through the whole road: labeling config, image, prompt, models, regions. The
//! server and `annotate` both go this way; it knows no HTTP of its own.

mod batch;
pub mod cache;
pub mod context;
pub mod gate;
pub mod memory;
pub mod settings;
pub mod version;

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

pub use self::batch::{BatchPlan, Outcome};
use self::cache::{Key, PredictionCache};
use self::context::{Drawn, Interaction, interaction, marks, numbers, text_of};
use self::gate::{Gate, Urgency};
use self::memory::{ProjectMemory, Remembered};
use self::settings::{Numbers, ProjectSettings, Settings};
use crate::config::Secret;
use crate::detector::DetectionOptions;
use crate::label_studio::LabelStudio;
use crate::labeling::{ImageTag, LabelingConfig, LabelingError, Shape};
use crate::media::{Fetcher, ImageRequest, MediaError};
use crate::metrics::Metrics;
use crate::pipeline::Pipeline;
use crate::pipeline::worker::{Worker, WorkerError};
use crate::prompt::{EmptyPrompt, Prompt};
use crate::regions::scores::mean;
use crate::regions::{Region, Regions, Style, Unlabeled, cutouts, regions};

/// What everything here shares.
#[derive(Debug)]
pub struct Preannotator {
    /// The models.
    pub worker: Worker,
    /// The way to images.
    pub fetcher: Fetcher,
    /// As configured; what it lacks comes from `/setup`.
    pub label_studio: LabelStudio,
    /// What counts as found where nothing else is said.
    pub defaults: DetectionOptions,
    /// In percent of an image's longer side.
    pub polygon_tolerance: f32,
    /// Version and models, the beginning of every model version.
    pub models: String,
    /// What is known of each project.
    pub memory: ProjectMemory,
    /// Predictions already made.
    pub cache: PredictionCache,
    /// How many tasks may be on their way.
    pub gate: Gate,
    /// What is counted.
    pub metrics: Metrics,
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

/// Where tasks come from.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Label Studio's name of the project, `79.1795353181`; empty where it said none.
    pub project: String,
    /// User and password for protected image URLs.
    pub login: Option<(String, Secret)>,
}

/// A project as one request sees it from beginning to end, whatever others type or set meanwhile.
#[derive(Debug, Clone)]
struct View {
    origin: Origin,
    config: Arc<LabelingConfig>,
    settings: ProjectSettings,
    /// Given, or remembered.
    prompt: Option<String>,
    label_studio: LabelStudio,
    /// What the request's predictions carry.
    version: String,
}

/// What Label Studio stores or shows for a task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskPrediction {
    /// Boxes, masks, polygons.
    pub result: Vec<Region>,
    /// The mean of the detections' scores, 0..1.
    pub score: f32,
    /// What made it.
    pub model_version: String,
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
    /// The image cannot be had.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// More than anybody types.
    #[error("the prompt has {0} bytes, and may have {MAX_PROMPT}: use fewer phrases")]
    LongPrompt(usize),
    /// The models gave nothing.
    #[error(transparent)]
    Worker(#[from] WorkerError),
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

impl Preannotator {
    /// The version that predictions of a project carry now.
    pub fn version(&self, project: &str, config: Option<&LabelingConfig>) -> String {
        let known = self.memory.project(project);
        self.version_of(&known.settings, known.prompt.as_deref(), config)
    }

    fn version_of(
        &self,
        settings: &ProjectSettings,
        prompt: Option<&str>,
        config: Option<&LabelingConfig>,
    ) -> String {
        version::of_project(
            &self.models,
            &self.defaults,
            self.polygon_tolerance,
            settings,
            prompt,
            config,
        )
    }

    /// A project as it is now, with a prompt that was given instead of the remembered one.
    fn view(&self, origin: Origin, config: Arc<LabelingConfig>, prompt: Option<&str>) -> View {
        let Remembered {
            settings,
            prompt: remembered,
            label_studio,
            ..
        } = self.memory.project(&origin.project);
        let prompt = prompt.map(|text| text.trim().to_owned()).or(remembered);
        View {
            version: self.version_of(&settings, prompt.as_deref(), Some(&config)),
            label_studio: self.label_studio.or(&label_studio),
            origin,
            config,
            settings,
            prompt,
        }
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
        let view = |prompt| self.view(origin.clone(), config.clone(), prompt);
        let nothing = || TaskPrediction {
            result: vec![],
            score: 0.0,
            model_version: view(None).version,
        };
        match interaction(context, config)? {
            Interaction::Nothing => Ok(nothing()),
            Interaction::Unusable(reason) => {
                tracing::warn!(task = task.id, "answered with nothing: {reason}");
                Ok(nothing())
            }
            Interaction::Drawing {
                drawn,
                label,
                image,
            } => self.cut_out(view(None), image, task, drawn, label).await,
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
                        tracing::info!(task = task.id, "a threshold, and no prompt was typed yet");
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
            urgency: Urgency::Interactive,
        };
        needs_region_control(&view.config, image)?;
        let numbers = numbers(&view.config, context, &task.regions);
        let found = self.find(&view, &search, numbers, task).await?;
        if !view.origin.project.is_empty() {
            self.memory.remember_prompt(&view.origin.project, text);
        }
        Ok(TaskPrediction {
            score: found.score,
            result: found.regions,
            model_version: view.version,
        })
    }

    /// Looks at one image of a task; made before, being made, or made now.
    async fn find(
        &self,
        view: &View,
        search: &Search,
        numbers: Numbers,
        task: &Task,
    ) -> Result<Regions, PreannotationError> {
        let (config, image) = (&view.config, &search.image);
        let url = image.url(&task.data)?;
        let settings = Settings::resolve(&self.defaults, &view.settings, numbers, config, image);
        let options = settings.options;
        let mut controls = config.region_controls(image);
        let with_masks = settings.segment && controls.any(|c| c.shape != Shape::Rectangle);
        // a cloud URI means what it means to its task's storage
        let place = (view.label_studio.base(), task.id, &url);
        let key = Key::of(&(place, &search.prompt, with_masks, options));
        let make = async {
            let _place = self.gate.enter(search.urgency).await?;
            let pixels = self.image(view, task, &url).await?;
            let (prompt, is_of_labels) = (search.prompt.clone(), search.is_of_labels);
            let predicted = self
                .worker
                .run(move |models| match is_of_labels {
                    true => models.predict_readable(&pixels, &prompt, &options, with_masks),
                    false => models.predict(&pixels, &prompt, &options, with_masks),
                })
                .await?;
            self.metrics.predicted(&predicted);
            Ok::<_, PreannotationError>(predicted)
        };
        let prediction = self.cache.get_or_make(&key, make).await?;
        let style = Style {
            unlabeled: search.unlabeled,
            label_thresholds: settings.label_thresholds,
            polygon_tolerance: self.polygon_tolerance,
        };
        let made = {
            let (prediction, config) = (prediction.clone(), config.clone());
            let image = image.clone();
            computed(move || regions(&prediction, &config, &image, &style)).await?
        };
        self.metrics.regions(made.regions.len());
        tracing::info!(
            task = task.id,
            prompt = %search.prompt,
            box_threshold = %options.box_threshold,
            text_threshold = %options.text_threshold,
            nms_iou = %options.nms_iou,
            max_detections = options.max_detections,
            label_thresholds = settings.label_thresholds.is_some(),
            found = prediction.objects.len(),
            regions = made.regions.len(),
            without_label = made.dropped,
            detector_ms = prediction.detector_time.as_millis() as u64,
            segmenter_ms = prediction.segmenter_time.as_millis() as u64,
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
        drawn: Vec<Drawn>,
        label: Option<String>,
    ) -> Result<TaskPrediction, PreannotationError> {
        let mut prediction = TaskPrediction {
            result: vec![],
            score: 0.0,
            model_version: view.version.clone(),
        };
        let mut controls = view.config.region_controls(image);
        if !controls.any(|control| control.shape != Shape::Rectangle) {
            tracing::warn!(
                task = task.id,
                "smart tools make masks, and the labeling config has neither <BrushLabels> nor <PolygonLabels> for them"
            );
            return Ok(prediction);
        }
        let url = image.url(&task.data)?;
        let count = drawn.len();
        let key = Key::of(&(view.label_studio.base(), task.id, &url)).bytes();
        let drawn = Arc::new(drawn);
        let again = drawn.clone();
        let _place = self.gate.enter(Urgency::Interactive).await?;
        let remembered = self.worker.run(move |models| {
            let image = models.remembered(&key);
            image
                .map(|image| models.cut_out(&image, &marks(&again, image.size())))
                .transpose()
        });
        let masks = match remembered.await? {
            Some(masks) => masks,
            None => {
                let pixels = self.image(&view, task, &url).await?;
                let encode = move |models: &Pipeline| {
                    let image = models.encode(key, &pixels)?;
                    models.cut_out(&image, &marks(&drawn, image.size()))
                };
                self.worker.run(encode).await?
            }
        };
        let style = Style {
            unlabeled: Unlabeled::Keep,
            label_thresholds: None,
            polygon_tolerance: self.polygon_tolerance,
        };
        let (config, image) = (view.config.clone(), image.clone());
        let make = move || cutouts(&masks, label.as_deref(), &config, &image, &style);
        prediction.result = computed(make).await?;
        prediction.score = mean(prediction.result.iter().filter_map(|region| region.score));
        self.metrics.regions(prediction.result.len());
        tracing::info!(
            task = task.id,
            drawn = count,
            regions = prediction.result.len(),
            "cut out"
        );
        Ok(prediction)
    }

    async fn image(
        &self,
        view: &View,
        task: &Task,
        url: &str,
    ) -> Result<image::RgbImage, PreannotationError> {
        let request = ImageRequest {
            value: url,
            label_studio: &view.label_studio,
            task: task.id,
            login: view.origin.login.as_ref(),
        };
        Ok(self.fetcher.load(request).await?)
    }
}

/// Runs what computes for a while off the async threads.
async fn computed<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, WorkerError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| WorkerError::Panicked)
}

/// Results need somewhere to go.
fn needs_region_control(config: &LabelingConfig, image: &ImageTag) -> Result<(), LabelingError> {
    match config.region_controls(image).next() {
        Some(_) => Ok(()),
        None => Err(LabelingError::NoRegionControl(image.name.clone())),
    }
}
