//! Parses the context of an interactive request: what the annotator just did.

use serde_json::Value;

use super::areas::{is_area, page_of};
use super::project::settings::{ControlThresholds, fraction};
use super::smart_tools::{MAX_SHAPES, SmartToolShape};
use crate::labeling::{ControlKind, ImageTag, LabelingConfig, LabelingError};

/// An action of an annotator.
#[derive(Debug, Clone, PartialEq)]
pub enum Interaction<'a> {
    /// No action: the editor sends an empty context after Submit.
    Nothing,
    /// The annotator typed into the prompt of an image.
    Prompt {
        /// The text as typed.
        text: String,
        /// Where to search.
        target: Target<'a>,
    },
    /// The annotator drew with a smart tool.
    Drawing {
        /// The drawn shapes.
        shapes: Vec<SmartToolShape>,
        /// The label that was selected for them.
        label: Option<String>,
        /// Where they were drawn.
        target: Target<'a>,
    },
    /// The annotator changed a threshold, or drew a region of interest: the last prompt is searched for again.
    SearchAgain {
        /// Where to search.
        target: Target<'a>,
    },
    /// An action that groundling cannot answer, with the reason.
    Unusable(String),
}

/// The image of an action.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target<'a> {
    /// The image tag.
    pub image: &'a ImageTag,
    /// The number of the page, from 0; `None` if the editor does not say it.
    pub page: Option<usize>,
}

/// Parses the regions of a context. `task` are the regions of the task's annotation and draft.
///
/// # Errors
/// If a prompt refers to an image that the labeling config does not have.
pub fn interaction<'a>(
    regions: &[Value],
    task: &[Value],
    config: &'a LabelingConfig,
) -> Result<Interaction<'a>, LabelingError> {
    if regions.is_empty() {
        return Ok(Interaction::Nothing);
    }
    let texts: Vec<&Value> = regions.iter().filter(|r| is_type(r, "textarea")).collect();
    if !texts.is_empty() {
        return typed_prompt(&texts, task, config);
    }
    if let Some(area) = regions.iter().rfind(|region| is_area(region, config)) {
        return Ok(Interaction::SearchAgain {
            target: target(area, config)?,
        });
    }
    if let Some(last) = regions
        .iter()
        .rfind(|region| SmartToolShape::from_region(region).is_some())
    {
        return drawing(regions, last, config);
    }
    if let Some(threshold) = regions
        .iter()
        .find(|region| threshold_region(region).is_some())
    {
        let image = config.image()?;
        let page = page_of(threshold);
        return Ok(Interaction::SearchAgain {
            target: Target { image, page },
        });
    }
    let kinds: Vec<&str> = regions.iter().filter_map(|r| r["type"].as_str()).collect();
    Ok(Interaction::Unusable(format!(
        "its regions have the types {kinds:?}; groundling uses a prompt that is typed into a <TextArea>, rectangles and keypoints"
    )))
}

fn is_type(region: &Value, kind: &str) -> bool {
    region["type"].as_str() == Some(kind)
}

/// Parses what was drawn with a smart tool. The editor sends all regions of the same label, also accepted ones and those of
/// other pages; the one that was just drawn is the last.
fn drawing<'a>(
    regions: &[Value],
    last: &Value,
    config: &'a LabelingConfig,
) -> Result<Interaction<'a>, LabelingError> {
    let page = page_of(last);
    // a region with a score was accepted: it has its mask already
    let is_new = |region: &&Value| region["score"].is_null() || std::ptr::eq(*region, last);
    let of_page = regions.iter().filter(|region| page_of(region) == page);
    let of_page = of_page.filter(is_new);
    let shapes: Vec<SmartToolShape> = of_page.filter_map(SmartToolShape::from_region).collect();
    if shapes.len() > MAX_SHAPES {
        return Ok(Interaction::Unusable(format!(
            "{} shapes were drawn, but at most {MAX_SHAPES} can be used together",
            shapes.len()
        )));
    }
    let is_rotated = |region: &Value| region["image_rotation"].as_f64().unwrap_or(0.0) != 0.0;
    if regions.iter().any(is_rotated) {
        let reason = "the image is rotated in the editor; rotate it back to use smart tools";
        return Ok(Interaction::Unusable(reason.to_owned()));
    }
    Ok(Interaction::Drawing {
        shapes,
        label: label(last, regions),
        target: target(last, config)?,
    })
}

