//! The image of a task, and access to its pixels.

use std::sync::Arc;

use image::RgbImage;

use super::images::Fetched;
use super::{Digest, ImageRequest, Images, MediaError};
use crate::budget::Reservation;
use crate::geometry::ImageSize;

/// Decoded pixels with their memory reservation.
#[derive(Debug, Clone)]
pub struct Pixels {
    image: Arc<RgbImage>,
    /// `None` for the copy in the cache, which counts against `cache_bytes` and not against the budget of the requests.
    _memory: Option<Arc<Reservation>>,
}

impl std::ops::Deref for Pixels {
    type Target = RgbImage;

    fn deref(&self) -> &RgbImage {
        &self.image
    }
}

impl Pixels {
    pub(super) fn new(image: Arc<RgbImage>, memory: Option<Reservation>) -> Self {
        Self {
            image,
            _memory: memory.map(Arc::new),
        }
    }
}

/// The image of a task: its identity and size, and access to its pixels.
#[derive(Debug, Clone)]
pub struct TaskImage<'a> {
    images: &'a Images,
    request: ImageRequest<'a>,
    /// The digest of its file.
    pub digest: Digest,
    /// The size in pixels, after the EXIF orientation was applied.
    pub size: ImageSize,
    /// The pixels, if the lookup decoded them.
    pixels: Option<Pixels>,
}

impl<'a> TaskImage<'a> {
    pub(super) fn new(
        images: &'a Images,
        request: ImageRequest<'a>,
        digest: Digest,
        size: ImageSize,
        pixels: Option<Pixels>,
    ) -> Self {
        Self {
            images,
            request,
            digest,
            size,
            pixels,
        }
    }

    /// Whether the lookup decoded the image, because it was new or had changed.
    #[cfg(test)]
    pub(super) fn was_decoded(&self) -> bool {
        self.pixels.is_some()
    }

    /// Returns the pixels. If they are not cached, the image is fetched and decoded again.
    ///
    /// # Errors
    /// See [`MediaError`]; also if the location has another image by now.
    pub async fn pixels(&self) -> Result<Pixels, MediaError> {
        if let Some(pixels) = &self.pixels {
            return Ok(pixels.clone());
        }
        if let Some(pixels) = self.images.cached_pixels(&self.digest).await {
            return Ok(pixels);
        }
        let fetched = self.images.fetch_again(self.request).await?;
        let Fetched::New { digest, pixels, .. } = fetched else {
            return Err(self.changed());
        };
        if digest != self.digest {
            return Err(self.changed());
        }
        Ok(pixels)
    }

    fn changed(&self) -> MediaError {
        MediaError::Changed(self.request.value.chars().take(200).collect())
    }
}
