//! Ultralytics YOLO: a text file with one line per object beside each image
//! (<https://docs.ultralytics.com/datasets/detect/>, <https://docs.ultralytics.com/datasets/segment/>).

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use super::classes::Classes;
use super::{ClassedObject, ExportError, Exporter, PlacedImage};
use crate::geometry::ImageSize;
use crate::regions::polygon::outline;

/// Writes `labels` with boxes or outlines, and `data.yaml`.
#[derive(Debug)]
pub(super) struct Yolo {
    folder: PathBuf,
    shape: Shape,
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    Box,
    /// An outline, with its tolerance in percent of the image's longer side.
    Outline(f32),
}

impl Yolo {
    /// For detection: `class cx cy width height`.
    pub(super) fn boxes(folder: PathBuf) -> Result<Self, ExportError> {
        Self::new(folder, Shape::Box)
    }

    /// For segmentation: `class x1 y1 x2 y2 ...`. An object is one line, also if it has several parts, because Ultralytics
    /// takes each line for an object. Its parts are joined by seams without width, as Ultralytics' converter for COCO does
    /// (`merge_multi_segment`).
    pub(super) fn segments(folder: PathBuf, tolerance: f32) -> Result<Self, ExportError> {
        Self::new(folder, Shape::Outline(tolerance))
    }

    fn new(folder: PathBuf, shape: Shape) -> Result<Self, ExportError> {
        let labels = folder.join("labels");
        fs::create_dir_all(&labels).map_err(ExportError::of(&labels))?;
        Ok(Self { folder, shape })
    }

    /// The line of an object; `None` if it has no outline.
    fn line(&self, object: &ClassedObject, size: ImageSize) -> Option<String> {
        let numbers = match self.shape {
            Shape::Box => {
                let [x0, y0, x1, y1] = object.bounding_box.corners().map(f64::from);
                let (width, height) = (size.width as f64, size.height as f64);
                vec![
                    (x0 + x1) / 2.0 / width,
                    (y0 + y1) / 2.0 / height,
                    (x1 - x0) / width,
                    (y1 - y0) / height,
                ]
            }
            Shape::Outline(tolerance) => {
                let pixels = tolerance / 100.0 * size.width.max(size.height) as f32;
                let corners = outline(object.mask()?, pixels)?.into_iter();
                corners.flat_map(|corner| share(corner, size)).collect()
            }
        };
        let mut line = object.class.to_string();
        for number in numbers {
            // writing to a String cannot fail
            let _ = write!(line, " {number:.6}");
        }
        Some(line + "\n")
    }
}

/// A point in pixels as shares of the image's width and height.
fn share([x, y]: [f32; 2], size: ImageSize) -> [f64; 2] {
    [
        f64::from(x) / size.width as f64,
        f64::from(y) / size.height as f64,
    ]
}

impl Exporter for Yolo {
    fn add(&mut self, image: &PlacedImage, _: &Classes) -> Result<(), ExportError> {
        let objects = image.objects.iter();
        let lines: String = objects
            .filter_map(|object| self.line(object, image.size))
            .collect();
        // an empty file says that the image has no objects
        let file_name = format!("{}.txt", image.name);
        let file = self.folder.join("labels").join(file_name);
        fs::write(&file, lines).map_err(ExportError::of(&file))
    }

    fn finish(self: Box<Self>, classes: &Classes) -> Result<(), ExportError> {
        let file = self.folder.join("data.yaml");
        fs::write(&file, data_yaml(&self.folder, classes)).map_err(ExportError::of(&file))
    }
}

/// The description of the dataset.
fn data_yaml(folder: &Path, classes: &Classes) -> String {
    let path = fs::canonicalize(folder).unwrap_or(folder.to_owned());
    let path = quoted(&path.to_string_lossy());
    let mut text = format!(
        "# Predictions of groundling, not checked by people.\n\
         # Change `path` if the folder is moved.\n\
         path: {path}\n\
         train: images\n\
         # The images are not divided: for validation, name a folder with other images.\n\
         val: images\n\
         names:\n"
    );
    for (number, name) in classes.names().iter().enumerate() {
        // writing to a String cannot fail
        let _ = writeln!(text, "  {number}: {}", quoted(name));
    }
    if classes.names().is_empty() {
        text = text.trim_end().to_owned() + " {}\n";
    }
    text
}

/// A text as a double-quoted scalar of YAML. Characters that YAML does not allow there are escaped.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        let code = u32::from(character);
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                let _ = write!(quoted, "\\u{code:04x}");
            }
            _ if character.is_control() => {
                let _ = write!(quoted, "\\x{code:02x}");
            }
            _ => quoted.push(character),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::super::testing::{cup_and_pot, exported, read};
    use super::*;
    use crate::report::export::ExportFormat;

    #[test]
    fn a_box_is_a_line_with_its_centre_and_size() {
        let (folder, _) = exported(ExportFormat::Yolo, &cup_and_pot());
        // the box of the pot is clamped to the image of 8x4 pixels
        assert_eq!(
            read(&folder, "labels/photo.txt"),
            "0 0.250000 0.500000 0.250000 0.500000\n1 0.750000 0.500000 0.500000 1.000000\n"
        );
        let yaml = read(&folder, "data.yaml");
        let path = fs::canonicalize(folder.path()).unwrap();
        assert!(
            yaml.contains(&format!("path: \"{}\"\n", path.display())),
            "{yaml}"
        );
        assert!(yaml.ends_with("val: images\nnames:\n  0: \"cup\"\n  1: \"tea \\\"pot\\\"\"\n"));
    }

    #[test]
    fn a_mask_is_one_line_with_its_joined_outline() {
        let (folder, _) = exported(ExportFormat::YoloSegments, &cup_and_pot());
        let text = read(&folder, "labels/photo.txt");
        // the pot has no mask; the cup has two parts, each a square of one pixel
        let numbers: Vec<f64> = text
            .trim_end()
            .split(' ')
            .map(|number| number.parse().unwrap())
            .collect();
        assert_eq!((text.lines().count(), numbers[0]), (1, 0.0));
        let corners: Vec<[f64; 2]> = numbers[1..]
            .chunks(2)
            .map(|pair| [pair[0] * 8.0, pair[1] * 4.0])
            .collect();
        assert_eq!(corners.len(), 4 + 4 + 2, "two squares and the seam");
        let twice_area: f64 = (0..corners.len())
            .map(|i| {
                let (a, b) = (corners[i], corners[(i + 1) % corners.len()]);
                a[0] * b[1] - b[0] * a[1]
            })
            .sum();
        assert_eq!(twice_area.abs() / 2.0, 2.0);
    }

    #[test]
    fn names_in_yaml_are_quoted() {
        for (text, expected) in [
            ("tea pot: 'x' #1", "\"tea pot: 'x' #1\""),
            ("a\"b\\c", "\"a\\\"b\\\\c\""),
            ("a\nb\u{7f}\u{85}", "\"a\\x0ab\\x7f\\x85\""),
            ("\u{feff}\u{2028}ä苹", "\"\\ufeff\\u2028ä苹\""),
        ] {
            assert_eq!(quoted(text), expected);
        }
        assert!(data_yaml(Path::new("x"), &Classes::default()).ends_with("names: {}\n"));
    }
}
