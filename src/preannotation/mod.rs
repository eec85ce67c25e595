//! A task of Label Studio through the whole road: labeling config, image, prompt, models, regions. The
//! server and `annotate` both go this way; it knows no HTTP of its own.

mod batch;
pub mod cache;
pub mod context;
pub mod memory;
pub mod settings;
pub mod version;

use serde::Serialize;
use serde_json::{Map, Value};

pub use self::batch::{BatchPlan, Outcome};
use self::cache::{Key, PredictionCache};
use self::context::{Drawn, Interaction, interaction, marks, numbers, text_of};
use self::memory::{ProjectMemory, Remembered};
use self::settings::{Numbers, Settings};
use crate::config::Secret;
use crate::detector::DetectionOptions;
use crate::geometry::ImageSize;
use crate::label_studio::LabelStudio;
use crate::labeling::{ImageTag, LabelingConfig, LabelingError, Shape};
use crate::media::{Fetcher, ImageRequest, MediaError};
use crate::metrics::Metrics;
use crate::pipeline::Prediction;
use crate::pipeline::worker::{Worker, WorkerError};
use crate::prompt::{EmptyPrompt, Prompt};
use crate::regions::{Region, Style, Unlabeled, cutouts, regions};

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

/// Where a task comes from.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Label Studio's name of the project, `79.1795353181`; empty where it said none.
    pub project: String,
    /// User and password for protected image URLs.
    pub login: Option<(String, Secret)>,
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
    /// The models gave nothing.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// One image to look at, and what for.
#[derive(Debug, Clone, PartialEq)]
struct Search {
    image: ImageTag,
    prompt: Prompt,
    settings: Settings,
    unlabeled: Unlabeled,
}

impl Preannotator {
    /// What is known of a project.
    pub fn project(&self, project: &str) -> Remembered {
        self.memory.project(project)
    }

    /// The version that predictions of a project carry now.
    pub fn version(&self, project: &str, config: Option<&LabelingConfig>) -> String {
        version::of_project(
            &self.models,
            &self.defaults,
            self.polygon_tolerance,
            &self.memory.project(project),
            config,
        )
    }

    /// Answers what an annotator just did in the editor.
    ///
    /// # Errors
    /// See [`PreannotationError`].
    pub async fn interact(
        &self,
        origin: &Origin,
        config: &LabelingConfig,
        task: &Task,
        context: &[Value],
    ) -> Result<TaskPrediction, PreannotationError> {
        let nothing = || TaskPrediction {
            result: vec![],
            score: 0.0,
            model_version: self.version(&origin.project, Some(config)),
        };
        match interaction(context, config)? {
            Interaction::Nothing => Ok(nothing()),
            Interaction::Unusable(reason) => {
                tracing::warn!(
                    task = task.id,
                    "this context is answered with nothing: {reason}"
                );
                Ok(nothing())
            }
            Interaction::Drawing {
                drawn,
                label,
                image,
            } => {
                let result = self
                    .cut_out(origin, config, image, task, drawn, label.as_deref())
                    .await?;
                Ok(TaskPrediction {
                    score: mean_score(&result),
                    result,
                    model_version: self.version(&origin.project, Some(config)),
                })
            }
            Interaction::Prompt { text, image } => {
                self.look_for(origin, config, image, task, context, &text)
                    .await
            }
            Interaction::Threshold => {
                let image = config.image()?;
                let area = config.text_area(image)?;
                let typed = text_of(&area.name, &task.regions);
                match typed.or_else(|| self.memory.project(&origin.project).prompt) {
                    Some(text) => {
                        self.look_for(origin, config, image, task, context, &text)
                            .await
                    }
                    None => {
                        tracing::info!(
                            task = task.id,
                            "a threshold was changed, and no prompt was typed yet"
                        );
                        Ok(nothing())
                    }
                }
            }
        }
    }

    /// Looks for what was typed, and remembers it for the project's next tasks.
    async fn look_for(
        &self,
        origin: &Origin,
        config: &LabelingConfig,
        image: &ImageTag,
        task: &Task,
        context: &[Value],
        text: &str,
    ) -> Result<TaskPrediction, PreannotationError> {
        let prompt = Prompt::parse(text)?;
        needs_region_control(config, image)?;
        if !origin.project.is_empty() {
            self.memory.remember_prompt(&origin.project, text.trim());
        }
        let numbers = numbers(config, context, &task.regions);
        let search = self.search(origin, config, image, prompt, numbers, Unlabeled::Keep);
        let found = self.find(origin, config, &search, task).await?;
        Ok(TaskPrediction {
            score: found.score,
            result: found.regions,
            model_version: self.version(&origin.project, Some(config)),
        })
    }

