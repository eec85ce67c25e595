//! Prompts to caption tokens, and which of them belong to which phrase.

use tokenizers::Tokenizer;

use super::DetectError;
use crate::models::grounding_dino::text_mask::SEPARATORS;
use crate::prompt::Prompt;

/// The checkpoint's tokenizer and the length the model takes.
#[derive(Debug, Clone)]
pub struct TextProcessor {
    tokenizer: Tokenizer,
    max_tokens: usize,
}

/// A caption as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caption {
    /// Token ids, `[CLS]` and `[SEP]` included.
    pub ids: Vec<u32>,
    /// Per phrase of the prompt: the places of its tokens in `ids`; never empty.
    pub spans: Vec<Vec<usize>>,
}

impl TextProcessor {
    /// From the bytes of a `tokenizer.json`; padding and truncation set in it are ignored.
    ///
    /// # Errors
    /// What the tokenizers library says.
    pub fn from_bytes(bytes: &[u8], max_tokens: usize) -> Result<Self, String> {
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        Ok(Self {
            tokenizer,
            max_tokens,
        })
    }

    /// Tokenises the prompt's caption.
    ///
    /// # Errors
    /// [`DetectError::PromptTooLong`] where the caption has more tokens than the model takes (nothing
    /// is cut off silently), [`DetectError::PhraseWithoutTokens`] for a phrase the vocabulary drops.
    pub fn process(&self, prompt: &Prompt) -> Result<Caption, DetectError> {
        let (text, ranges) = prompt.caption();
        let encoding = self
            .tokenizer
            .encode(text.as_str(), true)
            .map_err(|e| DetectError::Tokenizer(e.to_string()))?;
        let ids = encoding.get_ids();
        if ids.len() > self.max_tokens {
            return Err(DetectError::PromptTooLong {
                tokens: ids.len(),
                limit: self.max_tokens,
                phrases: prompt.phrases().len(),
            });
        }
        let spans = ranges
            .iter()
            .zip(prompt.phrases())
            .map(|(range, phrase)| {
                let span: Vec<usize> = (0..ids.len())
                    .filter(|i| !SEPARATORS.contains(&ids[*i]))
                    .filter(|i| {
                        let (start, end) = encoding.get_offsets()[*i];
                        start < end && range.start <= start && end <= range.end
                    })
                    .collect();
                if span.is_empty() {
                    return Err(DetectError::PhraseWithoutTokens(phrase.clone()));
                }
                Ok(span)
            })
            .collect::<Result<_, _>>()?;
        Ok(Caption {
            ids: ids.to_vec(),
            spans,
        })
    }
}
