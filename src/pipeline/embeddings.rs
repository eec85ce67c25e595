//! Image embeddings of the images that were marked last: an annotator clicks more than once on an image,
//! and the image encoder is most of the work.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::segmenter::EncodedImage;

/// A digest that names an image.
pub type ImageKey = [u8; 32];

/// The last embeddings, 4 MB each at SAM's size; the image of a URL may change, so they are not kept long.
#[derive(Debug)]
pub(super) struct Embeddings(Mutex<LruCache<ImageKey, (Instant, EncodedImage)>>);

const KEPT: NonZeroUsize = NonZeroUsize::new(8).unwrap();
const MAX_AGE: Duration = Duration::from_secs(900);

impl Default for Embeddings {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(KEPT)))
    }
}

impl Embeddings {
    pub(super) fn get(&self, key: &ImageKey) -> Option<EncodedImage> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, image) = kept.get(key)?;
        (since.elapsed() < MAX_AGE).then(|| image.clone())
    }

    pub(super) fn keep(&self, key: ImageKey, image: EncodedImage) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.put(key, (Instant::now(), image));
    }
}