    fn search(
        &self,
        origin: &Origin,
        config: &LabelingConfig,
        image: &ImageTag,
        prompt: Prompt,
        numbers: Numbers,
        unlabeled: Unlabeled,
    ) -> Search {
        let known = self.memory.project(&origin.project);
        Search {
            image: image.clone(),
            prompt,
            settings: Settings::resolve(&self.defaults, &known.settings, numbers, config, image),
            unlabeled,
        }
    }

    /// Looks at one image of a task; made before, being made, or made now.
    async fn find(
        &self,
        origin: &Origin,
        config: &LabelingConfig,
        search: &Search,
        task: &Task,
    ) -> Result<crate::regions::Regions, PreannotationError> {
        let url = search.image.url(&task.data)?;
        let known = self.memory.project(&origin.project);
        let label_studio = self.label_studio.or(&known.label_studio);
        let options = search.settings.options;
        let mut controls = config.region_controls(&search.image);
        let with_masks = search.settings.segment && controls.any(|c| c.shape != Shape::Rectangle);
        // a cloud URI means what it means to its task's storage
        let place = format!(
            "{}#{}",
            label_studio.base().unwrap_or_default(),
            task.id.unwrap_or(0)
        );
        let key = Key::new(Some(&place), &url, &search.prompt, &options, with_masks);
        let prediction = self
            .cache
            .get_or_make(&key, async {
                let image = self.image(origin, &label_studio, task, &url).await?;
                let prompt = search.prompt.clone();
                let predicted = self
                    .worker
                    .run(move |models| models.predict(&image, &prompt, &options, with_masks))
                    .await?;
                self.metrics.predicted(&predicted);
                Ok::<Prediction, PreannotationError>(predicted)
            })
            .await?;
        let style = Style {
            unlabeled: search.unlabeled,
            label_thresholds: search.settings.label_thresholds,
            polygon_tolerance: self.polygon_tolerance,
        };
        let made = regions(&prediction, config, &search.image, &style);
        self.metrics.regions(made.regions.len());
        tracing::info!(
            task = task.id,
            prompt = %search.prompt,
            box_threshold = %options.box_threshold,
            text_threshold = %options.text_threshold,
            nms_iou = %options.nms_iou,
            max_detections = options.max_detections,
            label_thresholds = search.settings.label_thresholds.is_some(),
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
        origin: &Origin,
        config: &LabelingConfig,
        image: &ImageTag,
        task: &Task,
        drawn: Vec<Drawn>,
        label: Option<&str>,
    ) -> Result<Vec<Region>, PreannotationError> {
        let mut controls = config.region_controls(image);
        if !controls.any(|control| control.shape != Shape::Rectangle) {
            tracing::warn!(
                task = task.id,
                "smart tools make masks, and the labeling config has neither <BrushLabels> nor <PolygonLabels> for them"
            );
            return Ok(vec![]);
        }
        let url = image.url(&task.data)?;
        let known = self.memory.project(&origin.project);
        let label_studio = self.label_studio.or(&known.label_studio);
        let pixels = self.image(origin, &label_studio, task, &url).await?;
        let count = drawn.len();
        let masks = self
            .worker
            .run(move |models| models.cut_out(&pixels, &marks(&drawn, ImageSize::of(&pixels))))
            .await?;
        let style = Style {
            unlabeled: Unlabeled::Keep,
            label_thresholds: None,
            polygon_tolerance: self.polygon_tolerance,
        };
        let made = cutouts(&masks, label, config, image, &style);
        self.metrics.regions(made.len());
        tracing::info!(
            task = task.id,
            drawn = count,
            regions = made.len(),
            "cut out"
        );
        Ok(made)
    }

    async fn image(
        &self,
        origin: &Origin,
        label_studio: &LabelStudio,
        task: &Task,
        url: &str,
    ) -> Result<image::RgbImage, PreannotationError> {
        let request = ImageRequest {
            value: url,
            label_studio,
            task: task.id,
            login: origin.login.as_ref(),
        };
        Ok(self.fetcher.load(request).await?)
    }
}

/// Results need somewhere to go.
fn needs_region_control(config: &LabelingConfig, image: &ImageTag) -> Result<(), LabelingError> {
    match config.region_controls(image).next() {
        Some(_) => Ok(()),
        None => Err(LabelingError::NoRegionControl(image.name.clone())),
    }
}

fn mean_score(regions: &[Region]) -> f32 {
    let scores: Vec<f32> = regions.iter().filter_map(|region| region.score).collect();
    scores.iter().sum::<f32>() / scores.len().max(1) as f32
}
