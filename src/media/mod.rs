//! Locates, fetches and decodes the image of a task.

pub mod decode;
mod fetch;
pub mod guard;
mod hosts;
mod images;
mod local;
mod location;
mod orientation;

use std::borrow::Cow;

use image::RgbImage;

pub use decode::{DecodeError, decode};
pub use fetch::{Fetcher, FetcherConfig, ImageRequest};
pub use images::{Digest, ImageLimits, Images, Picture, Pixels};
pub use location::{Location, LocationError, Surroundings, locate};

use self::fetch::Answer;
use self::guard::PrivateHost;
use crate::budget::OutOfMemory;
use crate::label_studio::TokenError;

/// Why a task's image cannot be loaded. Every message names the URL, without secrets.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// The value in the task is not a usable image URL.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// The host has a private address, and is not allowed.
    #[error(transparent)]
    Private(#[from] PrivateHost),
    /// There is no usable token for Label Studio.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The connection failed, or the file could not be opened.
    #[error("cannot fetch {url}: {reason}")]
    #[allow(missing_docs)]
    Unreachable { url: String, reason: String },
    /// The host rejected the credentials (401 or 403).
    #[error("{url} answered {status}: {hint}")]
    #[allow(missing_docs)]
    Refused {
        url: String,
        status: u16,
        hint: &'static str,
    },
    /// The host answered with another error status, for example because it has no such file.
    #[error("{url} answered {status}{hint}")]
    #[allow(missing_docs)]
    Status {
        url: String,
        status: u16,
        hint: Cow<'static, str>,
    },
    /// The file is larger than allowed.
    #[error("{url} has more than the {limit} bytes that an image may have (MAX_IMAGE_BYTES)")]
    #[allow(missing_docs)]
    TooLarge { url: String, limit: usize },
    /// The image at this location changed between two requests for it.
    #[error("{0} has changed while it was worked on: ask again")]
    Changed(String),
    /// Other requests use the memory budget.
    #[error("{url}: {source}")]
    #[allow(missing_docs)]
    Memory { url: String, source: OutOfMemory },
    /// The file cannot be decoded as an image.
    #[error("{url}: {source}")]
    #[allow(missing_docs)]
    Decode { url: String, source: DecodeError },
}

impl Fetcher {
    /// Locates the image that a task's data names.
    ///
    /// # Errors
    /// See [`LocationError`].
    pub fn locate(&self, request: ImageRequest<'_>) -> Result<Location, LocationError> {
        let around = Surroundings {
            label_studio: request.label_studio,
            task: request.task,
            local_files: self.config.local_files.as_deref(),
        };
        locate(request.value, around)
    }

    /// Fetches and decodes the image that a task's data names.
    ///
    /// # Errors
    /// See [`MediaError`].
    pub async fn load(&self, request: ImageRequest<'_>) -> Result<RgbImage, MediaError> {
        let location = self.locate(request)?;
        let name = location.describe(request.label_studio);
        let Answer::File(file) = self.bytes(location, request, None).await? else {
            return Err(MediaError::Changed(name));
        };
        let max_pixels = self.config.max_pixels;
        // decoding uses the CPU, so it runs outside of the async threads
        let decoded = tokio::task::spawn_blocking(move || decode(&file.bytes, max_pixels)).await;
        match decoded {
            Ok(Ok(image)) => Ok(image),
            Ok(Err(source)) => Err(MediaError::Decode { url: name, source }),
            Err(_) => Err(MediaError::Decode {
                url: name,
                source: DecodeError::Panicked,
            }),
        }
    }
}
