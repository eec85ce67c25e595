//! Predicts many tasks in one request, without an annotator who types a prompt.

use std::borrow::Cow;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::{Semaphore, mpsc};
use tracing::Instrument;

use super::areas::areas;
use super::interaction::control_thresholds;
use super::project::{Origin, ProjectSnapshot};
use super::search::Search;
use super::{
    CONCURRENT_BATCH_TASKS, ImageSink, PreannotationError, Preannotator, Task, TaskPrediction,
};
use crate::budget::Reservation;
use crate::geometry::ImageSize;
use crate::labeling::{ControlKind, ImageTag, LabelingConfig, LabelingError};
use crate::pipeline::scheduler::Urgency;
use crate::prompt::Prompt;
use crate::regions::scores::mean;
use crate::regions::{ImagePage, Region, Unlabeled, prompt_region};

/// What to detect in every task of a batch.
#[derive(Debug, Clone)]
pub struct BatchPlan {
    snapshot: ProjectSnapshot,
    /// One search per image tag; empty if the labels are known only with a task.
    searches: Vec<Search>,
    /// The prompt as it was typed. It is added to the result if the labeling config has a text area for prompts.
    typed_prompt: Option<String>,
    urgency: Urgency,
    /// Also takes the searched images.
    images: Option<ImageSink>,
}

/// Result of one task of a batch.
#[derive(Debug)]
pub enum Outcome {
    /// The task has a prediction.
    Done(TaskPrediction),
    /// The prediction failed.
    Failed(PreannotationError),
    /// The time limit came before the task was predicted.
    NotReached,
}

/// Bounds the batches that continue in the background after their time limit, over all requests.
static BACKGROUND_BATCHES: Semaphore = Semaphore::const_new(8);

impl BatchPlan {
    /// The prompt of each searched image, for display.
    pub fn prompts(&self) -> impl Iterator<Item = &Prompt> {
        self.searches.iter().map(|search| &search.prompt)
    }

    /// The plan with one box threshold, 0..1, in the place of all others: it finds all candidates for other thresholds.
    pub fn with_only_threshold(self, threshold: f32) -> Self {
        Self {
            snapshot: self.snapshot.with_only_threshold(threshold),
            ..self
        }
    }

    /// The box threshold of a label by the settings, 0..1.
    pub fn threshold_of(&self, label: &str) -> f32 {
        self.snapshot.threshold_of(label)
    }

    /// Also sends every image that is searched to `images`.
    pub fn with_images(self, images: ImageSink) -> Self {
        Self {
            images: Some(images),
            ..self
        }
    }

    /// The names of all labels of the searched images, in order. If an image's controls have none, they are the phrases of
    /// its prompt. Labels that tasks bring along are missing.
    pub fn labels(&self) -> Vec<String> {
        let of_search = |search: &Search| -> Vec<String> {
            let labels = self.snapshot.config.labels(&search.image);
            match labels.is_empty() {
                true => search.prompt.wanted().map(str::to_owned).collect(),
                false => labels.iter().map(|label| label.name().to_owned()).collect(),
            }
        };
        self.searches.iter().flat_map(of_search).collect()
    }

    /// Whether the settings of the project allow masks.
    pub fn segments(&self) -> bool {
        self.snapshot.settings.segment
    }

    /// Maximum distance of an outline from its mask's boundary, in percent of the image's longer side.
    pub fn polygon_tolerance(&self) -> f32 {
        self.snapshot.settings.polygon_tolerance
    }

    /// Whether a person waits for the batch, because the task is open in the editor.
    fn is_urgent(&self) -> bool {
        self.urgency < Urgency::Batch
    }

    /// The model version of the predictions.
    pub fn version(&self) -> &str {
        &self.snapshot.version
    }

    /// The prompt as a region of its text area, so that the annotator sees what was searched for and can edit it.
    /// `None` if nothing was found, or if the text area is not marked as the prompt: such a text area may hold other
    /// text, which must not be overwritten.
    fn shown_prompt(&self, found: &[Region]) -> Option<Region> {
        let (first, search) = (found.first()?, self.searches.first()?);
        let area = self.snapshot.config.text_area(&search.image).ok()?;
        let is_prompt = area.kind == ControlKind::TextArea { is_prompt: true };
        let is_attached = area.to_names.contains(&search.image.name);
        let text = self
            .typed_prompt
            .as_ref()
            .filter(|_| is_prompt && is_attached)?;
        let image_page = ImagePage {
            image: &search.image,
            page: None,
            size: ImageSize {
                height: first.original_height?,
                width: first.original_width?,
            },
        };
        Some(prompt_region(text, area, image_page))
    }
}

/// What to search for in the images of a config: the prompt, else the labels of every image.
fn searches(
    snapshot: &ProjectSnapshot,
    urgency: Urgency,
) -> Result<Vec<Search>, PreannotationError> {
    let search = |image: &ImageTag, prompt, is_from_labels| Search {
        image: image.clone(),
        page: None,
        areas: vec![],
        prompt,
        unlabeled: Unlabeled::Drop,
        is_from_labels,
        urgency,
        images: None,
    };
    let config = &snapshot.config;
    Ok(
        match snapshot.prompt.as_deref().map(Prompt::parse).transpose()? {
            Some(prompt) => vec![search(config.image()?, prompt, false)],
            None => {
                let labeled = config
                    .images_with_regions()
                    .filter_map(|image| Some(search(image, config.prompt_of_labels(image)?, true)));
                labeled.collect()
            }
        },
    )
}

