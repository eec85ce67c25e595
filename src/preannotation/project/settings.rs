//! Decides which threshold applies, among all places that may set it.
//!
//! In order of precedence: a `<Number>` control of the labeling config, the `extra_params` of the connected backend,
//! `score_threshold` or `model_score_threshold` of a label (box threshold only), flags and environment variables, the
//! defaults.

use serde_json::{Map, Value};

use crate::detector::{DetectionOptions, PhraseThresholds};
use crate::geometry::MaskCleanup;
use crate::labeling::{ImageTag, LabelingConfig, Outputs};
use crate::pipeline::tiles::{MAX_OVERLAP, Tiles, Tiling};
use crate::prompt::Prompt;

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
    /// How images are divided into tiles.
    pub tiles: Option<Tiles>,
    /// The overlap of tiles, 0..=[`MAX_OVERLAP`].
    pub tile_overlap: Option<f32>,
    /// The controls that get regions.
    pub outputs: Option<Outputs>,
    /// In percent of the image's longer side.
    pub polygon_tolerance: Option<f32>,
    /// Holes of masks that are smaller than this are filled, in percent of the mask's area.
    pub fill_holes: Option<f32>,
    /// Islands of masks that are smaller than this are removed, in percent of the mask's area.
    pub drop_islands: Option<f32>,
    /// Whether phrases that no label knows become labels of the project, if the server's settings allow it.
    pub add_labels: Option<bool>,
}

/// The settings that predictions depend on, besides the models, the prompt and the labeling config.
#[derive(Debug, Clone, PartialEq)]
pub struct PredictionSettings {
    /// Thresholds and limits of the detector.
    pub options: DetectionOptions,
    /// How images are divided into tiles.
    pub tiling: Tiling,
    /// The controls that get regions; `None`: the usual ones.
    pub outputs: Option<Outputs>,
    /// Maximum distance of a polygon from its mask's boundary, in percent of the image's longer side.
    pub polygon_tolerance: f32,
    /// Which small holes and islands of masks are removed.
    pub cleanup: MaskCleanup,
    /// Whether to segment the detections.
    pub segment: bool,
    /// Whether a typed phrase that found something, and that no label knows, becomes a label of the project.
    pub add_labels: bool,
}

/// Thresholds of `<Number>` controls, 0..1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[allow(missing_docs)]
pub struct ControlThresholds {
    pub box_threshold: Option<f32>,
    pub text_threshold: Option<f32>,
}

