//! The annotator's prompt: phrases, and the detector's caption.

use std::collections::HashSet;
use std::ops::Range;

/// Phrases to detect, in the order they were written, without duplicates.
///
/// A phrase that begins with a minus sign is negative: what fits it better than every other phrase is not wanted
/// (`cup. -saucer`). A minus sign and a space are the bullet of a list (`- cup`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    phrases: Vec<String>,
    /// For each phrase, whether it is negative.
    is_negative: Vec<bool>,
}

/// Why a text is not a prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PromptError {
    /// No phrase has a letter, a digit or a symbol; the field is the text.
    #[error("the prompt {0:?} has no words: name what to find, for example \"bok choi. pot.\"")]
    NoWords(String),
    /// All phrases are negative; the field is the text.
    #[error(
        "the prompt {0:?} names only what is not wanted: also name what to find, for example \"cup. -saucer.\""
    )]
    OnlyNegative(String),
}

/// The separators of phrases. The model itself treats "." and "?" as the end of a phrase; people also write commas,
/// semicolons and new lines.
const SEPARATORS: [char; 6] = ['.', ',', ';', '?', '\n', '\r'];
/// The signs of a negative phrase: the hyphen, and the minus sign that some keyboards and editors write.
const MINUS: [char; 2] = ['-', '\u{2212}'];
/// The signs of a list's items.
const BULLETS: [char; 4] = ['-', '*', '•', '\u{2212}'];

impl Prompt {
    /// Splits a text into phrases.
    ///
    /// # Errors
    /// If no phrase has a letter, a digit or a symbol, or all phrases are negative.
    pub fn parse(text: &str) -> Result<Self, PromptError> {
        let signed = text.split(SEPARATORS).map(|part| {
            let part = without_bullet(part.trim());
            let name = part.trim_start_matches(MINUS);
            (name, name.len() < part.len())
        });
        match Self::from_signed(signed) {
            Some(prompt) if prompt.is_negative.contains(&false) => Ok(prompt),
            Some(_) => Err(PromptError::OnlyNegative(text.to_owned())),
            None => Err(PromptError::NoWords(text.to_owned())),
        }
    }

    /// One phrase per name, for example per label of a labeling config. Separators inside a name become spaces, and no
    /// name is negative.
    ///
    /// # Errors
    /// If no phrase has a letter, a digit or a symbol.
    pub fn from_phrases<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, PromptError> {
        let names = names.into_iter().map(|name| (name, false));
        Self::from_signed(names).ok_or_else(|| PromptError::NoWords(String::new()))
    }

    /// The prompt with further phrases, which are negative.
    pub fn with_negative<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Self {
        let own = self.phrases.iter().map(String::as_str);
        let own = own.zip(self.is_negative.iter().copied());
        let further = names.into_iter().map(|name| (name, true));
        Self::from_signed(own.chain(further)).unwrap_or_else(|| self.clone())
    }

    /// Phrases, and whether each is negative. Of equal phrases the first one is kept, but a negative one only if no other
    /// is wanted. `None` without any phrase.
    fn from_signed<'a>(names: impl Iterator<Item = (&'a str, bool)>) -> Option<Self> {
        let names = names.map(|(name, is_negative)| {
            let phrase = normalize_whitespace(&name.replace(SEPARATORS, " "));
            (phrase, is_negative)
        });
        let names: Vec<(String, bool)> = names
            .filter(|(phrase, _)| phrase.chars().any(is_kept_by_bert))
            .collect();
        let wanted = names.iter().filter(|(_, is_negative)| !is_negative);
        let wanted: HashSet<String> = wanted.map(|(phrase, _)| phrase.to_lowercase()).collect();
        let mut seen = HashSet::new();
        let (phrases, is_negative): (Vec<_>, Vec<_>) = names
            .into_iter()
            .filter(|(phrase, is_negative)| {
                let lower = phrase.to_lowercase();
                !(*is_negative && wanted.contains(&lower)) && seen.insert(lower)
            })
            .unzip();
        (!phrases.is_empty()).then_some(Self {
            phrases,
            is_negative,
        })
    }

    /// The prompt without a phrase; `None` if no wanted phrase is left.
    pub fn without(&self, phrase: &str) -> Option<Self> {
        let kept = (0..self.phrases.len()).filter(|i| self.phrases[*i] != phrase);
        let kept = self.select(kept);
        kept.is_negative.contains(&false).then_some(kept)
    }

    /// A part of the phrases, for example those that fit together into one caption.
    pub fn part(&self, range: Range<usize>) -> Self {
        self.select(range.filter(|i| *i < self.phrases.len()))
    }

    fn select(&self, indices: impl Iterator<Item = usize>) -> Self {
        let (phrases, is_negative) = indices
            .map(|i| (self.phrases[i].clone(), self.is_negative[i]))
            .unzip();
        Self {
            phrases,
            is_negative,
        }
    }

    /// All phrases as they were written, with normalised whitespace and without the sign of negative ones.
    pub fn phrases(&self) -> &[String] {
        &self.phrases
    }

    /// The phrases of what to find: those that are not negative.
    pub fn wanted(&self) -> impl Iterator<Item = &str> {
        let signed = self.phrases.iter().zip(&self.is_negative);
        signed.filter_map(|(phrase, is_negative)| (!is_negative).then_some(phrase.as_str()))
    }

    /// Whether a phrase of the prompt is negative.
    pub fn is_negative(&self, phrase: &str) -> bool {
        let mut signed = self.phrases.iter().zip(&self.is_negative);
        signed.any(|(other, is_negative)| *is_negative && other == phrase)
    }

    /// The detector's caption, for example "bok choi. pot.", and the byte range of each phrase in it. Negative phrases
    /// are phrases like all others there.
    pub fn caption(&self) -> (String, Vec<Range<usize>>) {
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
        let signed = self.phrases.iter().zip(&self.is_negative);
        for (i, (phrase, is_negative)) in signed.enumerate() {
            let separator = if i > 0 { " " } else { "" };
            let sign = if *is_negative { "-" } else { "" };
            write!(f, "{separator}{sign}{}.", phrase.to_lowercase())?;
        }
        Ok(())
    }
}

