//! Converts prompts to caption tokens, and maps tokens to phrases.

use std::collections::HashMap;
use std::ops::Range;

use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::{CaptionPass, DetectError};
use crate::models::grounding_dino::text_mask::SEPARATORS;
use crate::prompt::Prompt;

/// The checkpoint's tokenizer and the model's token limit.
#[derive(Debug, Clone)]
pub struct TextProcessor {
    tokenizer: Tokenizer,
    max_tokens: usize,
}

/// Limit of the passes for a prompt; enough for more than a thousand labels of a few words.
const MAX_PASSES: usize = 64;

/// Why a tokenizer cannot be built, or fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The tokenizers library failed.
    #[error("{0}")]
    Library(tokenizers::Error),
    /// The vocabulary does not have a token that BERT's tokenizer needs.
    #[error("the vocabulary has no token {0}")]
    MissingToken(&'static str),
}

/// The tokens of a caption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caption {
    /// Token ids, `[CLS]` and `[SEP]` included.
    pub ids: Vec<u32>,
    /// For each phrase of the prompt, the indices of its tokens in `ids`; never empty.
    pub spans: Vec<Vec<usize>>,
}

impl TextProcessor {
    /// Parses a `tokenizer.json`. Its padding and truncation settings are ignored.
    ///
    /// # Errors
    /// If it is not a valid tokenizer.
    pub fn from_bytes(bytes: &[u8], max_tokens: usize) -> Result<Self, TokenizerError> {
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(TokenizerError::Library)?;
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(TokenizerError::Library)?;
        Ok(Self {
            tokenizer,
            max_tokens,
        })
    }

