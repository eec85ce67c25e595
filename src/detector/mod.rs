//! The detector: images and prompts to boxes with phrases and scores.

pub mod image_processor;
pub mod post_process;
pub mod text_processor;

use std::fmt;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use self::image_processor::ImageProcessor;
pub use self::post_process::{Queries, detections};
use self::text_processor::{Caption, TextProcessor};
use crate::geometry::{Detection, ImageSize};
use crate::models::grounding_dino::{Config, GroundingDino, TextTokens, VisionFeatures};
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

/// One pass of the model: phrases that fit it together, and how it reads them.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The phrases.
    pub prompt: Prompt,
    /// Their tokens.
    pub caption: Caption,
}

/// An image the detector has looked at once; any number of questions can follow.
#[derive(Debug, Clone)]
pub struct ImageFeatures(VisionFeatures);

impl ImageFeatures {
    /// Bytes they take, without what images of one size share.
    pub fn bytes(&self) -> usize {
        let tokens = &self.0.hidden_states;
        tokens.elem_count() * tokens.dtype().size_in_bytes()
    }
}

/// A caption the detector has read once; it can be asked of any number of images.
#[derive(Debug, Clone)]
pub struct TextFeatures {
    tokens: TextTokens,
    /// `[1, T, d]`
    encoded: Tensor,
}

impl TextFeatures {
    /// About the bytes they take.
    pub fn bytes(&self) -> usize {
        let (length, encoded) = (self.encoded.dim(1).unwrap_or(0), &self.encoded);
        // beside the features a mask of every pair of tokens
        encoded.elem_count() * encoded.dtype().size_in_bytes() + 8 * length * length
    }
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

    /// What to ask of an image: a prompt of more tokens than the model takes becomes several questions.
    ///
    /// # Errors
    /// If a phrase cannot be read, or there are too many.
    pub fn questions(&self, prompt: &Prompt) -> Result<Vec<Question>, DetectError> {
        let passes = self.text.passes(prompt)?;
        let question = |(prompt, caption)| Question { prompt, caption };
        Ok(passes.into_iter().map(question).collect())
    }

    /// What the model needs of an image, whatever it is asked.
    ///
    /// # Errors
    /// If the image has no pixels or the model fails.
    pub fn encode_image(&self, image: &RgbImage) -> Result<ImageFeatures, DetectError> {
        let preprocess = tracing::debug_span!("preprocess");
        let batch =
            preprocess.in_scope(|| self.images.process(&[image], self.dtype, &self.device))?;
        let encode = tracing::debug_span!("encode_image");
        let features = encode.in_scope(|| {
            self.model
                .encode_image(&batch.pixel_values, &batch.valid_sizes)
        })?;
        Ok(ImageFeatures(features))
    }

    /// What the model needs of a caption, whatever the image.
    ///
    /// # Errors
    /// If the model fails.
    pub fn encode_text(&self, caption: &Caption) -> Result<TextFeatures, DetectError> {
        let tokens = TextTokens::new(std::slice::from_ref(&caption.ids), &self.device)?;
        let encoded = self.model.encode_text(&tokens)?;
        Ok(TextFeatures { tokens, encoded })
    }

    /// One pass of the model: what it says of an image, asked for a caption.
    ///
    /// # Errors
    /// If the model fails.
    pub fn ask(&self, image: &ImageFeatures, text: &TextFeatures) -> Result<Queries, DetectError> {
        let output = self.model.detect(&image.0, &text.encoded, &text.tokens)?;
        let (_, _, tokens) = output.logits.dims3()?;
        let boxes: Vec<Vec<f32>> = output.pred_boxes.squeeze(0)?.to_vec2()?;
        Ok(Queries {
            logits: output.logits.flatten_all()?.to_vec1()?,
            tokens,
            boxes: boxes.iter().map(|b| [b[0], b[1], b[2], b[3]]).collect(),
        })
    }

    /// Finds what a prompt names in an image: the detections, the best first, boxes in its own pixels.
    ///
    /// # Errors
    /// See [`DetectError`]; a phrase that does not fit fails the call before anything is computed.
    pub fn detect(
        &self,
        image: &RgbImage,
        prompt: &Prompt,
        options: &DetectionOptions,
    ) -> Result<Vec<Detection>, DetectError> {
        let _span = tracing::debug_span!("detect").entered();
        let questions = self.questions(prompt)?;
        let features = self.encode_image(image)?;
        let answers = questions.iter().map(|question| {
            let text = self.encode_text(&question.caption)?;
            self.ask(&features, &text)
        });
        let answers = answers.collect::<Result<Vec<_>, _>>()?;
        let _span = tracing::debug_span!("post_process").entered();
        let size = ImageSize::of(image);
        Ok(detections(questions.iter().zip(&answers), size, options))
    }
}
