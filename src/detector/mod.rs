//! The detector: from images and prompts to boxes with phrases and scores.

mod error;
pub mod image_processor;
pub mod post_process;
pub mod text_processor;

use std::fmt;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

pub use self::error::DetectError;
use self::image_processor::ImageProcessor;
pub use self::post_process::{
    PhraseThresholds, Queries, all_detections, best_candidate, detections, keep_wanted,
    rated_by_phrase,
};
pub use self::text_processor::TokenizerError;
use self::text_processor::{Caption, TextProcessor};
use crate::geometry::{Detection, ImageSize};
use crate::models::grounding_dino::{Config, GroundingDino, TextTokens, VisionFeatures};
use crate::models::weights::{Checkpoint, CheckpointError, tensor_dtype};
use crate::prompt::Prompt;

/// Thresholds and limits of a detection. Build other options from the default ones:
/// `DetectionOptions { box_threshold: 0.4, ..DetectionOptions::default() }`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DetectionOptions {
    /// Minimum score, 0..1: the largest token probability of a query must exceed it.
    pub box_threshold: f32,
    /// Minimum token probability of a phrase, 0..1: a phrase can name a box if one of its tokens exceeds it.
    pub text_threshold: f32,
    /// Maximum IoU of two boxes with the same phrase, 0..1: of two that overlap more, the one with the lower score is
    /// removed. 1 disables it.
    pub nms_iou_threshold: f32,
    /// Maximum number of detections; the best ones are kept.
    pub max_detections: Option<usize>,
}

impl Default for DetectionOptions {
    fn default() -> Self {
        Self {
            box_threshold: 0.3,
            text_threshold: 0.25,
            nms_iou_threshold: 0.7,
            max_detections: None,
        }
    }
}

/// The input of one pass of the model: phrases that fit together into one caption.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionPass {
    /// The phrases of the caption.
    pub prompt: Prompt,
    /// The tokens of the caption.
    pub caption: Caption,
}

/// The features of an image; any number of captions can be used with them.
#[derive(Debug, Clone)]
pub struct ImageFeatures(VisionFeatures);

impl ImageFeatures {
    /// Size in bytes, without the tensors that images of the same size share.
    pub fn bytes(&self) -> usize {
        let tokens = &self.0.hidden_states;
        tokens.elem_count() * tokens.dtype().size_in_bytes()
    }
}

/// The features of a caption; they can be used with any number of images.
#[derive(Debug, Clone)]
pub struct TextFeatures {
    tokens: TextTokens,
    /// `[1, T, d]`
    encoded: Tensor,
}

impl TextFeatures {
    /// Approximate size in bytes.
    pub fn bytes(&self) -> usize {
        let (length, encoded) = (self.encoded.dim(1).unwrap_or(0), &self.encoded);
        // the features, and a mask over every pair of tokens
        encoded.elem_count() * encoded.dtype().size_in_bytes() + 8 * length * length
    }
}

/// Grounding DINO with its pre- and postprocessing.
pub struct Detector {
    model: GroundingDino,
    image_processor: ImageProcessor,
    text_processor: TextProcessor,
    device: Device,
    /// The dtype of its tensors.
    dtype: DType,
}

impl fmt::Debug for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detector")
            .field("image_processor", &self.image_processor)
            .finish_non_exhaustive()
    }
}

/// The tokenizer as the tokenizers library stores it.
const TOKENIZER: &str = "tokenizer.json";
/// The tokenizer's vocabulary, for checkpoints without a `tokenizer.json`.
const VOCABULARY: &str = "vocab.txt";
/// Vocabulary size of uncased BERT, whose tokenizer is compiled in.
const BERT_VOCABULARY_SIZE: usize = 30522;

impl Detector {
    /// Loads a checkpoint. Without a tokenizer file, BERT's tokenizer is used; without a preprocessor configuration,
    /// the default image sizes.
    ///
    /// # Errors
    /// If a file is missing, damaged, or has another architecture; the message names the file.
    pub fn load(
        checkpoint: &Checkpoint,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let (weights, config, image_processor) =
            checkpoint.open_with_processor::<Config, _>(ImageProcessor::validate)?;
        let text_processor = load_text_processor(checkpoint, &config)?;
        let model = weights.load(dtype, device, |vb| GroundingDino::load(vb, &config))?;
        Ok(Self {
            model,
            image_processor,
            text_processor,
            device: device.clone(),
            dtype: tensor_dtype(dtype, device),
        })
    }

    /// Resizes images to this short side in pixels instead of the checkpoint's. The limit of the long side is scaled
    /// by the same factor.
    pub fn resize_images_to(&mut self, short_side: usize) {
        self.image_processor.resize_to(short_side);
    }

    /// The configuration of the model.
    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// The size that an image is resized to.
    pub fn input_size(&self, image: ImageSize) -> ImageSize {
        self.image_processor.target_size(image)
    }

