//! Answers the playground, where a person tries prompts and thresholds on an image of their own: all candidates of a prompt,
//! and masks of boxes and marks. Only [`Preannotator::task_picture`] knows Label Studio.

use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, io};

use super::error::MAX_PROMPT;
use super::search::{build_regions, record_timings};
use super::{PreannotationError, Preannotator};
use crate::detector::DetectionOptions;
use crate::geometry::coco_rle::CocoRle;
use crate::geometry::{BoundingBox, Detection, SegmentPrompt};
use crate::label_studio::api::{Api, ApiError};
use crate::labeling::LabelingConfig;
use crate::media::{Digest, ImageRequest, LocationError, MediaError, Pixels, TaskImage};
use crate::pipeline::Query;
use crate::pipeline::handle::ModelsUnavailable;
use crate::pipeline::scheduler::Urgency;
use crate::pipeline::stages::{SharedStageError, StageError, StageRequest, Stages};
use crate::pipeline::timings::Timings;
use crate::prompt::Prompt;
use crate::segmenter::ScoredMask;

/// Candidates with a lower score are not returned. Below it, nearly every query of an image is one.
pub const LOWEST_SCORE: f32 = 0.05;
/// Limit of the candidates of an image; the best ones are returned.
const MAX_CANDIDATES: usize = 300;

/// An image of the playground.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlaygroundImage {
    /// A data URI with the file.
    DataUri(String),
    /// The digest of a file that was sent before. Its pixels may have been dropped since.
    Known(Digest),
}

/// What the detector found, whatever its score is.
#[derive(Debug)]
pub struct Candidates {
    /// The phrases of the prompt that are wanted, in order.
    pub phrases: Vec<String>,
    /// The boxes with a score of at least [`LOWEST_SCORE`], best first, also those that overlap.
    pub detections: Vec<Detection>,
}

/// Further models that people can compare with those of the server.
#[derive(Debug, Default)]
pub struct ComparedModels {
    /// Detectors, each with its default box threshold, 0..1.
    pub detectors: Vec<(f32, ComparedModel)>,
    /// Segmenters.
    pub segmenters: Vec<ComparedModel>,
}

/// Begins to load a model, beside the stages of the server's own ones.
type Start = dyn Fn(&Stages) -> io::Result<Stages> + Send + Sync;

/// A further model. It is loaded when it is first used.
pub struct ComparedModel {
    /// Its name.
    pub name: String,
    start: Box<Start>,
    stages: Mutex<Option<Stages>>,
}

impl ComparedModel {
    /// `start` begins to load it, beside the stages of the server's own models.
    pub fn new(
        name: String,
        start: impl Fn(&Stages) -> io::Result<Stages> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            start: Box::new(start),
            stages: Mutex::default(),
        }
    }

    fn stages(&self, own: &Stages) -> io::Result<Stages> {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        match &*stages {
            Some(stages) => Ok(stages.clone()),
            None => Ok(stages.insert((self.start)(own)?).clone()),
        }
    }
}

impl fmt::Debug for ComparedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ComparedModel")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The mask of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectMask {
    /// The mask, of the size of the image.
    pub mask: CocoRle,
    /// The predicted IoU of the mask with the object.
    pub score: f32,
    /// Number of pixels.
    pub area: usize,
}

/// Why there is no picture of a task.
#[derive(Debug, thiserror::Error)]
pub enum TaskPictureError {
    /// Label Studio's address or token is not configured.
    #[error("{0}")]
    NotConfigured(String),
    /// Label Studio did not answer as expected.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The labeling config or the task names no image, or it cannot be loaded.
    #[error("task {task}: {error}")]
    #[allow(missing_docs)]
    Image {
        task: u64,
        error: PreannotationError,
    },
}

impl Preannotator {
    /// The image of a task in Label Studio; of several pages, the first one.
    ///
    /// # Errors
    /// See [`TaskPictureError`].
    pub async fn task_picture(&self, task: u64) -> Result<Pixels, TaskPictureError> {
        let studio = self.projects.label_studio().clone();
        if studio.base().is_none() || studio.credentials().is_none() {
            let text = "set LABEL_STUDIO_HOST and LABEL_STUDIO_ACCESS_TOKEN";
            return Err(TaskPictureError::NotConfigured(text.to_owned()));
        }
        let api = Api::new(studio.clone())
            .map_err(|error| TaskPictureError::NotConfigured(error.to_string()))?;
        let stored = api.task(task).await?;
        let project = api.project(stored.project).await?;
        let picture = async {
            let config = LabelingConfig::parse(&project.label_config)?;
            let pages = config.image()?.pages(&stored.data)?;
            let url = pages.first().map(|page| page.url.as_str());
            let request = ImageRequest {
                value: url.unwrap_or_default(),
                label_studio: &studio,
                task: Some(task),
                login: None,
            };
            Ok(self.images.look_up(request).await?.pixels().await?)
        };
        let picture = picture.await;
        picture.map_err(|error| TaskPictureError::Image { task, error })
    }

