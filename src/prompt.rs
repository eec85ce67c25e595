//! The annotator's prompt: phrases, and the detector's caption.

use std::collections::HashSet;

/// Phrases to detect, in the order they were written, without duplicates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    phrases: Vec<String>,
}

/// The prompt has no phrase with a letter, a digit or a symbol; the field is its text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the prompt {0:?} has no words: name what to find, for example \"bok choi. pot.\"")]
pub struct EmptyPrompt(pub String);

/// The separators of phrases. The model itself treats "." and "?" as the end of a phrase; people also write commas,
/// semicolons and new lines.
const SEPARATORS: [char; 6] = ['.', ',', ';', '?', '\n', '\r'];

impl Prompt {
    /// Splits a text into phrases.
    ///
    /// # Errors
    /// If no phrase has a letter, a digit or a symbol.
    pub fn parse(text: &str) -> Result<Self, EmptyPrompt> {
        Self::from_phrases(text.split(SEPARATORS)).map_err(|_| EmptyPrompt(text.to_owned()))
    }

    /// One phrase per name, for example per label of a labeling config. Separators inside a name become spaces.
    ///
    /// # Errors
    /// If no phrase has a letter, a digit or a symbol.
    pub fn from_phrases<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, EmptyPrompt> {
        let mut phrases: Vec<String> = vec![];
        let mut seen = HashSet::new();
        for name in names {
            let phrase = normalize_whitespace(&name.replace(SEPARATORS, " "));
            if phrase.chars().any(is_kept_by_bert) && seen.insert(phrase.to_lowercase()) {
                phrases.push(phrase);
            }
        }
        if phrases.is_empty() {
            return Err(EmptyPrompt(String::new()));
        }
        Ok(Self { phrases })
    }

    /// The prompt without a phrase; `None` if no phrase is left.
    pub fn without(&self, phrase: &str) -> Option<Self> {
        let others = self.phrases.iter().map(String::as_str);
        Self::from_phrases(others.filter(|other| *other != phrase)).ok()
    }

    /// The phrases as they were written, with normalised whitespace.
    pub fn phrases(&self) -> &[String] {
        &self.phrases
    }

    /// The detector's caption, for example "bok choi. pot.", and the byte range of each phrase in it.
    pub fn caption(&self) -> (String, Vec<std::ops::Range<usize>>) {
        let mut caption = String::new();
        let mut ranges = vec![];
        for phrase in &self.phrases {
            if !caption.is_empty() {
                caption.push_str(". ");
            }
            let start = caption.len();
            caption.push_str(&phrase.to_lowercase());
            ranges.push(start..caption.len());
        }
        caption.push('.');
        (caption, ranges)
    }
}

impl std::fmt::Display for Prompt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.caption().0)
    }
}

/// Replaces each run of whitespace with one space, and trims both ends.
fn normalize_whitespace(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether BERT's normaliser keeps the character.
fn is_kept_by_bert(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_and_whitespace_split_a_prompt_into_phrases() {
        let prompt = Prompt::parse("  Bok  Choi, pot;\n dog. bok choi ? ").unwrap();
        assert_eq!(prompt.phrases(), ["Bok Choi", "pot", "dog"]);
        let (caption, ranges) = prompt.caption();
        assert_eq!(caption, "bok choi. pot. dog.");
        let parts: Vec<&str> = ranges.into_iter().map(|range| &caption[range]).collect();
        assert_eq!(parts, ["bok choi", "pot", "dog"]);
    }

    #[test]
    fn a_prompt_without_words_is_an_error() {
        for text in ["", "  \n", ".,;?", "\u{200b}"] {
            let error = Prompt::parse(text).unwrap_err();
            assert_eq!(error, EmptyPrompt(text.to_owned()));
        }
    }

    #[test]
    fn a_label_stays_one_phrase() {
        let prompt = Prompt::from_phrases(["No. 5 valve", "Tank"]).unwrap();
        assert_eq!(prompt.phrases(), ["No 5 valve", "Tank"]);
    }
}
