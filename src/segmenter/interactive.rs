//! Masks of the objects that an annotator marks with points and boxes, click by click.

use candle_core::Tensor;

use super::{EncodedImage, LowResMask, SegmentError, Segmenter};
use crate::geometry::{Point, SegmentPrompt};
use crate::models::sam::{Family, PointLabel, Prompts};

impl Segmenter {
    /// The mask of the object that a prompt marks. Points alone are ambiguous about the extent of the object, so
    /// the model predicts several masks, and the one with the best predicted IoU is returned.
    ///
    /// # Errors
    /// If the prompt is empty, or the model fails.
    pub fn segment_prompt(
        &self,
        image: &EncodedImage,
        prompt: &SegmentPrompt,
    ) -> Result<LowResMask, SegmentError> {
        let is_ambiguous = prompt.bounding_box.is_none();
        self.segment_marked(image, prompt, None, is_ambiguous)
    }

    /// The mask of the object that a prompt marks, given an earlier mask of the same object in the same image. `prompt`
    /// is the whole prompt: the points and the box of the earlier mask, and what was added since.
    ///
    /// As in SAM's reference (`mask_input` of `SamPredictor.predict`), the model gets the logits of the earlier mask as
    /// they are, without a threshold, and predicts one mask: the earlier mask says which object is meant.
    ///
    /// # Errors
    /// If the earlier mask has another image size or model input size, the prompt is empty, or the model fails.
    pub fn refine(
        &self,
        image: &EncodedImage,
        prompt: &SegmentPrompt,
        earlier: &LowResMask,
    ) -> Result<LowResMask, SegmentError> {
        let side = 4 * self.config().grid();
        if earlier.frame != image.frame
            || earlier.input_side != self.prompt_side()
            || earlier.logits.len() != side * side
        {
            return Err(SegmentError::EarlierMask);
        }
        let masks = Tensor::from_slice(&earlier.logits, (1, 1, side, side), &self.device)?;
        let masks = match self.config().family {
            Family::Sam | Family::SamHq => masks,
            // `SAM2ImagePredictor` limits the logits that it returns
            Family::Sam2 => masks.clamp(-32f32, 32f32)?,
        };
        let masks = masks.to_dtype(self.dtype)?;
        self.segment_marked(image, prompt, Some(masks), false)
    }