/// A part of a prompt without the sign of a list's item: `- cup`, `* cup`.
fn without_bullet(part: &str) -> &str {
    match part.strip_prefix(BULLETS) {
        Some(rest) if rest.starts_with(char::is_whitespace) => rest.trim_start(),
        _ => part,
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
        assert_eq!(prompt.to_string(), caption);
        let parts: Vec<&str> = ranges.into_iter().map(|range| &caption[range]).collect();
        assert_eq!(parts, ["bok choi", "pot", "dog"]);
    }

    #[test]
    fn a_prompt_without_words_is_an_error() {
        for text in ["", "  \n", ".,;?", "\u{200b}", "-", "- . -"] {
            let error = Prompt::parse(text).unwrap_err();
            assert_eq!(error, PromptError::NoWords(text.to_owned()));
        }
    }

    #[test]
    fn a_label_stays_one_phrase() {
        let prompt = Prompt::from_phrases(["No. 5 valve", "Tank", "-5 V rail"]).unwrap();
        assert_eq!(prompt.phrases(), ["No 5 valve", "Tank", "-5 V rail"]);
        assert_eq!(prompt.wanted().count(), 3);
    }

    #[test]
    fn a_minus_sign_before_a_word_makes_a_phrase_negative() {
        let prompt = Prompt::parse("Cup. -Saucer, \u{2212}hot plate\n--lid").unwrap();
        assert_eq!(prompt.wanted().collect::<Vec<_>>(), ["Cup"]);
        assert_eq!(prompt.phrases(), ["Cup", "Saucer", "hot plate", "lid"]);
        assert!(prompt.is_negative("Saucer") && !prompt.is_negative("Cup"));
        assert_eq!(prompt.caption().0, "cup. saucer. hot plate. lid.");
        assert_eq!(prompt.to_string(), "cup. -saucer. -hot plate. -lid.");
        assert_eq!(
            Prompt::parse(&prompt.to_string()).unwrap().to_string(),
            prompt.to_string()
        );
        // a hyphen inside a phrase is no sign
        assert_eq!(
            Prompt::parse("t-shirt").unwrap().wanted().next(),
            Some("t-shirt")
        );
    }

    #[test]
    fn a_bullet_is_not_a_negation() {
        let prompt = Prompt::parse("- cup\n* pot\n• lid\n-\tfork").unwrap();
        assert_eq!(
            prompt.wanted().collect::<Vec<_>>(),
            ["cup", "pot", "lid", "fork"]
        );
        assert_eq!(
            Prompt::parse("- -cup. pot").unwrap().to_string(),
            "-cup. pot."
        );
    }

    #[test]
    fn a_prompt_of_negative_phrases_only_is_an_error() {
        for text in ["-cup", "-cup. -saucer"] {
            let error = Prompt::parse(text).unwrap_err();
            assert_eq!(error, PromptError::OnlyNegative(text.to_owned()));
            assert!(error.to_string().contains(text));
        }
        // what is wanted and not wanted is wanted
        let prompt = Prompt::parse("-cup. Cup").unwrap();
        assert_eq!(prompt.wanted().collect::<Vec<_>>(), ["Cup"]);
        assert_eq!(prompt.without("Cup"), None);
        let prompt = Prompt::parse("cup. -saucer. pot").unwrap();
        assert_eq!(prompt.without("cup").unwrap().to_string(), "-saucer. pot.");
        assert_eq!(prompt.part(1..3).to_string(), "-saucer. pot.");
    }
}
