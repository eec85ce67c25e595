//! Writes predictions as datasets for training.
//!
//! An [`Export`] takes images one by one, names their classes, and places each image file in the dataset. The formats do the
//! rest: `coco`, `yolo` (boxes and outlines) and `masks`.

mod classes;
mod coco;
mod error;
mod format;
mod images;
mod masks;
mod summary;
mod yolo;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::classes::Classes;
use self::coco::Coco;
pub use self::error::ExportError;
pub use self::format::ExportFormat;
pub use self::images::ImageContent;
use self::masks::Masks;
pub use self::summary::{ExportSummary, LeftOut};
use self::yolo::Yolo;
use super::names::{Names, safe_name};
use crate::geometry::{BoundingBox, ImageSize, Mask};
use crate::pipeline::DetectedObject;
use crate::segmenter::ScoredMask;

/// What to write, and where.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The folder, which must be new or empty. Several formats have a subfolder each, with their names.
    pub folder: PathBuf,
    /// The formats.
    pub formats: Vec<ExportFormat>,
    /// The classes, in order. Others that objects have are added behind them.
    pub classes: Vec<String>,
    /// What made the predictions: the model version.
    pub model_version: String,
    /// Maximum distance of an outline from its mask's boundary, in percent of the image's longer side.
    pub polygon_tolerance: f32,
}

/// An image with its objects.
#[derive(Debug)]
pub struct NewImage<'a> {
    /// The wanted name, without extension. It may be any text.
    pub name: &'a str,
    /// The size in pixels, after the EXIF orientation is applied.
    pub size: ImageSize,
    /// The file or the pixels.
    pub content: ImageContent<'a>,
    /// The objects, best first, each with its class; `None` if nothing names it.
    pub objects: Vec<(&'a DetectedObject, Option<&'a str>)>,
}

/// An image that is in the dataset, as the formats get it.
#[derive(Debug)]
struct PlacedImage {
    /// The unique name, without extension.
    name: String,
    /// The name of the file in `images`.
    file_name: String,
    size: ImageSize,
    /// The objects, best first.
    objects: Vec<ClassedObject>,
}

/// An object that has a class, and an area in its image.
#[derive(Debug, Clone)]
struct ClassedObject {
    /// The number of the class, from 0.
    class: usize,
    /// The detector's score.
    score: f32,
    /// The part of the box inside the image, in pixels.
    bounding_box: BoundingBox,
    /// The mask, unless it is empty.
    mask: Option<Arc<ScoredMask>>,
}

impl ClassedObject {
    fn mask(&self) -> Option<&Mask> {
        self.mask.as_ref().map(|scored| &scored.mask)
    }
}

/// Writes a dataset in one format.
trait Exporter: std::fmt::Debug + Send {
    /// Checks that the format has room for an image, before anything of it is written.
    fn check(&self, _image: &PlacedImage, _classes: &Classes) -> Result<(), ExportError> {
        Ok(())
    }

    /// Adds an image whose file is already in `images`.
    fn add(&mut self, image: &PlacedImage, classes: &Classes) -> Result<(), ExportError>;

    /// Writes the files about the whole dataset.
    fn finish(self: Box<Self>, classes: &Classes) -> Result<(), ExportError>;
}

/// Writes a dataset in one or more formats, image by image. Nothing is written before the first image.
#[derive(Debug)]
pub struct Export {
    names: Names,
    classes: Classes,
    /// The `images` folder of each format, and what writes the rest.
    parts: Vec<(PathBuf, Box<dyn Exporter>)>,
    needs_masks: bool,
    /// Whether an image could not be written, or only in a part of the formats.
    is_incomplete: bool,
    summary: ExportSummary,
}

