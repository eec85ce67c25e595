//! Decodes image files to upright RGB.

use std::io::Cursor;
use std::panic::catch_unwind;

use image::metadata::Orientation;
use image::{
    ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, Rgb, RgbImage, Rgba,
};

use super::orientation::apply_orientation;

/// Why a file could not be decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The format is unknown, or the file is damaged.
    #[error(
        "not a readable image (supported: PNG, JPEG, WebP, GIF, BMP, TIFF and a few other formats): {0}"
    )]
    Unreadable(#[from] image::ImageError),
    /// The image has too many pixels. This is checked before it is decoded.
    #[error(
        "the image has {width}x{height} pixels; the maximum is {limit} pixels in all (MAX_IMAGE_PIXELS)"
    )]
    #[allow(missing_docs)]
    TooManyPixels {
        width: u32,
        height: u32,
        limit: usize,
    },
    /// A decoder panicked.
    #[error("the decoder panicked on this image")]
    Panicked,
}

/// Decodes the first image of a file to 8-bit RGB. Like Pillow, it applies the EXIF orientation, puts transparent
/// pixels on white, and reduces deeper channels to 8 bits by taking their high byte.
///
/// # Errors
/// If the bytes are not an image, are damaged, or have more than `max_pixels` pixels; also if a decoder panics on them.
pub fn decode(bytes: &[u8], max_pixels: usize) -> Result<RgbImage, DecodeError> {
    // decoders are third-party code, and fuzzing found damaged files on which they panic
    let decoded = catch_unwind(|| decode_without_catch(bytes, max_pixels));
    decoded.unwrap_or(Err(DecodeError::Panicked))
}

fn decode_without_catch(bytes: &[u8], max_pixels: usize) -> Result<RgbImage, DecodeError> {
    let reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(image::ImageError::IoError)?;
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if width as usize * height as usize > max_pixels {
        return Err(DecodeError::TooManyPixels {
            width,
            height,
            limit: max_pixels,
        });
    }
    let mut limits = Limits::default();
    // no format decodes to more than 16 bytes per pixel; the rest is working memory for the decoder
    limits.max_alloc = Some(
        (max_pixels as u64)
            .saturating_mul(16)
            .saturating_add(64 << 20),
    );
    decoder.set_limits(limits)?;
    let orientation = decoder.orientation()?;
    let image = flatten_on_white(DynamicImage::from_decoder(decoder)?);
    Ok(apply_orientation(image, orientation))
}

/// The width and height in pixels that the header of a file declares, before the orientation is applied.
pub(super) fn dimensions(bytes: &[u8]) -> Option<(u32, u32)> {
    let dimensions = catch_unwind(|| {
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
        reader.ok()?.into_dimensions().ok()
    });
    dimensions.ok().flatten()
}

/// The format of a file from which other programs read the same pixels as [`decode`]: PNG, JPEG or WebP in 8-bit grey or
/// colours, without transparency and without an EXIF orientation, which only some programs apply. `None` for all other files.
pub fn same_in_every_reader(bytes: &[u8]) -> Option<ImageFormat> {
    let format = catch_unwind(|| {
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
        let reader = reader.ok()?;
        let format = reader.format()?;
        let mut decoder = reader.into_decoder().ok()?;
        let is_usual = matches!(
            format,
            ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP
        );
        let is_opaque = matches!(decoder.color_type(), ColorType::L8 | ColorType::Rgb8);
        let is_upright = decoder.orientation().ok()? == Orientation::NoTransforms;
        (is_usual && is_opaque && is_upright).then_some(format)
    });
    format.ok().flatten()
}

