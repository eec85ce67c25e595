//! Computes a prediction in stages. Each stage is scheduled as a step, and its result is cached under the stage's
//! inputs.
//!
//! | stage | depends on | in the trace |
//! |---|---|---|
//! | image features | the image | detector, `encode_image` |
//! | text features | a caption | detector, `bert` |
//! | queries | the image, a caption | detector, `encoder` and `decoder` |
//! | detections | queries, thresholds | nothing: no model |
//! | image embedding | the image | segmenter, `encode` |
//! | masks | the image, a box or points | segmenter, `mask_decoder` |
//!
//! The image embedding may also be on disk ([`super::warm`]). Then it is not computed, and the image is not decoded
//! for it.
//!
//! So a changed threshold needs no model except the mask decoder for new boxes. Another prompt needs neither the
//! detector's backbone nor the segmenter's image encoder.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::handle::{ModelsHandle, ModelsUnavailable};
use super::scheduler::{Scheduler, StepError, Urgency};
use super::timings::Timings;
use super::warm::WarmEmbeddings;
use super::{DetectedObject, Models, PredictError, Prediction};
use crate::detector::{
    DetectError, DetectionOptions, ImageFeatures, Queries, Question, TextFeatures, detections,
};
use crate::geometry::{BoundingBox, Mark};
use crate::media::{Digest, MediaError, TaskImage};
use crate::prompt::Prompt;
use crate::segmenter::{BOXES_AT_ONCE, EncodedImage, ScoredMask, SegmentError, SmallMask};
use crate::store::{MemoryCache, Source, Usage};

/// Why a stage has no result.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The models are not available.
    #[error(transparent)]
    ModelsUnavailable(#[from] ModelsUnavailable),
    /// The image cannot be loaded.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// A model failed.
    #[error(transparent)]
    Predict(#[from] PredictError),
    /// The step did not complete.
    #[error(transparent)]
    Step(#[from] StepError),
}

impl From<DetectError> for StageError {
    fn from(error: DetectError) -> Self {
        Self::Predict(error.into())
    }
}

impl From<SegmentError> for StageError {
    fn from(error: SegmentError) -> Self {
        Self::Predict(error.into())
    }
}

/// A stage's error; all requests that wait for the same stage share it.
pub type SharedStageError = Arc<StageError>;

/// The stages and their caches; clones share them.
#[derive(Debug, Clone)]
pub struct Stages {
    scheduler: Scheduler,
    models: ModelsHandle,
    features: MemoryCache<Digest, ImageFeatures>,
    texts: MemoryCache<Vec<u32>, TextFeatures>,
    queries: MemoryCache<(Digest, Vec<u32>), Arc<Queries>>,
    embeddings: MemoryCache<Digest, EncodedImage>,
    warm: Option<WarmEmbeddings>,
    masks: MemoryCache<(Digest, PromptKey), Arc<ScoredMask>>,
}

/// A box and points as a cache key, compared bit by bit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PromptKey {
    corners: Option<[u32; 4]>,
    points: Vec<(u32, u32, bool)>,
}

impl PromptKey {
    fn of_box(b: &BoundingBox) -> Self {
        Self {
            corners: Some(b.corners().map(f32::to_bits)),
            points: vec![],
        }
    }

    fn of_prompt(mark: &Mark) -> Self {
        let points = mark.points.iter();
        Self {
            corners: mark.bounding_box.map(|b| b.corners().map(f32::to_bits)),
            points: points
                .map(|p| (p.x.to_bits(), p.y.to_bits(), p.is_positive))
                .collect(),
        }
    }
}

/// What to detect in an image.
#[derive(Debug, Clone)]
pub struct Query {
    /// The phrases to detect.
    pub prompt: Prompt,
    /// Thresholds and limits of the detector.
    pub options: DetectionOptions,
    /// Whether objects are segmented.
    pub with_masks: bool,
    /// Whether a phrase that the model cannot encode is skipped instead of failing the request. Used if the prompt is
    /// made of labels.
    pub skips_unencodable: bool,
}

/// The request that needs a stage.
#[derive(Debug, Clone, Copy)]
pub struct StageRequest<'a> {
    /// The urgency of the request.
    pub urgency: Urgency,
    /// The timings of the request.
    pub timings: &'a Timings,
}