impl Export {
    /// Prepares an export.
    ///
    /// # Errors
    /// If the folder has files, or cannot be created, or there are too many classes for a format.
    pub fn new(options: ExportOptions) -> Result<Self, ExportError> {
        let ExportOptions {
            folder,
            mut formats,
            classes,
            model_version,
            polygon_tolerance,
        } = options;
        fs::create_dir_all(&folder).map_err(ExportError::of(&folder))?;
        if has_files(&folder).map_err(ExportError::of(&folder))? {
            return Err(ExportError::NotEmpty(folder));
        }
        let mut seen = vec![];
        formats.retain(|format| {
            let is_new = !seen.contains(format);
            seen.push(*format);
            is_new
        });
        let is_single = formats.len() == 1;
        let mut parts: Vec<(PathBuf, Box<dyn Exporter>)> = vec![];
        for format in &formats {
            let folder = match is_single {
                true => folder.clone(),
                false => folder.join(format.name()),
            };
            let images = folder.join("images");
            fs::create_dir_all(&images).map_err(ExportError::of(&images))?;
            let exporter: Box<dyn Exporter> = match format {
                ExportFormat::Coco => Box::new(Coco::new(folder, model_version.clone())),
                ExportFormat::Yolo => Box::new(Yolo::boxes(folder)?),
                ExportFormat::YoloSegments => Box::new(Yolo::segments(folder, polygon_tolerance)?),
                ExportFormat::Masks => Box::new(Masks::new(folder, &classes)?),
            };
            parts.push((images, exporter));
        }
        Ok(Self {
            names: Names::default(),
            classes: Classes::new(classes),
            parts,
            needs_masks: formats.iter().any(|format| format.needs_masks()),
            is_incomplete: false,
            summary: ExportSummary {
                folder,
                images: 0,
                objects: 0,
                left_out: LeftOut::default(),
            },
        })
    }

    /// Adds an image, also one without objects: it shows where nothing is. Returns what is left out of it.
    ///
    /// # Errors
    /// If a format has no room for the classes or objects; the image is then in no format, and others can be added. If a
    /// file cannot be written; the export is then incomplete, and cannot be finished.
    pub fn add(&mut self, image: NewImage<'_>) -> Result<LeftOut, ExportError> {
        let (objects, left_out) = self.classed(&image);
        let name = self.names.unique(&safe_name(image.name));
        let placed = PlacedImage {
            file_name: image.content.file_name(&name),
            name,
            size: image.size,
            objects,
        };
        self.write(&placed, &image.content)?;
        self.summary.images += 1;
        self.summary.objects += placed.objects.len();
        self.summary.left_out.add(left_out);
        Ok(left_out)
    }

    fn write(
        &mut self,
        image: &PlacedImage,
        content: &ImageContent<'_>,
    ) -> Result<(), ExportError> {
        if self.is_incomplete {
            return Err(ExportError::Incomplete);
        }
        for (_, exporter) in &self.parts {
            exporter.check(image, &self.classes)?;
        }
        self.is_incomplete = true;
        let folders = self.parts.iter().map(|(images, _)| images.as_path());
        content.place(folders, &image.file_name)?;
        for (_, exporter) in &mut self.parts {
            exporter.add(image, &self.classes)?;
        }
        self.is_incomplete = false;
        Ok(())
    }

    /// The objects that have a class and an area.
    fn classed(&mut self, image: &NewImage<'_>) -> (Vec<ClassedObject>, LeftOut) {
        let (mut objects, mut left_out) = (vec![], LeftOut::default());
        for (object, class) in &image.objects {
            let bounding_box = object.detection.bounding_box.clamped(image.size);
            let Some(class) = class else {
                left_out.without_class += 1;
                continue;
            };
            if bounding_box.area() <= 0.0 {
                left_out.without_area += 1;
                continue;
            }
            let mask = object.mask.as_ref();
            let mask = mask.filter(|scored| scored.mask.area() > 0);
            let object = ClassedObject {
                class: self.classes.number(class),
                score: object.detection.score,
                bounding_box,
                mask: mask.cloned(),
            };
            left_out.without_mask += usize::from(self.needs_masks && object.mask.is_none());
            objects.push(object);
        }
        (objects, left_out)
    }

    /// Writes the files about the whole dataset.
    ///
    /// # Errors
    /// If a file cannot be written, or if an image could not.
    pub fn finish(self) -> Result<ExportSummary, ExportError> {
        if self.is_incomplete {
            return Err(ExportError::Incomplete);
        }
        for (_, exporter) in self.parts {
            exporter.finish(&self.classes)?;
        }
        Ok(self.summary)
    }
}

/// Whether a folder or one of its subfolders has anything but folders.
fn has_files(folder: &Path) -> io::Result<bool> {
    // not recursive, because the folder may be any
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => pending.push(entry.path()),
                false => return Ok(true),
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
