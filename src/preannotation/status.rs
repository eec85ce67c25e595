//! Messages to the annotator.
//!
//! Label Studio hides a backend's errors, and an answer without regions looks like no answer. A labeling config can have a
//! text area for messages; see `docs/labeling-configs/messages.md` for its exact form, which keeps the text out of the
//! submitted annotation.

use std::collections::BTreeMap;

use super::search::SearchResult;
use super::{Origin, Preannotator, TaskPrediction};
use crate::labeling::LabelingConfig;
use crate::regions::{Region, status_region};

/// Limit of a message, in characters.
const MAX_CHARACTERS: usize = 300;

impl SearchResult {
    /// What was found, or how far the best candidate was from the threshold.
    pub(super) fn message(&self) -> String {
        if self.objects() == 0 && self.dropped == 0 {
            let threshold = format!("nothing above {:.2}", self.box_threshold);
            return match &self.best_rejected {
                Some(best) => format!("{threshold}; best: {}", best.describe()),
                None => threshold,
            };
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for name in &self.phrases {
            *counts.entry(name).or_default() += 1;
        }
        let mut parts: Vec<String> = counts
            .iter()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        if self.dropped > 0 {
            parts.push(format!("{} without a label", self.dropped));
        }
        format!("found {}", parts.join(", "))
    }
}

/// Adds a message to a prediction, if the labeling config has a text area for it.
pub(super) fn add_message(prediction: &mut TaskPrediction, config: &LabelingConfig, text: &str) {
    prediction.result.extend(message(config, text));
}

fn message(config: &LabelingConfig, text: &str) -> Option<Region> {
    let area = config.status_area()?;
    let text: String = text.chars().take(MAX_CHARACTERS).collect();
    Some(status_region(&text, area))
}

impl Preannotator {
    /// A prediction that only tells the annotator why there is none; `None` if the labeling config has no text area for
    /// messages.
    pub fn explain(
        &self,
        origin: &Origin,
        config: &LabelingConfig,
        error: &str,
    ) -> Option<TaskPrediction> {
        let message = message(config, error)?;
        let version = self.projects.version(&origin.project, Some(config));
        Some(self.prediction(vec![message], 0.0, version))
    }
}
