//! Image embeddings on disk: the first click on an image then needs only the mask decoder, also after a restart.

use std::sync::{Arc, OnceLock};

use candle_core::DType;
use tokio::sync::Semaphore;

use super::Models;
use super::identity::embeddings_identity;
use super::stages::{SharedStageError, StageError, StageRequest, Stages, View, off_thread};
use crate::geometry::ImageSize;
use crate::media::{Digest, TaskImage};
use crate::models::weights::Checkpoint;
use crate::segmenter::{EmbeddingFormatError, EncodedImage};
use crate::store::disk::{BlobKey, DiskError};
use crate::store::{DiskStore, Usage};

/// The model that computes image embeddings; clones share the computed identity.
#[derive(Debug, Clone)]
pub struct EmbeddingSource(Arc<Source>);

#[derive(Debug)]
struct Source {
    checkpoint: Checkpoint,
    dtype: DType,
    /// The inner `None` means that the weights could not be read.
    identity: OnceLock<Option<[u8; 32]>>,
}

impl EmbeddingSource {
    /// A segmenter's checkpoint and the dtype of its tensors. Reads no file.
    pub(super) fn new(checkpoint: Checkpoint, dtype: DType) -> Self {
        Self(Arc::new(Source {
            checkpoint,
            dtype,
            identity: OnceLock::new(),
        }))
    }

    /// Reads the weights on a separate thread, so that the identity is ready when it is needed.
    pub(super) fn identify(&self) {
        let source = self.clone();
        let thread = std::thread::Builder::new().name("identity".to_owned());
        // if no thread can be started, the first use computes the identity
        let _ = thread.spawn(move || source.identity());
    }

    /// A digest that distinguishes this model's embeddings from other models'. The first call reads the weights, and
    /// concurrent calls wait for it: do not call it on an async thread. `None`, with a warning in the log, if the
    /// weights cannot be read.
    pub(super) fn identity(&self) -> Option<[u8; 32]> {
        let Source {
            checkpoint,
            dtype,
            identity,
        } = &*self.0;
        *identity.get_or_init(|| {
            let read = embeddings_identity(checkpoint, *dtype);
            read.inspect_err(|error| {
                tracing::warn!(
                    "image embeddings are neither stored on disk nor read from it: {error}"
                );
            })
            .ok()
        })
    }
}

