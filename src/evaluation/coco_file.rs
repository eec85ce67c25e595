//! Reads the true objects of a COCO annotation file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::TrueObject;
use super::coco_annotation::{name_of_annotation, true_object};
use crate::geometry::ImageSize;
use crate::geometry::coco_rle::{MAX_PIXELS, MAX_SIDE, is_supported};

/// The images, labels and true objects of a COCO annotation file (<https://cocodataset.org/#format-data>).
#[derive(Debug, Clone, PartialEq)]
pub struct CocoDataset {
    /// The images, in the order of the file.
    pub images: Vec<CocoImage>,
    /// The labels, in the order of the file.
    pub categories: Vec<CocoCategory>,
    /// The annotated objects, in the order of the file.
    pub objects: Vec<TrueObject>,
}

/// An image of a COCO annotation file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct CocoImage {
    /// Its id.
    pub id: u64,
    /// Its file, usually relative to a folder of images.
    pub file_name: String,
    /// Its width in pixels.
    pub width: usize,
    /// Its height in pixels.
    pub height: usize,
}

impl CocoImage {
    /// Its size.
    pub fn size(&self) -> ImageSize {
        ImageSize {
            height: self.height,
            width: self.width,
        }
    }
}

/// A label of a COCO annotation file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct CocoCategory {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
}

/// Why a COCO annotation file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum CocoFileError {
    /// The file cannot be read.
    #[error("{}: cannot read the annotations: {cause}", file.display())]
    // not a source: the message contains the cause, which would be printed twice
    Unreadable { file: PathBuf, cause: io::Error },
    /// The file is not JSON, or is not of COCO's format.
    #[error(
        "{}: not a COCO annotation file, which is an object with the lists images, annotations and categories: \
         {problem}",
        file.display()
    )]
    Malformed { file: PathBuf, problem: String },
    /// An image, category or annotation is wrong.
    #[error("{}: {item}: {problem}", file.display())]
    Invalid {
        file: PathBuf,
        /// Such as `annotation 17`.
        item: String,
        problem: String,
    },
}

/// What is wrong with a part of the file, and with which one.
type Problem = (String, String);

#[derive(Deserialize)]
struct CocoFile<'a> {
    images: Vec<CocoImage>,
    categories: Vec<CocoCategory>,
    /// They are read one by one, so that errors can name them.
    #[serde(borrow)]
    annotations: Vec<&'a RawValue>,
}

impl CocoDataset {
    /// Reads a COCO annotation file. Each annotation needs `image_id`, `category_id` and `bbox`; `segmentation` and `iscrowd`
    /// are optional. Other fields are ignored.
    ///
    /// The masks are those of pycocotools, pixel by pixel, whether a segmentation is polygons, run lengths or compressed
    /// run lengths.
    ///
    /// # Errors
    /// If the file cannot be read, is not in COCO's format, or contradicts itself. The error names the file and the
    /// annotation.
    pub fn read(file: &Path) -> Result<Self, CocoFileError> {
        let text = fs::read_to_string(file).map_err(|cause| CocoFileError::Unreadable {
            file: file.to_owned(),
            cause,
        })?;
        Self::parse(&text, file)
    }

    /// Reads the text of a file, whose path is only for errors.
    pub(super) fn parse(text: &str, file: &Path) -> Result<Self, CocoFileError> {
        let mut json = serde_json::Deserializer::from_str(text);
        let parsed: Result<CocoFile, _> = serde_path_to_error::deserialize(&mut json);
        let parsed = parsed
            .map_err(|error| error.to_string())
            .and_then(|parsed| json.end().map(|()| parsed).map_err(|e| e.to_string()))
            .map_err(|problem| CocoFileError::Malformed {
                file: file.to_owned(),
                problem,
            })?;
        Self::from_file(parsed).map_err(|(item, problem)| CocoFileError::Invalid {
            file: file.to_owned(),
            item,
            problem,
        })
    }

