//! COCO: one JSON file with all annotations (<https://cocodataset.org/#format-data>).

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::classes::Classes;
use super::{ClassedObject, ExportError, Exporter, PlacedImage};
use crate::geometry::BoundingBox;
use crate::geometry::coco_rle::CocoRle;

/// The file of the annotations, and its name until it is complete.
const FILE: &str = "annotations.json";
const INCOMPLETE: &str = "annotations.json.part";

/// Writes `annotations.json`. The annotations are written image by image, so that they need no memory; images and
/// categories follow at the end.
#[derive(Debug)]
pub(super) struct Coco {
    folder: PathBuf,
    info: Info,
    file: Option<BufWriter<File>>,
    images: Vec<ImageRecord>,
    annotations: u64,
}

#[derive(Debug, Serialize)]
struct Info {
    description: &'static str,
    /// The model version.
    version: String,
}

#[derive(Debug, Serialize)]
struct ImageRecord {
    id: u64,
    file_name: String,
    width: usize,
    height: usize,
}

#[derive(Debug, Serialize)]
struct Annotation {
    id: u64,
    image_id: u64,
    category_id: usize,
    /// Left, top, width and height in pixels.
    bbox: [f64; 4],
    /// Pixels of the mask, or of the box if there is no mask.
    area: f64,
    iscrowd: u8,
    segmentation: Segmentation,
    score: f32,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Segmentation {
    Mask(CocoRle),
    /// An empty list of polygons: there is a box only.
    None([f64; 0]),
}

#[derive(Debug, Serialize)]
struct Category<'a> {
    /// From 1, as in COCO: models of torchvision use 0 for the background.
    id: usize,
    name: &'a str,
    supercategory: &'static str,
}

impl Coco {
    pub(super) fn new(folder: PathBuf, model_version: String) -> Self {
        Self {
            folder,
            info: Info {
                description: "predictions of groundling, not checked by people",
                version: model_version,
            },
            file: None,
            images: vec![],
            annotations: 0,
        }
    }

    fn incomplete(&self) -> PathBuf {
        self.folder.join(INCOMPLETE)
    }

    fn write_image(&mut self, image: &PlacedImage) -> io::Result<()> {
        let record = ImageRecord {
            id: self.images.len() as u64 + 1,
            file_name: image.file_name.clone(),
            width: image.size.width,
            height: image.size.height,
        };
        let mut lines = vec![];
        for object in &image.objects {
            self.annotations += 1;
            if self.annotations > 1 {
                lines.extend(b",\n");
            }
            serde_json::to_writer(&mut lines, &annotation(self.annotations, record.id, object))?;
        }
        self.images.push(record);
        let path = self.incomplete();
        open(&mut self.file, &path, &self.info)?.write_all(&lines)
    }

    fn write_end(&mut self, classes: &Classes) -> io::Result<()> {
        let categories = classes.names().iter().enumerate();
        let categories: Vec<Category> = categories
            .map(|(number, name)| Category {
                id: number + 1,
                name,
                supercategory: "object",
            })
            .collect();
        let path = self.incomplete();
        let file = open(&mut self.file, &path, &self.info)?;
        file.write_all(b"\n],\n\"images\": [\n")?;
        for (i, image) in self.images.iter().enumerate() {
            if i > 0 {
                file.write_all(b",\n")?;
            }
            serde_json::to_writer(&mut *file, image)?;
        }
        file.write_all(b"\n],\n\"categories\": ")?;
        serde_json::to_writer(&mut *file, &categories)?;
        file.write_all(b"}\n")?;
        file.flush()?;
        fs::rename(&path, self.folder.join(FILE))
    }
}

/// The open file; it is created with its beginning if there is none.
fn open<'a>(
    file: &'a mut Option<BufWriter<File>>,
    path: &Path,
    info: &Info,
) -> io::Result<&'a mut BufWriter<File>> {
    if file.is_none() {
        let mut created = BufWriter::new(File::create(path)?);
        created.write_all(b"{\"info\": ")?;
        serde_json::to_writer(&mut created, info)?;
        created.write_all(b",\n\"annotations\": [\n")?;
        *file = Some(created);
    }
    file.as_mut()
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

fn annotation(id: u64, image_id: u64, object: &ClassedObject) -> Annotation {
    let mask = object.mask();
    Annotation {
        id,
        image_id,
        category_id: object.class + 1,
        bbox: left_top_width_height(object.bounding_box),
        area: match mask {
            Some(mask) => mask.area() as f64,
            None => rounded(f64::from(object.bounding_box.area())),
        },
        iscrowd: 0,
        segmentation: match mask {
            Some(mask) => Segmentation::Mask(CocoRle::new(mask)),
            None => Segmentation::None([]),
        },
        score: object.score,
    }
}

/// A box in COCO's form, in thousandths of a pixel, so that left plus width is never beyond the image.
fn left_top_width_height(b: BoundingBox) -> [f64; 4] {
    let [x0, y0, x1, y1] = b.corners().map(|v| rounded(f64::from(v)));
    [x0, y0, rounded(x1 - x0), rounded(y1 - y0)]
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

impl Exporter for Coco {
    fn add(&mut self, image: &PlacedImage, _: &Classes) -> Result<(), ExportError> {
        self.write_image(image)
            .map_err(ExportError::of(&self.incomplete()))
    }

    fn finish(mut self: Box<Self>, classes: &Classes) -> Result<(), ExportError> {
        self.write_end(classes)
            .map_err(ExportError::of(&self.incomplete()))
    }
}