/// The thresholds for one image and one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchThresholds {
    /// Options of the detector.
    pub options: DetectionOptions,
    /// The box thresholds of the phrases whose labels have their own one.
    pub phrases: PhraseThresholds,
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
            let expected = settings.set(key, value);
            if let Some(expected) = expected {
                problems.push(format!(
                    "extra_params.{key} = {value} is ignored: {expected}"
                ));
            }
        }
        (settings, problems)
    }

    /// Sets one setting; returns the expected format if the value is invalid, or the known names.
    fn set(&mut self, key: &str, value: &Value) -> Option<&'static str> {
        const FRACTION: &str = "it must be a number from 0 to 1";
        const PERCENT: &str = "it must be a number from 0 to 100";
        match key {
            "prompt" => {
                let text = value.as_str().map(str::trim).map(str::to_owned);
                set(&mut self.prompt, text, "it must be a text")
            }
            "box_threshold" => set(&mut self.box_threshold, fraction(value), FRACTION),
            "text_threshold" => set(&mut self.text_threshold, fraction(value), FRACTION),
            "nms_iou" => set(&mut self.nms_iou, fraction(value), FRACTION),
            "max_detections" => {
                let integer = number(value).filter(|n| *n >= 1.0 && n.fract() == 0.0);
                let integer = integer.map(|n| n as usize);
                set(
                    &mut self.max_detections,
                    integer,
                    "it must be an integer of at least 1",
                )
            }
            "segment" => set(
                &mut self.segment,
                boolean(value),
                "it must be true or false",
            ),
            "add_labels" => set(
                &mut self.add_labels,
                boolean(value),
                "it must be true or false",
            ),
            "tiles" => {
                let text = value.as_str().map(str::to_owned);
                let text = text.or_else(|| value.as_u64().map(|side| side.to_string()));
                let tiles = match value {
                    Value::Bool(false) => Some(Tiles::Off),
                    _ => text.and_then(|text| text.parse().ok()),
                };
                let expected = "it must be \"off\", \"auto\", columns and rows such as \"2x2\" (at most 8x8), or the side of a tile in pixels, at least 64";
                set(&mut self.tiles, tiles, expected)
            }
            "tile_overlap" => {
                let overlap = fraction(value).filter(|overlap| *overlap <= MAX_OVERLAP);
                set(
                    &mut self.tile_overlap,
                    overlap,
                    "it must be a number from 0 to 0.5",
                )
            }
            "outputs" => match outputs(value) {
                Some(outputs) => {
                    self.outputs = outputs;
                    None
                }
                None => Some(
                    "it must be a list of control names or kinds of tags, such as [\"label\", \"BrushLabels\"]",
                ),
            },
            "polygon_tolerance" => set(&mut self.polygon_tolerance, percent(value), PERCENT),
            "fill_holes" => set(&mut self.fill_holes, percent(value), PERCENT),
            "drop_islands" => set(&mut self.drop_islands, percent(value), PERCENT),
            _ => Some(
                "the known settings are prompt, box_threshold, text_threshold, nms_iou, max_detections, segment, tiles, tile_overlap, outputs, polygon_tolerance, fill_holes, drop_islands and add_labels",
            ),
        }
    }
}

/// A list of names, or names in a text that are separated by commas. `Some(None)` if there is no name, `None` if the value
/// is neither.
fn outputs(value: &Value) -> Option<Option<Outputs>> {
    match value {
        Value::String(text) => Some(Outputs::parse(text)),
        Value::Array(names) => {
            let names: Option<Vec<&str>> = names.iter().map(Value::as_str).collect();
            Some(Outputs::new(names?))
        }
        _ => None,
    }
}

