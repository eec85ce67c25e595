//! Runs the demo models on images and prompts, and compares them with the reference's answers.

use anyhow::Context;
use candle_core::{DType, Device};

use super::report::{Found, Row};
use super::scenes::{Answer, Scene, Scenes};
use crate::checkpoints::{LocateError, Role, demo};
use crate::detector::{DetectionOptions, Detector};
use crate::geometry::{BoundingBox, Detection};
use crate::models::ops::InstructionSet;
use crate::models::ops::checks::Extent;
use crate::models::weights::Checkpoint;
use crate::pipeline::device;
use crate::prompt::Prompt;
use crate::segmenter::{ScoredMask, Segmenter};

/// The largest differences from the reference over all scenes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Differences {
    /// Number of compared scenes.
    pub scenes: usize,
    /// Number of compared objects.
    pub objects: usize,
    /// Scenes whose objects are not the reference's, with the objects that were found.
    pub wrong: Vec<String>,
    /// Difference of box edges, in pixels.
    pub boxes: f32,
    /// Difference of the detector's scores.
    pub scores: f32,
    /// Difference of masks: 1 - IoU.
    pub masks: f32,
    /// Difference of the predicted IoU of masks.
    pub quality: f32,
}

impl Differences {
    /// Compares the results for a scene.
    fn add(
        &mut self,
        scene: &Scene,
        found: &[Detection],
        masks: &[ScoredMask],
    ) -> anyhow::Result<()> {
        self.scenes += 1;
        let ours: Vec<&str> = found.iter().filter_map(|d| d.phrase.as_deref()).collect();
        let theirs: Vec<&str> = scene.detections.iter().map(|d| d.phrase.as_str()).collect();
        if ours != theirs || masks.len() != found.len() {
            self.wrong.push(format!(
                "in {}: found {ours:?} with {} masks instead of {theirs:?}",
                scene.image,
                masks.len()
            ));
            return Ok(());
        }
        for ((ours, mask), theirs) in found.iter().zip(masks).zip(&scene.detections) {
            self.add_object(ours, mask, theirs)
                .with_context(|| format!("the mask of {} in {}", theirs.phrase, scene.image))?;
        }
        Ok(())
    }

    fn add_object(
        &mut self,
        ours: &Detection,
        mask: &ScoredMask,
        theirs: &Answer,
    ) -> anyhow::Result<()> {
        let expected = theirs.mask.mask().context("a stored answer is damaged")?;
        let corners = ours.bounding_box.corners().into_iter();
        for (ours, theirs) in corners.zip(theirs.bounding_box) {
            self.boxes = larger(self.boxes, (ours - theirs).abs());
        }
        self.scores = larger(self.scores, (ours.score - theirs.score).abs());
        self.masks = larger(self.masks, 1.0 - mask.mask.iou(&expected));
        self.quality = larger(self.quality, (mask.score - theirs.iou_score).abs());
        self.objects += 1;
        Ok(())
    }
}

/// The larger of two numbers. NaN if one is NaN; `f32::max` would ignore it.
fn larger(one: f32, other: f32) -> f32 {
    if one.is_nan() || one > other {
        one
    } else {
        other
    }
}

/// Runs the demo models on scenes.
///
/// # Errors
/// If a model fails, or a stored answer is damaged.
pub fn compare(scenes: &Scenes, device: &Device) -> anyhow::Result<Differences> {
    let models = Models {
        detector: Detector::load(&demo_model(Role::Detector)?, DType::F32, device)?,
        segmenter: Segmenter::load(&demo_model(Role::Segmenter)?, DType::F32, device)?,
        options: scenes.options(),
    };
    let mut differences = Differences::default();
    for scene in &scenes.scenes {
        let (found, masks) = models.predict(scene)?;
        differences.add(scene, &found, &masks)?;
    }
    Ok(differences)
}

/// The compiled-in model of a role.
fn demo_model(role: Role) -> anyhow::Result<Checkpoint> {
    Ok(demo(role).ok_or(LocateError::NoDemo)?)
}

struct Models {
    detector: Detector,
    segmenter: Segmenter,
    options: DetectionOptions,
}

impl Models {
    fn predict(&self, scene: &Scene) -> anyhow::Result<(Vec<Detection>, Vec<ScoredMask>)> {
        let (image, prompt) = (scene.image()?, Prompt::parse(&scene.prompt)?);
        let found = self.detector.detect(&image, &prompt, &self.options)?;
        if found.is_empty() {
            return Ok((found, vec![]));
        }
        let encoded = self.segmenter.encode(&image)?;
        let boxes: Vec<BoundingBox> = found.iter().map(|d| d.bounding_box).collect();
        let masks = self.segmenter.segment_boxes(&encoded, &boxes)?;
        Ok((found, masks))
    }
}

/// Tolerance of box edges in pixels, for images of up to 320 pixels.
const BOX_TOLERANCE: f64 = 0.05;
const SCORE_TOLERANCE: f64 = 1e-4;
/// Tolerance of masks: one pixel of a mask of 200 pixels. Rounding may change a pixel at the edge.
const MASK_TOLERANCE: f64 = 5e-3;

