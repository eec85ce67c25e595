//! The demo scenes, and the reference implementation's results for them.
//!
//! The images and the answers are those of `tests/reference/demo`, compiled in. transformers 4.44.2 computed the
//! answers with the same weights (`python tests/reference/demo_scenes.py`).

use anyhow::Context;
use image::RgbImage;
use serde::Deserialize;

use crate::detector::DetectionOptions;
use crate::geometry::coco_rle::CocoRle;
use crate::media::decode;

/// All scenes, and the thresholds that the reference used.
#[derive(Debug, Clone, Deserialize)]
pub struct Scenes {
    box_threshold: f32,
    text_threshold: f32,
    /// Sorted by the images' file names.
    pub scenes: Vec<Scene>,
}

/// An image, a prompt, and the reference's detections.
#[derive(Debug, Clone, Deserialize)]
pub struct Scene {
    /// The image's file name.
    pub image: String,
    /// The prompt as typed.
    pub prompt: String,
    /// The phrases of the prompt.
    pub phrases: Vec<String>,
    /// Sorted by score, best first.
    pub detections: Vec<Answer>,
}

/// One object that the reference detected.
#[derive(Debug, Clone, Deserialize)]
pub struct Answer {
    /// x0, y0, x1, y1 in pixels.
    #[serde(rename = "box")]
    pub bounding_box: [f32; 4],
    /// 0..1.
    pub score: f32,
    /// The reference's own label, joined from single tokens.
    pub label: String,
    /// The phrase that fits the object best.
    pub phrase: String,
    /// The predicted IoU of the mask with the object.
    pub iou_score: f32,
    /// The mask for the box prompt alone.
    pub mask: CocoRle,
}

impl Scenes {
    /// Reads the compiled-in scenes.
    ///
    /// # Errors
    /// If the answers are damaged.
    pub fn read() -> anyhow::Result<Self> {
        let answers = include_bytes!("../../../tests/reference/demo/expected.json");
        serde_json::from_slice(answers).context("the compiled-in reference answers are damaged")
    }

    /// Keeps only every `step`th scene.
    pub fn keep_every(&mut self, step: usize) {
        let mut number = 0;
        self.scenes.retain(|_| {
            number += 1;
            (number - 1) % step.max(1) == 0
        });
    }

    /// The detector's options for the reference's answers.
    pub fn options(&self) -> DetectionOptions {
        DetectionOptions {
            box_threshold: self.box_threshold,
            text_threshold: self.text_threshold,
            // the reference does not suppress overlapping boxes
            nms_iou_threshold: 1.0,
            max_detections: None,
        }
    }
}

impl Scene {
    /// The decoded image.
    ///
    /// # Errors
    /// If the image is not compiled in, or damaged.
    pub fn image(&self) -> anyhow::Result<RgbImage> {
        let image = IMAGES.iter().find(|(name, _)| *name == self.image);
        let (_, bytes) = image.with_context(|| format!("{} is not compiled in", self.image))?;
        decode(bytes, usize::MAX).with_context(|| self.image.clone())
    }
}

/// The names and bytes of the scenes' image files.
pub(in super::super) fn image_files() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    IMAGES.iter().copied()
}

macro_rules! scene_images {
    ($($number:literal)+) => {
        &[$((
            concat!("scene_", $number, ".png"),
            include_bytes!(concat!("../../../tests/reference/demo/scene_", $number, ".png")),
        )),+]
    };
}

const IMAGES: &[(&str, &[u8])] = scene_images!(
    "00" "01" "02" "03" "04" "05" "06" "07" "08" "09" "10" "11"
    "12" "13" "14" "15" "16" "17" "18" "19" "20" "21" "22" "23"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scene_has_an_image_and_masks() {
        let scenes = Scenes::read().unwrap().scenes;
        assert_eq!(scenes.len(), IMAGES.len());
        for scene in scenes {
            let (width, height) = scene.image().unwrap().dimensions();
            for answer in scene.detections {
                assert!(scene.phrases.contains(&answer.phrase));
                assert_eq!(answer.mask.size, [height as usize, width as usize]);
                assert!(answer.mask.mask().unwrap().area() > 0);
            }
        }
    }
}
