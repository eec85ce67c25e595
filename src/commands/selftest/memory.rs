//! Memory that predictions allocate and do not release.

use anyhow::Context;
use candle_core::{DType, Device};

use super::report::{Found, Row};
use crate::checkpoints::{LocateError, Role, demo};
use crate::commands::selftest::scenes::Scenes;
use crate::detector::{DetectionOptions, Detector};
use crate::geometry::BoundingBox;
use crate::models::ops::checks::Extent;
use crate::pipeline::device;
use crate::prompt::Prompt;
use crate::segmenter::Segmenter;

/// Images of different sizes, in turn. All numbers of images are multiples of it: the models remember something for the last
/// sizes, so the measurements must be at the same one.
const SIZES: usize = 6;
/// Images before the first measurement. By then, everything that is kept for later images is there, also the allocator's
/// buffers.
const WARM_UP: usize = 7 * SIZES;
/// What may be added on a CPU by an image, in MiB, because the allocator keeps some freed memory.
const ALLOWED_ON_CPU: f64 = 0.1;
/// On a GPU, every tensor must be released.
const ALLOWED_ON_GPU: f64 = 0.0;

/// Runs the demo models on images of changing sizes, and compares the memory in use; `None` on systems that do not report it.
pub(super) fn row(device: &Device, extent: Extent) -> Option<Row> {
    let images = match extent {
        Extent::Full => 34 * SIZES,
        Extent::Quick => 8 * SIZES,
    };
    let allowed = match device.is_cpu() {
        true => ALLOWED_ON_CPU * images as f64,
        false => ALLOWED_ON_GPU,
    };
    let found = match growth(device, images) {
        Ok(growth) => Found::Difference(growth?),
        Err(error) => Found::Wrong(format!("{error:#}")),
    };
    Some(Row {
        check: "memory that is not released",
        used_by: "demo models".to_owned(),
        shape: format!("{images} images"),
        on: device::name(device),
        found,
        allowed,
        unit: "MiB",
        seconds: None,
    })
}

/// The growth in MiB; `None` if it cannot be measured.
fn growth(device: &Device, images: usize) -> anyhow::Result<Option<f64>> {
    let checkpoint = |role| demo(role).ok_or(LocateError::NoDemo);
    let detector = Detector::load(&checkpoint(Role::Detector)?, DType::F32, device)?;
    let segmenter = Segmenter::load(&checkpoint(Role::Segmenter)?, DType::F32, device)?;
    let scenes = Scenes::read()?;
    let scene = scenes.scenes.first().context("there are no scenes")?;
    let (image, prompt) = (scene.image()?, Prompt::parse(&scene.prompt)?);
    let options = DetectionOptions {
        box_threshold: 0.0,
        max_detections: Some(10),
        ..scenes.options()
    };
    let predict = |number: usize| -> anyhow::Result<()> {
        let cut = 8 * (number % SIZES) as u32;
        let (width, height) = (image.width() - cut, image.height() - cut / 2);
        let part = image::imageops::crop_imm(&image, 0, 0, width, height).to_image();
        let found = detector.detect(&part, &prompt, &options)?;
        let boxes: Vec<BoundingBox> = found.iter().map(|d| d.bounding_box).collect();
        segmenter.segment_boxes(&segmenter.encode(&part)?, &boxes)?;
        Ok(())
    };
    (0..WARM_UP).try_for_each(predict)?;
    let Some(before) = device::used_memory(device)? else {
        return Ok(None);
    };
    (0..images).try_for_each(predict)?;
    let after = device::used_memory(device)?.unwrap_or(before);
    Ok(Some((after as f64 - before as f64) / f64::from(1 << 20)))
}
