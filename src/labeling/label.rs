//! Labels, and matching phrases to labels.

use crate::prompt::Prompt;

/// `<Label value="Bok Choi" alias="bok_choi" prompt="green leafy cabbage. -lettuce" predicted_values="bok choi, pak choi"
/// hint="a cabbage"/>`.
#[derive(Debug, Clone, PartialEq)]
pub struct Label {
    /// The text that the annotator sees.
    pub value: String,
    /// The name in results, if it differs from the value.
    pub alias: Option<String>,
    /// Phrases that the detector searches for instead of the value: those of `prompt` that are not negative.
    pub prompts: Vec<String>,
    /// The negative phrases of `prompt`.
    pub negative_prompts: Vec<String>,
    /// Phrases that the detector searches for if there is no `prompt`, as in Label Studio's YOLO backend.
    pub predicted_values: Vec<String>,
    /// The tooltip.
    pub hint: Option<String>,
    /// Minimum detector score, 0..1: the label's `score_threshold` or `model_score_threshold`, else its control's.
    pub score_threshold: Option<f32>,
}

impl Label {
    /// A label that has only a value.
    pub fn new(value: &str) -> Self {
        Self {
            value: value.to_owned(),
            alias: None,
            prompts: vec![],
            negative_prompts: vec![],
            predicted_values: vec![],
            hint: None,
            score_threshold: None,
        }
    }

    /// The name in results: the alias if there is one, else the value.
    pub fn name(&self) -> &str {
        self.alias.as_deref().unwrap_or(&self.value)
    }

    /// Sets the phrases of a text with the syntax of a prompt. A text without any phrase changes nothing.
    pub(super) fn set_prompt(&mut self, text: &str) {
        if let Ok(prompt) = Prompt::parse(text) {
            let (wanted, negative) = prompt
                .phrases()
                .iter()
                .cloned()
                .partition(|phrase| !prompt.is_negative(phrase));
            (self.prompts, self.negative_prompts) = (wanted, negative);
        }
    }

    /// Sets the predicted values of a text, separated by commas.
    pub(super) fn set_predicted_values(&mut self, text: &str) {
        let values = text.split(',').map(str::trim);
        self.predicted_values = values
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
            .collect();
    }

    /// The phrases to search for without a typed prompt: those of `prompt`, else the predicted values, else the value.
    pub fn phrases(&self) -> Vec<&str> {
        let lists = [&self.prompts, &self.predicted_values];
        match lists.into_iter().find(|list| !list.is_empty()) {
            Some(list) => list.iter().map(String::as_str).collect(),
            None => vec![&self.value],
        }
    }

    /// The label that a phrase matches. The order is: the first label whose value equals the phrase, else whose
    /// alias, else one of whose phrases in `prompt`, else one of whose predicted values, else whose hint. If none is
    /// equal, the same order is repeated and ignores case, whitespace, punctuation between phrases, and singular or plural.
    pub fn find<'a>(labels: &'a [Self], phrase: &str) -> Option<&'a Self> {
        let first_match = |matches: &dyn Fn(&str) -> bool| {
            let find = |is_match: &dyn Fn(&Self) -> bool| labels.iter().find(|l| is_match(l));
            find(&|l| matches(&l.value))
                .or_else(|| find(&|l| l.alias.iter().any(|alias| matches(alias))))
                .or_else(|| find(&|l| l.prompts.iter().any(|phrase| matches(phrase))))
                .or_else(|| find(&|l| l.predicted_values.iter().any(|value| matches(value))))
                .or_else(|| find(&|l| l.hint.iter().any(|hint| matches(hint))))
        };
        let phrase_words: Vec<String> = words(phrase).collect();
        first_match(&|text| text == phrase)
            .or_else(|| {
                first_match(&|text| words(text).eq(phrase_words.iter().map(String::as_str)))
            })
            .or_else(|| first_match(&|text| differs_only_in_number(text, &phrase_words)))
    }
}

/// The words of a text in lower case. Words are separated by whitespace, by the separators of phrases, by hyphens and
/// by underscores.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| c.is_whitespace() || ".,;?-_".contains(c))
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
}

/// Whether a text consists of the words of a phrase, each in singular or plural.
fn differs_only_in_number(text: &str, phrase_words: &[String]) -> bool {
    let is_plural = |many: &str, one: &str| {
        let stem = many.strip_suffix("ies").filter(|stem| !stem.is_empty());
        many.strip_suffix('s') == Some(one)
            || many.strip_suffix("es") == Some(one)
            || stem.is_some_and(|stem| one.strip_suffix('y') == Some(stem))
    };
    let mut phrase_words = phrase_words.iter();
    !phrase_words.as_slice().is_empty()
        && words(text).all(|word| {
            phrase_words.next().is_some_and(|other| {
                word == *other || is_plural(&word, other) || is_plural(other, &word)
            })
        })
        && phrase_words.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_match_by_value_then_alias_then_predicted_values_then_hint() {
        let labels = [
            Label {
                hint: Some("cup".to_owned()),
                ..Label::new("Mug")
            },
            Label {
                predicted_values: vec!["cup".to_owned(), "beaker".to_owned()],
                ..Label::new("Vessel")
            },
            Label {
                alias: Some("cup".to_owned()),
                ..Label::new("Drinking cup")
            },
            Label::new("CUP"),
            Label::new("cup"),
        ];
        let find = |labels: &[Label], phrase: &str| {
            Label::find(labels, phrase).map(|label| label.value.clone())
        };
        let found = |labels: &[Label]| find(labels, "cup").unwrap();
        assert_eq!(found(&labels), "cup");
        assert_eq!(found(&labels[..4]), "Drinking cup");
        assert_eq!(found(&labels[..2]), "Vessel");
        assert_eq!(found(&labels[..1]), "Mug");
        assert_eq!(found(&labels[3..4]), "CUP");
        assert_eq!(find(&labels, "Beakers").unwrap(), "Vessel");
        assert_eq!(find(&labels, "plate"), None);
        assert_eq!(labels[2].name(), "cup");
    }

    #[test]
    fn case_separators_and_plurals_are_ignored_when_matching() {
        let find = |value: &str, phrase: &str| Label::find(&[Label::new(value)], phrase).is_some();
        for (value, phrase) in [
            ("Bok Choi", "bok  choi"),
            ("bok_choi", "bok-chois"),
            ("Berry", "berries"),
            ("Boxes", "box"),
            ("No. 5 valve", "No 5 valve"),
            ("Äpfel", "äpfel"),
        ] {
            assert!(find(value, phrase), "{value} {phrase}");
        }
        for (value, phrase) in [
            ("C++", "c"),
            ("Red Circle", "circle"),
            ("ies", "y"),
            ("", "x"),
        ] {
            assert!(!find(value, phrase), "{value} {phrase}");
        }
    }
}