/// Sets a value; returns the expected format if it is invalid.
fn set<T>(field: &mut Option<T>, value: Option<T>, expected: &'static str) -> Option<&'static str> {
    *field = value;
    field.is_none().then_some(expected)
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

/// A number of 0..100.
fn percent(value: &Value) -> Option<f32> {
    let number = number(value).map(|number| number as f32);
    number.filter(|number| (0.0..=100.0).contains(number))
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

impl Default for PredictionSettings {
    fn default() -> Self {
        Self {
            options: DetectionOptions::default(),
            tiling: Tiling::default(),
            outputs: None,
            polygon_tolerance: 0.2,
            cleanup: MaskCleanup::default(),
            segment: true,
            add_labels: false,
        }
    }
}

impl PredictionSettings {
    /// These settings, with those of a project in their place where it has some.
    pub fn with(&self, project: &ProjectSettings) -> Self {
        let DetectionOptions {
            box_threshold,
            text_threshold,
            nms_iou_threshold,
            max_detections,
        } = self.options;
        Self {
            options: DetectionOptions {
                box_threshold: project.box_threshold.unwrap_or(box_threshold),
                text_threshold: project.text_threshold.unwrap_or(text_threshold),
                nms_iou_threshold: project.nms_iou.unwrap_or(nms_iou_threshold),
                max_detections: project.max_detections.or(max_detections),
            },
            tiling: Tiling {
                tiles: project.tiles.unwrap_or(self.tiling.tiles),
                overlap: project.tile_overlap.unwrap_or(self.tiling.overlap),
            },
            outputs: project.outputs.clone().or_else(|| self.outputs.clone()),
            polygon_tolerance: project.polygon_tolerance.unwrap_or(self.polygon_tolerance),
            cleanup: MaskCleanup {
                fill_holes: project.fill_holes.unwrap_or(self.cleanup.fill_holes),
                drop_islands: project.drop_islands.unwrap_or(self.cleanup.drop_islands),
            },
            segment: project.segment.unwrap_or(self.segment),
            // a project can only switch it off: whoever can send `/setup` must not make the server write
            add_labels: self.add_labels && project.add_labels.unwrap_or(true),
        }
    }
}

impl SearchThresholds {
    /// Resolves the thresholds for one image and one prompt; see the module's order of precedence. `options` are those of
    /// the project.
    pub fn resolve(
        options: DetectionOptions,
        project: &ProjectSettings,
        controls: ControlThresholds,
        config: &LabelingConfig,
        image: &ImageTag,
        prompt: &Prompt,
    ) -> Self {
        let mut phrases = PhraseThresholds::default();
        if controls.box_threshold.or(project.box_threshold).is_none() {
            for phrase in prompt.wanted() {
                let labels = config.region_controls(image);
                let mut labels = labels.filter_map(|control| Some(control.label_for(phrase)?.1));
                if let Some(own) = labels.find_map(|label| label.score_threshold) {
                    phrases.set(phrase, own);
                }
            }
        }
        Self {
            options: DetectionOptions {
                box_threshold: controls.box_threshold.unwrap_or(options.box_threshold),
                text_threshold: controls.text_threshold.unwrap_or(options.text_threshold),
                ..options
            },
            phrases,
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
            (json!({"tiles": "9x9"}), "at most 8x8"),
            (json!({"tile_overlap": 0.6}), "from 0 to 0.5"),
            (json!({"outputs": 5}), "control names"),
            (json!({"polygon_tolerance": -1}), "from 0 to 100"),
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
    fn tiles_and_outputs_may_be_written_in_several_ways() {
        let parse = |value: Value| {
            let (settings, problems) = ProjectSettings::parse(&value);
            assert!(problems.is_empty(), "{problems:?}");
            settings
        };
        assert_eq!(parse(json!({"tiles": "auto"})).tiles, Some(Tiles::Auto));
        assert_eq!(parse(json!({"tiles": 640})).tiles, Some(Tiles::Side(640)));
        assert_eq!(parse(json!({"tiles": false})).tiles, Some(Tiles::Off));
        let names = |value: Value| parse(json!({"outputs": value})).outputs;
        assert_eq!(names(json!(["a", "b"])), Outputs::parse("a, b"));
        assert_eq!(names(json!("a,b")), Outputs::parse("a, b"));
        assert_eq!(names(json!([])), None);
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
        let defaults = PredictionSettings::default();
        let project = ProjectSettings {
            box_threshold: Some(0.5),
            text_threshold: Some(0.15),
            ..ProjectSettings::default()
        };
        let numbers = ControlThresholds {
            box_threshold: Some(0.6),
            text_threshold: None,
        };
        let nothing = (ProjectSettings::default(), ControlThresholds::default());
        let mut own = PhraseThresholds::default();
        own.set("a", 0.1);
        let others = PhraseThresholds::default();
        let prompt = Prompt::parse("a. b").unwrap();
        let resolve = |project: &ProjectSettings, numbers, config: &LabelingConfig| {
            let options = defaults.with(project).options;
            let image = &config.images[0];
            let found =
                SearchThresholds::resolve(options, project, numbers, config, image, &prompt);
            (found.options.box_threshold, found.phrases)
        };
        assert_eq!(
            resolve(&nothing.0, nothing.1, &plain),
            (0.3, others.clone())
        );
        assert_eq!(resolve(&nothing.0, nothing.1, &of_label), (0.3, own));
        assert_eq!(
            resolve(&project, nothing.1, &of_label),
            (0.5, others.clone())
        );
        assert_eq!(resolve(&project, numbers, &of_label), (0.6, others));
        assert_eq!(defaults.with(&project).options.text_threshold, 0.15);
    }
}
