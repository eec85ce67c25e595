//! Image embeddings on disk: the first click on an image then costs the mask decoder only, after a restart too.

use std::sync::{Arc, OnceLock};

use candle_core::DType;
use tokio::sync::Semaphore;

use super::Models;
use super::stages::{Asker, Failed, StageError, Stages, off_thread};
use crate::geometry::ImageSize;
use crate::media::{Digest, Picture};
use crate::models::weights::Checkpoint;
use crate::segmenter::{BytesError, EncodedImage, embeddings_identity};
use crate::store::disk::{BlobKey, DiskError};
use crate::store::{DiskStore, Usage};

/// Which model computes image embeddings; clones share the identity.
#[derive(Debug, Clone)]
pub struct EmbeddingSource(Arc<Source>);

#[derive(Debug)]
struct Source {
    checkpoint: Checkpoint,
    dtype: DType,
    /// `None` in it if the weights cannot be read.
    identity: OnceLock<Option<[u8; 32]>>,
}

impl EmbeddingSource {
    /// A segmenter's checkpoint, and how its numbers are kept. No file is read yet.
    pub(super) fn new(checkpoint: Checkpoint, dtype: DType) -> Self {
        Self(Arc::new(Source {
            checkpoint,
            dtype,
            identity: OnceLock::new(),
        }))
    }

    /// Reads the weights on a thread of its own, so that the identity is known when it is asked for.
    pub(super) fn identify(&self) {
        let source = self.clone();
        let thread = std::thread::Builder::new().name("identity".to_owned());
        // without a thread whoever asks first reads them
        let _ = thread.spawn(move || source.identity());
    }

    /// What tells its embeddings from those of other models. The first call reads the weights, and others wait for it:
    /// not for the async threads. `None`, which is logged, if they cannot be read.
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
                    "image embeddings are neither kept on disk nor read from it: {error}"
                );
            })
            .ok()
        })
    }
}

