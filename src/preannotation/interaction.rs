//! Parses the context of an interactive request: what the annotator just did.

use serde_json::Value;

use super::project::settings::{Numbers, fraction};
use crate::geometry::{BoundingBox, ImageSize, Point, SegmentPrompt};
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
        /// The image to search.
        image: &'a ImageTag,
    },
    /// The annotator drew with a smart tool.
    Drawing {
        /// The drawn shapes.
        drawn: Vec<Drawn>,
        /// The label that was selected for them.
        label: Option<String>,
        /// The image they were drawn on.
        image: &'a ImageTag,
    },
    /// The annotator changed a threshold: the last prompt is searched for again.
    Threshold,
    /// An action that groundling cannot answer, with the reason.
    Unusable(String),
}

/// A shape drawn with a smart tool; coordinates and lengths in percent of the image.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub enum Drawn {
    Rectangle {
        x: f32,
        y: f32,
        width: f32,
        height: f32,
        /// Degrees clockwise around the top left corner.
        rotation: f32,
    },
    Point {
        x: f32,
        y: f32,
        is_positive: bool,
    },
}

/// Limit of drawn shapes per request. Each point is a token of the mask decoder, whose attention compares all tokens
/// with each other; each rectangle is one run of the decoder.
const MAX_DRAWN: usize = 64;

/// Limit of a coordinate, in percent of the image, and of a rotation, in degrees. It is far more than any editor
/// sends, and keeps the values in pixels finite.
const FAR: f32 = 1e6;

/// Parses the regions of a context.
///
/// # Errors
/// If a prompt refers to an image that the labeling config does not have.
pub fn interaction<'a>(
    regions: &[Value],
    config: &'a LabelingConfig,
) -> Result<Interaction<'a>, LabelingError> {
    if regions.is_empty() {
        return Ok(Interaction::Nothing);
    }
    let texts: Vec<&Value> = regions.iter().filter(|r| is_type(r, "textarea")).collect();
    if !texts.is_empty() {
        return typed(&texts, config);
    }
    let drawn: Vec<Drawn> = regions.iter().filter_map(drawn).collect();
    if drawn.len() > MAX_DRAWN {
        return Ok(Interaction::Unusable(format!(
            "{} things were drawn, and at most {MAX_DRAWN} are looked at together",
            drawn.len()
        )));
    }
    if let Some(first) = regions.iter().find(|region| self::drawn(region).is_some()) {
        if regions.iter().any(|r| number(&r["image_rotation"]) != 0.0) {
            let reason = "the image is turned in the editor: turn it back to use smart tools";
            return Ok(Interaction::Unusable(reason.to_owned()));
        }
        return Ok(Interaction::Drawing {
            drawn,
            label: label(first, regions),
            image: named_image(first, config)?,
        });
    }
    if regions.iter().any(|region| of_number(region).is_some()) {
        return Ok(Interaction::Threshold);
    }
    let kinds: Vec<&str> = regions.iter().filter_map(|r| r["type"].as_str()).collect();
    Ok(Interaction::Unusable(format!(
        "it has regions of type {kinds:?}; a prompt typed into a <TextArea>, rectangles and keypoints are used"
    )))
}

fn is_type(region: &Value, kind: &str) -> bool {
    region["type"].as_str() == Some(kind)
}

/// Parses the prompt among the typed texts.
fn typed<'a>(
    texts: &[&Value],
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
    let lines: Vec<String> = texts
        .iter()
        .filter(is_prompt)
        .flat_map(|r| lines(r))
        .collect();
    if lines.is_empty() && !texts.iter().any(|region| is_prompt(&region)) {
        let names: Vec<&str> = texts
            .iter()
            .filter_map(|r| r["from_name"].as_str())
            .collect();
        return Ok(Interaction::Unusable(format!(
            "its text is of {names:?}, and prompts are typed into {:?}",
            area.name
        )));
    }
    Ok(Interaction::Prompt {
        text: lines.join("\n"),
        image,
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

/// The last text that was typed into the text area `area`, among all regions of a task.
pub(super) fn text_of(area: &str, regions: &[Value]) -> Option<String> {
    let typed = regions
        .iter()
        .rfind(|region| is_type(region, "textarea") && region["from_name"] == area)?;
    let text = lines(typed).join("\n");
    (!text.trim().is_empty()).then_some(text)
}

fn named_image<'a>(
    region: &Value,
    config: &'a LabelingConfig,
) -> Result<&'a ImageTag, LabelingError> {
    let name = region["to_name"].as_str();
    match name.and_then(|name| config.image_named(name)) {
        Some(image) => Ok(image),
        None => config.image(),
    }
}

