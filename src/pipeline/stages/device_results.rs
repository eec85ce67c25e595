//! The cached results whose tensors are on the device. They are the first thing to give up when its memory is full.

use std::sync::{Arc, Mutex, PoisonError};

use super::ViewKey;
use crate::detector::{ImageFeatures, TextFeatures};
use crate::segmenter::EncodedImage;
use crate::store::MemoryCache;

/// The caches of one pair of models.
#[derive(Debug, Clone)]
pub(super) struct ModelResults {
    pub(super) features: MemoryCache<ViewKey, ImageFeatures>,
    pub(super) texts: MemoryCache<Vec<u32>, TextFeatures>,
    pub(super) embeddings: MemoryCache<ViewKey, EncodedImage>,
}

/// The caches of all models on a device; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct DeviceResults(Arc<Mutex<Vec<ModelResults>>>);

impl DeviceResults {
    pub(super) fn add(&self, results: ModelResults) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(results);
    }

    /// Drops all results.
    pub(super) async fn clear(&self) {
        let all = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for results in all {
            results.features.clear().await;
            results.texts.clear().await;
            results.embeddings.clear().await;
        }
    }
}
