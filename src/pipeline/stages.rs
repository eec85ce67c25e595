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

use super::loading::{Loading, NotReady};
use super::scheduler::{Scheduler, StepError, Urgency};
use super::timings::Timings;
use super::warm::WarmEmbeddings;
use super::{DetectedObject, Models, PredictError, Prediction};
use crate::detector::{
    CaptionPass, DetectError, DetectionOptions, ImageFeatures, Queries, TextFeatures, detections,
};
use crate::geometry::{BoundingBox, SegmentPrompt};
use crate::media::{Digest, MediaError, Picture};
use crate::prompt::Prompt;
use crate::segmenter::{BOXES_PER_PASS, EncodedImage, LowResMask, ScoredMask, SegmentError};
use crate::store::{Kept, Source, Usage};

/// Why a stage has no result.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The models are not available.
    #[error(transparent)]
    NotReady(#[from] NotReady),
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
pub type Failed = Arc<StageError>;

/// The stages and their caches; clones share them.
#[derive(Debug, Clone)]
pub struct Stages {
    scheduler: Scheduler,
    loading: Loading,
    features: Kept<Digest, ImageFeatures>,
    texts: Kept<Vec<u32>, TextFeatures>,
    queries: Kept<(Digest, Vec<u32>), Arc<Queries>>,
    embeddings: Kept<Digest, EncodedImage>,
    warm: Option<WarmEmbeddings>,
    masks: Kept<(Digest, MarkKey), Arc<ScoredMask>>,
}

/// A box and points as a cache key, compared bit by bit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct MarkKey {
    corners: Option<[u32; 4]>,
    points: Vec<(u32, u32, bool)>,
}

impl MarkKey {
    fn of_box(b: &BoundingBox) -> Self {
        Self {
            corners: Some(b.corners().map(f32::to_bits)),
            points: vec![],
        }
    }

    fn of_mark(mark: &SegmentPrompt) -> Self {
        let points = mark.points.iter();
        Self {
            corners: mark.bounding_box.map(|b| b.corners().map(f32::to_bits)),
            points: points
                .map(|p| (p.x.to_bits(), p.y.to_bits(), p.is_foreground))
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
    pub skips_unreadable: bool,
}

/// The request that needs a stage.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
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
        loading: Loading,
        bytes: u64,
        warm: Option<WarmEmbeddings>,
    ) -> Self {
        let share = |percent: u64| bytes / 100 * percent;
        Self {
            scheduler,
            loading,
            features: Kept::new(share(40), UNUSED, ImageFeatures::bytes),
            texts: Kept::new(share(3), UNUSED, TextFeatures::bytes),
            queries: Kept::new(share(10), UNUSED, |queries: &Arc<Queries>| queries.bytes()),
            embeddings: Kept::new(share(32), UNUSED, EncodedImage::bytes),
            warm,
            masks: Kept::new(share(10), UNUSED, |mask: &Arc<ScoredMask>| mask.bytes()),
        }
    }

    /// The loading state of the models.
    pub fn loading(&self) -> &Loading {
        &self.loading
    }

