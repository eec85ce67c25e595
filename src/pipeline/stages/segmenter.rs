//! The stages of the segmenter: image embeddings and masks.

use std::sync::Arc;

use rayon::prelude::*;

use super::{SharedStageError, StageError, StageRequest, Stages, View, off_thread};
use crate::geometry::{BoundingBox, SegmentPrompt};
use crate::media::TaskImage;
use crate::pipeline::Models;
use crate::pipeline::scheduler::StepError;
use crate::segmenter::{EncodedImage, LowResMask, ScoredMask, Segmenter};
use crate::store::Source;

/// A box and points as a cache key, compared bit by bit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PromptKey {
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

    fn of_prompt(prompt: &SegmentPrompt) -> Self {
        let points = prompt.points.iter();
        Self {
            corners: prompt.bounding_box.map(|b| b.corners().map(f32::to_bits)),
            points: points
                .map(|p| (p.x.to_bits(), p.y.to_bits(), p.is_foreground))
                .collect(),
        }
    }
}

impl Stages {
    /// Segments the objects that an annotator marked: one mask per prompt, in the same order.
    ///
    /// # Errors
    /// See [`StageError`].
    pub async fn segment(
        &self,
        image: &TaskImage<'_>,
        prompts: Vec<SegmentPrompt>,
        request: StageRequest<'_>,
    ) -> Result<Vec<Arc<ScoredMask>>, SharedStageError> {
        let models = self.models().await?;
        let view = View::whole(image);
        let mut masks = vec![];
        for prompt in prompts {
            let key = (view.key(), PromptKey::of_prompt(&prompt));
            if let Some(mask) = self.masks.get(&key).await {
                request.timings.from_memory("masks");
                masks.push(mask);
                continue;
            }
            let embedding = self.embedding(&models, view, request).await?;
            let models = models.clone();
            let step = move || {
                models
                    .segmenter()?
                    .segment_prompt(&embedding, &prompt)
                    .map_err(Into::into)
            };
            let small: LowResMask = self.step("masks", request, step).await?;
            let mask = off_thread(move || Arc::new(small.to_image_size())).await?;
            self.masks.insert(key, mask.clone()).await;
            masks.push(mask);
        }
        Ok(masks)
    }

    /// Segments the objects in boxes: one mask per box, in the same order. The boxes are in pixels of the image.
    ///
    /// # Errors
    /// See [`StageError`].
    pub async fn box_masks(
        &self,
        image: &TaskImage<'_>,
        boxes: &[BoundingBox],
        request: StageRequest<'_>,
    ) -> Result<Vec<Arc<ScoredMask>>, SharedStageError> {
        let models = self.models().await?;
        models.segmenter().map_err(StageError::from)?;
        self.masks(&models, View::whole(image), boxes, request)
            .await
    }

    /// Computes the image embedding, unless it is cached: the first prompt then runs only the mask decoder.
    ///
    /// # Errors
    /// See [`StageError`].
    pub async fn prepare(
        &self,
        image: &TaskImage<'_>,
        request: StageRequest<'_>,
    ) -> Result<(), SharedStageError> {
        let models = self.models().await?;
        self.embedding(&models, View::whole(image), request).await?;
        Ok(())
    }

    /// Segments one object that an annotator marks with more and more points: `prompt` has all of them, in their order. The
    /// mask of the first points is a prompt for the mask of the next ones, as in SAM's reference. So the result depends
    /// only on the points, and not on what is cached.
    ///
    /// # Errors
    /// See [`StageError`].
    pub async fn refine(
        &self,
        image: &TaskImage<'_>,
        prompt: &SegmentPrompt,
        request: StageRequest<'_>,
    ) -> Result<Arc<ScoredMask>, SharedStageError> {
        let models = self.models().await?;
        let view = View::whole(image);
        let prompts = prompt.history();
        let key = |prompt: &SegmentPrompt| (view.key(), PromptKey::of_prompt(prompt));
        // the longest part that is cached
        let (mut earlier, mut start) = (None, 0);
        for (i, prompt) in prompts.iter().enumerate().rev() {
            earlier = self.refined.get(&key(prompt)).await;
            if earlier.is_some() {
                request.timings.from_memory("masks");
                start = i + 1;
                break;
            }
        }
        for prompt in &prompts[start..] {
            let embedding = self.embedding(&models, view, request).await?;
            let (models, earlier_mask, prompt_of_step) =
                (models.clone(), earlier.take(), prompt.clone());
            let step = move || {
                let segmenter = models.segmenter()?;
                let mask: LowResMask = match &earlier_mask {
                    Some(earlier) => segmenter.refine(&embedding, &prompt_of_step, earlier)?,
                    None => segmenter.segment_prompt(&embedding, &prompt_of_step)?,
                };
                Ok(Arc::new(mask))
            };
            let mask: Arc<LowResMask> = self.step("masks", request, step).await?;
            self.refined.insert(key(prompt), mask.clone()).await;
            earlier = Some(mask);
        }
        // the history ends with the prompt itself, so there is a mask
        let last = earlier.ok_or(StageError::Step(StepError::Panicked))?;
        Ok(off_thread(move || Arc::new(last.to_image_size())).await?)
    }

