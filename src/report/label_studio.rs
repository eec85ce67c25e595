//! Predictions as tasks for Label Studio's import.

use serde::Serialize;

use crate::labeling::{
    ControlKind, ControlTag, ImageTag, Label, LabelingConfig, LabelingError, Shape,
};
use crate::pipeline::Prediction;
use crate::prompt::Prompt;
use crate::regions::scores::mean;
use crate::regions::{Region, RegionOptions, regions};

/// A task with its prediction: one element of an import file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImportTask {
    /// The image's URL, under the key that the labeling config names.
    pub data: serde_json::Map<String, serde_json::Value>,
    /// A list of one prediction.
    pub predictions: Vec<ImportPrediction>,
}

/// The prediction of a task.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)] // Label Studio's own field names
pub struct ImportPrediction {
    pub model_version: String,
    pub score: f32,
    pub result: Vec<Region>,
}

/// Builds the task of an image, with regions for the controls of `config`. The second value is the number of
/// detections without a matching label.
///
/// # Errors
/// If the config has no image.
pub fn import_task(
    image_url: &str,
    prediction: &Prediction,
    config: &LabelingConfig,
    options: &RegionOptions,
    model_version: &str,
) -> Result<(ImportTask, usize), LabelingError> {
    let image = config.image()?;
    let converted = regions(prediction, config, image, options);
    let mut data = serde_json::Map::new();
    data.insert(image.data_key().to_owned(), image_url.into());
    let task = ImportTask {
        data,
        predictions: vec![ImportPrediction {
            model_version: model_version.to_owned(),
            score: mean(converted.scores),
            result: converted.regions,
        }],
    };
    Ok((task, converted.dropped))
}

/// The labeling config if none is given: the controls `label` (rectangles) and `label2` (brush) on `image`, with the
/// prompt's phrases as labels.
pub fn default_config(prompt: &Prompt) -> LabelingConfig {
    let labels: Vec<Label> = prompt.wanted().map(Label::new).collect();
    let control = |name: &str, shape| ControlTag {
        name: name.to_owned(),
        to_names: vec!["image".to_owned()],
        kind: ControlKind::ShapeLabels(shape),
        labels: labels.clone(),
        labels_key: None,
        polygon_tolerance: None,
    };
    LabelingConfig {
        images: vec![ImageTag {
            name: "image".to_owned(),
            value: "$image".to_owned(),
            is_list: false,
        }],
        controls: vec![
            control("label", Shape::Rectangle),
            control("label2", Shape::Brush),
        ],
        outputs: None,
    }
}
