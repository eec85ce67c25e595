//! A part of a task's image as the models see it.

use std::borrow::Cow;

use image::RgbImage;

use crate::geometry::{ImageSize, Window};
use crate::media::{Digest, MediaError, Pixels, TaskImage};

/// A window of a task's image.
#[derive(Debug, Clone, Copy)]
pub(in crate::pipeline) struct View<'a> {
    pub(super) image: &'a TaskImage<'a>,
    pub(super) window: Window,
}

/// What identifies a view: the image's contents, and the window unless it is the whole image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ViewKey {
    digest: Digest,
    window: Option<Window>,
}

/// The pixels of an image, and the window to cut out of them.
#[derive(Debug)]
pub(super) struct ViewPixels {
    pixels: Pixels,
    window: Window,
}

impl<'a> View<'a> {
    /// The whole image.
    pub(in crate::pipeline) fn whole(image: &'a TaskImage<'a>) -> Self {
        let window = Window::whole(image.size);
        Self { image, window }
    }

    pub(super) fn is_whole(&self) -> bool {
        self.window == Window::whole(self.image.size)
    }

    pub(super) fn key(&self) -> ViewKey {
        ViewKey {
            digest: self.image.digest,
            window: (!self.is_whole()).then_some(self.window),
        }
    }

    /// The size of the image that the view is a part of.
    pub(super) fn image_size(&self) -> ImageSize {
        self.image.size
    }

    /// The pixels. If they are not cached, the image is fetched and decoded again.
    ///
    /// # Errors
    /// See [`TaskImage::pixels`].
    pub(super) async fn pixels(&self) -> Result<ViewPixels, MediaError> {
        Ok(ViewPixels {
            pixels: self.image.pixels().await?,
            window: self.window,
        })
    }
}

impl ViewPixels {
    /// The pixels of the window. It may copy them, so call it where the models run.
    pub(super) fn image(&self) -> Cow<'_, RgbImage> {
        self.window.pixels(&self.pixels)
    }
}