    /// The number of tokens of each pass, special tokens included.
    ///
    /// # Errors
    /// As [`Self::detect`].
    pub fn token_counts(&self, prompt: &Prompt) -> Result<Vec<usize>, DetectError> {
        let passes = self.passes(prompt)?;
        Ok(passes.iter().map(|pass| pass.caption.ids.len()).collect())
    }

    /// The phrases of a prompt that the model cannot encode: too long, or without any token.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn unencodable_phrases(&self, prompt: &Prompt) -> Result<Vec<String>, DetectError> {
        self.text_processor.unencodable_phrases(prompt)
    }

    /// The passes of a prompt. A prompt with more tokens than the model accepts is split into several passes.
    ///
    /// # Errors
    /// If a phrase cannot be encoded, or there are too many phrases.
    pub fn passes(&self, prompt: &Prompt) -> Result<Vec<CaptionPass>, DetectError> {
        self.text_processor.passes(prompt)
    }

    /// Computes the image features, which do not depend on the prompt.
    ///
    /// # Errors
    /// If the image has no pixels or the model fails.
    pub fn encode_image(&self, image: &RgbImage) -> Result<ImageFeatures, DetectError> {
        let preprocess = tracing::debug_span!("preprocess");
        let batch = preprocess.in_scope(|| {
            self.image_processor
                .process(&[image], self.dtype, &self.device)
        })?;
        let encode = tracing::debug_span!("encode_image");
        let features = encode.in_scope(|| {
            self.model
                .encode_image(&batch.pixel_values, &batch.valid_sizes)
        })?;
        Ok(ImageFeatures(features))
    }

    /// Computes the text features, which do not depend on the image.
    ///
    /// # Errors
    /// If the model fails.
    pub fn encode_text(&self, caption: &Caption) -> Result<TextFeatures, DetectError> {
        let tokens = TextTokens::new(std::slice::from_ref(&caption.ids), &self.device)?;
        let encoded = self.model.encode_text(&tokens)?;
        Ok(TextFeatures { tokens, encoded })
    }

    /// Runs one pass of the model: one image and one caption to queries.
    ///
    /// # Errors
    /// If the model fails.
    pub fn run_pass(
        &self,
        image: &ImageFeatures,
        text: &TextFeatures,
    ) -> Result<Queries, DetectError> {
        let output = self.model.detect(&image.0, &text.encoded, &text.tokens)?;
        let (_, _, tokens) = output.logits.dims3()?;
        let boxes: Vec<Vec<f32>> = output.pred_boxes.squeeze(0)?.to_vec2()?;
        Ok(Queries {
            logits: output.logits.flatten_all()?.to_vec1()?,
            tokens,
            boxes: boxes.iter().map(|b| [b[0], b[1], b[2], b[3]]).collect(),
        })
    }

    /// Detects the objects that a prompt names. The detections are sorted by score, best first; boxes are in pixels
    /// of the image.
    ///
    /// # Errors
    /// See [`DetectError`]. A phrase that does not fit fails the call before the model runs.
    pub fn detect(
        &self,
        image: &RgbImage,
        prompt: &Prompt,
        options: &DetectionOptions,
    ) -> Result<Vec<Detection>, DetectError> {
        let _span = tracing::debug_span!("detect").entered();
        let passes = self.passes(prompt)?;
        let features = self.encode_image(image)?;
        let queries = passes.iter().map(|pass| {
            let text = self.encode_text(&pass.caption)?;
            self.run_pass(&features, &text)
        });
        let queries = queries.collect::<Result<Vec<_>, _>>()?;
        let _span = tracing::debug_span!("post_process").entered();
        let size = ImageSize::of(image);
        Ok(detections(passes.iter().zip(&queries), size, options))
    }
}

/// Loads the tokenizer of a checkpoint: `tokenizer.json`, else `vocab.txt`, else BERT's tokenizer if the model has as
/// many words.
fn load_text_processor(
    checkpoint: &Checkpoint,
    config: &Config,
) -> Result<TextProcessor, CheckpointError> {
    let limit = config.max_text_len;
    let (processor, file) = if let Some(tokenizer) = checkpoint.read(TOKENIZER)? {
        (TextProcessor::from_bytes(&tokenizer, limit), TOKENIZER)
    } else if let Some(words) = checkpoint.read(VOCABULARY)? {
        let words = String::from_utf8_lossy(&words);
        (TextProcessor::from_vocabulary(&words, limit), VOCABULARY)
    } else if config.text_config.vocab_size == BERT_VOCABULARY_SIZE {
        (TextProcessor::bert_uncased(limit), TOKENIZER)
    } else {
        return Err(checkpoint.missing_file(TOKENIZER));
    };
    processor.map_err(|error| CheckpointError::Tokenizer {
        file: checkpoint.describe(file),
        reason: error.into(),
    })
}