/// Parses the prompt among the typed texts. If each page has its own text, the editor sends all of them in the order in
/// which they were first typed: the one that was just typed is not in the task yet.
fn typed_prompt<'a>(
    texts: &[&Value],
    task: &[Value],
    config: &'a LabelingConfig,
) -> Result<Interaction<'a>, LabelingError> {
    // the image the text was typed for; if the text area belongs to another object, the image that prompts refer to
    let to_name = texts.iter().find_map(|region| region["to_name"].as_str());
    let image = match to_name.and_then(|name| config.image_named(name)) {
        Some(image) if config.region_controls(image).next().is_some() => image,
        _ => config.image()?,
    };
    let area = config.text_area(image)?;
    let is_prompt = |region: &&&Value| match region["from_name"].as_str() {
        Some(name) => name == area.name,
        None => true,
    };
    let is_new = |region: &&&Value| {
        let is_same = |other: &Value| {
            other["id"] == region["id"] && other["value"]["text"] == region["value"]["text"]
        };
        is_prompt(region) && !task.iter().any(is_same)
    };
    let changed = texts.iter().rfind(is_new);
    let Some(last) = changed.or_else(|| texts.iter().rfind(is_prompt)) else {
        let names: Vec<&str> = texts
            .iter()
            .filter_map(|r| r["from_name"].as_str())
            .collect();
        return Ok(Interaction::Unusable(format!(
            "the text was typed into {names:?}, but prompts are read from {:?}",
            area.name
        )));
    };
    let page = page_of(last);
    let of_page = texts.iter().filter(|region| page_of(region) == page);
    let lines: Vec<String> = of_page.filter(is_prompt).flat_map(|r| lines(r)).collect();
    Ok(Interaction::Prompt {
        text: lines.join("\n"),
        target: Target { image, page },
    })
}

/// The text of a text area's region. Label Studio sends a list with one entry per submission; other clients send a
/// string.
fn lines(region: &Value) -> Vec<String> {
    match &region["value"]["text"] {
        Value::String(text) => vec![text.clone()],
        Value::Array(lines) => lines
            .iter()
            .filter_map(|line| line.as_str().map(str::to_owned))
            .collect(),
        _ => vec![],
    }
}

/// The last text that was typed into the text area `area`, among all regions of a task; if a page is given and has its own
/// text, that one.
pub(super) fn typed_text(area: &str, regions: &[Value], page: Option<usize>) -> Option<String> {
    let is_typed = |region: &&Value| is_type(region, "textarea") && region["from_name"] == area;
    let of_page = |region: &&Value| is_typed(region) && page.is_some() && page_of(region) == page;
    let typed = regions
        .iter()
        .rfind(of_page)
        .or_else(|| regions.iter().rfind(is_typed))?;
    let text = lines(typed).join("\n");
    (!text.trim().is_empty()).then_some(text)
}

/// The image and the page of a drawn region.
fn target<'a>(region: &Value, config: &'a LabelingConfig) -> Result<Target<'a>, LabelingError> {
    let name = region["to_name"].as_str();
    let image = match name.and_then(|name| config.image_named(name)) {
        Some(image) => image,
        None => config.image()?,
    };
    let page = page_of(region);
    Ok(Target { image, page })
}

/// The label that a region was drawn with. With a separate `<Labels>` control, the label is in another region of the
/// same id.
fn label(region: &Value, regions: &[Value]) -> Option<String> {
    let kind = region["type"].as_str()?;
    let own = [kind, "labels"].map(|key| &region["value"][key][0]);
    let apart = regions
        .iter()
        .filter(|other| is_type(other, "labels") && other["id"] == region["id"])
        .map(|other| &other["value"]["labels"][0]);
    let mut labels = own.into_iter().chain(apart).filter_map(Value::as_str);
    labels.next().map(str::to_owned)
}

