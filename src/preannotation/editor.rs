//! Answers an annotator's action in the editor: searches for a prompt, or segments what a smart tool marked.

use std::sync::Arc;

use serde_json::Value;

use super::areas::{Area, areas};
use super::error::MAX_PROMPT;
use super::interaction::{Interaction, Target, control_thresholds, interaction, typed_text};
use super::new_labels::add_new_labels;
use super::project::{Origin, ProjectSnapshot};
use super::search::{Search, build_regions, page, record_timings};
use super::smart_tools::{SmartToolShape, segment_prompts};
use super::status::add_message;
use super::{PreannotationError, Preannotator, Task, TaskPrediction};
use crate::labeling::{ImageTag, LabelingConfig};
use crate::pipeline::scheduler::Urgency;
use crate::pipeline::stages::StageRequest;
use crate::pipeline::timings::Timings;
use crate::prompt::Prompt;
use crate::regions::scores::mean;
use crate::regions::{Region, RegionOptions, Unlabeled, mask_regions};

impl Preannotator {
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
        let snapshot = self.projects.snapshot(origin.clone(), config.clone(), None);
        let snapshot = snapshot.for_task(task).into_owned();
        let config = snapshot.config.clone();
        match interaction(context, &task.regions, &config)? {
            Interaction::Nothing => Ok(self.answer(&snapshot, vec![], 0.0, "")),
            Interaction::Unusable(reason) => {
                tracing::warn!("the answer is empty: {reason}");
                Ok(self.answer(&snapshot, vec![], 0.0, &reason))
            }
            Interaction::Drawing {
                shapes,
                label,
                target,
            } => self.segment(snapshot, target, task, &shapes, label).await,
            Interaction::Prompt { text, target } => {
                let snapshot = self.projects.with_prompt(snapshot, &text);
                self.search_for_prompt(snapshot, target, task, context)
                    .await
            }
            Interaction::SearchAgain { target } => {
                let drawn = areas(&config, target.image, context);
                if !drawn.is_empty() {
                    self.recent_areas.remember(&origin.project, task.id, drawn);
                }
                let area = config.text_area(target.image)?;
                let typed = typed_text(&area.name, &task.regions, target.page);
                let snapshot = match typed {
                    Some(typed) => self.projects.with_prompt(snapshot, &typed),
                    None => snapshot,
                };
                if snapshot.prompt.is_none() {
                    tracing::info!(
                        "the answer is empty: a threshold was changed, or a region of interest was drawn, before any prompt was typed"
                    );
                    return Ok(self.answer(&snapshot, vec![], 0.0, "type a prompt first"));
                }
                self.search_for_prompt(snapshot, target, task, context)
                    .await
            }
        }
    }

    /// Searches for the snapshot's prompt. If the model can encode the prompt, it is remembered for the project's next
    /// tasks.
    async fn search_for_prompt(
        &self,
        snapshot: ProjectSnapshot,
        Target { image, page }: Target<'_>,
        task: &Task,
        context: &[Value],
    ) -> Result<TaskPrediction, PreannotationError> {
        let text = snapshot.prompt.as_deref().unwrap_or_default();
        if text.len() > MAX_PROMPT {
            return Err(PreannotationError::LongPrompt(text.len()));
        }
        let search = Search {
            image: image.clone(),
            page,
            areas: self.areas_of_task(&snapshot, image, task),
            prompt: Prompt::parse(text)?,
            unlabeled: Unlabeled::Keep,
            is_from_labels: false,
            urgency: Urgency::Annotator,
            images: None,
        };
        snapshot.config.require_region_control(image)?;
        let thresholds = control_thresholds(&snapshot.config, context, &task.regions);
        let mut found = self.search(&snapshot, &search, thresholds, task).await?;
        let mut note = String::new();
        match add_new_labels(&snapshot, image, &found).await {
            Ok(None) => {}
            Ok(Some((with_labels, added))) => {
                // everything but the labels is cached
                found = self.search(&with_labels, &search, thresholds, task).await?;
                note = format!("; new labels: {}", added.join(", "));
            }
            Err(error) => {
                tracing::warn!("no labels were added to the project: {error}");
                note = format!("; no labels were added to the project: {error}");
            }
        }
        let write = self
            .projects
            .remember_prompt(&snapshot.origin.project, text);
        write.done().await;
        let (score, message) = (found.score(), found.message() + &note);
        Ok(self.answer(&snapshot, found.regions, score, &message))
    }

    /// Builds an answer, with a message for the annotator unless it is empty.
    fn answer(
        &self,
        snapshot: &ProjectSnapshot,
        regions: Vec<Region>,
        score: f32,
        message: &str,
    ) -> TaskPrediction {
        let mut prediction = self.prediction(regions, score, snapshot.version.clone());
        if !message.is_empty() {
            add_message(&mut prediction, &snapshot.config, message);
        }
        prediction
    }

    /// The regions of interest of an image: those that were just drawn, else those of the draft and the annotation.
    fn areas_of_task(
        &self,
        snapshot: &ProjectSnapshot,
        image: &ImageTag,
        task: &Task,
    ) -> Vec<Area> {
        let recent = self.recent_areas.of_task(&snapshot.origin.project, task.id);
        match recent.is_empty() {
            true => areas(&snapshot.config, image, &task.regions),
            false => recent,
        }
    }

    /// Segments what was drawn with a smart tool.
    async fn segment(
        &self,
        snapshot: ProjectSnapshot,
        Target {
            image,
            page: number,
        }: Target<'_>,
        task: &Task,
        shapes: &[SmartToolShape],
        label: Option<String>,
    ) -> Result<TaskPrediction, PreannotationError> {
        let mut controls = snapshot.config.region_controls(image);
        if !controls.any(|control| control.shape.needs_mask()) {
            let reason = "smart tools create masks, and the labeling config has no <BrushLabels>, <BitmaskLabels>, <PolygonLabels> or <VectorLabels>";
            tracing::warn!("the answer is empty: {reason}");
            return Ok(self.answer(&snapshot, vec![], 0.0, reason));
        }
        let shown = page(image, number, task)?;
        let timings = Timings::default();
        let request = StageRequest {
            urgency: Urgency::Annotator,
            timings: &timings,
        };
        let _permit = self.admit(request.urgency)?;
        let segmented = async {
            let image = self.task_image(&snapshot, task, &shown.url).await?;
            let prompts = segment_prompts(shapes, image.size);
            Ok::<_, PreannotationError>(self.stages.segment(&image, prompts, request).await?)
        };
        let segmented = segmented.await;
        record_timings(&timings);
        let masks = segmented?;
        self.metrics.record_prediction(0, &timings);
        let _masks = self
            .budget()
            .reserve_unchecked(masks.iter().map(|scored| scored.bytes()).sum());
        let style = RegionOptions {
            unlabeled: Unlabeled::Keep,
            polygon_tolerance: snapshot.settings.polygon_tolerance,
            page: shown.index,
        };
        let (config, image) = (snapshot.config.clone(), image.clone());
        let cleanup = snapshot.settings.cleanup;
        let build = move || {
            let masks: Vec<_> = masks.iter().map(|mask| mask.cleaned(cleanup)).collect();
            mask_regions(&masks, label.as_deref(), &config, &image, &style)
        };
        let regions = build_regions(build).await?;
        let score = mean(regions.iter().filter_map(|region| region.score));
        self.metrics.record_regions(regions.len());
        tracing::info!(shapes = shapes.len(), regions = regions.len(), "segmented");
        let message = match regions.is_empty() {
            true => "the mask is empty".to_owned(),
            false => format!("segmented with score {score:.2}"),
        };
        Ok(self.answer(&snapshot, regions, score, &message))
    }
}
