//! Answers an annotator's action in the editor: searches for a prompt, or segments what a smart tool marked.

use std::sync::Arc;

use serde_json::Value;

use super::error::MAX_PROMPT;
use super::interaction::{Interaction, control_thresholds, interaction, typed_text};
use super::project::{Origin, ProjectSnapshot};
use super::search::{Search, build_regions, record_timings};
use super::smart_tools::{SmartToolShape, segment_prompts};
use super::{PreannotationError, Preannotator, Task, TaskPrediction};
use crate::labeling::{ImageTag, LabelingConfig};
use crate::pipeline::scheduler::Urgency;
use crate::pipeline::stages::StageRequest;
use crate::pipeline::timings::Timings;
use crate::prompt::Prompt;
use crate::regions::scores::mean;
use crate::regions::{RegionOptions, Unlabeled, mask_regions};

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
        let snapshot = |prompt| {
            let (origin, config) = (origin.clone(), config.clone());
            self.projects.snapshot(origin, config, prompt)
        };
        let empty = || self.prediction(vec![], 0.0, snapshot(None).version);
        match interaction(context, config)? {
            Interaction::Nothing => Ok(empty()),
            Interaction::Unusable(reason) => {
                tracing::warn!("the answer is empty: {reason}");
                Ok(empty())
            }
            Interaction::Drawing {
                shapes,
                label,
                image,
            } => {
                self.segment(snapshot(None), image, task, &shapes, label)
                    .await
            }
            Interaction::Prompt { text, image } => {
                self.predict_prompt(snapshot(Some(&text)), image, task, context)
                    .await
            }
            Interaction::Threshold => {
                let image = config.image()?;
                let area = config.text_area(image)?;
                let typed = typed_text(&area.name, &task.regions);
                let snapshot = snapshot(typed.as_deref());
                if snapshot.prompt.is_none() {
                    tracing::info!(
                        "the answer is empty: a threshold was changed before any prompt was typed"
                    );
                    return Ok(empty());
                }
                self.predict_prompt(snapshot, image, task, context).await
            }
        }
    }

    /// Searches for the snapshot's prompt. If the model can encode the prompt, it is remembered for the project's next
    /// tasks.
    async fn predict_prompt(
        &self,
        snapshot: ProjectSnapshot,
        image: &ImageTag,
        task: &Task,
        context: &[Value],
    ) -> Result<TaskPrediction, PreannotationError> {
        let text = snapshot.prompt.as_deref().unwrap_or_default();
        if text.len() > MAX_PROMPT {
            return Err(PreannotationError::LongPrompt(text.len()));
        }
        let search = Search {
            image: image.clone(),
            prompt: Prompt::parse(text)?,
            unlabeled: Unlabeled::Keep,
            is_from_labels: false,
            urgency: Urgency::Annotator,
        };
        snapshot.config.require_region_control(image)?;
        let thresholds = control_thresholds(&snapshot.config, context, &task.regions);
        let found = self
            .predict_image(&snapshot, &search, thresholds, task)
            .await?;
        let write = self
            .projects
            .remember_prompt(&snapshot.origin.project, text);
        write.done().await;
        Ok(self.prediction(found.regions, found.score, snapshot.version))
    }

    /// Segments what was drawn with a smart tool.
    async fn segment(
        &self,
        snapshot: ProjectSnapshot,
        image: &ImageTag,
        task: &Task,
        shapes: &[SmartToolShape],
        label: Option<String>,
    ) -> Result<TaskPrediction, PreannotationError> {
        let mut controls = snapshot.config.region_controls(image);
        if !controls.any(|control| control.shape.needs_mask()) {
            tracing::warn!(
                "the answer is empty: smart tools create masks, and the labeling config has no <BrushLabels>, <BitmaskLabels>, <PolygonLabels> or <VectorLabels>"
            );
            return Ok(self.prediction(vec![], 0.0, snapshot.version));
        }
        let url = image.url(&task.data)?;
        let timings = Timings::default();
        let request = StageRequest {
            urgency: Urgency::Annotator,
            timings: &timings,
        };
        let _permit = self.admit(request.urgency)?;
        let segmented = async {
            let image = self.task_image(&snapshot, task, &url).await?;
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
            default_label_threshold: None,
            polygon_tolerance: snapshot.polygon_tolerance,
        };
        let (config, image) = (snapshot.config.clone(), image.clone());
        let build = move || mask_regions(&masks, label.as_deref(), &config, &image, &style);
        let regions = build_regions(build).await?;
        let score = mean(regions.iter().filter_map(|region| region.score));
        self.metrics.record_regions(regions.len());
        tracing::info!(shapes = shapes.len(), regions = regions.len(), "segmented");
        Ok(self.prediction(regions, score, snapshot.version))
    }
}