/// Cached results that nobody used for this time are dropped. They depend only on their inputs, so they never become
/// stale.
const UNUSED: Duration = Duration::from_secs(6 * 3600);

/// The stages' share of the cache memory, in percent; decoded images get the rest.
pub const STAGES_PERCENT: u64 = 95;

impl Stages {
    /// Creates the stages. Results of up to [`STAGES_PERCENT`] percent of `bytes` are cached in memory. Image
    /// embeddings are also cached on disk if `warm` is given.
    pub fn new(
        scheduler: Scheduler,
        models: ModelsHandle,
        bytes: u64,
        warm: Option<WarmEmbeddings>,
    ) -> Self {
        let share = |percent: u64| bytes / 100 * percent;
        Self {
            scheduler,
            models,
            features: MemoryCache::new(share(40), UNUSED, ImageFeatures::bytes),
            texts: MemoryCache::new(share(3), UNUSED, TextFeatures::bytes),
            queries: MemoryCache::new(share(10), UNUSED, |queries: &Arc<Queries>| queries.bytes()),
            embeddings: MemoryCache::new(share(32), UNUSED, EncodedImage::bytes),
            warm,
            masks: MemoryCache::new(share(10), UNUSED, |mask: &Arc<ScoredMask>| mask.bytes()),
        }
    }

    /// The models and their loading state.
    pub fn models_handle(&self) -> &ModelsHandle {
        &self.models
    }

    /// The scheduler of the steps.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Removes expired results from the caches.
    pub async fn tidy(&self) {
        self.features.run_maintenance().await;
        self.texts.run_maintenance().await;
        self.queries.run_maintenance().await;
        self.embeddings.run_maintenance().await;
        self.masks.run_maintenance().await;
    }

    /// The usage of each stage's cache.
    pub fn usage(&self) -> impl Iterator<Item = (&'static str, Usage)> {
        let in_memory = [
            ("image_features", self.features.usage()),
            ("text_features", self.texts.usage()),
            ("queries", self.queries.usage()),
            ("image_embeddings", self.embeddings.usage()),
            ("masks", self.masks.usage()),
        ];
        let on_disk = self.warm.as_ref().map(WarmEmbeddings::usage);
        in_memory
            .into_iter()
            .chain(on_disk.map(|usage| ("warm_embeddings", usage)))
    }

    /// The image embeddings on disk; `None` if the settings disable them.
    pub fn warm_embeddings(&self) -> Option<&WarmEmbeddings> {
        self.warm.as_ref()
    }

    /// Detects and segments the objects of a query.
    ///
    /// # Errors
    /// See [`StageError`].
    pub async fn predict(
        &self,
        picture: &TaskImage<'_>,
        query: &Query,
        request: StageRequest<'_>,
    ) -> Result<Prediction, SharedStageError> {
        let models = self.models().await?;
        let questions = self.questions(&models, query).await?;
        let mut answers = vec![];
        for question in &questions {
            answers.push(self.queries(&models, picture, question, request).await?);
        }
        let found = {
            let (size, options) = (picture.size, query.options);
            off_thread(move || {
                let answers = answers.iter().map(Arc::as_ref);
                detections(questions.iter().zip(answers), size, &options)
            })
            .await?
        };
        let masks = match models.segmenter {
            Some(_) if query.with_masks && !found.is_empty() => {
                let boxes: Vec<BoundingBox> = found.iter().map(|d| d.bounding_box).collect();
                self.masks(&models, picture, &boxes, request).await?
            }
            _ => vec![],
        };
        let masks = masks.into_iter().map(Some).chain(std::iter::repeat(None));
        let objects = found.into_iter().zip(masks);
        Ok(Prediction {
            size: picture.size,
            objects: objects
                .map(|(detection, mask)| DetectedObject { detection, mask })
                .collect(),
        })
    }

