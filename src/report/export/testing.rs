//! Objects for the tests of the formats.

use std::sync::Arc;

use image::RgbImage;
use tempfile::TempDir;

use super::{Export, ExportFormat, ExportOptions, ExportSummary, ImageContent, NewImage};
use crate::geometry::{BoundingBox, Detection, ImageSize, Mask};
use crate::pipeline::DetectedObject;
use crate::segmenter::ScoredMask;

/// The size of the image of all objects.
pub(super) const SIZE: ImageSize = ImageSize {
    height: 4,
    width: 8,
};
/// The classes of the tests.
pub(super) const CLASSES: [&str; 2] = ["cup", "tea \"pot\""];

/// An object, with a mask where `is_set` is true for the column and the row.
pub(super) fn object(
    class: &str,
    [x0, y0, x1, y1]: [f32; 4],
    is_set: Option<fn(usize, usize) -> bool>,
) -> DetectedObject {
    let mask = is_set.map(|is_set| {
        let pixels = (0..SIZE.height).flat_map(|y| (0..SIZE.width).map(move |x| (x, y)));
        Arc::new(ScoredMask {
            mask: Mask::from_pixels(SIZE, pixels.map(|(x, y)| is_set(x, y))),
            score: 0.9,
        })
    });
    DetectedObject {
        detection: Detection {
            phrase: Some(class.to_owned()),
            score: 0.75,
            bounding_box: BoundingBox { x0, y0, x1, y1 },
        },
        mask,
    }
}

/// A cup whose mask has two parts, and a pot without a mask whose box is larger than the image.
pub(super) fn cup_and_pot() -> Vec<DetectedObject> {
    let two_pixels = |x, y| (x, y) == (1, 1) || (x, y) == (3, 2);
    vec![
        object(CLASSES[0], [1.0, 1.0, 3.0, 3.0], Some(two_pixels)),
        object(CLASSES[1], [4.0, -1.0, 9.0, 7.0], None),
    ]
}

/// A pot in the left half of the image, and below it a cup that covers the whole image.
pub(super) fn two_masks() -> Vec<DetectedObject> {
    vec![
        object(CLASSES[1], [0.0, 0.0, 4.0, 4.0], Some(|x, _| x < 4)),
        object(CLASSES[0], [0.0, 0.0, 8.0, 4.0], Some(|_, _| true)),
    ]
}

/// An export into a folder.
pub(super) fn export(folder: &TempDir, formats: &[ExportFormat]) -> Export {
    let options = ExportOptions {
        folder: folder.path().to_owned(),
        formats: formats.to_vec(),
        classes: CLASSES.map(str::to_owned).to_vec(),
        model_version: "groundling 0.0.0 demo+demo".to_owned(),
        polygon_tolerance: 0.0,
    };
    Export::new(options).unwrap()
}

/// Pixels with an area in which JPEG would change them.
pub(super) fn pixels() -> RgbImage {
    RgbImage::from_fn(8, 4, |x, y| image::Rgb([x as u8 * 30, y as u8 * 60, 7]))
}

/// Adds an image with these objects, whose classes are their phrases.
pub(super) fn add(export: &mut Export, name: &str, objects: &[DetectedObject]) {
    let pixels = pixels();
    let image = NewImage {
        name,
        size: SIZE,
        content: ImageContent::Pixels(&pixels),
        objects: objects
            .iter()
            .map(|object| (object, object.detection.phrase.as_deref()))
            .collect(),
    };
    export.add(image).unwrap();
}

/// A finished export of one image, `photo`.
pub(super) fn exported(
    format: ExportFormat,
    objects: &[DetectedObject],
) -> (TempDir, ExportSummary) {
    let folder = tempfile::tempdir().unwrap();
    let mut export = export(&folder, &[format]);
    add(&mut export, "photo", objects);
    let summary = export.finish().unwrap();
    (folder, summary)
}

/// The text of a file of an export.
pub(super) fn read(folder: &TempDir, file: &str) -> String {
    std::fs::read_to_string(folder.path().join(file)).unwrap()
}
