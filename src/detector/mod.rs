//! The detector: images and prompts to boxes with phrases and scores.

pub mod image_processor;
pub mod post_process;
pub mod text_processor;

use std::fmt;

use candle_core::{DType, Device};
use image::RgbImage;

use self::image_processor::ImageProcessor;
use self::post_process::{Queries, detections};
use self::text_processor::TextProcessor;
use crate::geometry::{Detection, ImageSize};
use crate::models::grounding_dino::{Config, GroundingDino, TextTokens};
use crate::models::weights::{Checkpoint, CheckpointError, tensor_type};
use crate::pixels::ResizeError;
use crate::prompt::Prompt;

/// What counts as found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DetectionOptions {
    /// A query's best token probability must exceed this, 0..1.
    pub box_threshold: f32,
    /// A phrase names a box if one of its tokens exceeds this, 0..1.
    pub text_threshold: f32,
    /// Boxes of one phrase that overlap by more than this IoU are one; 1 switches it off.
    pub nms_iou: f32,
    /// At most this many, the best.
    pub max_detections: Option<usize>,
}

impl Default for DetectionOptions {
    fn default() -> Self {
        Self {
            box_threshold: 0.3,
            text_threshold: 0.25,
            nms_iou: 0.7,
            max_detections: None,
        }
    }
}

/// Why nothing could be detected.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// A phrase alone does not fit the model.
    #[error(
        "the phrase {phrase:?} has {tokens} tokens, and the model takes {limit} tokens: use shorter phrases, separated by \".\" or \",\""
    )]
    #[allow(missing_docs)]
    PromptTooLong {
        phrase: String,
        tokens: usize,
        limit: usize,
    },
    /// It would take too long.
    #[error(
        "the prompt takes {passes} passes of the detector, and may take {limit}: use fewer phrases or labels"
    )]
    #[allow(missing_docs)]
    TooManyPasses { passes: usize, limit: usize },
    /// A phrase of which the tokenizer leaves nothing.
    #[error("the phrase {0:?} has no word that the model's vocabulary keeps")]
    PhraseWithoutTokens(String),
    /// The tokenizer failed.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// An image without pixels.
    #[error(transparent)]
    Image(#[from] ResizeError),
    /// The model failed.
    #[error("the detector failed: {0}")]
    Model(#[from] candle_core::Error),
}

/// Grounding DINO with the processing around it.
pub struct Detector {
    model: GroundingDino,
    images: ImageProcessor,
    text: TextProcessor,
    device: Device,
    /// Of its tensors.
    dtype: DType,
}

impl fmt::Debug for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detector")
            .field("images", &self.images)
            .finish_non_exhaustive()
    }
}

/// The sizes of images and their normalisation.
const IMAGES: &str = "preprocessor_config.json";
const TOKENIZER: &str = "tokenizer.json";
/// What a tokenizer is made of, where it is not published itself.
const VOCABULARY: &str = "vocab.txt";
/// Words of uncased BERT, whose tokenizer is compiled in.
const BERT_WORDS: usize = 30522;

impl Detector {
    /// Loads a checkpoint; one without a tokenizer gets BERT's, one without sizes of images the usual ones.
    ///
    /// # Errors
    /// If a file is missing, damaged, or of another architecture; the message names it.
    pub fn load(
        checkpoint: &Checkpoint,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let (weights, config) = checkpoint.open_model::<Config>()?;
        let images = checkpoint.companion(IMAGES, ImageProcessor::validate)?;
        let limit = config.max_text_len;
        let (text, file) = if let Some(tokenizer) = checkpoint.read(TOKENIZER)? {
            (TextProcessor::from_bytes(&tokenizer, limit), TOKENIZER)
        } else if let Some(words) = checkpoint.read(VOCABULARY)? {
            let words = String::from_utf8_lossy(&words).into_owned();
            (TextProcessor::from_vocabulary(&words, limit), VOCABULARY)
        } else if config.text_config.vocab_size == BERT_WORDS {
            (TextProcessor::of_bert(limit), TOKENIZER)
        } else {
            return Err(checkpoint.lacks(TOKENIZER));
        };
        let text = text.map_err(|reason| CheckpointError::Tokenizer {
            file: checkpoint.describe(file),
            reason,
        })?;
        let model = weights.load(dtype, device, |vb| GroundingDino::load(vb, &config))?;
        Ok(Self {
            model,
            images,
            text,
            device: device.clone(),
            dtype: tensor_type(dtype, device),
        })
    }

