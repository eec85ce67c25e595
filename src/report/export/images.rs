//! Places image files in a dataset.

use std::fs;
use std::io;
use std::path::Path;

use image::{ImageFormat, RgbImage};

use super::ExportError;
use crate::media::decode::same_in_every_reader;
use crate::report::image_file::write_png;

/// What an image file of the dataset is made from.
#[derive(Debug, Clone, Copy)]
pub enum ImageContent<'a> {
    /// A file that is taken as it is.
    File {
        /// Its path.
        path: &'a Path,
        /// Its contents.
        bytes: &'a [u8],
        /// Its format, whatever its extension is.
        format: ImageFormat,
    },
    /// Pixels, which are written as a PNG.
    Pixels(&'a RgbImage),
}

impl<'a> ImageContent<'a> {
    /// The content of a file with its decoded pixels. The file is taken as it is only if every reader gets the same pixels
    /// from it. Else the pixels are written. An image with an orientation tag is one of those: the boxes are in the upright
    /// image, and some trainers apply the tag (OpenCV, and so Ultralytics), while others do not (Pillow, and so torchvision).
    pub fn of_file(path: &'a Path, bytes: &'a [u8], pixels: &'a RgbImage) -> Self {
        match same_in_every_reader(bytes) {
            Some(format) => Self::File {
                path,
                bytes,
                format,
            },
            None => Self::Pixels(pixels),
        }
    }

    /// The file's name in the dataset. The extension is that of the format, because trainers find images by it.
    pub(super) fn file_name(&self, name: &str) -> String {
        let extension = match self {
            Self::Pixels(_) => "png",
            Self::File { format, .. } => format.extensions_str().first().copied().unwrap_or("png"),
        };
        format!("{name}.{extension}")
    }

    /// Writes the image into the folders. A file is linked if that works, else copied.
    pub(super) fn place<'p>(
        &self,
        folders: impl Iterator<Item = &'p Path>,
        file_name: &str,
    ) -> Result<(), ExportError> {
        let mut first = None;
        for folder in folders {
            let target = folder.join(file_name);
            let written = match &first {
                // the formats share one file
                Some(first) => {
                    fs::hard_link(first, &target).or_else(|_| fs::copy(first, &target).map(|_| ()))
                }
                None => self.write(&target),
            };
            written.map_err(ExportError::of(&target))?;
            first.get_or_insert(target);
        }
        Ok(())
    }

    fn write(&self, target: &Path) -> io::Result<()> {
        match self {
            Self::Pixels(pixels) => write_png(pixels, target),
            Self::File {
                path,
                bytes,
                format,
            } => {
                let linked = may_be_linked(bytes, *format) && link(path, target).is_ok();
                match linked {
                    true => Ok(()),
                    false => fs::write(target, bytes),
                }
            }
        }
    }
}

/// Links a file; of a symbolic link, the file that it names.
fn link(path: &Path, target: &Path) -> io::Result<()> {
    fs::hard_link(fs::canonicalize(path)?, target)
}

/// Whether nobody would change the original through a link: Ultralytics repairs JPEG files without an end marker in place.
fn may_be_linked(bytes: &[u8], format: ImageFormat) -> bool {
    format != ImageFormat::Jpeg || bytes.ends_with(&[0xff, 0xd9])
}
