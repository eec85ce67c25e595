//! Labels that a control takes from the data of each task: `<RectangleLabels value="$labels" .../>`.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::image_tag::look_up;
use super::{Label, LabelingConfig};

/// Limit of the labels that one control takes from a task.
const MAX_LABELS: usize = 10_000;

impl LabelingConfig {
    /// The config with the labels that its controls take from a task's data. They come after the labels of the config. A
    /// control whose key is missing has only the labels of the config.
    pub fn for_task(&self, data: &Map<String, Value>) -> Cow<'_, Self> {
        if self
            .controls
            .iter()
            .all(|control| control.labels_key.is_none())
        {
            return Cow::Borrowed(self);
        }
        let mut config = self.clone();
        for control in &mut config.controls {
            if let Some(value) = control
                .labels_key
                .as_ref()
                .and_then(|key| look_up(data, key))
            {
                labels(value, &mut control.labels);
            }
        }
        Cow::Owned(config)
    }

    /// Whether some labels are known only with a task.
    pub fn has_task_labels(&self) -> bool {
        self.controls
            .iter()
            .any(|control| control.labels_key.is_some())
    }
}

/// Adds the labels of a list: texts, or objects with `value` and the other attributes of a `<Label>`. An object may have
/// `children`.
fn labels(value: &Value, found: &mut Vec<Label>) {
    // not recursive, because the data determines the depth
    let mut pending: Vec<&Value> = vec![value];
    while let Some(value) = pending.pop() {
        if found.len() >= MAX_LABELS {
            return;
        }
        match value {
            Value::Array(values) => pending.extend(values.iter().rev()),
            Value::String(text) if !text.trim().is_empty() => found.push(Label::new(text.trim())),
            Value::Object(fields) => {
                found.extend(label(fields));
                pending.extend(fields.get("children"));
            }
            _ => {}
        }
    }
}

fn label(fields: &Map<String, Value>) -> Option<Label> {
    let text = |key: &str| {
        let text = fields.get(key).and_then(Value::as_str).map(str::trim);
        text.filter(|text| !text.is_empty())
    };
    let alias = text("alias");
    let threshold = ["score_threshold", "model_score_threshold"];
    let threshold = threshold.iter().find_map(|key| fields.get(*key));
    let mut label = Label {
        alias: alias.map(str::to_owned),
        hint: text("hint").map(str::to_owned),
        score_threshold: threshold
            .and_then(Value::as_f64)
            .map(|value| value as f32)
            .filter(|value| (0.0..=1.0).contains(value)),
        ..Label::new(text("value").or(alias)?)
    };
    label.set_prompt(text("prompt").unwrap_or_default());
    label.set_predicted_values(text("predicted_values").unwrap_or_default());
    Some(label)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_of_a_task_follow_those_of_the_config() {
        let config = LabelingConfig::parse(
            "<View><Image name='i' value='$i'/>
             <RectangleLabels name='r' toName='i' value='$task.labels'><Label value='Pot'/></RectangleLabels>
             <BrushLabels name='b' toName='i' value='$none'/></View>",
        )
        .unwrap();
        let names = |data: Value| -> Vec<String> {
            let Value::Object(data) = data else {
                unreachable!()
            };
            let config = config.for_task(&data);
            let labels = config.labels(config.image().unwrap());
            labels.iter().map(|label| label.name().to_owned()).collect()
        };
        assert_eq!(names(json!({})), ["Pot"]);
        let list =
            json!({"task": {"labels": ["Cup", {"value": "Lid", "alias": "lid"}, 5, " ", {}]}});
        assert_eq!(names(list), ["Pot", "Cup", "lid"]);
        let nested = json!({"task.labels": [
            {"value": "Dishes", "children": [{"value": "Plate"}, "Bowl"]}, {"value": "Fork"}
        ]});
        assert_eq!(names(nested), ["Pot", "Dishes", "Plate", "Bowl", "Fork"]);
        assert!(config.has_task_labels());
    }

    #[test]
    fn a_label_of_a_task_has_the_attributes_of_a_label_tag() {
        let mut found = vec![];
        let value = json!([{
            "value": "Cup", "hint": "to drink from", "predicted_values": "mug, beaker",
            "prompt": "tea cup. glass", "score_threshold": 0.4, "background": "red"
        }]);
        labels(&value, &mut found);
        let expected = Label {
            hint: Some("to drink from".to_owned()),
            predicted_values: vec!["mug".to_owned(), "beaker".to_owned()],
            prompts: vec!["tea cup".to_owned(), "glass".to_owned()],
            score_threshold: Some(0.4),
            ..Label::new("Cup")
        };
        assert_eq!(found, [expected]);
        assert_eq!(found[0].phrases(), ["tea cup", "glass"]);
    }
}