    /// Resizes images to this short side in pixels instead of the checkpoint's; the limit of the long side changes
    /// with it.
    pub fn resize_images_to(&mut self, short_side: usize) {
        self.images.resize_to(short_side);
    }

    /// The configuration of the model.
    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// The size that an image is resized to.
    pub fn input_size(&self, image: ImageSize) -> ImageSize {
        self.images.target_size(image)
    }

    /// The tokens of a prompt, with the special ones, pass by pass.
    ///
    /// # Errors
    /// As [`Self::detect`].
    pub fn token_counts(&self, prompt: &Prompt) -> Result<Vec<usize>, DetectError> {
        let passes = self.text.passes(prompt)?;
        Ok(passes.iter().map(|(_, c)| c.ids.len()).collect())
    }

    /// The phrases of a prompt that the model cannot read: too long, or of characters it does not know.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn unreadable(&self, prompt: &Prompt) -> Result<Vec<String>, DetectError> {
        self.text.unreadable(prompt)
    }

    /// Finds what each image's prompt names, all images in one go; per image the detections, the best
    /// first, boxes in its own pixels. A prompt of more tokens than the model takes is read in several
    /// passes over the same image features.
    ///
    /// # Errors
    /// See [`DetectError`]; a phrase that does not fit fails the call before anything is computed.
    pub fn detect(
        &self,
        inputs: &[(&RgbImage, &Prompt)],
        options: &DetectionOptions,
    ) -> Result<Vec<Vec<Detection>>, DetectError> {
        let _span = tracing::debug_span!("detect", images = inputs.len()).entered();
        if inputs.is_empty() {
            return Ok(vec![]);
        }
        let images: Vec<&RgbImage> = inputs.iter().map(|(image, _)| *image).collect();
        let (passes, batch) = tracing::debug_span!("preprocess").in_scope(|| {
            let passes = inputs.iter().map(|(_, prompt)| self.text.passes(prompt));
            let passes = passes.collect::<Result<Vec<_>, _>>()?;
            let batch = self.images.process(&images, self.dtype, &self.device)?;
            Ok::<_, DetectError>((passes, batch))
        })?;
        let features = tracing::debug_span!("encode_image").in_scope(|| {
            self.model
                .encode_image(&batch.pixel_values, &batch.valid_sizes)
        })?;
        let mut found: Vec<Vec<Detection>> = vec![vec![]; inputs.len()];
        for round in 0..passes.iter().map(Vec::len).max().unwrap_or(0) {
            // an image whose passes are through is asked its first again, and not listened to
            let captions: Vec<_> = passes
                .iter()
                .filter_map(|passes| passes.get(round).or(passes.first()))
                .collect();
            let ids: Vec<Vec<u32>> = captions.iter().map(|(_, c)| c.ids.clone()).collect();
            let tokens = TextTokens::new(&ids, &self.device)?;
            let output = self.model.detect(&features, &tokens)?;
            let _span = tracing::debug_span!("post_process").entered();
            let logits: Vec<Vec<Vec<f32>>> = output.logits.to_vec3()?;
            let boxes: Vec<Vec<Vec<f32>>> = output.pred_boxes.to_vec3()?;
            for (i, (prompt, caption)) in captions.into_iter().enumerate() {
                if round < passes[i].len() {
                    let queries = Queries {
                        logits: &logits[i],
                        boxes: &boxes[i],
                    };
                    let size = ImageSize::of(images[i]);
                    found[i].extend(detections(queries, caption, prompt, size, options));
                }
            }
        }
        for detections in &mut found {
            // a pass is sorted already, and this sort keeps the order of equals
            detections.sort_by(|a, b| b.score.total_cmp(&a.score));
            detections.truncate(options.max_detections.unwrap_or(usize::MAX));
        }
        Ok(found)
    }
}