/// Runs the demo models and compares them with the reference; in a quick run, on every third scene.
pub(super) fn rows(device: &Device, extent: Extent) -> Vec<Row> {
    let scenes = || -> anyhow::Result<Scenes> {
        let mut scenes = Scenes::read()?;
        if extent == Extent::Quick {
            scenes.keep_every(3);
        }
        Ok(scenes)
    };
    let on = match device.is_cpu() {
        true => InstructionSet::current().name().to_owned(),
        false => device::name(device),
    };
    let row = |check, used_by: &str, found, allowed, unit| Row {
        check,
        used_by: used_by.to_owned(),
        shape: String::new(),
        on: on.clone(),
        found,
        allowed,
        unit,
        seconds: None,
    };
    let differences = match scenes().and_then(|scenes| compare(&scenes, device)) {
        Ok(differences) => differences,
        Err(error) => {
            let found = Found::Wrong(format!("{error:#}"));
            return vec![row("demo phrases", "demo models", found, 0.0, "scenes")];
        }
    };
    measurements(&differences)
        .map(|(check, found, allowed, unit)| Row {
            shape: format!(
                "{} objects in {} scenes",
                differences.objects, differences.scenes
            ),
            ..row(check, "demo models", found, allowed, unit)
        })
        .to_vec()
}

/// Name, finding, tolerance and its unit.
type Measurement = (&'static str, Found, f64, &'static str);

fn measurements(differences: &Differences) -> [Measurement; 5] {
    let objects = match differences.wrong.as_slice() {
        [] => Found::Difference(0.0),
        wrong => Found::Wrong(wrong.join("; ")),
    };
    let found = |difference: f32| match difference.is_finite() {
        true => Found::Difference(difference.into()),
        false => Found::Wrong("a number is infinite or NaN".to_owned()),
    };
    [
        ("demo phrases", objects, 0.0, "scenes"),
        (
            "demo boxes",
            found(differences.boxes),
            BOX_TOLERANCE,
            "pixels",
        ),
        (
            "demo scores",
            found(differences.scores),
            SCORE_TOLERANCE,
            "of 0 to 1",
        ),
        (
            "demo masks",
            found(differences.masks),
            MASK_TOLERANCE,
            "below an IoU of 1",
        ),
        (
            "demo mask scores",
            found(differences.quality),
            SCORE_TOLERANCE,
            "of 0 to 1",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Mask;

    /// The first scene, and the reference's answers as if they were our results.
    fn first_scene() -> (Scene, Vec<Detection>, Vec<ScoredMask>) {
        let scene = Scenes::read().unwrap().scenes.remove(0);
        let found = |answer: &Answer| {
            let [x0, y0, x1, y1] = answer.bounding_box;
            Detection {
                phrase: Some(answer.phrase.clone()),
                score: answer.score,
                bounding_box: BoundingBox { x0, y0, x1, y1 },
            }
        };
        let mask = |answer: &Answer| ScoredMask {
            mask: answer.mask.mask().unwrap(),
            score: answer.iou_score,
        };
        let detections = scene.detections.iter().map(found).collect();
        let masks = scene.detections.iter().map(mask).collect();
        (scene, detections, masks)
    }

    /// The names of the failing checks.
    fn failing(scene: &Scene, found: &[Detection], masks: &[ScoredMask]) -> Vec<&'static str> {
        let mut differences = Differences::default();
        differences.add(scene, found, masks).unwrap();
        let is_bad = |found: &Found, allowed: f64| match found {
            Found::Difference(difference) => *difference > allowed,
            Found::Wrong(_) => true,
        };
        measurements(&differences)
            .iter()
            .filter(|(_, found, allowed, _)| is_bad(found, *allowed))
            .map(|(check, ..)| *check)
            .collect()
    }

    #[test]
    fn wrong_results_are_detected() {
        let (scene, found, masks) = first_scene();
        assert!(failing(&scene, &found, &masks).is_empty());

        let mut wrong = found.clone();
        wrong[0].phrase = Some("circle".to_owned());
        assert_eq!(failing(&scene, &wrong, &masks), ["demo phrases"]);
        assert_eq!(failing(&scene, &[], &[]), ["demo phrases"]);

        let mut wrong = found.clone();
        wrong[0].bounding_box.y1 += 0.1;
        assert_eq!(failing(&scene, &wrong, &masks), ["demo boxes"]);

        for score in [found[0].score + 1e-3, f32::NAN] {
            let mut wrong = found.clone();
            wrong[0].score = score;
            assert_eq!(failing(&scene, &wrong, &masks), ["demo scores"]);
        }

        let mut wrong = masks.clone();
        wrong[0].score -= 1e-3;
        // every fiftieth pixel is unset
        let pixels = masks[0].mask.pixels().zip(0..);
        let pixels = pixels.map(|(is_set, i): (bool, usize)| is_set && i % 50 != 0);
        wrong[0].mask = Mask::from_pixels(masks[0].mask.size(), pixels);
        let failing = failing(&scene, &found, &wrong);
        assert_eq!(failing, ["demo masks", "demo mask scores"]);
    }
}