/// The thresholds of `<Number>` controls. A value in the context overrides one in the task's other regions, which
/// overrides the control's default value. Within each list the last region counts.
pub fn control_thresholds(
    config: &LabelingConfig,
    context: &[Value],
    task: &[Value],
) -> ControlThresholds {
    let of = |start: &str| {
        let given = |regions: &[Value]| {
            let of_control = |region: &Value| {
                let (name, value) = threshold_region(region)?;
                name.starts_with(start).then_some(value)
            };
            regions.iter().rev().find_map(of_control)
        };
        let default = || {
            config
                .controls
                .iter()
                .find_map(|control| match control.kind {
                    ControlKind::Number { default } if control.name.starts_with(start) => {
                        default.filter(|value| (0.0..=1.0).contains(value))
                    }
                    _ => None,
                })
        };
        given(context).or_else(|| given(task)).or_else(default)
    };
    ControlThresholds {
        box_threshold: of("box_threshold"),
        text_threshold: of("text_threshold"),
    }
}

/// The control's name and the value, 0..1, of a number region, if the control is a threshold.
fn threshold_region(region: &Value) -> Option<(&str, f32)> {
    let name = region["from_name"].as_str()?;
    let is_threshold = name.starts_with("box_threshold") || name.starts_with("text_threshold");
    if !is_type(region, "number") || !is_threshold {
        return None;
    }
    let value = fraction(&region["value"]["number"]);
    if value.is_none() {
        tracing::warn!(control = name, value = %region["value"]["number"], "a threshold is ignored, because it is not a number from 0 to 1");
    }
    Some((name, value?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config() -> LabelingConfig {
        LabelingConfig::parse(
            "<View><Image name='a' value='$a'/><Image name='b' value='$b'/>
             <TextArea name='prompt' toName='a'/><TextArea name='notes' toName='a'/>
             <TextArea name='other' toName='b'/>
             <Number name='box_threshold' toName='a' defaultValue='0.2'/>
             <Number name='count' toName='a'/>
             <BrushLabels name='m' toName='a'><Label value='x'/></BrushLabels>
             <BrushLabels name='n' toName='b'><Label value='x'/></BrushLabels></View>",
        )
        .unwrap()
    }

    fn text(from: &str, to: &str, text: Value) -> Value {
        json!({"type": "textarea", "from_name": from, "to_name": to, "value": {"text": text}})
    }

    #[test]
    fn a_prompt_applies_to_the_image_of_its_text_area() {
        let config = config();
        let parsed = |regions: &[Value]| match interaction(regions, &[], &config).unwrap() {
            Interaction::Prompt { text, target } => format!("{}: {text}", target.image.name),
            other => format!("{other:?}"),
        };
        assert_eq!(
            parsed(&[text("prompt", "a", json!(["dog", "cat"]))]),
            "a: dog\ncat"
        );
        assert_eq!(parsed(&[text("other", "b", json!("dog"))]), "b: dog");
        let notes = parsed(&[text("notes", "a", json!(["dog"]))]);
        assert!(
            notes.contains("Unusable") && notes.contains("notes"),
            "{notes}"
        );
        assert_eq!(parsed(&[]), "Nothing");
        let odd = parsed(&[json!({"type": "ellipselabels"}), json!(5)]);
        assert!(odd.contains("ellipselabels"), "{odd}");
    }

    #[test]
    fn regions_of_smart_tools_are_a_drawing() {
        let config = config();
        let point = |x: f64, positive: bool| {
            json!({"type": "keypointlabels", "to_name": "b", "is_positive": positive,
                   "value": {"x": x, "y": 50, "width": 0.2, "keypointlabels": ["Cup"]}})
        };
        let regions = [point(10.0, true), point(20.0, false)];
        let Interaction::Drawing {
            shapes,
            label,
            target,
        } = interaction(&regions, &[], &config).unwrap()
        else {
            panic!("no drawing");
        };
        assert_eq!(label.as_deref(), Some("Cup"));
        assert_eq!(target.image.name, "b");
        assert_eq!(shapes.len(), 2);

        let shape = json!({"type": "rectangle", "id": "a", "to_name": "b",
            "value": {"x": 1, "y": 1, "width": 5, "height": 5}});
        let label =
            json!({"type": "labels", "id": "a", "value": {"x": 1, "y": 1, "labels": ["Pot"]}});
        let apart = interaction(&[shape, label], &[], &config).unwrap();
        assert!(matches!(apart, Interaction::Drawing { label: Some(label), .. } if label == "Pot"));
        let many = vec![point(1.0, true); MAX_SHAPES + 1];
        let many = interaction(&many, &[], &config).unwrap();
        assert!(matches!(many, Interaction::Unusable(_)));
    }

    #[test]
    fn a_shape_with_implausible_coordinates_is_unusable() {
        let config = config();
        for far in [1e39, -1e300, 3e38] {
            let point = json!({"type": "keypoint", "value": {"x": far, "y": 5}});
            let width =
                json!({"type": "rectangle", "value": {"x": 1, "y": 1, "width": far, "height": 1}});
            let turned = json!({"type": "rectangle", "value":
                {"x": 1, "y": 1, "width": 1, "height": 1, "rotation": far}});
            for region in [point, width, turned] {
                let parsed = interaction(std::slice::from_ref(&region), &[], &config).unwrap();
                assert!(
                    matches!(parsed, Interaction::Unusable(_)),
                    "{region} {parsed:?}"
                );
            }
        }
    }

    #[test]
    fn a_threshold_in_the_context_overrides_the_task_and_the_default() {
        let config = config();
        let number = |name: &str, value: Value| json!({"type": "number", "from_name": name, "value": {"number": value}});
        let of = |context: &[Value], task: &[Value]| {
            control_thresholds(&config, context, task).box_threshold
        };
        assert_eq!(of(&[], &[]), Some(0.2));
        let task = [
            number("box_threshold", json!(0.5)),
            number("box_threshold", json!(0.6)),
        ];
        assert_eq!(of(&[], &task), Some(0.6));
        assert_eq!(of(&[number("box_threshold", json!(0.7))], &task), Some(0.7));
        assert_eq!(of(&[number("box_threshold", json!(70))], &[]), Some(0.2));
        let changed = [number("box_threshold", json!(0.7))];
        let again = interaction(&changed, &[], &config).unwrap();
        assert!(matches!(again, Interaction::SearchAgain { target } if target.image.name == "a"));
        let count = interaction(&[number("count", json!(1))], &[], &config).unwrap();
        assert!(matches!(count, Interaction::Unusable(_)));
    }

    #[test]
    fn a_prompt_of_one_page_applies_to_that_page() {
        let config = LabelingConfig::parse(
            "<View><Image name='i' valueList='$pages'/><TextArea name='prompt' toName='i' perItem='true'/>
             <Brush name='b' toName='i'/></View>",
        )
        .unwrap();
        let typed = |id: &str, page: u64, words: &str| {
            json!({"type": "textarea", "id": id, "from_name": "prompt", "to_name": "i",
                   "item_index": page, "value": {"text": [words]}})
        };
        let parsed = |context: &[Value], task: &[Value]| match interaction(context, task, &config)
            .unwrap()
        {
            Interaction::Prompt { text, target } => (text, target.page),
            other => panic!("{other:?}"),
        };
        let (second, third) = (typed("x", 1, "cup"), typed("y", 2, "pot"));
        let both = [second.clone(), third.clone()];
        assert_eq!(parsed(&both[..1], &[]), ("cup".to_owned(), Some(1)));
        // the last one is new
        assert_eq!(parsed(&both, &both[..1]), ("pot".to_owned(), Some(2)));
        // the first one was edited
        let saved = [typed("x", 1, "mug"), third];
        assert_eq!(parsed(&both, &saved), ("cup".to_owned(), Some(1)));
        assert_eq!(typed_text("prompt", &both, Some(1)).unwrap(), "cup");
        assert_eq!(typed_text("prompt", &both, None).unwrap(), "pot");
    }

    #[test]
    fn accepted_shapes_and_those_of_other_pages_are_left_out() {
        let config = config();
        let rectangle = |page: u64, x: f64| {
            json!({"type": "rectanglelabels", "to_name": "a", "item_index": page,
                   "value": {"x": x, "y": 5, "width": 5, "height": 5, "rectanglelabels": ["x"]}})
        };
        let mut accepted = rectangle(1, 30.0);
        accepted["score"] = json!(0.8);
        let regions = [rectangle(0, 10.0), accepted, rectangle(1, 20.0)];
        let Interaction::Drawing { shapes, target, .. } =
            interaction(&regions, &[], &config).unwrap()
        else {
            panic!("no drawing");
        };
        assert_eq!((shapes.len(), target.page), (1, Some(1)));
    }
}