    /// The image embedding: from memory, else from disk, else computed. Only those of whole images are on disk.
    pub(in crate::pipeline) async fn embedding(
        &self,
        models: &Arc<Models>,
        view: View<'_>,
        request: StageRequest<'_>,
    ) -> Result<EncodedImage, SharedStageError> {
        let make = async {
            models.segmenter()?;
            if view.is_whole()
                && let Some(stored) = self.embedding_on_disk(models, view.image).await
            {
                return Ok((stored, Source::Disk));
            }
            let pixels = view.pixels().await?;
            let step = {
                let models = models.clone();
                move || Ok(models.segmenter()?.encode(&pixels.image())?)
            };
            let computed = self.step("image_embeddings", request, step).await?;
            if let Some(warm) = self.warm.as_ref().filter(|_| view.is_whole()) {
                warm.add(models, view.image.digest, &computed);
            }
            Ok((computed, Source::Computed))
        };
        let cached = self.embeddings.get_or_load(view.key(), make).await?;
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
        image: &TaskImage<'_>,
    ) -> Option<EncodedImage> {
        let (warm, models) = (self.warm.clone()?, models.clone());
        let (content, size) = (image.digest, image.size);
        // if the disk cannot be read, the embedding is computed instead
        let read = off_thread(move || warm.read(&models, content, size)).await;
        read.ok().flatten()
    }

    /// One mask per box of a view, in the same order. The boxes are in pixels of the view, and the masks have the size of
    /// the image. Each step decodes a few boxes. The masks of one step are scaled while the next step runs.
    pub(super) async fn masks(
        &self,
        models: &Arc<Models>,
        view: View<'_>,
        boxes: &[BoundingBox],
        request: StageRequest<'_>,
    ) -> Result<Vec<Arc<ScoredMask>>, SharedStageError> {
        let key = |b: &BoundingBox| (view.key(), PromptKey::of_box(b));
        let mut masks: Vec<Option<Arc<ScoredMask>>> = vec![];
        for bounding_box in boxes {
            masks.push(self.masks.get(&key(bounding_box)).await);
        }
        let is_missing = |i: &usize| masks[*i].is_none();
        let missing: Vec<usize> = (0..boxes.len()).filter(is_missing).collect();
        if missing.len() < boxes.len() {
            request.timings.from_memory("masks");
        }
        // without a segmenter, the embedding below is the error
        let per_pass = models.segmenter().map_or(1, Segmenter::boxes_per_pass);
        let mut scaling = vec![];
        if !missing.is_empty() {
            let embedding = self.embedding(models, view, request).await?;
            for group in missing.chunks(per_pass) {
                let of_group: Vec<BoundingBox> = group.iter().map(|i| boxes[*i]).collect();
                let (models, embedding) = (models.clone(), embedding.clone());
                let step = move || Ok(models.segmenter()?.low_res_masks(&embedding, &of_group)?);
                let small: Vec<LowResMask> = self.step("masks", request, step).await?;
                let (window, size) = (view.window, view.image_size());
                let is_whole = view.is_whole();
                scaling.push(tokio::task::spawn_blocking(move || {
                    let scaled = small.par_iter().map(|small| {
                        let mut scored = small.to_image_size();
                        if !is_whole {
                            scored.mask = window.mask_to_image(&scored.mask, size);
                        }
                        Arc::new(scored)
                    });
                    scaled.collect::<Vec<_>>()
                }));
            }
        }
        for (group, scaled) in missing.chunks(per_pass).zip(scaling) {
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
}
