//! Masks as PNG images, the form of Label Studio's `<Bitmask>` and `<BitmaskLabels>`.
//!
//! The editor draws the opaque pixels of the image: the object is black and opaque, and the rest is transparent. One bit
//! per pixel and a palette of two colours make the image about a hundred times smaller than one with four channels
//! before compression, and fast to encode.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::geometry::Mask;

/// A mask as `data:image/png;base64,...`, in the size of the image.
pub fn data_url(mask: &Mask) -> String {
    base64_url(&encode(mask))
}

/// A mask as `data:image/png;base64,...`, white where it is set and black elsewhere: the form of Label Studio's capability
/// protocol.
pub fn white_data_url(mask: &Mask) -> String {
    base64_url(&encode_bits(mask, |encoder| {
        encoder.set_color(png::ColorType::Grayscale);
    }))
}

fn base64_url(png: &[u8]) -> String {
    let mut url = "data:image/png;base64,".to_owned();
    BASE64_STANDARD.encode_string(png, &mut url);
    url
}

/// A mask as a PNG: black and opaque where it is set, transparent elsewhere.
pub fn encode(mask: &Mask) -> Vec<u8> {
    encode_bits(mask, |encoder| {
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_palette(vec![0; 2 * 3]);
        encoder.set_trns(vec![0, u8::MAX]);
    })
}

/// A PNG with one bit per pixel, in the colours that `set_colors` selects.
fn encode_bits(mask: &Mask, set_colors: impl FnOnce(&mut png::Encoder<&mut Vec<u8>>)) -> Vec<u8> {
    let (width, height) = (mask.size().width, mask.size().height);
    let mut file = vec![];
    // the sides of a decoded image are far below 2^31
    let mut encoder = png::Encoder::new(&mut file, width as u32, height as u32);
    set_colors(&mut encoder);
    encoder.set_depth(png::BitDepth::One);
    encoder.set_compression(png::Compression::Fast);
    let written = encoder
        .write_header()
        .and_then(|mut writer| writer.write_image_data(&bits(mask)));
    debug_assert!(written.is_ok(), "a Vec can be written: {written:?}");
    file
}

/// The rows of a mask, one bit per pixel, the most significant bit first; each row begins with a new byte.
fn bits(mask: &Mask) -> Vec<u8> {
    let (rows, height) = (mask.rows(), mask.size().height);
    let stride = mask.size().width.div_ceil(8);
    let mut bits = vec![0; stride * height];
    for (y, row) in bits.chunks_exact_mut(stride.max(1)).enumerate() {
        for span in rows.row(y) {
            set(row, span.start, span.end);
        }
    }
    bits
}

/// Sets the bits from `start` to `end`, exclusive.
fn set(row: &mut [u8], start: usize, end: usize) {
    if start >= end {
        return;
    }
    // the bits from `start` in its byte, and those up to `end` in the last byte
    let (first, last) = (start / 8, (end - 1) / 8);
    let (head, tail) = (0xff >> (start % 8), 0xff << (7 - (end - 1) % 8));
    if first == last {
        row[first] |= head & tail;
        return;
    }
    row[first] |= head;
    row[first + 1..last].fill(0xff);
    row[last] |= tail;
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::geometry::ImageSize;

    #[test]
    fn a_png_is_black_and_opaque_exactly_where_the_mask_is_set() {
        let mut random = StdRng::seed_from_u64(7);
        for (height, width) in [(1, 1), (3, 8), (5, 17), (40, 63)] {
            for share in [0.0, 0.1, 0.9, 1.0] {
                let size = ImageSize { height, width };
                let pixels: Vec<bool> = (0..height * width)
                    .map(|_| random.random_bool(share))
                    .collect();
                let mask = Mask::from_pixels(size, pixels.iter().copied());
                let decoded = image::load_from_memory(&encode(&mask))
                    .unwrap()
                    .into_rgba8();
                assert_eq!(decoded.dimensions(), (width as u32, height as u32));
                for (pixel, is_set) in decoded.pixels().zip(&pixels) {
                    assert_eq!(pixel.0, [0, 0, 0, if *is_set { 255 } else { 0 }]);
                }
            }
        }
    }

    #[test]
    fn the_png_of_the_capability_protocol_is_white_exactly_where_the_mask_is_set() {
        let size = ImageSize {
            height: 3,
            width: 11,
        };
        let pixels: Vec<bool> = (0..33).map(|i| i % 3 == 0).collect();
        let url = white_data_url(&Mask::from_pixels(size, pixels.iter().copied()));
        let png = url.strip_prefix("data:image/png;base64,").unwrap();
        let png = BASE64_STANDARD.decode(png).unwrap();
        let decoded = image::load_from_memory(&png).unwrap().into_rgba8();
        assert_eq!(decoded.dimensions(), (11, 3));
        for (pixel, is_set) in decoded.pixels().zip(&pixels) {
            let value = if *is_set { 255 } else { 0 };
            assert_eq!(pixel.0, [value, value, value, 255]);
        }
    }

    #[test]
    fn a_data_url_is_the_png_in_base64() {
        let size = ImageSize {
            height: 2,
            width: 3,
        };
        let mask = Mask::from_pixels(size, [true, false]);
        let url = data_url(&mask);
        let base64 = url.strip_prefix("data:image/png;base64,").unwrap();
        assert_eq!(BASE64_STANDARD.decode(base64).unwrap(), encode(&mask));
    }
}