    /// Builds uncased BERT's tokenizer from its `vocab.txt`, one word piece per line.
    ///
    /// # Errors
    /// If a special token is missing.
    pub fn from_vocabulary(words: &str, max_tokens: usize) -> Result<Self, TokenizerError> {
        let ids: HashMap<&str, usize> = words.lines().zip(0..).collect();
        let special = |name: &'static str| match ids.get(name) {
            Some(id) => Ok((name, *id)),
            None => Err(TokenizerError::MissingToken(name)),
        };
        let special_tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(special);
        let special_tokens = special_tokens.into_iter().collect::<Result<Vec<_>, _>>()?;
        let added_tokens: Vec<_> = special_tokens
            .iter()
            .map(|(content, id)| {
                json!({
                    "id": id, "content": content, "special": true, "single_word": false,
                    "lstrip": false, "rstrip": false, "normalized": false
                })
            })
            .collect();
        let template_token = |name: &'static str| -> Result<Value, TokenizerError> {
            let (name, id) = special(name)?;
            Ok(json!({ "id": name, "ids": [id], "tokens": [name] }))
        };
        let tokenizer = json!({
            "version": "1.0",
            "added_tokens": added_tokens,
            "normalizer": {
                "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": null, "lowercase": true
            },
            "pre_tokenizer": { "type": "BertPreTokenizer" },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    { "SpecialToken": { "id": "[CLS]", "type_id": 0 } },
                    { "Sequence": { "id": "A", "type_id": 0 } },
                    { "SpecialToken": { "id": "[SEP]", "type_id": 0 } }
                ],
                "pair": [],
                "special_tokens": { "[CLS]": template_token("[CLS]")?, "[SEP]": template_token("[SEP]")? }
            },
            "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
            "model": {
                "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": ids
            }
        });
        Self::from_bytes(tokenizer.to_string().as_bytes(), max_tokens)
    }

    /// The tokenizer of every published Grounding DINO, for weights without a tokenizer file.
    ///
    /// # Errors
    /// Never, because the vocabulary is compiled in; a test checks it.
    pub fn bert_uncased(max_tokens: usize) -> Result<Self, TokenizerError> {
        let words = include_str!("../../models/bert-base-uncased/vocab.txt");
        Self::from_vocabulary(words, max_tokens)
    }

    /// The underlying tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The phrases that cannot be encoded, each tried alone.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn unencodable_phrases(&self, prompt: &Prompt) -> Result<Vec<String>, DetectError> {
        let mut unencodable = vec![];
        for phrase in prompt.phrases() {
            let Ok(alone) = Prompt::from_phrases([phrase.as_str()]) else {
                continue;
            };
            match self.process(&alone) {
                Ok(_) => {}
                Err(DetectError::PromptTooLong { .. } | DetectError::PhraseWithoutTokens(_)) => {
                    unencodable.push(phrase.clone());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(unencodable)
    }

    /// Splits the prompt into as few captions as fit the model. Phrases keep their order.
    ///
    /// # Errors
    /// As [`Self::process`]; [`DetectError::PromptTooLong`] if a phrase is too long for a pass of its own.
    pub fn passes(&self, prompt: &Prompt) -> Result<Vec<CaptionPass>, DetectError> {
        // [CLS] and [SEP]
        let available = self.max_tokens.saturating_sub(2);
        let mut parts: Vec<Range<usize>> = vec![];
        let mut used = 0;
        for (i, phrase) in prompt.phrases().iter().enumerate() {
            let text = format!("{}.", phrase.to_lowercase());
            let encoding = self
                .tokenizer
                .encode(text.as_str(), false)
                .map_err(TokenizerError::Library)?;
            used += encoding.len();
            match parts.last_mut() {
                Some(part) if used <= available => part.end = i + 1,
                _ => {
                    used = encoding.len();
                    parts.push(i..i + 1);
                }
            }
        }
        if parts.len() > MAX_PASSES {
            return Err(DetectError::TooManyPasses {
                passes: parts.len(),
                limit: MAX_PASSES,
            });
        }
        let prompts = parts.into_iter().map(|part| {
            let part = prompt.part(part);
            let caption = self.process(&part)?;
            Ok(CaptionPass {
                prompt: part,
                caption,
            })
        });
        prompts.collect()
    }

    /// Tokenises the prompt's caption.
    ///
    /// # Errors
    /// [`DetectError::PromptTooLong`] if the caption has more tokens than the model accepts; it is never truncated.
    /// [`DetectError::PhraseWithoutTokens`] if the tokenizer removes everything of a phrase.
    pub fn process(&self, prompt: &Prompt) -> Result<Caption, DetectError> {
        let (text, ranges) = prompt.caption();
        let encoding = self
            .tokenizer
            .encode(text.as_str(), true)
            .map_err(TokenizerError::Library)?;
        let ids = encoding.get_ids();
        if ids.len() > self.max_tokens {
            let phrase = prompt.phrases().first();
            let phrase: String = phrase
                .into_iter()
                .flat_map(|p| p.chars())
                .take(60)
                .collect();
            return Err(DetectError::PromptTooLong {
                phrase,
                tokens: ids.len(),
                limit: self.max_tokens,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_prompt_is_split_into_as_few_passes_as_possible() {
        let bytes = include_bytes!("../../models/demo/detector/tokenizer.json");
        let phrases = ["red circle", "blue star", "green square", "red star"];
        let prompt = Prompt::from_phrases(phrases).unwrap();
        let split = |limit: usize| {
            let text = TextProcessor::from_bytes(bytes, limit).unwrap();
            let passes = text.passes(&prompt);
            passes.map(|passes| {
                for CaptionPass { prompt, caption } in &passes {
                    assert!(caption.ids.len() <= limit);
                    assert_eq!(caption, &text.process(prompt).unwrap());
                }
                let counts = passes.iter().map(|pass| pass.prompt.phrases().len());
                counts.collect::<Vec<_>>()
            })
        };
        // two words and a full stop per phrase, and two special tokens
        assert_eq!(split(14).unwrap(), [4]);
        assert_eq!(split(13).unwrap(), [3, 1]);
        assert_eq!(split(8).unwrap(), [2, 2]);
        assert_eq!(split(5).unwrap(), [1, 1, 1, 1]);
        assert!(matches!(
            split(4),
            Err(DetectError::PromptTooLong { tokens: 5, .. })
        ));
    }
}
