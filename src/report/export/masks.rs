//! PNG files for semantic and instance segmentation, as in Pascal VOC.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use png::{BitDepth, ColorType, Encoder, EncodingError, Filter};

use super::classes::Classes;
use super::{ExportError, Exporter, PlacedImage};
use crate::geometry::ImageSize;
use crate::palette;

/// The classes that fit beside the background into 8 bits.
pub(super) const MAX_CLASSES: usize = u8::MAX as usize;
/// The objects that fit beside the background into 16 bits.
pub(super) const MAX_INSTANCES: usize = u16::MAX as usize;

/// Writes `masks` (8 bits, with a palette: the number of the class, from 1; 0 is the background), `instances` (16 bits: the
/// number of the object in its image, from 1, best first) and `classes.txt` (the name of class N in line N, counted from 0).
/// Where objects overlap, the one with the higher score is on top, in both.
#[derive(Debug)]
pub(super) struct Masks {
    folder: PathBuf,
}

impl Masks {
    pub(super) fn new(folder: PathBuf, classes: &[String]) -> Result<Self, ExportError> {
        check_classes(classes)?;
        for part in ["masks", "instances"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).map_err(ExportError::of(&part))?;
        }
        Ok(Self { folder })
    }
}

fn check_classes(names: &[String]) -> Result<(), ExportError> {
    match names.get(MAX_CLASSES) {
        Some(name) => Err(ExportError::TooManyClasses { name: name.clone() }),
        None => Ok(()),
    }
}

/// The number of the object at each pixel, from 1; 0 where there is none.
fn instances(image: &PlacedImage) -> Vec<u16> {
    let ImageSize { height, width } = image.size;
    let mut instances = vec![0u16; height * width];
    // the best object is painted last, on top
    for (number, object) in (1..=u16::MAX).zip(&image.objects).rev() {
        let Some(mask) = object.mask() else { continue };
        let rows = mask.rows();
        for y in 0..height {
            for span in rows.row(y) {
                instances[y * width + span.start..y * width + span.end].fill(number);
            }
        }
    }
    instances
}

/// The colours of all values of a pixel: black for the background, then those of the classes.
fn palette_of_classes() -> Vec<u8> {
    let classes = (0..MAX_CLASSES).flat_map(|class| palette::color(class).0);
    [0; 3].into_iter().chain(classes).collect()
}

/// The options of a PNG file.
type Options = fn(&mut Encoder<'_, BufWriter<File>>);

fn with_palette(encoder: &mut Encoder<'_, BufWriter<File>>) {
    encoder.set_color(ColorType::Indexed);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_palette(palette_of_classes());
}

fn with_16_bits(encoder: &mut Encoder<'_, BufWriter<File>>) {
    encoder.set_color(ColorType::Grayscale);
    encoder.set_depth(BitDepth::Sixteen);
}

fn write_png(path: &Path, size: ImageSize, options: Options, data: &[u8]) -> io::Result<()> {
    let written = || {
        let file = BufWriter::new(File::create(path)?);
        // the sides of a decoded image are far below 2^31
        let mut encoder = Encoder::new(file, size.width as u32, size.height as u32);
        options(&mut encoder);
        // neighbouring values are equal and not similar: filters would make the files larger
        encoder.set_filter(Filter::NoFilter);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(data)?;
        writer.finish()
    };
    written().map_err(|error: EncodingError| match error {
        EncodingError::IoError(error) => error,
        other => io::Error::other(other),
    })
}

impl Exporter for Masks {
    fn check(&self, image: &PlacedImage, classes: &Classes) -> Result<(), ExportError> {
        match image.objects.len() {
            count if count > MAX_INSTANCES => Err(ExportError::TooManyObjects { count }),
            _ => check_classes(classes.names()),
        }
    }

    fn add(&mut self, image: &PlacedImage, _: &Classes) -> Result<(), ExportError> {
        let instances = instances(image);
        let class_of = |instance: &u16| {
            let object = usize::from(*instance).checked_sub(1);
            let object = object.and_then(|object| image.objects.get(object));
            // checked before: it is at most 255
            object.map_or(0, |object| (object.class + 1) as u8)
        };
        let classes: Vec<u8> = instances.iter().map(class_of).collect();
        // PNG has the high byte first
        let instances: Vec<u8> = instances.into_iter().flat_map(u16::to_be_bytes).collect();
        let file_name = format!("{}.png", image.name);
        let parts: [(&str, Options, &[u8]); 2] = [
            ("masks", with_palette, &classes),
            ("instances", with_16_bits, &instances),
        ];
        for (part, options, data) in parts {
            let path = self.folder.join(part).join(&file_name);
            write_png(&path, image.size, options, data).map_err(ExportError::of(&path))?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>, classes: &Classes) -> Result<(), ExportError> {
        let path = self.folder.join("classes.txt");
        let write = || {
            let mut file = BufWriter::new(File::create(&path)?);
            writeln!(file, "background")?;
            for name in classes.names() {
                // one line for each class
                writeln!(file, "{}", name.replace(char::is_control, " "))?;
            }
            file.flush()
        };
        write().map_err(ExportError::of(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{cup_and_pot, exported, read, two_masks};
    use super::*;
    use crate::report::export::ExportFormat;

    /// The values of the pixels of a PNG, its colour type and its bits.
    fn decoded(path: &Path) -> (Vec<u16>, ColorType, BitDepth) {
        let decoder = png::Decoder::new(io::BufReader::new(File::open(path).unwrap()));
        let mut reader = decoder.read_info().unwrap();
        let mut data = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut data).unwrap();
        data.truncate(info.buffer_size());
        let values = match info.bit_depth {
            BitDepth::Sixteen => data
                .chunks(2)
                .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
                .collect(),
            _ => data.iter().map(|byte| (*byte).into()).collect(),
        };
        (values, info.color_type, info.bit_depth)
    }

    #[test]
    fn the_better_object_is_on_top_in_both_images() {
        // the first one covers the left half, the second one everything
        let (folder, _) = exported(ExportFormat::Masks, &two_masks());
        let (classes, color, bits) = decoded(&folder.path().join("masks/photo.png"));
        assert_eq!((color, bits), (ColorType::Indexed, BitDepth::Eight));
        let row = [2, 2, 2, 2, 1, 1, 1, 1];
        assert_eq!(classes, row.repeat(4));
        let (instances, color, bits) = decoded(&folder.path().join("instances/photo.png"));
        assert_eq!((color, bits), (ColorType::Grayscale, BitDepth::Sixteen));
        let row = [1, 1, 1, 1, 2, 2, 2, 2];
        assert_eq!(instances, row.repeat(4));
        assert_eq!(
            read(&folder, "classes.txt"),
            "background\ncup\ntea \"pot\"\n"
        );
    }

    #[test]
    fn an_object_without_a_mask_is_left_out() {
        let (folder, summary) = exported(ExportFormat::Masks, &cup_and_pot());
        assert_eq!(summary.left_out.without_mask, 1);
        let (instances, ..) = decoded(&folder.path().join("instances/photo.png"));
        assert_eq!(instances.iter().sum::<u16>(), 2, "two pixels of the cup");
    }

    #[test]
    fn more_classes_than_a_pixel_can_name_are_an_error() {
        let names = |count: usize| (0..count).map(|i| i.to_string()).collect::<Vec<_>>();
        assert!(check_classes(&names(255)).is_ok());
        let error = check_classes(&names(256)).unwrap_err().to_string();
        assert!(
            error.contains("room for 255 classes") && error.contains("\"255\""),
            "{error}"
        );
        assert_eq!(palette_of_classes().len(), 256 * 3);
    }
}