    /// Decodes an image, or finds the pixels of one that was sent before. `None` if they were dropped.
    ///
    /// # Errors
    /// If the image cannot be decoded, or is not a data URI: the playground fetches nothing.
    pub async fn playground_image<'a>(
        &'a self,
        image: &'a PlaygroundImage,
    ) -> Result<Option<TaskImage<'a>>, MediaError> {
        let request = ImageRequest {
            value: match image {
                PlaygroundImage::DataUri(uri) => uri,
                PlaygroundImage::Known(_) => "the image",
            },
            label_studio: self.projects.label_studio(),
            task: None,
            login: None,
        };
        match image {
            PlaygroundImage::Known(digest) => Ok(self.images.cached(digest, request).await),
            PlaygroundImage::DataUri(uri) if uri.starts_with("data:") => {
                self.images.look_up(request).await.map(Some)
            }
            PlaygroundImage::DataUri(_) => {
                let text = "it must begin with data:image/".to_owned();
                Err(LocationError::DataUri(text).into())
            }
        }
    }

    /// With further models for the playground.
    pub fn with_compared_models(self, compared_models: ComparedModels) -> Self {
        Self {
            compared_models,
            ..self
        }
    }

    /// The further models of the playground.
    pub fn compared_models(&self) -> &ComparedModels {
        &self.compared_models
    }

    /// The stages of a further model; without one, of the server's own.
    fn stages_of(&self, model: Option<&ComparedModel>) -> Result<Stages, SharedStageError> {
        let Some(model) = model else {
            return Ok(self.stages.clone());
        };
        let stages = model.stages(&self.stages);
        stages.map_err(|error| {
            let reason = format!("the model {:?}: {error}", model.name);
            let failed = ModelsUnavailable::Failed { reason, seconds: 0 };
            Arc::new(StageError::ModelsUnavailable(failed))
        })
    }

    /// All candidates of a prompt, found by a further detector or by the server's own. A phrase names a box if its score is
    /// above `text_threshold`, 0..1.
    ///
    /// # Errors
    /// See [`PreannotationError`].
    pub async fn candidates(
        &self,
        image: &TaskImage<'_>,
        detector: Option<&ComparedModel>,
        prompt: &str,
        text_threshold: f32,
        timings: &Timings,
    ) -> Result<Candidates, PreannotationError> {
        if prompt.len() > MAX_PROMPT {
            return Err(PreannotationError::LongPrompt(prompt.len()));
        }
        let prompt = Prompt::parse(prompt)?;
        let phrases = prompt.wanted().map(str::to_owned).collect();
        let options = DetectionOptions {
            box_threshold: LOWEST_SCORE,
            text_threshold,
            nms_iou_threshold: 1.0,
            max_detections: Some(MAX_CANDIDATES),
        };
        let query = Query {
            tiling: self.projects.prediction_settings().tiling,
            with_masks: false,
            ..Query::new(prompt, options)
        };
        let _permit = self.admit(Urgency::Annotator)?;
        let stages = self.stages_of(detector)?;
        let found = stages.predict(image, &query, request(timings)).await;
        record_timings(timings);
        let detections = found?.objects.into_iter().map(|object| object.detection);
        Ok(Candidates {
            phrases,
            detections: detections.collect(),
        })
    }

    /// One mask per box, in the same order, from a further segmenter or from the server's own. The boxes are in pixels.
    ///
    /// # Errors
    /// See [`PreannotationError`].
    pub async fn masks_of_boxes(
        &self,
        image: &TaskImage<'_>,
        segmenter: Option<&ComparedModel>,
        boxes: &[BoundingBox],
        timings: &Timings,
    ) -> Result<Vec<ObjectMask>, PreannotationError> {
        let _permit = self.admit(Urgency::Annotator)?;
        let stages = self.stages_of(segmenter)?;
        let masks = stages.box_masks(image, boxes, request(timings)).await;
        record_timings(timings);
        self.encoded(masks?).await
    }

    /// The mask of one object that a person marks with a box and points.
    ///
    /// # Errors
    /// See [`PreannotationError`].
    pub async fn mask_of_marks(
        &self,
        image: &TaskImage<'_>,
        segmenter: Option<&ComparedModel>,
        marks: &SegmentPrompt,
        timings: &Timings,
    ) -> Result<ObjectMask, PreannotationError> {
        let _permit = self.admit(Urgency::Annotator)?;
        let stages = self.stages_of(segmenter)?;
        let mask = stages.refine(image, marks, request(timings)).await;
        record_timings(timings);
        Ok(self.encoded(vec![mask?]).await?.remove(0))
    }

    async fn encoded(
        &self,
        masks: Vec<Arc<ScoredMask>>,
    ) -> Result<Vec<ObjectMask>, PreannotationError> {
        let cleanup = self.projects.prediction_settings().cleanup;
        let encode = move || {
            let masks = masks.iter().map(|scored| {
                let scored = scored.cleaned(cleanup);
                ObjectMask {
                    mask: CocoRle::new(&scored.mask),
                    score: scored.score,
                    area: scored.mask.area(),
                }
            });
            masks.collect()
        };
        build_regions(encode).await
    }
}

fn request(timings: &Timings) -> StageRequest<'_> {
    StageRequest {
        urgency: Urgency::Annotator,
        timings,
    }
}
