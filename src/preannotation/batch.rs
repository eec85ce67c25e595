//! Many tasks at once, where nobody types.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::mpsc;

use super::context::numbers;
use super::{
    Origin, PreannotationError, Preannotator, Search, Task, TaskPrediction, needs_region_control,
};
use crate::geometry::ImageSize;
use crate::labeling::{ControlKind, Label, LabelingConfig, LabelingError};
use crate::prompt::Prompt;
use crate::regions::{Region, Unlabeled, typed};

/// What to look for in every task of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchPlan {
    config: LabelingConfig,
    /// One per image that is looked at.
    searches: Vec<Search>,
    /// The prompt as it was written, to be shown where the labeling config has a text area for prompts.
    typed: Option<String>,
}

/// What became of a task.
#[derive(Debug)]
pub enum Outcome {
    /// It has a prediction.
    Done(TaskPrediction),
    /// It cannot have one.
    Failed(PreannotationError),
    /// Its turn had not come when the time was up.
    Later,
}

/// Tasks on their way at a time: while one is computed, the image of the next is fetched.
const AT_ONCE: usize = 2;

impl BatchPlan {
    /// What is looked for, image by image, for people.
    pub fn prompts(&self) -> impl Iterator<Item = &Prompt> {
        self.searches.iter().map(|search| &search.prompt)
    }

    /// The prompt as a region of its text area, beside what it found: the annotator sees what was looked
    /// for, and can change it. A text area that is not marked as the prompt's may hold anything else, and
    /// is left alone.
    fn shown_prompt(&self, found: &[Region]) -> Option<Region> {
        let (first, search) = (found.first()?, self.searches.first()?);
        let area = self.config.text_area(&search.image).ok()?;
        let is_prompt = area.kind == ControlKind::TextArea { is_prompt: true };
        let is_attached = area.to_names.contains(&search.image.name);
        let text = self.typed.as_ref().filter(|_| is_prompt && is_attached)?;
        let size = ImageSize {
            height: first.original_height,
            width: first.original_width,
        };
        Some(typed(text, area, &search.image, size))
    }
}

impl Preannotator {
    /// Plans a batch: with a prompt, given or remembered, the image that prompts are about is looked at
    /// for it; without one, every image for the labels of its controls.
    ///
    /// # Errors
    /// If the labeling config has no place for results, or there is nothing to look for.
    pub fn plan(
        &self,
        origin: &Origin,
        config: LabelingConfig,
        prompt: Option<&str>,
    ) -> Result<BatchPlan, PreannotationError> {
        let known = self.memory.project(&origin.project);
        let search = |image, prompt| {
            let numbers = numbers(&config, &[], &[]);
            self.search(origin, &config, image, prompt, numbers, Unlabeled::Drop)
        };
        let text = prompt.or(known.prompt.as_deref());
        let searches = match text.map(Prompt::parse).transpose()? {
            Some(prompt) => {
                let image = config.image()?;
                needs_region_control(&config, image)?;
                vec![search(image, prompt)]
            }
            None => {
                needs_region_control(&config, config.image()?)?;
                let images = config.images_with_regions();
                let labeled = images.filter_map(|image| {
                    let labels = config.labels(image);
                    let phrases = labels.iter().flat_map(|label| Label::phrases(label));
                    Some(search(image, Prompt::from_phrases(phrases).ok()?))
                });
                labeled.collect()
            }
        };
        if searches.is_empty() {
            let image = config.image()?.name.clone();
            return Err(LabelingError::NoLabels(image).into());
        }
        let typed = text.map(|text| text.trim().to_owned());
        Ok(BatchPlan {
            config,
            searches,
            typed,
        })
    }

    /// Predicts one task of a batch.
    ///
    /// # Errors
    /// See [`PreannotationError`].
    pub async fn predict(
        &self,
        origin: &Origin,
        plan: &BatchPlan,
        task: &Task,
    ) -> Result<TaskPrediction, PreannotationError> {
        let (mut result, mut scores) = (vec![], vec![]);
        for search in &plan.searches {
            let found = self.find(origin, &plan.config, search, task).await?;
            if !found.regions.is_empty() {
                scores.push(found.score);
            }
            result.extend(found.regions);
        }
        if let Some(region) = plan.shown_prompt(&result) {
            result.insert(0, region);
        }
        Ok(TaskPrediction {
            result,
            score: scores.iter().sum::<f32>() / scores.len().max(1) as f32,
            model_version: self.version(&origin.project, Some(&plan.config)),
        })
    }

    /// Predicts tasks until the time is up: one outcome per task, in their order. What is left by then goes
    /// on, so that asking again finds it made.
    pub async fn predict_within(
        self: &Arc<Self>,
        origin: Origin,
        plan: BatchPlan,
        tasks: Vec<Task>,
        time: Duration,
    ) -> Vec<Outcome> {
        let total = tasks.len();
        let (sender, mut made) = mpsc::unbounded_channel();
        let this = self.clone();
        tokio::spawn(async move {
            let (this, origin, plan) = (&this, &origin, &plan);
            let work = tasks.into_iter().enumerate().map(|(i, task)| async move {
                let predicted = this.predict(origin, plan, &task).await;
                if let Err(error) = &predicted {
                    tracing::error!(task = task.id, "{error}");
                    this.metrics.failed();
                }
                (i, predicted)
            });
            let mut work = stream::iter(work).buffer_unordered(AT_ONCE);
            let mut late = 0;
            while let Some(outcome) = work.next().await {
                // nobody listens any more once the time is up
                late += usize::from(sender.send(outcome).is_err());
            }
            if late > 0 {
                tracing::info!(
                    tasks = late,
                    "the rest of the batch is ready: ask again for it"
                );
            }
        });
        let mut outcomes: Vec<Outcome> = (0..total).map(|_| Outcome::Later).collect();
        let deadline = tokio::time::sleep(time);
        tokio::pin!(deadline);
        let mut count = 0;
        loop {
            tokio::select! {
                biased;
                outcome = made.recv() => match outcome {
                    Some((i, predicted)) => {
                        count += 1;
                        outcomes[i] = match predicted {
                            Ok(prediction) => Outcome::Done(prediction),
                            Err(error) => Outcome::Failed(error),
                        };
                    }
                    None => break,
                },
                () = &mut deadline => break,
            }
        }
        if count < total {
            tracing::warn!(
                answered = count,
                left = total - count,
                seconds = time.as_secs(),
                "the time for a batch is up (PREDICT_DEADLINE_S): work on the tasks that are left goes on, ask again (Retrieve predictions)"
            );
        }
        outcomes
    }
}
