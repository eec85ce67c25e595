//! A prediction stage by stage: each is computed where its turn comes, and kept under what it depends on.
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
//! The image embedding may also be on disk ([`super::warm`]): then it is neither computed, nor are pixels needed for it.
//!
//! So a moved threshold needs no model but the mask decoder for boxes that are new, and another prompt neither the
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
    DetectError, DetectionOptions, ImageFeatures, Queries, Question, TextFeatures, detections,
};
use crate::geometry::{BoundingBox, Mark};
use crate::media::{Digest, MediaError, Picture};
use crate::prompt::Prompt;
use crate::segmenter::{BOXES_AT_ONCE, EncodedImage, ScoredMask, SegmentError, SmallMask};
use crate::store::{Kept, Source, Usage};

/// Why a stage has no result.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// There are no models yet.
    #[error(transparent)]
    NotReady(#[from] NotReady),
    /// The image cannot be had.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The models cannot do it.
    #[error(transparent)]
    Predict(#[from] PredictError),
    /// It was not computed to its end.
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

/// A failure is told to all who waited for the same stage.
pub type Failed = Arc<StageError>;

/// The stages, and what is kept of them; clones share it.
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

/// A box or points, exactly.
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

    fn of_mark(mark: &Mark) -> Self {
        let points = mark.points.iter();
        Self {
            corners: mark.bounding_box.map(|b| b.corners().map(f32::to_bits)),
            points: points
                .map(|p| (p.x.to_bits(), p.y.to_bits(), p.is_positive))
                .collect(),
        }
    }
}

/// What to look for in an image.
#[derive(Debug, Clone)]
pub struct Query {
    /// The phrases.
    pub prompt: Prompt,
    /// What counts as found.
    pub options: DetectionOptions,
    /// Whether objects are cut out.
    pub with_masks: bool,
    /// Whether a phrase that the model cannot read is left out, instead of failing: nobody typed it, it is one
    /// label of many.
    pub skips_unreadable: bool,
}

/// Who asks, and where the time is written down.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// How urgent it is.
    pub urgency: Urgency,
    /// Of this request.
    pub timings: &'a Timings,
}

/// Results are content of images: they do not grow old. What nobody asks for is dropped all the same.
const UNUSED: Duration = Duration::from_secs(6 * 3600);

/// The stages' share of what may be kept in memory; the rest is for decoded images.
pub const STAGES_PERCENT: u64 = 95;

impl Stages {
    /// With models that are on their way, keeping up to [`STAGES_PERCENT`] of `bytes` of results in memory, and image
    /// embeddings on disk if `warm` says where.
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

    /// The models, or how far they are.
    pub fn loading(&self) -> &Loading {
        &self.loading
    }

    /// The queue.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Lets go of what is not to be kept.
    pub async fn tidy(&self) {
        self.features.tidy().await;
        self.texts.tidy().await;
        self.queries.tidy().await;
        self.embeddings.tidy().await;
        self.masks.tidy().await;
    }

    /// What each stage keeps.
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

    /// The image embeddings on disk, if the settings have room for them.
    pub fn warm_embeddings(&self) -> Option<&WarmEmbeddings> {
        self.warm.as_ref()
    }

    /// Finds and cuts out what is asked for.
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

    /// Cuts out what an annotator marked, one mask per mark, in their order.
    ///
    /// # Errors
    /// See [`StageError`].
    pub async fn cut_out(
        &self,
        picture: &Picture<'_>,
        marks: Vec<Mark>,
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
                    .segment_mark(&embedding, &mark)
                    .map_err(Into::into)
            };
            let small: SmallMask = self.step("masks", asker, step).await?;
            let mask = off_thread(move || Arc::new(small.to_image_size())).await?;
            self.masks.keep(key, mask.clone()).await;
            masks.push(mask);
        }
        Ok(masks)
    }

    pub(super) async fn models(&self) -> Result<Arc<Models>, Failed> {
        Ok(self.loading.models().await.map_err(StageError::from)?)
    }

    /// Tokens of thousands of labels take a while: not on the async threads.
    async fn questions(
        &self,
        models: &Arc<Models>,
        query: &Query,
    ) -> Result<Vec<Question>, Failed> {
        let (models, query) = (models.clone(), query.clone());
        let questions = off_thread(move || {
            let detector = &models.detector;
            let mut prompt = query.prompt;
            if query.skips_unreadable {
                for phrase in detector.unreadable(&prompt)? {
                    tracing::warn!(
                        phrase,
                        "the detector cannot read this label: it is not looked for"
                    );
                    // where nothing is left, the questions say so
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
        question: &Question,
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
        question: &Question,
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
            let step = move || Ok(Arc::new(models.detector.ask(&features, &text)?));
            self.step("queries", asker, step).await
        };
        Ok(self.queries.get_or_make(key, make).await?.value)
    }

    /// From memory, else from disk, else computed.
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
        // a disk that cannot be read is no reason to answer with an error
        let read = off_thread(move || warm.read(&models, content, size)).await;
        read.ok().flatten()
    }

    /// One mask per box, in their order. A few boxes are a step; the masks of one are scaled to the image's size while
    /// the next ones are computed.
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
            for group in missing.chunks(BOXES_AT_ONCE) {
                let of_group: Vec<BoundingBox> = group.iter().map(|i| boxes[*i]).collect();
                let (models, embedding) = (models.clone(), embedding.clone());
                let step = move || Ok(models.segmenter()?.small_masks(&embedding, &of_group)?);
                let small: Vec<SmallMask> = self.step("masks", asker, step).await?;
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
                self.masks.keep(key(&boxes[*i]), mask.clone()).await;
                masks[*i] = Some(mask);
            }
        }
        Ok(masks.into_iter().flatten().collect())
    }

    /// Computes one step when its turn comes.
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

/// Runs what computes for a while, and is not the models', off the async threads.
///
/// # Errors
/// If it panics.
pub async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StageError> {
    // what it logs belongs to the same request
    let span = tracing::Span::current();
    let done = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    done.map_err(|_| StageError::Step(StepError::Panicked))
}
