//! Decides which threshold applies, among all places that may set it.
//!
//! In order of precedence: a `<Number>` control of the labeling config, the `extra_params` of the connected backend,
//! `score_threshold` or `model_score_threshold` of a label (box threshold only), flags and environment variables, the
//! defaults.

use serde_json::{Map, Value};

use crate::detector::DetectionOptions;
use crate::labeling::{ImageTag, LabelingConfig};

/// Settings from a project's `extra_params`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProjectSettings {
    /// The prompt for requests without a typed one; "" searches for all labels again.
    pub prompt: Option<String>,
    /// 0..1.
    pub box_threshold: Option<f32>,
    /// 0..1.
    pub text_threshold: Option<f32>,
    /// 0..1.
    pub nms_iou: Option<f32>,
    /// Maximum number of objects per image.
    pub max_detections: Option<usize>,
    /// Whether to segment the detections.
    pub segment: Option<bool>,
}

/// Thresholds of `<Number>` controls, 0..1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[allow(missing_docs)]
pub struct ControlThresholds {
    pub box_threshold: Option<f32>,
    pub text_threshold: Option<f32>,
}

/// The settings for one image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageSettings {
    /// Options of the detector.
    pub options: DetectionOptions,
    /// The box threshold of labels without their own one, 0..1. Set only if per-label thresholds apply.
    pub default_label_threshold: Option<f32>,
    /// Whether to segment the detections.
    pub segment: bool,
}

impl ProjectSettings {
    /// Parses `extra_params` as Label Studio sends it: an object, a JSON string of one, "" or null. Invalid settings
    /// are ignored; the second value describes each of them, for the log.
    pub fn parse(extra_params: &Value) -> (Self, Vec<String>) {
        let mut problems = vec![];
        let parsed = match extra_params {
            Value::String(text) if !text.trim().is_empty() => serde_json::from_str(text),
            Value::String(_) => Ok(Value::Null),
            other => Ok(other.clone()),
        };
        let object = match parsed {
            Ok(Value::Object(object)) => object,
            Ok(Value::Null) => Map::new(),
            Ok(_) => {
                problems.push(
                    "extra_params must be an object, such as {\"box_threshold\": 0.3}".to_owned(),
                );
                Map::new()
            }
            Err(error) => {
                problems.push(format!("extra_params is not JSON: {error}"));
                Map::new()
            }
        };
        let mut settings = Self::default();
        for (key, value) in &object {
            if value.is_null() {
                continue;
            }
            let expected = match key.as_str() {
                "prompt" => {
                    let text = value.as_str().map(str::trim).map(str::to_owned);
                    settings.prompt = text;
                    settings.prompt.is_none().then_some("it must be a text")
                }
                "box_threshold" => set(&mut settings.box_threshold, fraction(value)),
                "text_threshold" => set(&mut settings.text_threshold, fraction(value)),
                "nms_iou" => set(&mut settings.nms_iou, fraction(value)),
                "max_detections" => {
                    let integer = number(value).filter(|n| *n >= 1.0 && n.fract() == 0.0);
                    settings.max_detections = integer.map(|n| n as usize);
                    integer
                        .is_none()
                        .then_some("it must be an integer of at least 1")
                }
                "segment" => {
                    settings.segment = boolean(value);
                    settings
                        .segment
                        .is_none()
                        .then_some("it must be true or false")
                }
                _ => Some(
                    "the known settings are prompt, box_threshold, text_threshold, nms_iou, max_detections and segment",
                ),
            };
            if let Some(expected) = expected {
                problems.push(format!(
                    "extra_params.{key} = {value} is ignored: {expected}"
                ));
            }
        }
        (settings, problems)
    }
}

/// Sets a fraction of 0..1; returns the expected format if the value is invalid.
fn set(field: &mut Option<f32>, value: Option<f32>) -> Option<&'static str> {
    *field = value;
    value.is_none().then_some("it must be a number from 0 to 1")
}

/// A number, or a number in a string.
fn number(value: &Value) -> Option<f64> {
    let text = value.as_str().map(|text| text.trim().parse().ok());
    value.as_f64().or(text.flatten())
}

/// A number of 0..1.
pub(in super::super) fn fraction(value: &Value) -> Option<f32> {
    let number = number(value).map(|number| number as f32);
    number.filter(|number| (0.0..=1.0).contains(number))
}

fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::String(text) => match text.trim().to_lowercase().as_str() {
            "true" | "yes" | "1" => Some(true),
            "false" | "no" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

impl ImageSettings {
    /// Resolves the settings for one image; see the module's order of precedence.
    pub fn resolve(
        defaults: &DetectionOptions,
        project: &ProjectSettings,
        thresholds: ControlThresholds,
        config: &LabelingConfig,
        image: &ImageTag,
    ) -> Self {
        let mut options = DetectionOptions {
            box_threshold: defaults.box_threshold,
            text_threshold: thresholds
                .text_threshold
                .or(project.text_threshold)
                .unwrap_or(defaults.text_threshold),
            nms_iou_threshold: project.nms_iou.unwrap_or(defaults.nms_iou_threshold),
            max_detections: project.max_detections.or(defaults.max_detections),
        };
        let mut default_label_threshold = None;
        let labels = config.labels(image);
        let label_thresholds = labels.iter().filter_map(|label| label.score_threshold);
        if let Some(chosen) = thresholds.box_threshold.or(project.box_threshold) {
            options.box_threshold = chosen;
        } else if let Some(lowest) = label_thresholds.reduce(f32::min) {
            // detect with the lowest threshold; each label's own threshold is applied later
            default_label_threshold = Some(options.box_threshold);
            options.box_threshold = options.box_threshold.min(lowest);
        }
        Self {
            options,
            default_label_threshold,
            segment: project.segment.unwrap_or(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn extra_params_may_be_an_object_a_string_empty_or_null() {
        let object =
            json!({"box_threshold": 0.4, "nms_iou": "0.5", "segment": false, "prompt": " cup "});
        let (settings, problems) = ProjectSettings::parse(&object);
        assert_eq!(settings.box_threshold, Some(0.4));
        assert_eq!(settings.nms_iou, Some(0.5));
        assert_eq!(settings.segment, Some(false));
        assert_eq!(settings.prompt.as_deref(), Some("cup"));
        assert!(problems.is_empty(), "{problems:?}");
        let text = Value::String(object.to_string());
        assert_eq!(ProjectSettings::parse(&text).0, settings);
        for nothing in [json!(""), json!(null), json!({}), json!("  ")] {
            let (settings, problems) = ProjectSettings::parse(&nothing);
            assert_eq!((settings, problems.len()), (ProjectSettings::default(), 0));
        }
    }

    #[test]
    fn an_invalid_setting_in_extra_params_is_named() {
        for (value, expected) in [
            (
                json!({"box_threshold": 30}),
                "box_threshold = 30 is ignored: it must be a number from 0 to 1",
            ),
            (json!({"max_detections": 0.5}), "max_detections"),
            (json!({"segment": "maybe"}), "true or false"),
            (json!({"prompt": 5}), "must be a text"),
            (json!({"treshold": 1}), "the known settings are prompt"),
            (json!([1]), "must be an object"),
            (json!("{"), "not JSON"),
        ] {
            let (settings, problems) = ProjectSettings::parse(&value);
            assert_eq!(settings, ProjectSettings::default());
            assert!(problems[0].contains(expected), "{problems:?}");
        }
    }

    #[test]
    fn thresholds_have_one_order_of_precedence() {
        let config = |attribute: &str| {
            let labels = format!("<Label value='a' {attribute}/><Label value='b'/>");
            let xml = format!(
                "<View><Image name='i' value='$i'/><BrushLabels name='b' toName='i'>{labels}</BrushLabels></View>"
            );
            LabelingConfig::parse(&xml).unwrap()
        };
        let (plain, of_label) = (config(""), config("score_threshold='0.1'"));
        let defaults = DetectionOptions::default();
        let project = ProjectSettings {
            box_threshold: Some(0.5),
            text_threshold: Some(0.15),
            ..ProjectSettings::default()
        };
        let numbers = ControlThresholds {
            box_threshold: Some(0.6),
            text_threshold: None,
        };
        let none = (ProjectSettings::default(), ControlThresholds::default());
        let resolve = |project: &ProjectSettings, numbers, config: &LabelingConfig| {
            let settings =
                ImageSettings::resolve(&defaults, project, numbers, config, &config.images[0]);
            (
                settings.options.box_threshold,
                settings.default_label_threshold,
            )
        };
        assert_eq!(resolve(&none.0, none.1, &plain), (0.3, None));
        assert_eq!(resolve(&none.0, none.1, &of_label), (0.1, Some(0.3)));
        assert_eq!(resolve(&project, none.1, &of_label), (0.5, None));
        assert_eq!(resolve(&project, numbers, &of_label), (0.6, None));
        let settings =
            ImageSettings::resolve(&defaults, &project, numbers, &plain, &plain.images[0]);
        assert_eq!(settings.options.text_threshold, 0.15);
    }
}