fn drawn(region: &Value) -> Option<Drawn> {
    let value = &region["value"];
    let is_near = |n: &f32| n.abs() <= FAR;
    let place = |key: &str| value[key].as_f64().map(|n| n as f32).filter(is_near);
    let (x, y) = (place("x")?, place("y")?);
    match region["type"].as_str()? {
        "rectanglelabels" | "rectangle" => Some(Drawn::Rectangle {
            x,
            y,
            width: place("width")?,
            height: place("height")?,
            rotation: Some(number(&value["rotation"])).filter(is_near)?,
        }),
        "keypointlabels" | "keypoint" => Some(Drawn::Point {
            x,
            y,
            is_positive: region["is_positive"].as_bool().unwrap_or(true),
        }),
        _ => None,
    }
}

fn number(value: &Value) -> f32 {
    value.as_f64().unwrap_or(0.0) as f32
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
pub fn numbers(config: &LabelingConfig, context: &[Value], task: &[Value]) -> Numbers {
    let of = |start: &str| {
        let given = |regions: &[Value]| {
            let of_control = |region: &Value| {
                let (name, value) = of_number(region)?;
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
    Numbers {
        box_threshold: of("box_threshold"),
        text_threshold: of("text_threshold"),
    }
}

/// The control's name and the value, 0..1, of a number region, if the control is a threshold.
fn of_number(region: &Value) -> Option<(&str, f32)> {
    let name = region["from_name"].as_str()?;
    let is_threshold = name.starts_with("box_threshold") || name.starts_with("text_threshold");
    if !is_type(region, "number") || !is_threshold {
        return None;
    }
    let value = fraction(&region["value"]["number"]);
    if value.is_none() {
        tracing::warn!(control = name, value = %region["value"]["number"], "a threshold must be from 0 to 1");
    }
    Some((name, value?))
}

/// Converts drawn shapes to prompts of the segmenter, in pixels: one prompt per rectangle, and one for all points.
/// With exactly one rectangle the points are added to its prompt and refine it.
pub fn marks(drawn: &[Drawn], size: ImageSize) -> Vec<SegmentPrompt> {
    let (width, height) = (size.width as f32 / 100.0, size.height as f32 / 100.0);
    let (mut marks, mut points) = (vec![], vec![]);
    for shape in drawn {
        match *shape {
            Drawn::Point { x, y, is_positive } => points.push(Point {
                x: x * width,
                y: y * height,
                is_foreground: is_positive,
            }),
            Drawn::Rectangle {
                x,
                y,
                width: w,
                height: h,
                rotation,
            } => marks.push(SegmentPrompt {
                bounding_box: Some(around(
                    (x * width, y * height),
                    (w * width, h * height),
                    rotation,
                )),
                points: vec![],
            }),
        }
    }
    match marks.as_mut_slice() {
        [only] => only.points = points,
        _ if !points.is_empty() => marks.push(SegmentPrompt {
            bounding_box: None,
            points,
        }),
        _ => {}
    }
    marks
}

/// The axis-aligned bounding box of a box that is rotated around its top left corner. Width and height may be
/// negative, because a box can be drawn from any corner.
fn around((x, y): (f32, f32), (w, h): (f32, f32), degrees: f32) -> BoundingBox {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let corners = [(0.0, 0.0), (w, 0.0), (0.0, h), (w, h)];
    let turned = corners.map(|(dx, dy)| (x + dx * cos - dy * sin, y + dx * sin + dy * cos));
    let low = |pick: fn(&(f32, f32)) -> f32| turned.iter().map(pick).fold(f32::MAX, f32::min);
    let high = |pick: fn(&(f32, f32)) -> f32| turned.iter().map(pick).fold(f32::MIN, f32::max);
    BoundingBox {
        x0: low(|p| p.0),
        y0: low(|p| p.1),
        x1: high(|p| p.0),
        y1: high(|p| p.1),
    }
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
    fn a_prompt_is_about_the_image_it_was_typed_for() {
        let config = config();
        let asked = |regions: &[Value]| match interaction(regions, &config).unwrap() {
            Interaction::Prompt { text, image } => format!("{}: {text}", image.name),
            other => format!("{other:?}"),
        };
        assert_eq!(
            asked(&[text("prompt", "a", json!(["dog", "cat"]))]),
            "a: dog\ncat"
        );
        assert_eq!(asked(&[text("other", "b", json!("dog"))]), "b: dog");
        let notes = asked(&[text("notes", "a", json!(["dog"]))]);
        assert!(
            notes.contains("Unusable") && notes.contains("notes"),
            "{notes}"
        );
        assert_eq!(asked(&[]), "Nothing");
        let odd = asked(&[json!({"type": "ellipselabels"}), json!(5)]);
        assert!(odd.contains("ellipselabels"), "{odd}");
    }

    #[test]
    fn smart_tools_give_marks_in_pixels() {
        let config = config();
        let point = |x: f64, positive: bool| {
            json!({"type": "keypointlabels", "to_name": "b", "is_positive": positive,
                   "value": {"x": x, "y": 50, "width": 0.2, "keypointlabels": ["Cup"]}})
        };
        let regions = [point(10.0, true), point(20.0, false)];
        let Interaction::Drawing {
            drawn,
            label,
            image,
        } = interaction(&regions, &config).unwrap()
        else {
            panic!("no drawing");
        };
        assert_eq!((label.as_deref(), image.name.as_str()), (Some("Cup"), "b"));
        let size = ImageSize {
            height: 100,
            width: 200,
        };
        let made = marks(&drawn, size);
        assert_eq!(made.len(), 1);
        assert_eq!((made[0].points[0].x, made[0].points[0].y), (20.0, 50.0));
        assert!(!made[0].points[1].is_foreground);

        let shape = json!({"type": "rectangle", "id": "a", "to_name": "b",
            "value": {"x": 1, "y": 1, "width": 5, "height": 5}});
        let label =
            json!({"type": "labels", "id": "a", "value": {"x": 1, "y": 1, "labels": ["Pot"]}});
        let apart = interaction(&[shape, label], &config).unwrap();
        assert!(matches!(apart, Interaction::Drawing { label: Some(label), .. } if label == "Pot"));
        let many = vec![point(1.0, true); MAX_DRAWN + 1];
        let many = interaction(&many, &config).unwrap();
        assert!(matches!(many, Interaction::Unusable(_)));

        let rectangle = |rotation: f32| Drawn::Rectangle {
            x: 50.0,
            y: 50.0,
            width: 10.0,
            height: 10.0,
            rotation,
        };
        let boxed = |rotation| {
            marks(&[rectangle(rotation)], size)[0]
                .bounding_box
                .unwrap()
                .corners()
        };
        assert_eq!(boxed(0.0), [100.0, 50.0, 120.0, 60.0]);
        let turned = boxed(90.0);
        for (got, wanted) in turned.iter().zip([90.0, 50.0, 100.0, 70.0]) {
            assert!((got - wanted).abs() < 1e-3, "{turned:?}");
        }
        let both = marks(&[rectangle(0.0), drawn[0]], size);
        assert!(both.len() == 1 && both[0].points.len() == 1);
        assert_eq!(
            marks(&[rectangle(0.0), rectangle(0.0), drawn[0]], size).len(),
            3
        );
    }

    #[test]
    fn shapes_far_outside_of_every_image_are_none() {
        let config = config();
        for far in [1e39, -1e300, 3e38] {
            let point = json!({"type": "keypoint", "value": {"x": far, "y": 5}});
            let width =
                json!({"type": "rectangle", "value": {"x": 1, "y": 1, "width": far, "height": 1}});
            let turned = json!({"type": "rectangle", "value":
                {"x": 1, "y": 1, "width": 1, "height": 1, "rotation": far}});
            for region in [point, width, turned] {
                let asked = interaction(std::slice::from_ref(&region), &config).unwrap();
                assert!(
                    matches!(asked, Interaction::Unusable(_)),
                    "{region} {asked:?}"
                );
            }
        }
    }

    #[test]
    fn numbers_are_taken_from_the_nearest_place() {
        let config = config();
        let number = |name: &str, value: Value| json!({"type": "number", "from_name": name, "value": {"number": value}});
        let of = |context: &[Value], task: &[Value]| numbers(&config, context, task).box_threshold;
        assert_eq!(of(&[], &[]), Some(0.2));
        let task = [
            number("box_threshold", json!(0.5)),
            number("box_threshold", json!(0.6)),
        ];
        assert_eq!(of(&[], &task), Some(0.6));
        assert_eq!(of(&[number("box_threshold", json!(0.7))], &task), Some(0.7));
        assert_eq!(of(&[number("box_threshold", json!(70))], &[]), Some(0.2));
        let changed = [number("box_threshold", json!(0.7))];
        assert_eq!(
            interaction(&changed, &config).unwrap(),
            Interaction::Threshold
        );
        let count = interaction(&[number("count", json!(1))], &config).unwrap();
        assert!(matches!(count, Interaction::Unusable(_)));
    }
}
