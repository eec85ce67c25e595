//! Any text as a prompt: its phrases are different and not empty, the caption has each at its range, and the passes have
//! all phrases in order, each with its own tokens and within the model's maximum length.

#![no_main]

use std::collections::HashSet;
use std::sync::LazyLock;

use groundling::detector::{CaptionPass, DetectError};
use groundling::detector::text_processor::TextProcessor;
use groundling::prompt::Prompt;
use libfuzzer_sys::fuzz_target;

/// A small maximum, so that a short text needs several passes.
const MAX_TOKENS: usize = 16;

static TEXT: LazyLock<TextProcessor> =
    LazyLock::new(|| TextProcessor::bert_uncased(MAX_TOKENS).expect("the vocabulary is valid"));

fuzz_target!(|text: &str| {
    let Ok(prompt) = Prompt::parse(text) else {
        return;
    };
    let lower: HashSet<String> = prompt.phrases().iter().map(|p| p.to_lowercase()).collect();
    assert!(!lower.is_empty() && lower.len() == prompt.phrases().len());
    let (caption, ranges) = prompt.caption();
    for (range, phrase) in ranges.into_iter().zip(prompt.phrases()) {
        assert_eq!(caption[range], phrase.to_lowercase());
    }
    let unencodable = TEXT.unencodable_phrases(&prompt).expect("the tokenizer works");
    let passes = match TEXT.passes(&prompt) {
        Ok(passes) => passes,
        Err(DetectError::TooManyPasses { .. }) => return,
        Err(DetectError::PromptTooLong { .. } | DetectError::PhraseWithoutTokens(_)) => {
            assert!(!unencodable.is_empty(), "{prompt:?}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    assert!(unencodable.is_empty(), "{unencodable:?}");
    let parts = passes.iter().flat_map(|pass| pass.prompt.phrases());
    assert!(parts.eq(prompt.phrases()));
    for CaptionPass { prompt: part, caption } in &passes {
        assert!(caption.ids.len() <= MAX_TOKENS);
        assert_eq!(caption.spans.len(), part.phrases().len());
        let mut end = 0;
        for span in &caption.spans {
            assert!(!span.is_empty());
            for index in span {
                assert!(*index >= end && *index < caption.ids.len(), "{caption:?}");
                end = index + 1;
            }
        }
    }
});
