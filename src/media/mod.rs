//! Locates, fetches and decodes the image of a task.

mod data_uri;
pub mod decode;
mod digest;
mod download;
mod fetch;
mod fetch_permits;
pub mod guard;
mod images;
mod known_images;
mod local;
mod location;
mod orientation;
mod task_image;

use std::borrow::Cow;

use image::RgbImage;

pub use decode::{DecodeError, decode};
pub use digest::Digest;
pub use fetch::{Fetcher, FetcherConfig, ImageRequest};
pub use images::{ImageLimits, Images};
pub use location::{Location, LocationError, ResolveContext, locate};
pub use task_image::{Pixels, TaskImage};

use self::fetch::FetchResult;
use self::guard::PrivateHost;
use crate::budget::OutOfMemory;
use crate::label_studio::TokenError;

/// Why a task's image cannot be loaded. Every message names the URL, without secrets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
    #[error("{url} is larger than {limit} bytes (MAX_IMAGE_BYTES)")]
    #[allow(missing_docs)]
    TooLarge { url: String, limit: usize },
    /// The image at this location changed between two requests for it.
    #[error("{0} changed while the request was processed: send the request again")]
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
        let context = ResolveContext {
            label_studio: request.label_studio,
            task: request.task,
            local_files: self.config.local_files.as_deref(),
        };
        locate(request.value, context)
    }

    /// Fetches and decodes the image that a task's data names.
    ///
    /// # Errors
    /// See [`MediaError`].
    pub async fn load(&self, request: ImageRequest<'_>) -> Result<RgbImage, MediaError> {
        let location = self.locate(request)?;
        let name = location.describe(request.label_studio);
        let FetchResult::File(file) = self.fetch_file(location, request, None).await? else {
            return Err(MediaError::Changed(name));
        };
        let max_pixels = self.config.max_pixels;
        run_decoder(name, move || decode(&file.bytes, max_pixels)).await
    }
}

/// Runs a decoder outside of the async threads, because it uses the CPU. `url` is the name of the image in messages.
async fn run_decoder<T: Send + 'static>(
    url: String,
    decode: impl FnOnce() -> Result<T, DecodeError> + Send + 'static,
) -> Result<T, MediaError> {
    let decoded = tokio::task::spawn_blocking(decode).await;
    let decoded = decoded.unwrap_or(Err(DecodeError::Panicked));
    decoded.map_err(|source| MediaError::Decode { url, source })
}
