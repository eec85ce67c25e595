//! Image files: PNG.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use image::codecs::png::PngEncoder;
use image::{ImageError, RgbImage};

/// Writes an image as a PNG. `RgbImage::save` has the encoders of all formats, which take long to compile.
///
/// # Errors
/// If the file cannot be written.
pub fn write_png(image: &RgbImage, path: &Path) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let encoder = PngEncoder::new(&mut file);
    image
        .write_with_encoder(encoder)
        .map_err(|error| match error {
            ImageError::IoError(error) => error,
            other => std::io::Error::other(other),
        })?;
    file.flush()
}
