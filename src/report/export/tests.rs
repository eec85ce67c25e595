//! Tests of whole exports.

use std::fs;
use std::path::Path;

use image::{ExtendedColorType, ImageEncoder};
use serde_json::{Value, json};

use super::testing::{CLASSES, SIZE, add, cup_and_pot, export, exported, object, pixels, read};
use super::*;
use crate::geometry::coco_rle::CocoRle;
use crate::media::decode;

const ALL: [ExportFormat; 4] = [
    ExportFormat::Coco,
    ExportFormat::Yolo,
    ExportFormat::YoloSegments,
    ExportFormat::Masks,
];

/// All files below a folder, relative to it, sorted.
fn files(folder: &Path) -> Vec<String> {
    let mut found = vec![];
    let mut pending = vec![folder.to_owned()];
    while let Some(inner) = pending.pop() {
        for entry in fs::read_dir(inner).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => pending.push(path),
                false => {
                    let relative = path.strip_prefix(folder).unwrap();
                    found.push(relative.to_str().unwrap().to_owned());
                }
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_coco_file_has_images_categories_and_annotations() {
    let (folder, summary) = exported(ExportFormat::Coco, &cup_and_pot());
    assert_eq!(
        files(folder.path()),
        ["annotations.json", "images/photo.png"]
    );
    let dataset: Value = serde_json::from_str(&read(&folder, "annotations.json")).unwrap();
    assert_eq!(dataset["info"]["version"], "groundling 0.0.0 demo+demo");
    assert_eq!(
        dataset["images"],
        json!([{"id": 1, "file_name": "photo.png", "width": 8, "height": 4}])
    );
    assert_eq!(
        dataset["categories"],
        json!([
            {"id": 1, "name": "cup", "supercategory": "object"},
            {"id": 2, "name": "tea \"pot\"", "supercategory": "object"},
        ])
    );
    let [cup, pot] = dataset["annotations"].as_array().unwrap().as_slice() else {
        panic!("{dataset}");
    };
    let mask: CocoRle = serde_json::from_value(cup["segmentation"].clone()).unwrap();
    assert_eq!(mask.mask().unwrap().area(), 2);
    assert_eq!(
        (&cup["id"], &cup["image_id"], &cup["category_id"]),
        (&json!(1), &json!(1), &json!(1))
    );
    assert_eq!(
        (&cup["bbox"], &cup["area"]),
        (&json!([1.0, 1.0, 2.0, 2.0]), &json!(2.0))
    );
    let expected = json!({
        "id": 2, "image_id": 1, "category_id": 2, "bbox": [4.0, 0.0, 4.0, 4.0], "area": 16.0,
        "iscrowd": 0, "segmentation": [], "score": 0.75,
    });
    assert_eq!(*pot, expected);
    assert_eq!(
        summary.to_string(),
        format!("{} has 1 images with 2 objects", folder.path().display())
    );
}

#[test]
fn several_formats_have_a_folder_each_and_share_the_image_files() {
    let folder = tempfile::tempdir().unwrap();
    let mut export = export(&folder, &[&ALL[..], &ALL[..]].concat());
    add(&mut export, "photo", &cup_and_pot());
    add(&mut export, "empty", &[]);
    let summary = export.finish().unwrap();
    assert_eq!((summary.images, summary.objects), (2, 2));
    let expected = [
        "coco/annotations.json",
        "coco/images/empty.png",
        "coco/images/photo.png",
        "masks/classes.txt",
        "masks/images/empty.png",
        "masks/images/photo.png",
        "masks/instances/empty.png",
        "masks/instances/photo.png",
        "masks/masks/empty.png",
        "masks/masks/photo.png",
        "yolo-segments/data.yaml",
        "yolo-segments/images/empty.png",
        "yolo-segments/images/photo.png",
        "yolo-segments/labels/empty.txt",
        "yolo-segments/labels/photo.txt",
        "yolo/data.yaml",
        "yolo/images/empty.png",
        "yolo/images/photo.png",
        "yolo/labels/empty.txt",
        "yolo/labels/photo.txt",
    ];
    assert_eq!(files(folder.path()), expected);
    assert_eq!(read(&folder, "yolo/labels/empty.txt"), "");
    for format in ALL {
        let file = folder.path().join(format.name()).join("images/photo.png");
        let written = decode(&fs::read(file).unwrap(), 100).unwrap();
        assert_eq!(written, pixels());
    }
}

#[test]
fn a_dataset_without_images_is_valid() {
    let folder = tempfile::tempdir().unwrap();
    export(&folder, &ALL).finish().unwrap();
    let dataset = read(&folder, "coco/annotations.json");
    let dataset: Value = serde_json::from_str(&dataset).unwrap();
    assert_eq!(
        (&dataset["images"], &dataset["annotations"]),
        (&json!([]), &json!([]))
    );
    assert_eq!(dataset["categories"][1]["name"], CLASSES[1]);
}

#[test]
fn a_folder_with_files_is_not_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let new = || {
        let options = ExportOptions {
            folder: folder.path().to_owned(),
            formats: ALL.to_vec(),
            classes: vec![],
            model_version: String::new(),
            polygon_tolerance: 0.2,
        };
        Export::new(options)
    };
    // an export that has no image leaves empty folders, which another one may use
    drop(new().unwrap());
    drop(new().unwrap());
    let file = folder.path().join("coco/images/photo.jpg");
    fs::write(&file, "mine").unwrap();
    let error = new().unwrap_err().to_string();
    assert!(error.contains("has files already"), "{error}");
    assert!(error.contains("name a new or empty folder"), "{error}");
    assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
    assert_eq!(fs::read_to_string(file).unwrap(), "mine");
    assert_eq!(files(folder.path()), ["coco/images/photo.jpg"]);
}

#[test]
fn objects_without_a_class_or_an_area_are_left_out_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut export = export(&folder, &[ExportFormat::Yolo]);
    let inside = object("cup", [1.0, 1.0, 3.0, 3.0], None);
    let outside = object("cup", [9.0, 1.0, 12.0, 3.0], None);
    let pixels = pixels();
    let image = NewImage {
        name: "photo",
        size: SIZE,
        content: ImageContent::Pixels(&pixels),
        objects: vec![
            (&inside, None),
            (&outside, Some("cup")),
            (&inside, Some("lid")),
            (&inside, None),
        ],
    };
    let left_out = export.add(image).unwrap();
    assert_eq!(
        left_out.describe().unwrap(),
        "left out of the export: 2 without a class, 1 without an area inside the image"
    );
    let summary = export.finish().unwrap();
    assert_eq!((summary.objects, summary.left_out), (1, left_out));
    assert!(
        summary
            .to_string()
            .contains("1 images with 1 objects; left out")
    );
    // a class that was not known at the start
    assert!(read(&folder, "labels/photo.txt").starts_with("2 0.25"));
    assert!(read(&folder, "data.yaml").ends_with("  2: \"lid\"\n"));
}

