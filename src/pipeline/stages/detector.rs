//! The stages of the detector: image features, text features and queries.

use std::sync::Arc;

use super::{Query, SharedStageError, StageError, StageRequest, Stages, View, off_thread};
use crate::detector::{CaptionPass, ImageFeatures, Queries, TextFeatures};
use crate::pipeline::{Models, PredictError};
use crate::store::Source;

impl Stages {
    /// Tokenizes the prompt outside the async threads, because thousands of labels take a while.
    pub(super) async fn passes(
        &self,
        models: &Arc<Models>,
        query: &Query,
    ) -> Result<Vec<CaptionPass>, SharedStageError> {
        let (models, query) = (models.clone(), query.clone());
        let passes = off_thread(move || {
            let detector = models.detector()?;
            let mut prompt = query.prompt;
            if query.skips_unencodable {
                for phrase in detector.unencodable_phrases(&prompt)? {
                    tracing::warn!(
                        phrase,
                        "the detector cannot encode this label, so it does not search for it"
                    );
                    // if no phrase is left, `passes` returns the error
                    prompt = prompt.without(&phrase).unwrap_or(prompt);
                }
            }
            Ok::<_, PredictError>(detector.passes(&prompt)?)
        });
        Ok(passes.await?.map_err(StageError::from)?)
    }

    async fn features(
        &self,
        models: &Arc<Models>,
        view: View<'_>,
        request: StageRequest<'_>,
    ) -> Result<ImageFeatures, SharedStageError> {
        let make = async {
            let pixels = view.pixels().await?;
            let models = models.clone();
            let step = move || Ok(models.detector()?.encode_image(&pixels.image())?);
            self.step("image_features", request, step).await
        };
        let cached = self.features.get_or_compute(view.key(), make).await?;
        if cached.source == Source::Memory {
            request.timings.from_memory("image_features");
        }
        Ok(cached.value)
    }

    async fn text(
        &self,
        models: &Arc<Models>,
        pass: &CaptionPass,
        request: StageRequest<'_>,
    ) -> Result<TextFeatures, SharedStageError> {
        let make = async {
            let (models, caption) = (models.clone(), pass.caption.clone());
            let step = move || Ok(models.detector()?.encode_text(&caption)?);
            self.step("text_features", request, step).await
        };
        let key = pass.caption.ids.clone();
        let cached = self.texts.get_or_compute(key, make).await?;
        if cached.source == Source::Memory {
            request.timings.from_memory("text_features");
        }
        Ok(cached.value)
    }

    pub(super) async fn queries(
        &self,
        models: &Arc<Models>,
        view: View<'_>,
        pass: &CaptionPass,
        request: StageRequest<'_>,
    ) -> Result<Arc<Queries>, SharedStageError> {
        let key = (view.key(), pass.caption.ids.clone());
        if let Some(queries) = self.queries.get(&key).await {
            request.timings.from_memory("queries");
            return Ok(queries);
        }
        let features = self.features(models, view, request).await?;
        let text = self.text(models, pass, request).await?;
        let make = async {
            let models = models.clone();
            let step = move || Ok(Arc::new(models.detector()?.run_pass(&features, &text)?));
            self.step("queries", request, step).await
        };
        Ok(self.queries.get_or_compute(key, make).await?.value)
    }
}