    /// Segments the objects that an annotator marked: one mask per prompt, in the same order.
    ///
    /// # Errors
    /// See [`StageError`].
    pub async fn segment(
        &self,
        picture: &TaskImage<'_>,
        marks: Vec<Mark>,
        request: StageRequest<'_>,
    ) -> Result<Vec<Arc<ScoredMask>>, SharedStageError> {
        let models = self.models().await?;
        let mut masks = vec![];
        for mark in marks {
            let key = (picture.digest, PromptKey::of_prompt(&mark));
            if let Some(mask) = self.masks.get(&key).await {
                request.timings.from_memory("masks");
                masks.push(mask);
                continue;
            }
            let embedding = self.embedding(&models, picture, request).await?;
            let models = models.clone();
            let step = move || {
                models
                    .segmenter()?
                    .segment_mark(&embedding, &mark)
                    .map_err(Into::into)
            };
            let small: SmallMask = self.step("masks", request, step).await?;
            let mask = off_thread(move || Arc::new(small.to_image_size())).await?;
            self.masks.insert(key, mask.clone()).await;
            masks.push(mask);
        }
        Ok(masks)
    }

    pub(super) async fn models(&self) -> Result<Arc<Models>, SharedStageError> {
        Ok(self.models.get().await.map_err(StageError::from)?)
    }

    /// Tokenizes the prompt outside the async threads, because thousands of labels take a while.
    async fn questions(
        &self,
        models: &Arc<Models>,
        query: &Query,
    ) -> Result<Vec<Question>, SharedStageError> {
        let (models, query) = (models.clone(), query.clone());
        let questions = off_thread(move || {
            let detector = &models.detector;
            let mut prompt = query.prompt;
            if query.skips_unencodable {
                for phrase in detector.unreadable(&prompt)? {
                    tracing::warn!(
                        phrase,
                        "the detector cannot encode this label, so it does not search for it"
                    );
                    // if no phrase is left, `questions` returns the error
                    prompt = prompt.without(&phrase).unwrap_or(prompt);
                }
            }
            detector.questions(&prompt)
        });
        Ok(questions.await?.map_err(StageError::from)?)
    }

    async fn features(
        &self,
        models: &Arc<Models>,
        picture: &TaskImage<'_>,
        request: StageRequest<'_>,
    ) -> Result<ImageFeatures, SharedStageError> {
        let make = async {
            let pixels = picture.pixels().await?;
            let models = models.clone();
            let step = move || Ok(models.detector.encode_image(&pixels)?);
            self.step("image_features", request, step).await
        };
        let cached = self.features.get_or_compute(picture.digest, make).await?;
        if cached.source == Source::Memory {
            request.timings.from_memory("image_features");
        }
        Ok(cached.value)
    }

    async fn text(
        &self,
        models: &Arc<Models>,
        question: &Question,
        request: StageRequest<'_>,
    ) -> Result<TextFeatures, SharedStageError> {
        let make = async {
            let (models, caption) = (models.clone(), question.caption.clone());
            let step = move || Ok(models.detector.encode_text(&caption)?);
            self.step("text_features", request, step).await
        };
        let key = question.caption.ids.clone();
        let cached = self.texts.get_or_compute(key, make).await?;
        if cached.source == Source::Memory {
            request.timings.from_memory("text_features");
        }
        Ok(cached.value)
    }

    async fn queries(
        &self,
        models: &Arc<Models>,
        picture: &TaskImage<'_>,
        question: &Question,
        request: StageRequest<'_>,
    ) -> Result<Arc<Queries>, SharedStageError> {
        let key = (picture.digest, question.caption.ids.clone());
        if let Some(queries) = self.queries.get(&key).await {
            request.timings.from_memory("queries");
            return Ok(queries);
        }
        let features = self.features(models, picture, request).await?;
        let text = self.text(models, question, request).await?;
        let make = async {
            let models = models.clone();
            let step = move || Ok(Arc::new(models.detector.ask(&features, &text)?));
            self.step("queries", request, step).await
        };
        Ok(self.queries.get_or_compute(key, make).await?.value)
    }

