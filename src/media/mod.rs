//! From what a task's data says of its image to pixels.

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

/// Why a task's image cannot be had; every message names the URL, without secrets.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// Not a URL groundling can follow.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// A host that is not asked.
    #[error(transparent)]
    Private(#[from] PrivateHost),
    /// Nothing to sign the request with.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The request failed on the way.
    #[error("cannot fetch {url}: {reason}")]
    #[allow(missing_docs)]
    Unreachable { url: String, reason: String },
    /// The host wants other credentials.
    #[error("{url} answered {status}: {hint}")]
    #[allow(missing_docs)]
    Refused {
        url: String,
        status: u16,
        hint: &'static str,
    },
    /// The host has no such file, or another answer than the image.
    #[error("{url} answered {status}{hint}")]
    #[allow(missing_docs)]
    Status {
        url: String,
        status: u16,
        hint: Cow<'static, str>,
    },
    /// More bytes than allowed.
    #[error("{url} has more than the {limit} bytes that an image may have (MAX_IMAGE_BYTES)")]
    #[allow(missing_docs)]
    TooLarge { url: String, limit: usize },
    /// Another image than a moment ago.
    #[error("{0} has changed while it was worked on: ask again")]
    Changed(String),
    /// Other requests use the memory that there is for all.
    #[error("{url}: {source}")]
    #[allow(missing_docs)]
    Memory { url: String, source: OutOfMemory },
    /// Bytes that are no image.
    #[error("{url}: {source}")]
    #[allow(missing_docs)]
    Decode { url: String, source: DecodeError },
}

impl Fetcher {
    /// Where the image is that a task's data names.
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
        // decoding computes: not on the async threads
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