/// Why an image embedding is not on disk.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The settings have no room for it.
    #[error("no bytes may be kept on disk (WARM_BYTES=0)")]
    NoStore,
    /// The weights could not be read again.
    #[error("the segmenter's weights could not be read to identify its embeddings; see the log")]
    Unidentified,
    /// It has no form on disk.
    #[error(transparent)]
    Bytes(#[from] BytesError),
    /// It could not be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// The image embeddings on disk; clones share them. What reads and writes here is not for the async threads.
#[derive(Debug, Clone)]
pub struct WarmEmbeddings {
    disk: DiskStore,
    /// Whether what is computed for other reasons is added.
    adds_computed: bool,
    /// Bounds the embeddings that wait for a slow disk.
    writing: Arc<Semaphore>,
}

/// Embeddings that are being written in the background at a time; more are not kept.
const WRITES_AT_ONCE: usize = 4;

impl WarmEmbeddings {
    /// In this store. With `adds_computed` every embedding that is computed is added to it.
    pub fn new(disk: DiskStore, adds_computed: bool) -> Self {
        Self {
            disk,
            adds_computed,
            writing: Arc::new(Semaphore::new(WRITES_AT_ONCE)),
        }
    }

    /// The files.
    pub fn disk(&self) -> &DiskStore {
        &self.disk
    }

    /// What is held, read and missed.
    pub(super) fn usage(&self) -> Usage {
        self.disk.usage()
    }

    /// Reads an image's embedding; `None` if it is not there, damaged, or of another model.
    pub(super) fn read(
        &self,
        models: &Models,
        content: Digest,
        size: ImageSize,
    ) -> Option<EncodedImage> {
        let key = key(models, content).ok()?;
        let bytes = self.disk.get(&key)?;
        match EncodedImage::from_bytes(&bytes, models.segmenter.as_ref()?) {
            // the same bytes may be decoded to another size by another version
            Ok(image) => (image.size() == size).then_some(image),
            Err(error) => {
                tracing::warn!(image = %content, "a kept image embedding cannot be used: {error}");
                None
            }
        }
    }

    /// The bytes that an image's embedding takes on disk, if it is there; counts as a use of it.
    pub(super) fn touch(&self, models: &Models, content: Digest) -> Option<u64> {
        self.disk.touch(&key(models, content).ok()?)
    }

    /// Writes an image's embedding; returns the bytes that it takes on disk.
    ///
    /// # Errors
    /// If it has no form on disk, or the folder cannot be written.
    pub(super) fn write(
        &self,
        models: &Models,
        content: Digest,
        image: &EncodedImage,
    ) -> Result<u64, KeepError> {
        let key = key(models, content)?;
        Ok(self.disk.put(&key, &image.to_bytes()?)?)
    }

    /// Writes what was computed, if the settings say so, without keeping anybody waiting.
    pub(super) fn add(&self, models: &Arc<Models>, content: Digest, image: &EncodedImage) {
        if !self.adds_computed {
            return;
        }
        let Ok(permit) = self.writing.clone().try_acquire_owned() else {
            tracing::debug!("an image embedding is not kept: the disk is too slow");
            return;
        };
        let (this, models, image) = (self.clone(), models.clone(), image.clone());
        tokio::task::spawn_blocking(move || {
            match this.write(&models, content, &image) {
                Ok(_) => {}
                Err(KeepError::Disk(error)) => this.disk.complain(&error),
                // told where it was found out
                Err(KeepError::Unidentified | KeepError::NoStore) => {}
                Err(error @ KeepError::Bytes(_)) => {
                    tracing::warn!(image = %content, "an image embedding is not kept: {error}");
                }
            }
            drop(permit);
        });
    }
}

fn key(models: &Models, content: Digest) -> Result<BlobKey, KeepError> {
    let source = models.embedding_source.as_ref();
    let model = source.and_then(EmbeddingSource::identity);
    Ok(BlobKey {
        model: model.ok_or(KeepError::Unidentified)?,
        content: *content.bytes(),
    })
}

/// An image whose embedding is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warmed {
    /// The image.
    pub digest: Digest,
    /// Bytes that its embedding takes on disk.
    pub bytes: u64,
    /// Whether it was written just now.
    pub is_new: bool,
}

/// Why an image was not warmed.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// Its embedding was not computed.
    #[error(transparent)]
    Stage(#[from] Failed),
    /// It was not written.
    #[error(transparent)]
    Keep(#[from] KeepError),
}

impl From<StageError> for WarmError {
    fn from(error: StageError) -> Self {
        Self::Stage(error.into())
    }
}

impl Stages {
    /// Bytes that the embedding of an image takes on disk.
    ///
    /// # Errors
    /// If there are no models, or no segmenter.
    pub async fn warm_bytes(&self) -> Result<u64, Failed> {
        let models = self.models().await?;
        let segmenter = models.segmenter().map_err(StageError::from)?;
        Ok(DiskStore::file_bytes(EncodedImage::bytes_on_disk(
            segmenter,
        )))
    }

    /// Computes an image's embedding and writes it to disk, unless it is there.
    ///
    /// # Errors
    /// If it cannot be computed, or not be written.
    pub async fn warm_on_disk(
        &self,
        picture: &Picture<'_>,
        asker: Asker<'_>,
    ) -> Result<Warmed, WarmError> {
        let warm = self.warm_embeddings().cloned().ok_or(KeepError::NoStore)?;
        let models = self.models().await?;
        let digest = picture.digest;
        let there = {
            let (warm, models) = (warm.clone(), models.clone());
            off_thread(move || warm.touch(&models, digest)).await?
        };
        if let Some(bytes) = there {
            return Ok(Warmed {
                digest,
                bytes,
                is_new: false,
            });
        }
        let image = self.embedding(&models, picture, asker).await?;
        let bytes = off_thread(move || warm.write(&models, digest, &image)).await??;
        Ok(Warmed {
            digest,
            bytes,
            is_new: true,
        })
    }
}
