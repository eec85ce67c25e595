//! Rotates and flips images according to their EXIF orientation.

use image::metadata::Orientation;
use image::{DynamicImage, RgbImage};

/// The image in its display orientation.
pub(super) fn apply_orientation(image: RgbImage, orientation: Orientation) -> RgbImage {
    match orientation {
        Orientation::Rotate90 => transpose(&image, true, false),
        Orientation::Rotate270 => transpose(&image, false, true),
        Orientation::Rotate90FlipH => transpose(&image, false, false),
        Orientation::Rotate270FlipH => transpose(&image, true, true),
        orientation => {
            let mut image = DynamicImage::ImageRgb8(image);
            image.apply_orientation(orientation);
            image.into_rgb8()
        }
    }
}

/// Width and height in pixels of the tiles in which an image is transposed. The source and the destination tile fit
/// into the L1 cache together; whole columns of a photograph do not.
const TILE: usize = 32;

/// Swaps rows and columns, then optionally flips left to right and top to bottom.
fn transpose(image: &RgbImage, flip_x: bool, flip_y: bool) -> RgbImage {
    let (from_width, from_height) = (image.width() as usize, image.height() as usize);
    let (width, height) = (from_height, from_width);
    let mut output = RgbImage::new(width as u32, height as u32);
    let from = image.as_raw().as_chunks::<3>().0;
    let to = output.as_chunks_mut::<3>().0;
    for top in (0..height).step_by(TILE) {
        for left in (0..width).step_by(TILE) {
            for y in top..(top + TILE).min(height) {
                let column = if flip_y { from_width - 1 - y } else { y };
                let right = (left + TILE).min(width);
                for (x, pixel) in (left..right).zip(&mut to[y * width + left..y * width + right]) {
                    let row = if flip_x { from_height - 1 - x } else { x };
                    *pixel = from[row * from_width + column];
                }
            }
        }
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_equals_that_of_the_image_crate() {
        for (width, height) in [(1, 1), (1, 40), (33, 2), (65, 31), (32, 64), (70, 101)] {
            let image = RgbImage::from_fn(width, height, |x, y| {
                image::Rgb([x as u8, y as u8, (3 * x + 5 * y) as u8])
            });
            for exif in 1..=8 {
                let orientation = Orientation::from_exif(exif).unwrap();
                let mut expected = DynamicImage::ImageRgb8(image.clone());
                expected.apply_orientation(orientation);
                assert!(
                    apply_orientation(image.clone(), orientation) == expected.into_rgb8(),
                    "{orientation:?} of {width}x{height}"
                );
            }
        }
    }
}
