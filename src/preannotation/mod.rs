//! Takes a task of Label Studio through all steps: labeling config, image, prompt, models, regions. The server and
//! the `annotate` command share this code; it does not depend on HTTP.
//!
//! [`mod@interaction`] parses what an annotator did, `areas` what limits the search, and [`project`] holds the settings of
//! each project. A [`Preannotator`] answers actions in the editor (`editor`) and tells the annotator about them (`status`),
//! answers Label Studio's next protocol ([`protocol`]), predicts batches (`batch`, and `searched` for exports), computes image
//! embeddings in advance (`warming`, `prewarms`), and serves the [`playground`]; all of them run the stages of the
//! [`crate::pipeline`].

pub mod admission;
mod areas;
mod batch;
mod batch_progress;
mod editor;
mod error;
pub mod interaction;
mod new_labels;
pub mod playground;
mod prewarms;
pub mod project;
pub mod protocol;
mod search;
mod searched;
pub mod smart_tools;
mod status;
mod task;
mod warming;

use tokio::sync::Semaphore;

use self::admission::Admission;
use self::areas::RecentAreas;
pub use self::batch::{BatchPlan, Outcome};
pub use self::batch_progress::BatchProgress;
use self::batch_progress::Batches;
pub use self::error::PreannotationError;
use self::playground::ComparedModels;
use self::prewarms::Prewarms;
pub use self::project::{Defaults, Origin, Projects};
pub use self::searched::{ImageSink, LabeledObject, SearchedImage};
pub use self::task::{Task, TaskPrediction};
pub use self::warming::{WarmPlan, WarmingError};
use crate::budget::Budget;
use crate::media::Images;
use crate::metrics::Metrics;
use crate::pipeline::handle::ModelsHandle;
use crate::pipeline::stages::Stages;
use crate::regions::Region;
use crate::store::Usage;

/// Turns tasks into predictions.
#[derive(Debug)]
pub struct Preannotator {
    projects: Projects,
    images: Images,
    stages: Stages,
    admission: Admission,
    /// Bounds the tasks of batches in progress.
    batch_tasks: Semaphore,
    batches: Batches,
    prewarms: Prewarms,
    recent_areas: RecentAreas,
    metrics: Metrics,
    compared_models: ComparedModels,
}

/// Tasks of batches in progress at a time: while one is computed, the next one is fetched.
const CONCURRENT_BATCH_TASKS: usize = 2;

impl Preannotator {
    /// Admits at most `queue` annotator requests at a time.
    pub fn new(projects: Projects, images: Images, stages: Stages, queue: usize) -> Self {
        Self {
            projects,
            images,
            stages,
            admission: Admission::new(queue),
            batch_tasks: Semaphore::new(CONCURRENT_BATCH_TASKS),
            batches: Batches::default(),
            prewarms: Prewarms::default(),
            recent_areas: RecentAreas::default(),
            metrics: Metrics::default(),
            compared_models: ComparedModels::default(),
        }
    }

    /// The settings and prompts of projects.
    pub fn projects(&self) -> &Projects {
        &self.projects
    }

    /// The models and their loading state.
    pub fn models_handle(&self) -> &ModelsHandle {
        self.stages.models_handle()
    }

    /// The pipeline's stages.
    pub fn stages(&self) -> &Stages {
        &self.stages
    }

    /// Number of annotator requests that wait or are computed.
    pub fn waiting(&self) -> usize {
        self.admission.count()
    }

    /// The batches in progress and the last ones that ended, the last one first.
    pub fn batches(&self) -> Vec<BatchProgress> {
        self.batches.list()
    }

    /// The usage of the caches.
    pub fn cache_usage(&self) -> Vec<(&'static str, Usage)> {
        let images = self.images.usage().into_iter();
        images.chain(self.stages.usage()).collect()
    }

    /// Frees cached results that should not be kept. Call it when the server is idle.
    pub async fn tidy(&self) {
        self.images.run_maintenance().await;
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
        let steps = self.stages.scheduler().waiting();
        self.metrics.render(
            self.waiting(),
            steps,
            self.models_handle(),
            self.budget(),
            self.cache_usage(),
        )
    }

    /// Builds a prediction, and counts its memory in the budget.
    fn prediction(&self, result: Vec<Region>, score: f32, model_version: String) -> TaskPrediction {
        let bytes = result.iter().map(Region::bytes).sum();
        TaskPrediction {
            result,
            score,
            model_version,
            memory: self.budget().reserve_unchecked(bytes),
        }
    }
}
