//! The masks of a COCO annotation file.

use serde::Deserialize;

use crate::geometry::coco_rle::{CocoRle, mask_of_counts};
use crate::geometry::{ImageSize, Mask};

/// The largest distance of a polygon's corner from the image's corner, in pixels; the time to fill a polygon depends on
/// the lengths of its edges.
const MAX_COORDINATE: f64 = 1e6;

/// The field `segmentation` of an annotation.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(
    untagged,
    expecting = "it must be a list of polygons [[x, y, x, y, ...], ...], or an object with size [height, width] and counts, a \
                 list of numbers or a string"
)]
pub(super) enum Segmentation {
    /// Polygons whose union is the mask; none if the annotation has only a box.
    Polygons(Vec<Vec<f64>>),
    /// Compressed run lengths.
    Compressed(CocoRle),
    /// Run lengths.
    Uncompressed {
        /// `[height, width]`.
        size: [usize; 2],
        /// Lengths of unset and set runs in turn, column by column.
        counts: Vec<u64>,
    },
}

impl Segmentation {
    /// The mask in an image of this size; `None` without polygons.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub(super) fn mask(&self, image: ImageSize) -> Result<Option<Mask>, String> {
        match self {
            Self::Polygons(polygons) if polygons.is_empty() => Ok(None),
            Self::Polygons(polygons) => {
                let polygons = polygons.iter().map(|numbers| corners(numbers));
                let polygons: Vec<_> = polygons.collect::<Result<_, _>>()?;
                let polygons = polygons.iter().map(Vec::as_slice);
                Ok(Some(Mask::from_polygons(image, polygons)))
            }
            Self::Compressed(rle) => of_image(rle.size, image)
                .and_then(|()| rle.mask().ok_or_else(|| wrong_counts(image)))
                .map(Some),
            Self::Uncompressed { size, counts } => of_image(*size, image)
                .and_then(|()| mask_of_counts(image, counts).ok_or_else(|| wrong_counts(image)))
                .map(Some),
        }
    }
}

/// The corners of a polygon.
fn corners(numbers: &[f64]) -> Result<Vec<[f64; 2]>, String> {
    if numbers.len() < 6 || !numbers.len().is_multiple_of(2) {
        let count = numbers.len();
        return Err(format!(
            "a polygon of its segmentation has {count} numbers; it must have x and y of at least 3 corners"
        ));
    }
    if let Some(far) = numbers.iter().find(|number| number.abs() > MAX_COORDINATE) {
        return Err(format!(
            "a polygon of its segmentation has the coordinate {far}; coordinates are pixels of the image"
        ));
    }
    let (corners, _) = numbers.as_chunks::<2>();
    Ok(corners.to_vec())
}

/// Checks the size of run lengths.
fn of_image([height, width]: [usize; 2], image: ImageSize) -> Result<(), String> {
    if (ImageSize { height, width }) == image {
        return Ok(());
    }
    Err(format!(
        "its segmentation has the size [{height}, {width}]; it must be that of the image, [{}, {}] (height, width)",
        image.height, image.width
    ))
}

fn wrong_counts(image: ImageSize) -> String {
    format!(
        "the counts of its segmentation are invalid; they must be lengths of runs whose sum is {}, the number of pixels of \
         the image",
        image.area()
    )
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::*;

    const IMAGE: ImageSize = ImageSize {
        height: 2,
        width: 3,
    };

    fn mask(json: &str) -> Result<Option<Mask>, String> {
        let segmentation: Segmentation = serde_json::from_str(json).map_err(|e| e.to_string())?;
        segmentation.mask(IMAGE)
    }

    #[test]
    fn every_form_of_a_segmentation_is_read() {
        let expected = Mask::from_pixels(IMAGE, [true, true, false, true, true, false]);
        for json in [
            "[[0, 0, 2, 0, 2, 2, 0, 2]]",
            "[[0, 0, 1, 0, 1, 2, 0, 2], [1, 0, 2, 0, 2, 2, 1, 2]]",
            r#"{"size": [2, 3], "counts": [0, 4, 2]}"#,
            r#"{"size": [2, 3], "counts": "042"}"#,
        ] {
            assert_eq!(mask(json), Ok(Some(expected.clone())), "{json}");
        }
        assert_eq!(mask("[]"), Ok(None));
    }

    #[test]
    fn an_error_says_what_would_be_right() {
        for (json, expected) in [
            (
                "[[0, 0, 2, 0]]",
                "has 4 numbers; it must have x and y of at least 3 corners",
            ),
            ("[[0, 0, 2, 0, 2, 2, 0]]", "has 7 numbers"),
            (
                "[[0, 0, 2e9, 0, 2, 2]]",
                "coordinate 2000000000; coordinates are pixels",
            ),
            (
                r#"{"size": [3, 2], "counts": [6]}"#,
                "it must be that of the image, [2, 3]",
            ),
            (
                r#"{"size": [3, 2], "counts": "6"}"#,
                "it must be that of the image, [2, 3]",
            ),
            (r#"{"size": [2, 3], "counts": [5]}"#, "whose sum is 6"),
            (r#"{"size": [2, 3], "counts": "5"}"#, "whose sum is 6"),
            (r#"{"size": [2, 3]}"#, "must be a list of polygons"),
            ("[0, 0, 2, 0, 2, 2]", "must be a list of polygons"),
        ] {
            let error = mask(json).unwrap_err();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }

    #[test]
    fn polygons_have_the_pixels_of_pycocotools() {
        let fixture = Fixture::read();
        let mut pixels = 0;
        for polygon in &fixture.polygons {
            let [height, width] = polygon.rle.size;
            let segmentation = Segmentation::Polygons(polygon.polygons.clone());
            let mask = segmentation.mask(ImageSize { height, width });
            let mask = mask.unwrap().unwrap();
            assert_eq!(CocoRle::new(&mask), polygon.rle, "{:?}", polygon.polygons);
            pixels += mask.area();
        }
        let count = fixture.polygons.len();
        assert!(count > 100 && pixels > 0, "{count} masks, {pixels} pixels");
        println!("{count} masks of polygons with {pixels} pixels are those of pycocotools");
    }

    #[test]
    fn true_masks_have_the_pixels_of_pycocotools() {
        let fixture = Fixture::read();
        assert!(!fixture.truth.objects.is_empty());
        let masks = fixture
            .truth
            .objects
            .iter()
            .map(|object| object.mask.as_deref());
        let masks: Vec<CocoRle> = masks.map(|mask| CocoRle::new(mask.unwrap())).collect();
        assert_eq!(masks, fixture.expected.true_masks);
    }
}