    /// The best mask of a prompt. With `multimask`, the model predicts several masks of different extent.
    fn segment_marked(
        &self,
        image: &EncodedImage,
        prompt: &SegmentPrompt,
        masks: Option<Tensor>,
        multimask: bool,
    ) -> Result<LowResMask, SegmentError> {
        let label = |point: &Point| match point.is_foreground {
            true => PointLabel::Foreground,
            false => PointLabel::Background,
        };
        let points = prompt.points.iter();
        let points: Vec<_> = points
            .map(|p| (image.frame.point((p.x, p.y)), label(p)))
            .collect();
        let prompts = Prompts {
            points: (!points.is_empty()).then(|| vec![points]),
            boxes: prompt.bounding_box.map(|b| vec![image.frame.corners(b)]),
            masks,
        };
        let predicted = self
            .model
            .predict_masks(&image.embeddings, &prompts, multimask)?;
        let masks = self.best_masks(&predicted, image.frame)?;
        masks.into_iter().next().ok_or_else(|| {
            SegmentError::Model(candle_core::Error::Msg(
                "the mask decoder returned no mask".to_owned(),
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use candle_core::{DType, Device};

    use super::*;
    use crate::geometry::{BoundingBox, ImageSize};
    use crate::models::sam::ImageEmbeddings;
    use crate::models::weights::Checkpoint;

    /// The folder of a tiny model and of the reference's results with it.
    fn folder(model: &str) -> std::path::PathBuf {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/segmenter");
        fixtures.join(model)
    }

    fn fixture(model: &str, name: &str) -> HashMap<String, Tensor> {
        let file = folder(model).join(name).with_extension("safetensors");
        candle_core::safetensors::load(file, &Device::Cpu).unwrap()
    }

    fn segmenter(model: &str) -> Segmenter {
        let checkpoint = Checkpoint::Folder(folder(model));
        Segmenter::load(&checkpoint, DType::F32, &Device::Cpu).unwrap()
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        let tensor = tensor.to_dtype(DType::F32).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The reference's embedding of the image of all cases.
    fn encoded(model: &str, segmenter: &Segmenter) -> EncodedImage {
        let image = fixture(model, "image");
        let size = numbers(&image["original_size"]);
        let size = ImageSize {
            height: size[0] as usize,
            width: size[1] as usize,
        };
        EncodedImage {
            embeddings: ImageEmbeddings {
                coarse: image["image_embeddings"].clone(),
                fine: ["hq_features", "high_res.0", "high_res.1"]
                    .iter()
                    .filter_map(|key| image.get(*key))
                    .map(|map| map.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap())
                    .collect(),
            },
            frame: segmenter.frame(size),
        }
    }

    /// The prompt of a case, in pixels of the image.
    fn prompt(case: &HashMap<String, Tensor>) -> SegmentPrompt {
        let corners = case.get("original_input_boxes").map(numbers);
        let points = case.get("original_input_points").map(numbers);
        let labels = case.get("input_labels").map(numbers).unwrap_or_default();
        let points = points.unwrap_or_default();
        SegmentPrompt {
            bounding_box: corners.map(|c| BoundingBox {
                x0: c[0],
                y0: c[1],
                x1: c[2],
                y1: c[3],
            }),
            points: points
                .chunks(2)
                .zip(labels)
                .map(|(point, label)| Point {
                    x: point[0],
                    y: point[1],
                    is_foreground: label == 1.0,
                })
                .collect(),
        }
    }

    #[test]
    fn an_earlier_mask_refines_a_prompt_as_in_the_reference() {
        for model in ["plain", "varied", "sam_hq", "sam2"] {
            let segmenter = segmenter(model);
            let image = encoded(model, &segmenter);
            for name in ["mask_points", "mask_box"] {
                let case = fixture(model, name);
                let earlier = LowResMask {
                    logits: numbers(&case["input_masks"]),
                    score: 0.5,
                    input_side: segmenter.prompt_side(),
                    frame: image.frame,
                };
                let refined = segmenter.refine(&image, &prompt(&case), &earlier).unwrap();
                let theirs = numbers(&case["low_res_masks"]);
                assert_eq!(refined.logits.len(), theirs.len(), "one mask");
                let largest = theirs.iter().fold(1f32, |largest, x| largest.max(x.abs()));
                let differences = refined
                    .logits
                    .iter()
                    .zip(&theirs)
                    .map(|(a, b)| (a - b).abs());
                let difference = differences.fold(0f32, f32::max) / largest;
                println!("{model}/{name}: difference {difference:.1e}");
                // as for all stages in tests/reference
                assert!(difference < 1e-4, "{model}/{name}: {difference}");
                assert!((refined.score - numbers(&case["iou_scores"])[0]).abs() < 1e-4);
                let mask = refined.to_image_size().mask;
                let theirs = numbers(&case["final_masks"]);
                let differing = mask.pixels().zip(theirs).filter(|(a, b)| *a != (*b == 1.0));
                let differing = differing.count();
                assert!(differing <= 1, "{model}/{name}: {differing} pixels");
                let without = segmenter.segment_prompt(&image, &prompt(&case)).unwrap();
                assert_ne!(without.logits, refined.logits, "the earlier mask is used");
            }
        }
    }

    #[test]
    fn an_earlier_mask_of_another_image_or_model_is_an_error() {
        let (plain, varied) = (segmenter("plain"), segmenter("varied"));
        let image = encoded("plain", &plain);
        let prompt = prompt(&fixture("plain", "points_box"));
        let earlier = plain.segment_prompt(&image, &prompt).unwrap();
        assert!(plain.refine(&image, &prompt, &earlier).is_ok());
        let other_size = ImageSize {
            height: 20,
            width: 45,
        };
        let other_image = EncodedImage {
            frame: plain.frame(other_size),
            ..image.clone()
        };
        let other_model = encoded("varied", &varied);
        for refused in [
            plain.refine(&other_image, &prompt, &earlier),
            varied.refine(&other_model, &prompt, &earlier),
        ] {
            assert!(matches!(refused, Err(SegmentError::EarlierMask)));
        }
    }
}