/// Why an image embedding cannot be stored on disk.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddingStoreError {
    /// The settings disable the store.
    #[error("the store of image embeddings on disk is disabled (WARM_BYTES=0)")]
    NoStore,
    /// The weights could not be read to identify the embeddings.
    #[error(
        "the segmenter's weights could not be read to compute their digest; the log has the reason"
    )]
    Unidentified,
    /// The embedding cannot be serialized.
    #[error(transparent)]
    Bytes(#[from] EmbeddingFormatError),
    /// The file could not be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// The store of image embeddings on disk; clones share it. Reads and writes block: do not call them on an async
/// thread.
#[derive(Debug, Clone)]
pub struct WarmEmbeddings {
    disk: DiskStore,
    /// Whether every computed embedding is added to the store.
    adds_computed: bool,
    /// Bounds the embeddings that wait for a slow disk.
    writing: Arc<Semaphore>,
}

/// Limit of concurrent background writes; further embeddings are not stored.
const MAX_CONCURRENT_WRITES: usize = 4;

impl WarmEmbeddings {
    /// Uses the store `disk`. With `adds_computed`, every computed embedding is added to it.
    pub fn new(disk: DiskStore, adds_computed: bool) -> Self {
        Self {
            disk,
            adds_computed,
            writing: Arc::new(Semaphore::new(MAX_CONCURRENT_WRITES)),
        }
    }

    /// The store of the files.
    pub fn disk(&self) -> &DiskStore {
        &self.disk
    }

    /// The usage of the store.
    pub(super) fn usage(&self) -> Usage {
        self.disk.usage()
    }

    /// Reads an image's embedding; `None` if it is missing, damaged, or from another model.
    pub(super) fn read(
        &self,
        models: &Models,
        content: Digest,
        size: ImageSize,
    ) -> Option<EncodedImage> {
        let key = key(models, content).ok()?;
        let bytes = self.disk.get(&key)?;
        match EncodedImage::from_bytes(&bytes, models.segmenter.as_ref()?) {
            // another version may decode the same bytes to another size
            Ok(image) => (image.size() == size).then_some(image),
            Err(error) => {
                tracing::warn!(image = %content, "an image embedding on disk cannot be used: {error}");
                None
            }
        }
    }

    /// The size of an image's embedding on disk, in bytes; `None` if it is missing. The call counts as a use for the
    /// eviction.
    pub(super) fn touch(&self, models: &Models, content: Digest) -> Option<u64> {
        self.disk.touch(&key(models, content).ok()?)
    }

    /// Writes an image's embedding; returns its size on disk in bytes.
    ///
    /// # Errors
    /// If it cannot be serialized, or the file cannot be written.
    pub(super) fn write(
        &self,
        models: &Models,
        content: Digest,
        image: &EncodedImage,
    ) -> Result<u64, EmbeddingStoreError> {
        let key = key(models, content)?;
        Ok(self.disk.put(&key, &image.to_bytes()?)?)
    }

    /// Stores a computed embedding in the background, if the settings enable it.
    pub(super) fn add(&self, models: &Arc<Models>, content: Digest, image: &EncodedImage) {
        if !self.adds_computed {
            return;
        }
        let Ok(permit) = self.writing.clone().try_acquire_owned() else {
            tracing::debug!(
                "an image embedding is not stored on disk, because earlier ones are still being written"
            );
            return;
        };
        let (this, models, image) = (self.clone(), models.clone(), image.clone());
        tokio::task::spawn_blocking(move || {
            match this.write(&models, content, &image) {
                Ok(_) => {}
                Err(EmbeddingStoreError::Disk(error)) => this.disk.warn_once(&error),
                // already logged where the error was detected
                Err(EmbeddingStoreError::Unidentified | EmbeddingStoreError::NoStore) => {}
                Err(error @ EmbeddingStoreError::Bytes(_)) => {
                    tracing::warn!(image = %content, "an image embedding is not stored on disk: {error}");
                }
            }
            drop(permit);
        });
    }
}

fn key(models: &Models, content: Digest) -> Result<BlobKey, EmbeddingStoreError> {
    let source = models.embedding_source.as_ref();
    let model = source.and_then(EmbeddingSource::identity);
    Ok(BlobKey {
        model: model.ok_or(EmbeddingStoreError::Unidentified)?,
        content: *content.bytes(),
    })
}

/// An image whose embedding is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmedImage {
    /// The digest of the image.
    pub digest: Digest,
    /// Size of the embedding on disk, in bytes.
    pub bytes: u64,
    /// Whether this call wrote it.
    pub is_new: bool,
}

/// Why an image could not be warmed.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// The embedding could not be computed.
    #[error(transparent)]
    Stage(#[from] SharedStageError),
    /// The embedding could not be stored.
    #[error(transparent)]
    Store(#[from] EmbeddingStoreError),
}

impl From<StageError> for WarmError {
    fn from(error: StageError) -> Self {
        Self::Stage(error.into())
    }
}

impl Stages {
    /// Size of one image embedding on disk, in bytes.
    ///
    /// # Errors
    /// If the models are not available, or no segmenter is loaded.
    pub async fn embedding_file_bytes(&self) -> Result<u64, SharedStageError> {
        let models = self.models().await?;
        let segmenter = models.segmenter().map_err(StageError::from)?;
        Ok(DiskStore::file_bytes(EncodedImage::bytes_on_disk(
            segmenter,
        )))
    }

    /// Computes an image's embedding and writes it to disk, unless it is stored already.
    ///
    /// # Errors
    /// If it cannot be computed or written.
    pub async fn warm_on_disk(
        &self,
        image: &TaskImage<'_>,
        request: StageRequest<'_>,
    ) -> Result<WarmedImage, WarmError> {
        let warm = self
            .warm_embeddings()
            .cloned()
            .ok_or(EmbeddingStoreError::NoStore)?;
        let models = self.models().await?;
        let digest = image.digest;
        let stored = {
            let (warm, models) = (warm.clone(), models.clone());
            off_thread(move || warm.touch(&models, digest)).await?
        };
        if let Some(bytes) = stored {
            return Ok(WarmedImage {
                digest,
                bytes,
                is_new: false,
            });
        }
        let image = self.embedding(&models, View::whole(image), request).await?;
        let bytes = off_thread(move || warm.write(&models, digest, &image)).await??;
        Ok(WarmedImage {
            digest,
            bytes,
            is_new: true,
        })
    }
}
