//! What is known of images that were fetched before: an entry of the lookup cache and its key.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use secrecy::ExposeSecret;

use super::fetch::Validators;
use super::{Digest, ImageRequest};
use crate::geometry::ImageSize;

/// The cache key of an image lookup. It contains the task, because a cloud URI is resolved by the storage of the task's
/// project.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct LookupKey {
    label_studio: Option<String>,
    task: Option<u64>,
    pub(super) url: String,
    /// Digest of the user name and password, because users may have different access rights.
    login: Option<Digest>,
}

/// What is known of the image of a [`LookupKey`].
#[derive(Debug)]
pub(super) struct KnownImage {
    pub(super) digest: Digest,
    pub(super) size: ImageSize,
    pub(super) validators: Validators,
    /// When the image was last known to be unchanged.
    validated_at: Mutex<Instant>,
}

impl LookupKey {
    /// The key of a request.
    pub(super) fn new(request: ImageRequest<'_>) -> Self {
        Self {
            label_studio: request.label_studio.base().map(str::to_owned),
            task: request.task,
            url: request.value.to_owned(),
            login: request.login.map(|(user, password)| {
                Digest::of(format!("{user}\0{}", password.expose_secret()).as_bytes())
            }),
        }
    }
}

impl KnownImage {
    /// An image that was fetched just now.
    pub(super) fn new(digest: Digest, size: ImageSize, validators: Validators) -> Self {
        Self {
            digest,
            size,
            validators,
            validated_at: Mutex::new(Instant::now()),
        }
    }

    /// The time since the image was last known to be unchanged.
    pub(super) fn validation_age(&self) -> Duration {
        self.validated_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }

    /// Records that the image is unchanged now.
    pub(super) fn mark_validated(&self) {
        *self
            .validated_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}