    /// The image embedding: from memory, else from disk, else computed.
    pub(super) async fn embedding(
        &self,
        models: &Arc<Models>,
        picture: &TaskImage<'_>,
        request: StageRequest<'_>,
    ) -> Result<EncodedImage, SharedStageError> {
        let make = async {
            models.segmenter()?;
            if let Some(image) = self.embedding_on_disk(models, picture).await {
                return Ok((image, Source::Disk));
            }
            let pixels = picture.pixels().await?;
            let step = {
                let models = models.clone();
                move || Ok(models.segmenter()?.encode(&pixels)?)
            };
            let image = self.step("image_embeddings", request, step).await?;
            if let Some(warm) = &self.warm {
                warm.add(models, picture.digest, &image);
            }
            Ok((image, Source::Computed))
        };
        let cached = self.embeddings.get_or_load(picture.digest, make).await?;
        match cached.source {
            Source::Memory => request.timings.from_memory("image_embeddings"),
            Source::Disk => request.timings.from_disk("image_embeddings"),
            Source::Computed => {}
        }
        Ok(cached.value)
    }

    async fn embedding_on_disk(
        &self,
        models: &Arc<Models>,
        picture: &TaskImage<'_>,
    ) -> Option<EncodedImage> {
        let (warm, models) = (self.warm.clone()?, models.clone());
        let (content, size) = (picture.digest, picture.size);
        // if the disk cannot be read, the embedding is computed instead
        let read = off_thread(move || warm.read(&models, content, size)).await;
        read.ok().flatten()
    }

    /// One mask per box, in the same order. Each step decodes a few boxes. The masks of one step are scaled to the
    /// image's size while the next step runs.
    async fn masks(
        &self,
        models: &Arc<Models>,
        picture: &TaskImage<'_>,
        boxes: &[BoundingBox],
        request: StageRequest<'_>,
    ) -> Result<Vec<Arc<ScoredMask>>, SharedStageError> {
        let key = |b: &BoundingBox| (picture.digest, PromptKey::of_box(b));
        let mut masks: Vec<Option<Arc<ScoredMask>>> = vec![];
        for bounding_box in boxes {
            masks.push(self.masks.get(&key(bounding_box)).await);
        }
        let is_missing = |i: &usize| masks[*i].is_none();
        let missing: Vec<usize> = (0..boxes.len()).filter(is_missing).collect();
        if missing.len() < boxes.len() {
            request.timings.from_memory("masks");
        }
        let mut scaling = vec![];
        if !missing.is_empty() {
            let embedding = self.embedding(models, picture, request).await?;
            for group in missing.chunks(BOXES_AT_ONCE) {
                let of_group: Vec<BoundingBox> = group.iter().map(|i| boxes[*i]).collect();
                let (models, embedding) = (models.clone(), embedding.clone());
                let step = move || Ok(models.segmenter()?.small_masks(&embedding, &of_group)?);
                let small: Vec<SmallMask> = self.step("masks", request, step).await?;
                scaling.push(tokio::task::spawn_blocking(move || {
                    let scaled = small
                        .par_iter()
                        .map(|small| Arc::new(small.to_image_size()));
                    scaled.collect::<Vec<_>>()
                }));
            }
        }
        for (group, scaled) in missing.chunks(BOXES_AT_ONCE).zip(scaling) {
            let scaled = scaled
                .await
                .map_err(|_| StageError::Step(StepError::Panicked))?;
            for (i, mask) in group.iter().zip(scaled) {
                self.masks.insert(key(&boxes[*i]), mask.clone()).await;
                masks[*i] = Some(mask);
            }
        }
        Ok(masks.into_iter().flatten().collect())
    }

    /// Runs one step of a stage through the scheduler.
    async fn step<T: Send + 'static>(
        &self,
        stage: &'static str,
        request: StageRequest<'_>,
        work: impl FnOnce() -> Result<T, StageError> + Send + 'static,
    ) -> Result<T, StageError> {
        let timed = move || {
            let _span = tracing::debug_span!("step", stage).entered();
            let start = Instant::now();
            (work(), start.elapsed())
        };
        let (result, time) = self.scheduler.run(request.urgency, timed).await?;
        request.timings.computed(stage, time);
        result
    }
}

/// Runs CPU-heavy work that is not the models' on a blocking thread.
///
/// # Errors
/// If it panics.
pub async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StageError> {
    // its log lines belong to the request's span
    let span = tracing::Span::current();
    let done = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    done.map_err(|_| StageError::Step(StepError::Panicked))
}