    fn from_file(file: CocoFile) -> Result<Self, Problem> {
        let mut images = HashMap::new();
        for image in &file.images {
            let item = || format!("image {}", image.id);
            let size = image.size();
            if !is_supported(size) || size.area() == 0 {
                let problem = format!(
                    "its size is {} x {}; width and height must be numbers of pixels, from 1 to {MAX_SIDE}, and their product \
                     at most {MAX_PIXELS}",
                    image.width, image.height
                );
                return Err((item(), problem));
            }
            if images.insert(image.id, size).is_some() {
                return Err((item(), "several images have this id".to_owned()));
            }
        }
        let (mut categories, mut names) = (HashMap::new(), HashMap::new());
        for category in &file.categories {
            let CocoCategory { id, name } = category;
            let item = || format!("category {id}");
            if categories.insert(*id, name.as_str()).is_some() {
                return Err((item(), "several categories have this id".to_owned()));
            }
            if let Some(other) = names.insert(name, id) {
                let problem = format!("its name {name:?} is also that of category {other}");
                return Err((item(), problem));
            }
        }
        let annotations = file.annotations.iter().enumerate();
        let objects = annotations.map(|(index, json)| {
            let object = true_object(json, &images, &categories);
            object.map_err(|problem| (name_of_annotation(json, index), problem))
        });
        let objects = objects.collect::<Result<_, _>>()?;
        Ok(Self {
            images: file.images,
            categories: file.categories,
            objects,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::CocoBox;
    use super::*;

    /// A file with one annotation.
    fn with_annotation(annotation: &str) -> String {
        format!(
            r#"{{"images": [{{"id": 3, "file_name": "a.jpg", "width": 30, "height": 20}}],
                "categories": [{{"id": 0, "name": "cup"}}], "annotations": [{annotation}], "info": {{}}}}"#
        )
    }

    fn parse(text: &str) -> Result<CocoDataset, String> {
        CocoDataset::parse(text, Path::new("truth.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn optional_fields_may_be_missing() {
        let dataset = parse(&with_annotation(
            r#"{"image_id": 3, "category_id": 0, "bbox": [1, 2.5, 3, 4]}"#,
        ));
        let dataset = dataset.unwrap();
        let expected = TrueObject {
            image: 3,
            label: "cup".to_owned(),
            bounding_box: CocoBox([1.0, 2.5, 3.0, 4.0]),
            mask: None,
            is_crowd: false,
        };
        assert_eq!(dataset.objects, [expected]);
        assert_eq!(dataset.images[0].size().width, 30);
    }

    #[test]
    fn a_crowd_is_a_number_or_a_truth_value() {
        for (value, expected) in [("0", false), ("1", true), ("false", false), ("true", true)] {
            let annotation = format!(
                r#"{{"image_id": 3, "category_id": 0, "bbox": [1, 2, 3, 4], "segmentation": null, "iscrowd": {value}}}"#
            );
            let dataset = parse(&with_annotation(&annotation)).unwrap();
            assert_eq!(dataset.objects[0].is_crowd, expected, "{value}");
        }
    }

    #[test]
    fn an_error_names_the_file_and_the_annotation_and_what_would_be_right() {
        for (fields, expected) in [
            (
                r#""bbox": [1, 2, 3]"#,
                "bbox: invalid length 3, expected an array of length 4",
            ),
            (
                r#""bbox": [9, 9, 3, -4]"#,
                "it must be [x, y, width, height]",
            ),
            (r#""iscrowd": 0"#, "missing field `bbox`"),
            (
                r#""bbox": [1, 2, 3, 4], "iscrowd": "no""#,
                "iscrowd: it must be 0 or 1",
            ),
            (
                r#""bbox": [1, 2, 3, 4], "segmentation": [1]"#,
                "segmentation: it must be a list of polygons",
            ),
            (
                r#""bbox": [1, 2, 3, 4], "segmentation": [[1, 2]]"#,
                "at least 3 corners",
            ),
        ] {
            let annotation = format!(r#"{{"id": 17, "image_id": 3, "category_id": 0, {fields}}}"#);
            let error = parse(&with_annotation(&annotation)).unwrap_err();
            assert!(error.starts_with("truth.json: annotation 17: "), "{error}");
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("at line"), "{error}");
        }
        for (annotation, expected) in [
            (
                r#"{"image_id": 4, "category_id": 0, "bbox": [1, 2, 3, 4]}"#,
                "annotations[0], which has no id: its image_id is 4, but no element of images has this id",
            ),
            (
                r#"{"id": "a", "image_id": 3, "category_id": 1, "bbox": [1, 2, 3, 4]}"#,
                "annotation \"a\": its category_id is 1, but no element of categories has this id",
            ),
        ] {
            let error = parse(&with_annotation(annotation)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_file_of_another_format_or_that_contradicts_itself_is_an_error() {
        let image = r#"{"id": 3, "file_name": "a.jpg", "width": 30, "height": 20}"#;
        let with_lists = |images: &str, categories: &str| {
            format!(r#"{{"images": [{images}], "categories": [{categories}], "annotations": []}}"#)
        };
        let is_json = format!("{} x", with_lists(image, ""));
        for (text, expected) in [
            (
                "[]".to_owned(),
                "an object with the lists images, annotations and categories",
            ),
            (is_json, "trailing characters"),
            (
                with_lists(r#"{"id": 3}"#, ""),
                "images[0]: missing field `file_name`",
            ),
            (
                with_lists(&image.replace("20", "0"), ""),
                "image 3: its size is 30 x 0; width and height must be numbers of pixels",
            ),
            (
                with_lists(&image.replace("30", "18446744073709551615"), ""),
                "image 3: its size is 18446744073709551615 x 20; width and height must be",
            ),
            (
                with_lists(&[image; 2].join(","), ""),
                "image 3: several images have this id",
            ),
            (
                with_lists(image, &[r#"{"id": 1, "name": "cup"}"#; 2].join(",")),
                "category 1: several categories have this id",
            ),
            (
                with_lists(
                    image,
                    r#"{"id": 1, "name": "cup"}, {"id": 2, "name": "cup"}"#,
                ),
                "category 2: its name \"cup\" is also that of category 1",
            ),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.starts_with("truth.json: "), "{error}");
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_file_that_does_not_exist_is_named() {
        let error = CocoDataset::read(Path::new("no/such.json")).unwrap_err();
        assert!(error.to_string().starts_with("no/such.json: cannot read"));
    }
}