#[test]
fn images_with_hostile_or_equal_names_stay_in_the_folder() {
    let parent = tempfile::tempdir().unwrap();
    let options = ExportOptions {
        folder: parent.path().join("export"),
        formats: vec![ExportFormat::Yolo],
        classes: vec![],
        model_version: String::new(),
        polygon_tolerance: 0.2,
    };
    let mut export = Export::new(options).unwrap();
    for name in [
        "../../a",
        "/etc/a",
        "a",
        "A",
        "..",
        "",
        "a\0b",
        &"x".repeat(999),
    ] {
        add(&mut export, name, &[]);
    }
    export.finish().unwrap();
    let found = files(parent.path());
    assert_eq!(found.len(), 2 * 8 + 1, "{found:?}");
    let is_inside = |file: &String| file.starts_with("export/");
    assert!(found.iter().all(is_inside), "{found:?}");
    assert!(
        found.contains(&"export/labels/A-2.txt".to_owned()),
        "{found:?}"
    );
}

/// A PNG with an EXIF orientation: turned by 90 degrees, or upright.
fn png(orientation: Option<u8>) -> Vec<u8> {
    let mut file = vec![];
    let mut encoder = image::codecs::png::PngEncoder::new(&mut file);
    if let Some(orientation) = orientation {
        // a TIFF with one entry: tag 0x0112, type SHORT
        let mut exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
        encoder.set_exif_metadata(exif).unwrap();
    }
    let pixels = pixels();
    let written = encoder.write_image(&pixels, 8, 4, ExtendedColorType::Rgb8);
    written.unwrap();
    file
}