fn flatten_on_white(image: DynamicImage) -> RgbImage {
    match image {
        DynamicImage::ImageRgb8(image) => image,
        DynamicImage::ImageLuma16(image) => map_pixels(&image, |p| Rgb([high_byte(p.0[0]); 3])),
        DynamicImage::ImageRgb16(image) => map_pixels(&image, |p| Rgb(p.0.map(high_byte))),
        DynamicImage::ImageLumaA16(image) => map_pixels(&image, |p| {
            let [grey, alpha] = p.0.map(high_byte);
            blend(Rgba([grey, grey, grey, alpha]))
        }),
        DynamicImage::ImageRgba16(image) => map_pixels(&image, |p| blend(Rgba(p.0.map(high_byte)))),
        image if image.color().has_alpha() => map_pixels(&image.into_rgba8(), |p| blend(*p)),
        image => image.into_rgb8(),
    }
}

fn map_pixels<P: image::Pixel>(
    image: &image::ImageBuffer<P, Vec<P::Subpixel>>,
    pixel: impl Fn(&P) -> Rgb<u8>,
) -> RgbImage {
    let mut output = RgbImage::new(image.width(), image.height());
    for (out, from) in output.pixels_mut().zip(image.pixels()) {
        *out = pixel(from);
    }
    output
}

fn high_byte(level: u16) -> u8 {
    (level >> 8) as u8
}

/// Blends a pixel with a white background, rounded to the nearest level.
fn blend(Rgba([r, g, b, alpha]): Rgba<u8>) -> Rgb<u8> {
    let alpha = u16::from(alpha);
    let weighted = |level: u8| u16::from(level) * alpha + 255 * (255 - alpha);
    Rgb([r, g, b].map(|level| divide_by_255(weighted(level) + 127)))
}

/// `value / 255` for values up to 255 * 255 + 127, without a division.
fn divide_by_255(value: u16) -> u8 {
    ((value + 1 + (value >> 8)) >> 8) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PNG of 24x21 pixels with 16 colours and a truncated palette, on which png 0.18.1 panics.
    const TRUNCATED_PALETTE: &[u8] = &[
        137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 24, 0, 0, 0, 21, 4,
        3, 0, 0, 0, 174, 199, 51, 21, 0, 0, 0, 49, 80, 76, 84, 69, 110, 234, 93, 21, 224, 165, 17,
        225, 164, 17, 221, 164, 139, 194, 71, 58, 199, 127, 135, 135, 125, 42, 137, 124, 125, 72,
        199, 108, 12, 125, 255, 0, 0, 129, 0, 130, 79, 30, 114, 89, 7, 73, 91, 4, 65, 91, 1, 64,
        239, 180, 235, 5, 196, 0, 0, 0, 117, 73, 68, 65, 84, 120, 218, 85, 141, 193, 13, 131, 48,
        12, 69, 159, 35, 43, 215, 38, 43, 48, 10, 155, 116, 3, 216, 132, 57, 82, 169, 19, 208, 85,
        80, 22, 168, 224, 138, 68, 235, 38, 52, 61, 244, 95, 252, 159, 229, 255, 45, 9, 120, 103,
        61, 252, 245, 242, 116, 124, 229, 71, 80, 109, 48, 100, 57, 231, 186, 65, 144, 6, 142, 88,
        54, 58, 87, 223, 21, 103, 57, 186, 215, 227, 6, 11, 22, 9, 86, 79, 142, 249, 71, 150, 206,
        140, 164, 113, 107, 152, 38, 66, 119, 199, 237, 190, 54, 243, 47, 209, 85, 106, 114, 178,
        242, 172, 231, 3, 35, 107, 39, 173, 54, 50, 45, 99,
    ];

    #[test]
    fn a_decoder_that_panics_is_an_error() {
        assert!(decode(TRUNCATED_PALETTE, 1000).is_err());
        assert_eq!(dimensions(TRUNCATED_PALETTE), Some((24, 21)));
    }

    #[test]
    fn blending_divides_exactly() {
        for value in 0..=255 * 255 + 127 {
            assert_eq!(u16::from(divide_by_255(value)), value / 255, "{value}");
        }
    }
}