impl Preannotator {
    /// Plans a batch. With a prompt, given or remembered, only the image that prompts refer to is searched, for that
    /// prompt. Without a prompt, every image is searched for the labels of its controls.
    ///
    /// # Errors
    /// If the labeling config has no region control for an image, or there is nothing to search for.
    pub fn plan(
        &self,
        origin: Origin,
        config: Arc<LabelingConfig>,
        prompt: Option<&str>,
        urgency: Urgency,
    ) -> Result<BatchPlan, PreannotationError> {
        let snapshot = self.projects.snapshot(origin, config, prompt);
        let image = snapshot.config.image()?;
        snapshot.config.require_region_control(image)?;
        let searches = searches(&snapshot, urgency)?;
        if searches.is_empty() && !snapshot.config.has_task_labels() {
            return Err(LabelingError::NoLabels(image.name.clone()).into());
        }
        Ok(BatchPlan {
            searches,
            typed_prompt: snapshot.prompt.clone(),
            snapshot,
            urgency,
            images: None,
        })
    }

    /// The plan for a task that brings its own labels along.
    fn plan_for_task<'a>(
        &self,
        plan: &'a BatchPlan,
        task: &Task,
    ) -> Result<Cow<'a, BatchPlan>, PreannotationError> {
        let Cow::Owned(snapshot) = plan.snapshot.for_task(task) else {
            return Ok(Cow::Borrowed(plan));
        };
        let searches = searches(&snapshot, plan.urgency)?;
        if searches.is_empty() {
            let image = snapshot.config.image()?.name.clone();
            return Err(LabelingError::NoLabels(image).into());
        }
        Ok(Cow::Owned(BatchPlan {
            searches,
            snapshot,
            ..plan.clone()
        }))
    }

    /// Predicts one task of a batch.
    ///
    /// # Errors
    /// See [`PreannotationError`].
    pub async fn predict(
        &self,
        plan: &BatchPlan,
        task: &Task,
    ) -> Result<TaskPrediction, PreannotationError> {
        // bounds the decoded images: an image stays in memory from the fetch to the prediction
        let _permit = match plan.is_urgent() {
            true => None,
            false => self.batch_tasks.acquire().await.ok(),
        };
        let plan = self.plan_for_task(plan, task)?;
        let snapshot = &plan.snapshot;
        let (mut result, mut scores) = (vec![], vec![]);
        let thresholds = control_thresholds(&snapshot.config, &[], &task.regions);
        for search in &plan.searches {
            let search = Search {
                areas: areas(&snapshot.config, &search.image, &task.regions),
                images: plan.images.clone(),
                ..search.clone()
            };
            let found = self.search(snapshot, &search, thresholds, task).await?;
            if !found.regions.is_empty() {
                scores.push(found.score());
            }
            result.extend(found.regions);
        }
        if let Some(region) = plan.shown_prompt(&result) {
            result.insert(0, region);
        }
        Ok(self.prediction(result, mean(scores), plan.snapshot.version.clone()))
    }

    /// Predicts tasks until `time_is_up` completes, and returns one outcome per task, in task order. The remaining
    /// tasks are computed in the background, so that a repeated request finds their results in the cache. `memory`
    /// reserves the memory of the tasks; it is released after the last one.
    pub async fn predict_until(
        self: &Arc<Self>,
        plan: BatchPlan,
        tasks: Vec<Task>,
        memory: Reservation,
        time_is_up: impl Future<Output = ()>,
    ) -> Vec<Outcome> {
        let total = tasks.len();
        let (sender, mut predictions) = mpsc::unbounded_channel();
        let this = self.clone();
        let running = self.batches.start(&plan.snapshot.origin.project, total);
        let background = async move {
            let _memory = memory;
            let (this, plan, running) = (&this, &plan, &running);
            let work = tasks.into_iter().enumerate().map(|(i, task)| async move {
                let span = task.span();
                let predicted = this.predict(plan, &task).instrument(span.clone()).await;
                if let Err(error) = &predicted {
                    span.in_scope(|| tracing::error!("{error}"));
                    this.metrics().record_failure();
                }
                running.count(predicted.as_ref().err());
                (i, predicted)
            });
            let mut work = stream::iter(work).buffer_unordered(CONCURRENT_BATCH_TASKS);
            let (mut late, mut permit) = (0, None);
            while let Some(outcome) = work.next().await {
                if sender.send(outcome).is_ok() {
                    continue;
                }
                // the receiver is gone: the time is up
                late += 1;
                if permit.is_none() {
                    permit = BACKGROUND_BATCHES.try_acquire().ok();
                }
                if permit.is_none() {
                    tracing::warn!(
                        "the rest of this batch is not computed, because too many batches are already continuing in the background"
                    );
                    return;
                }
            }
            if late > 0 {
                tracing::info!(
                    tasks = late,
                    "the rest of the batch is computed; a repeated request gets it from the cache"
                );
            }
        };
        // its log lines belong to the request's span, also after the answer
        tokio::spawn(background.in_current_span());
        let mut outcomes: Vec<Outcome> = (0..total).map(|_| Outcome::NotReached).collect();
        tokio::pin!(time_is_up);
        let mut count = 0;
        loop {
            tokio::select! {
                biased;
                outcome = predictions.recv() => match outcome {
                    Some((i, predicted)) => {
                        count += 1;
                        outcomes[i] = match predicted {
                            Ok(prediction) => Outcome::Done(prediction),
                            Err(error) => Outcome::Failed(error),
                        };
                    }
                    None => break,
                },
                () = &mut time_is_up => break,
            }
        }
        if count < total {
            tracing::warn!(
                predicted = count,
                remaining = total - count,
                "a batch was answered before all of its tasks were predicted, because PREDICT_DEADLINE_S has passed or the server is stopping; unless it is stopping, the remaining tasks are computed in the background: request the predictions again (Retrieve predictions)"
            );
        }
        outcomes
    }
}
