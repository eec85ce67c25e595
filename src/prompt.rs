//! What the annotator asked for: phrases, and the caption the detector reads.

use std::collections::HashSet;

/// Phrases to look for, in the order they were written, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    phrases: Vec<String>,
}

/// A prompt without a word in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the prompt {0:?} names nothing: write what to find, such as \"bok choi. pot.\"")]
pub struct EmptyPrompt(pub String);

/// What separates phrases. The model itself reads "." and "?" as the end of a phrase; people also
/// write commas, semicolons and new lines.
const SEPARATORS: [char; 6] = ['.', ',', ';', '?', '\n', '\r'];

impl Prompt {
    /// Cuts a text into phrases.
    ///
    /// # Errors
    /// If none of them has a letter, a digit or a symbol.
    pub fn parse(text: &str) -> Result<Self, EmptyPrompt> {
        Self::from_phrases(text.split(SEPARATORS)).map_err(|_| EmptyPrompt(text.to_owned()))
    }

    /// One phrase per name, such as the labels of a labeling config; separators inside one become
    /// blanks.
    ///
    /// # Errors
    /// If none of them has a letter, a digit or a symbol.
    pub fn from_phrases<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, EmptyPrompt> {
        let mut phrases: Vec<String> = vec![];
        let mut known = HashSet::new();
        for name in names {
            let phrase = normalize_blanks(&name.replace(SEPARATORS, " "));
            if phrase.chars().any(is_word) && known.insert(phrase.to_lowercase()) {
                phrases.push(phrase);
            }
        }
        if phrases.is_empty() {
            return Err(EmptyPrompt(String::new()));
        }
        Ok(Self { phrases })
    }

    /// Itself without a phrase; `None` where nothing is left.
    pub fn without(&self, phrase: &str) -> Option<Self> {
        let others = self.phrases.iter().map(String::as_str);
        Self::from_phrases(others.filter(|other| *other != phrase)).ok()
    }

    /// The phrases as they were written, blanks normalised.
    pub fn phrases(&self) -> &[String] {
        &self.phrases
    }

    /// The text the detector reads, "bok choi. pot.", and where in it (bytes) each phrase is.
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

/// Runs of blanks become one, none at the ends.
fn normalize_blanks(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether BERT's normaliser leaves something of it.
fn is_word(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_are_cut_at_what_people_write() {
        let prompt = Prompt::parse("  Bok  Choi, pot;\n dog. bok choi ? ").unwrap();
        assert_eq!(prompt.phrases(), ["Bok Choi", "pot", "dog"]);
        let (caption, ranges) = prompt.caption();
        assert_eq!(caption, "bok choi. pot. dog.");
        let parts: Vec<&str> = ranges.into_iter().map(|range| &caption[range]).collect();
        assert_eq!(parts, ["bok choi", "pot", "dog"]);
    }

    #[test]
    fn a_prompt_of_nothing_is_named() {
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