    /// The scheduler of the steps.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Removes expired results from the caches.
    pub async fn tidy(&self) {
        self.features.tidy().await;
        self.texts.tidy().await;
        self.queries.tidy().await;
        self.embeddings.tidy().await;
        self.masks.tidy().await;
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
        picture: &Picture<'_>,
        query: &Query,
        asker: Asker<'_>,
    ) -> Result<Prediction, Failed> {
        let models = self.models().await?;
        let questions = self.questions(&models, query).await?;
        let mut answers = vec![];
        for question in &questions {
            answers.push(self.queries(&models, picture, question, asker).await?);
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
                self.masks(&models, picture, &boxes, asker).await?
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

    /// Segments what an annotator marked: one mask per mark, in the same order.
    ///
    /// # Errors
    /// See [`StageError`].
    pub async fn cut_out(
        &self,
        picture: &Picture<'_>,
        marks: Vec<SegmentPrompt>,
        asker: Asker<'_>,
    ) -> Result<Vec<Arc<ScoredMask>>, Failed> {
        let models = self.models().await?;
        let mut masks = vec![];
        for mark in marks {
            let key = (picture.digest, MarkKey::of_mark(&mark));
            if let Some(mask) = self.masks.get(&key).await {
                asker.timings.kept("masks");
                masks.push(mask);
                continue;
            }
            let embedding = self.embedding(&models, picture, asker).await?;
            let models = models.clone();
            let step = move || {
                models
                    .segmenter()?
                    .segment_prompt(&embedding, &mark)
                    .map_err(Into::into)
            };
            let small: LowResMask = self.step("masks", asker, step).await?;
            let mask = off_thread(move || Arc::new(small.to_image_size())).await?;
            self.masks.keep(key, mask.clone()).await;
            masks.push(mask);
        }
        Ok(masks)
    }

    pub(super) async fn models(&self) -> Result<Arc<Models>, Failed> {
        Ok(self.loading.models().await.map_err(StageError::from)?)
    }

    /// Tokenizes the prompt outside the async threads, because thousands of labels take a while.
    async fn questions(
        &self,
        models: &Arc<Models>,
        query: &Query,
    ) -> Result<Vec<CaptionPass>, Failed> {
        let (models, query) = (models.clone(), query.clone());
        let questions = off_thread(move || {
            let detector = &models.detector;
            let mut prompt = query.prompt;
            if query.skips_unreadable {
                for phrase in detector.unencodable_phrases(&prompt)? {
                    tracing::warn!(
                        phrase,
                        "the detector cannot read this label: it is not looked for"
                    );
                    // if no phrase is left, `passes` returns the error
                    prompt = prompt.without(&phrase).unwrap_or(prompt);
                }
            }
            detector.passes(&prompt)
        });
        Ok(questions.await?.map_err(StageError::from)?)
    }

    async fn features(
        &self,
        models: &Arc<Models>,
        picture: &Picture<'_>,
        asker: Asker<'_>,
    ) -> Result<ImageFeatures, Failed> {
        let make = async {
            let pixels = picture.pixels().await?;
            let models = models.clone();
            let step = move || Ok(models.detector.encode_image(&pixels)?);
            self.step("image_features", asker, step).await
        };
        let had = self.features.get_or_make(picture.digest, make).await?;
        if had.source == Source::Kept {
            asker.timings.kept("image_features");
        }
        Ok(had.value)
    }

    async fn text(
        &self,
        models: &Arc<Models>,
        question: &CaptionPass,
        asker: Asker<'_>,
    ) -> Result<TextFeatures, Failed> {
        let make = async {
            let (models, caption) = (models.clone(), question.caption.clone());
            let step = move || Ok(models.detector.encode_text(&caption)?);
            self.step("text_features", asker, step).await
        };
        let key = question.caption.ids.clone();
        let had = self.texts.get_or_make(key, make).await?;
        if had.source == Source::Kept {
            asker.timings.kept("text_features");
        }
        Ok(had.value)
    }

    async fn queries(
        &self,
        models: &Arc<Models>,
        picture: &Picture<'_>,
        question: &CaptionPass,
        asker: Asker<'_>,
    ) -> Result<Arc<Queries>, Failed> {
        let key = (picture.digest, question.caption.ids.clone());
        if let Some(queries) = self.queries.get(&key).await {
            asker.timings.kept("queries");
            return Ok(queries);
        }
        let features = self.features(models, picture, asker).await?;
        let text = self.text(models, question, asker).await?;
        let make = async {
            let models = models.clone();
            let step = move || Ok(Arc::new(models.detector.run_pass(&features, &text)?));
            self.step("queries", asker, step).await
        };
        Ok(self.queries.get_or_make(key, make).await?.value)
    }

    /// The image embedding: from memory, else from disk, else computed.
    pub(super) async fn embedding(
        &self,
        models: &Arc<Models>,
        picture: &Picture<'_>,
        asker: Asker<'_>,
    ) -> Result<EncodedImage, Failed> {
        let make = async {
            models.segmenter()?;
            if let Some(image) = self.embedding_on_disk(models, picture).await {
                return Ok((image, Source::Warm));
            }
            let pixels = picture.pixels().await?;
            let step = {
                let models = models.clone();
                move || Ok(models.segmenter()?.encode(&pixels)?)
            };
            let image = self.step("image_embeddings", asker, step).await?;
            if let Some(warm) = &self.warm {
                warm.add(models, picture.digest, &image);
            }
            Ok((image, Source::Computed))
        };
        let had = self.embeddings.get_or_find(picture.digest, make).await?;
        match had.source {
            Source::Kept => asker.timings.kept("image_embeddings"),
            Source::Warm => asker.timings.warm("image_embeddings"),
            Source::Computed => {}
        }
        Ok(had.value)
    }

    async fn embedding_on_disk(
        &self,
        models: &Arc<Models>,
        picture: &Picture<'_>,
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
        picture: &Picture<'_>,
        boxes: &[BoundingBox],
        asker: Asker<'_>,
    ) -> Result<Vec<Arc<ScoredMask>>, Failed> {
        let key = |b: &BoundingBox| (picture.digest, MarkKey::of_box(b));
        let mut masks: Vec<Option<Arc<ScoredMask>>> = vec![];
        for bounding_box in boxes {
            masks.push(self.masks.get(&key(bounding_box)).await);
        }
        let is_missing = |i: &usize| masks[*i].is_none();
        let missing: Vec<usize> = (0..boxes.len()).filter(is_missing).collect();
        if missing.len() < boxes.len() {
            asker.timings.kept("masks");
        }
        let mut scaling = vec![];
        if !missing.is_empty() {
            let embedding = self.embedding(models, picture, asker).await?;
            for group in missing.chunks(BOXES_PER_PASS) {
                let of_group: Vec<BoundingBox> = group.iter().map(|i| boxes[*i]).collect();
                let (models, embedding) = (models.clone(), embedding.clone());
                let step = move || Ok(models.segmenter()?.low_res_masks(&embedding, &of_group)?);
                let small: Vec<LowResMask> = self.step("masks", asker, step).await?;
                scaling.push(tokio::task::spawn_blocking(move || {
                    let scaled = small
                        .par_iter()
                        .map(|small| Arc::new(small.to_image_size()));
                    scaled.collect::<Vec<_>>()
                }));
            }
        }
        for (group, scaled) in missing.chunks(BOXES_PER_PASS).zip(scaling) {
            let scaled = scaled
                .await
                .map_err(|_| StageError::Step(StepError::Panicked))?;
            for (i, mask) in group.iter().zip(scaled) {
                self.masks.keep(key(&boxes[*i]), mask.clone()).await;
                masks[*i] = Some(mask);
            }
        }
        Ok(masks.into_iter().flatten().collect())
    }

    /// Runs one step of a stage through the scheduler.
    async fn step<T: Send + 'static>(
        &self,
        stage: &'static str,
        asker: Asker<'_>,
        work: impl FnOnce() -> Result<T, StageError> + Send + 'static,
    ) -> Result<T, StageError> {
        let timed = move || {
            let _span = tracing::debug_span!("step", stage).entered();
            let start = Instant::now();
            (work(), start.elapsed())
        };
        let (result, time) = self.scheduler.run(asker.urgency, timed).await?;
        asker.timings.computed(stage, time);
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
