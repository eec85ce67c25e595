//! Predictions as tasks for Label Studio's import.

use serde::Serialize;

use crate::labeling::{
    ControlKind, ControlTag, ImageTag, Label, LabelingConfig, LabelingError, Shape,
};
use crate::pipeline::Prediction;
use crate::prompt::Prompt;
use crate::regions::{Region, Style, regions};

/// A task with its prediction: one element of an import file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Task {
    /// The image's URL, under the key that the labeling config names.
    pub data: serde_json::Map<String, serde_json::Value>,
    /// A list of one prediction.
    pub predictions: Vec<TaskPrediction>,
}

/// The prediction of a task.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)] // Label Studio's own field names
pub struct TaskPrediction {
    pub model_version: String,
    pub score: f32,
    pub result: Vec<Region>,
}

/// Builds the task of an image, with regions for the controls of `config`. The second value is the number of
/// detections without a matching label.
///
/// # Errors
/// If the config has no image.
pub fn task(
    image_url: &str,
    prediction: &Prediction,
    config: &LabelingConfig,
    style: &Style,
    model_version: &str,
) -> Result<(Task, usize), LabelingError> {
    let image = config.image()?;
    let made = regions(prediction, config, image, style);
    let mut data = serde_json::Map::new();
    data.insert(image.data_key().to_owned(), image_url.into());
    let task = Task {
        data,
        predictions: vec![TaskPrediction {
            model_version: model_version.to_owned(),
            score: made.score,
            result: made.regions,
        }],
    };
    Ok((task, made.dropped))
}

/// The labeling config if none is given: the controls `label` (rectangles) and `label2` (brush) on `image`, with the
/// prompt's phrases as labels.
pub fn config_for(prompt: &Prompt) -> LabelingConfig {
    let phrases = prompt.phrases().iter();
    let labels: Vec<Label> = phrases.map(|phrase| Label::new(phrase)).collect();
    let control = |name: &str, shape| ControlTag {
        name: name.to_owned(),
        to_names: vec!["image".to_owned()],
        kind: ControlKind::ShapeLabels(shape),
        labels: labels.clone(),
    };
    LabelingConfig {
        images: vec![ImageTag {
            name: "image".to_owned(),
            value: "$image".to_owned(),
        }],
        controls: vec![
            control("label", Shape::Rectangle),
            control("label2", Shape::Brush),
        ],
    }
}