#[test]
fn a_file_is_linked_unless_readers_disagree_about_its_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let mut jpeg = vec![];
    let encoder = image::codecs::jpeg::JpegEncoder::new(&mut jpeg);
    pixels().write_with_encoder(encoder).unwrap();
    let cut_jpeg = [&jpeg[..jpeg.len() - 2], b"\0\0"].concat();
    let rgba = image::DynamicImage::ImageRgb8(pixels()).into_rgba8();
    let mut transparent = vec![];
    let encoder = image::codecs::png::PngEncoder::new(&mut transparent);
    rgba.write_with_encoder(encoder).unwrap();
    for (name, bytes, expected_name, is_same) in [
        ("plain.PNG", png(None), "x.png", true),
        ("upright.png", png(Some(1)), "x.png", true),
        ("turned.png", png(Some(6)), "x.png", false),
        ("transparent.png", transparent, "x.png", false),
        // the extension is wrong
        ("photo.png", jpeg, "x.jpg", true),
        ("cut.jpeg", cut_jpeg, "x.jpg", true),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, &bytes).unwrap();
        let decoded = decode(&bytes, 100).unwrap();
        let content = ImageContent::of_file(&path, &bytes, &decoded);
        assert_eq!(content.file_name("x"), expected_name, "{name}");
        let target = tempfile::tempdir().unwrap();
        let file = target.path().join("x");
        content.place([target.path()].into_iter(), "x").unwrap();
        let written = fs::read(&file).unwrap();
        assert_eq!(written == bytes, is_same, "{name}");
        // without the orientation, the pixels are those that were predicted
        assert!(decode::same_in_every_reader(&written).is_some(), "{name}");
        assert_eq!(decode(&written, 100).unwrap(), decoded, "{name}");
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let is_link = fs::metadata(&file).unwrap().ino() == fs::metadata(&path).unwrap().ino();
            assert_eq!(is_link, is_same && name != "cut.jpeg", "{name}");
        }
    }
}

#[cfg(unix)]
#[test]
fn of_a_symbolic_link_the_file_is_linked() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = png(None);
    fs::write(folder.path().join("a.png"), &bytes).unwrap();
    let link = folder.path().join("link.png");
    std::os::unix::fs::symlink("a.png", &link).unwrap();
    let decoded = decode(&bytes, 100).unwrap();
    let target = tempfile::tempdir().unwrap();
    ImageContent::of_file(&link, &bytes, &decoded)
        .place([target.path()].into_iter(), "x.png")
        .unwrap();
    let metadata = fs::symlink_metadata(target.path().join("x.png")).unwrap();
    assert!(metadata.is_file());
}

#[test]
fn after_a_failed_write_the_export_cannot_be_finished() {
    let folder = tempfile::tempdir().unwrap();
    let mut export = export(&folder, &[ExportFormat::Yolo]);
    add(&mut export, "photo", &cup_and_pot());
    fs::remove_dir_all(folder.path().join("labels")).unwrap();
    let pixels = pixels();
    let image = || NewImage {
        name: "other",
        size: SIZE,
        content: ImageContent::Pixels(&pixels),
        objects: vec![],
    };
    let error = export.add(image()).unwrap_err().to_string();
    assert!(error.contains("labels/other.txt"), "{error}");
    let again = export.add(image()).unwrap_err();
    assert!(matches!(again, ExportError::Incomplete), "{again}");
    assert!(export.finish().is_err());
    assert!(!folder.path().join("data.yaml").exists());
}
