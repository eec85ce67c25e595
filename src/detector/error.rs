//! Why a detection fails.

use super::TokenizerError;
use crate::pixels::ResizeError;

/// Why a detection failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DetectError {
    /// A single phrase has more tokens than the model accepts.
    #[error(
        "the phrase {phrase:?} has {tokens} tokens, more than the model's limit of {limit} tokens: use shorter phrases, separated by \".\" or \",\""
    )]
    PromptTooLong {
        /// The start of the phrase, at most 60 characters.
        phrase: String,
        /// Number of its tokens, special tokens included.
        tokens: usize,
        /// Maximum number of tokens.
        limit: usize,
    },
    /// The prompt needs too many passes of the model.
    #[error(
        "the prompt needs {passes} passes of the detector, more than the limit of {limit}: use fewer phrases or labels"
    )]
    TooManyPasses {
        /// Number of passes that the prompt needs.
        passes: usize,
        /// Maximum number of passes.
        limit: usize,
    },
    /// The tokenizer removes all characters of a phrase.
    #[error(
        "the phrase {0:?} has no tokens, because the tokenizer removes all of its characters: use other words"
    )]
    PhraseWithoutTokens(String),
    /// The tokenizer failed.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(TokenizerError),
    /// An image has no pixels.
    #[error(transparent)]
    Image(#[from] ResizeError),
    /// The model failed.
    #[error("the detector failed: {0}")]
    Model(#[from] candle_core::Error),
}

impl From<TokenizerError> for DetectError {
    // not `#[from]`: the message contains the cause, which would be printed twice as a source
    fn from(error: TokenizerError) -> Self {
        Self::Tokenizer(error)
    }
}
