//! Parses XML to a [`LabelingConfig`].

use roxmltree::{Document, Node, ParsingOptions};

use super::{ControlKind, ControlTag, ImageTag, Label, LabelingConfig, LabelingError, Shape};

/// Limit of a config, in bytes; this is tens of thousands of labels.
const MAX_BYTES: usize = 4 << 20;
/// Limit of elements, texts and comments.
const MAX_NODES: usize = 200_000;
/// Limit of nested elements.
const MAX_DEPTH: usize = 200;
/// Limit of labels, over all controls.
const MAX_LABELS: usize = 50_000;
/// Limit of `<Image>` tags. The time grows with the product of images, controls and `toName` entries.
const MAX_IMAGES: usize = 1000;
/// Limit of controls of the kinds that groundling uses.
const MAX_CONTROLS: usize = 1000;
/// Limit of names in the `toName` attributes of all controls together.
const MAX_TO_NAMES: usize = 10_000;

pub(super) fn parse(xml: &str) -> Result<LabelingConfig, LabelingError> {
    let xml = xml.trim();
    let check_limit = |what, found, limit| match found > limit {
        true => Err(LabelingError::TooLarge { what, found, limit }),
        false => Ok(()),
    };
    check_limit("bytes", xml.len(), MAX_BYTES)?;
    // entity declarations are not allowed: expanded entities could grow without bounds
    let options = ParsingOptions {
        nodes_limit: MAX_NODES as u32,
        ..ParsingOptions::default()
    };
    let document = Document::parse_with_options(xml, options).map_err(|error| match error {
        roxmltree::Error::NodesLimitReached => LabelingError::TooLarge {
            what: "nodes or more",
            found: MAX_NODES,
            limit: MAX_NODES,
        },
        error => LabelingError::Malformed(error.to_string()),
    })?;
    check_limit("levels of nested elements", depth(&document), MAX_DEPTH)?;
    let mut config = LabelingConfig {
        images: vec![],
        controls: vec![],
        outputs: None,
    };
    let mut regions_of_interest = vec![];
    for node in document.descendants().filter(Node::is_element) {
        if node.has_tag_name("Image") {
            config.images.push(image(node)?);
        } else if let Some(kind) = kind(node) {
            if takes_rectangles(kind) && is_marked(node, "roi") {
                regions_of_interest.push(config.controls.len());
            }
            config.controls.push(control(node, kind)?);
        }
    }
    mark_regions_of_interest(&mut config, regions_of_interest);
    check_limit("images", config.images.len(), MAX_IMAGES)?;
    check_limit("controls", config.controls.len(), MAX_CONTROLS)?;
    let to_names = config.controls.iter().map(|control| control.to_names.len());
    check_limit("names in toName", to_names.sum(), MAX_TO_NAMES)?;
    let labels = config.controls.iter().map(|control| control.labels.len());
    check_limit("labels", labels.sum(), MAX_LABELS)?;
    if config.images.is_empty() {
        return Err(LabelingError::NoImage);
    }
    Ok(config)
}

fn takes_rectangles(kind: ControlKind) -> bool {
    matches!(
        kind,
        ControlKind::Shape(Shape::Rectangle) | ControlKind::ShapeLabels(Shape::Rectangle)
    )
}

/// Makes the controls with these numbers regions of interest. A control stays an output if its images have no other one:
/// the name alone must not take the only output away.
fn mark_regions_of_interest(config: &mut LabelingConfig, numbers: Vec<usize>) {
    let is_output = |i: usize, image: &str| {
        let control = &config.controls[i];
        let is_output = match control.kind {
            ControlKind::Shape(shape) | ControlKind::ShapeLabels(shape) => shape.is_usual_output(),
            _ => false,
        };
        is_output && !numbers.contains(&i) && control.to_names.iter().any(|name| name == image)
    };
    let has_other_output = |i: &usize| {
        let images = config.controls[*i].to_names.iter();
        let mut with_output =
            images.filter(|image| (0..config.controls.len()).any(|other| is_output(other, image)));
        with_output.next().is_some()
    };
    let marked: Vec<usize> = numbers.iter().copied().filter(has_other_output).collect();
    for i in marked {
        config.controls[i].kind = ControlKind::RegionOfInterest;
    }
}

/// The largest number of nested elements.
fn depth(document: &Document) -> usize {
    let mut deepest = 0;
    // not recursive, because the document determines the depth
    let mut pending = vec![(document.root(), 0)];
    while let Some((node, depth)) = pending.pop() {
        deepest = deepest.max(depth);
        let children = node.children().filter(Node::is_element);
        pending.extend(children.map(|child| (child, depth + 1)));
    }
    deepest
}

/// The labels of a control: those inside it, also inside nested views, but not inside another control.
fn labels_of<'a, 'input>(control: Node<'a, 'input>) -> Vec<Node<'a, 'input>> {
    let mut labels = vec![];
    let mut pending: Vec<Node> = control.children().rev().collect();
    while let Some(node) = pending.pop() {
        if node.has_tag_name("Label") {
            labels.push(node);
        }
        if kind(node).is_none() {
            pending.extend(node.children().rev());
        }
    }
    labels
}

fn image(node: Node) -> Result<ImageTag, LabelingError> {
    let name = required(node, "name", "it is the name that controls refer to")?;
    let is_list = node
        .attribute("valueList")
        .is_some_and(|list| !list.trim().is_empty());
    let (attribute, hint) = match is_list {
        true => (
            "valueList",
            "it must be a dollar sign and the key of a list in the task's data, such as \"$pages\"",
        ),
        false => (
            "value",
            "it must be a dollar sign and a key of the task's data, such as \"$image\"",
        ),
    };
    let value = required(node, attribute, hint)?;
    let is_key = match is_list {
        // a list is one key, and not a text that contains keys
        true => value.starts_with('$') && value.len() > 1,
        false => value.contains('$') && !value.ends_with('$'),
    };
    if !is_key {
        return Err(LabelingError::Attribute {
            tag: "Image".to_owned(),
            attribute,
            hint,
        });
    }
    Ok(ImageTag {
        name,
        value,
        is_list,
    })
}

/// The kind of a control tag; `None` for all other tags.
fn kind(node: Node) -> Option<ControlKind> {
    Some(match node.tag_name().name() {
        // a per-region text area describes a region, not the image
        "TextArea" if node.attribute("perRegion") == Some("true") => return None,
        "TextArea" if is_marked(node, "groundling-status") => ControlKind::Status,
        "TextArea" => ControlKind::TextArea {
            is_prompt: is_marked(node, "prompt"),
        },
        "Number" => ControlKind::Number {
            default: node
                .attribute("defaultValue")
                .and_then(|value| value.trim().parse().ok()),
        },
        "Labels" => ControlKind::Labels,
        "RectangleLabels" => ControlKind::ShapeLabels(Shape::Rectangle),
        "BrushLabels" => ControlKind::ShapeLabels(Shape::Brush),
        "PolygonLabels" => ControlKind::ShapeLabels(Shape::Polygon),
        "BitmaskLabels" => ControlKind::ShapeLabels(Shape::Bitmask),
        "VectorLabels" => ControlKind::ShapeLabels(Shape::Vector),
        "EllipseLabels" => ControlKind::ShapeLabels(Shape::Ellipse),
        "KeyPointLabels" => ControlKind::ShapeLabels(Shape::KeyPoint),
        "Rectangle" => ControlKind::Shape(Shape::Rectangle),
        "Brush" => ControlKind::Shape(Shape::Brush),
        "Polygon" => ControlKind::Shape(Shape::Polygon),
        "Bitmask" => ControlKind::Shape(Shape::Bitmask),
        "Vector" => ControlKind::Shape(Shape::Vector),
        "Ellipse" => ControlKind::Shape(Shape::Ellipse),
        "KeyPoint" => ControlKind::Shape(Shape::KeyPoint),
        _ => return None,
    })
}

/// Whether a control has this name, or it or an ancestor has this class.
fn is_marked(node: Node, mark: &str) -> bool {
    let has_class = |node: Node| {
        ["className", "class", "classname"]
            .iter()
            .filter_map(|attribute| node.attribute(*attribute))
            .any(|classes| classes.split_whitespace().any(|class| class == mark))
    };
    node.attribute("name").map(str::trim) == Some(mark) || node.ancestors().any(has_class)
}

fn control(node: Node, kind: ControlKind) -> Result<ControlTag, LabelingError> {
    let name = required(node, "name", "every control needs a name")?;
    let to_name = match kind {
        // identified by its name
        ControlKind::Number { .. } => node.attribute("toName").unwrap_or_default().to_owned(),
        _ => required(node, "toName", "it must be the name of an <Image>")?,
    };
    let control_threshold = threshold(node)?;
    let labels = labels_of(node)
        .into_iter()
        .filter_map(|child| label(child, control_threshold).transpose())
        .collect::<Result<_, _>>()?;
    Ok(ControlTag {
        name,
        to_names: to_name
            .split(',')
            .map(|name| name.trim().to_owned())
            .collect(),
        kind,
        labels,
        labels_key: labels_key(node, kind),
        polygon_tolerance: polygon_tolerance(node)?,
    })
}

/// The key of the task's data that holds a control's labels: `value="$labels"`.
fn labels_key(node: Node, kind: ControlKind) -> Option<String> {
    let has_labels = matches!(kind, ControlKind::Labels | ControlKind::ShapeLabels(_));
    let key = node.attribute("value")?.trim().strip_prefix('$')?;
    (has_labels && !key.is_empty()).then(|| key.to_owned())
}

fn polygon_tolerance(node: Node) -> Result<Option<f32>, LabelingError> {
    number(
        node,
        "polygon_tolerance",
        100.0,
        "it must be a number from 0 to 100, in percent of the image's longer side, such as 0.2",
    )
}

/// A number from 0 to `max`.
fn number(
    node: Node,
    attribute: &'static str,
    max: f32,
    hint: &'static str,
) -> Result<Option<f32>, LabelingError> {
    let Some(text) = node.attribute(attribute) else {
        return Ok(None);
    };
    let value: Option<f32> = text.trim().parse().ok();
    let value = value.filter(|value| (0.0..=max).contains(value));
    value.map(Some).ok_or_else(|| LabelingError::Attribute {
        tag: node.tag_name().name().to_owned(),
        attribute,
        hint,
    })
}

/// Parses a label. Returns `None` if it has neither a value nor an alias.
fn label(node: Node, control_threshold: Option<f32>) -> Result<Option<Label>, LabelingError> {
    let text = |attribute: &str| {
        let value = node.attribute(attribute).map(str::trim);
        value.filter(|value| !value.is_empty()).map(str::to_owned)
    };
    let alias = text("alias");
    let Some(value) = text("value").or_else(|| alias.clone()) else {
        return Ok(None);
    };
    let mut label = Label {
        alias,
        hint: text("hint"),
        score_threshold: threshold(node)?.or(control_threshold),
        ..Label::new(&value)
    };
    label.set_prompt(node.attribute("prompt").unwrap_or_default());
    label.set_predicted_values(node.attribute("predicted_values").unwrap_or_default());
    Ok(Some(label))
}

/// The value of `score_threshold`, else of `model_score_threshold`.
fn threshold(node: Node) -> Result<Option<f32>, LabelingError> {
    let hint = "it must be a number from 0 to 1, such as 0.3";
    let of = |attribute| number(node, attribute, 1.0, hint);
    Ok(of("score_threshold")?.or(of("model_score_threshold")?))
}

fn required(
    node: Node,
    attribute: &'static str,
    hint: &'static str,
) -> Result<String, LabelingError> {
    node.attribute(attribute)
        .map(str::trim)
        .filter(|value| !value.is_empty())
        .map(str::to_owned)
        .ok_or_else(|| LabelingError::Attribute {
            tag: node.tag_name().name().to_owned(),
            attribute,
            hint,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../examples/label-studio/labeling_config.xml");

    fn parsed(xml: &str) -> LabelingConfig {
        LabelingConfig::parse(xml).unwrap()
    }

    fn names(labels: Vec<&Label>) -> Vec<&str> {
        labels.into_iter().map(Label::name).collect()
    }

    #[test]
    fn the_example_config_is_parsed() {
        let config = parsed(EXAMPLE);
        let image = config.image().unwrap();
        assert_eq!((image.name.as_str(), image.data_key()), ("image", "image"));
        assert_eq!(config.text_area(image).unwrap().name, "prompt");
        assert_eq!(names(config.labels(image)), ["Bok Choi", "Pot"]);
        let shapes: Vec<_> = config
            .region_controls(image)
            .map(|c| (c.control.name.as_str(), c.shape))
            .collect();
        assert_eq!(
            shapes,
            [("label", Shape::Rectangle), ("label2", Shape::Brush)]
        );
        let rectangle = config.region_controls(image).next().unwrap();
        let (control, label) = rectangle.label_for("bok  choi").unwrap();
        assert_eq!((control.name.as_str(), label.name()), ("label", "Bok Choi"));
        assert_eq!(rectangle.label_for("dog"), None);
    }

    #[test]
    fn a_config_that_exceeds_a_limit_is_an_error() {
        let error = |xml: &str| LabelingConfig::parse(xml).unwrap_err().to_string();
        let image = "<Image name='i' value='$i'/>";
        let nested = |count: usize| {
            let open = "<RectangleLabels name='a' toName='i'><Label value='x'/>".repeat(count);
            let close = "</RectangleLabels>".repeat(count);
            format!("<View>{image}{open}{close}</View>")
        };
        // every control has its own label, and not those of nested controls
        let few = parsed(&nested(100));
        assert!(few.controls.iter().all(|control| control.labels.len() == 1));
        assert!(error(&nested(3000)).contains("levels of nested elements; the maximum is 200"));
        let many = format!("<View>{image}{}</View>", "<b/>".repeat(200_000));
        assert!(error(&many).contains("nodes"), "{}", error(&many));
        let labels = "<Label value='x'/>".repeat(50_001);
        let many = format!("<View>{image}<Labels name='l' toName='i'>{labels}</Labels></View>");
        assert!(error(&many).contains("50001 labels"), "{}", error(&many));
        for (many, expected) in [
            (image.repeat(1001), "1001 images"),
            (
                format!("{image}{}", "<Brush name='b' toName='i'/>".repeat(1001)),
                "1001 controls",
            ),
            (
                format!("{image}<Brush name='b' toName='{}'/>", "i,".repeat(10_000)),
                "10001 names in toName",
            ),
        ] {
            let message = error(&format!("<View>{many}</View>"));
            assert!(message.contains(expected), "{message}");
        }
        let long = format!("<View>{image}<!--{}--></View>", "x".repeat(4 << 20));
        assert!(error(&long).contains("bytes"), "{}", error(&long));
    }

    #[test]
    fn an_error_names_the_tag_and_what_is_wrong() {
        let error = |xml: &str| LabelingConfig::parse(xml).unwrap_err().to_string();
        assert!(error("<View><Text name=\"t\" value=\"$t\"/></View>").contains("no <Image> tag"));
        assert!(error("<View><Image name=\"i\" value=\"$i\"></View>").contains("not well-formed"));
        assert!(error("<View><Image name=\"i\"/></View>").contains("<Image> has no valid value"));
        let list = error("<View><Image name='i' valueList='pages'/></View>");
        assert!(list.contains("no valid valueList"), "{list}");
        let image = "<Image name=\"i\" value=\"$i\"/>";
        let control = error(&format!("<View>{image}<BrushLabels name=\"b\"/></View>"));
        assert!(
            control.contains("<BrushLabels> has no valid toName"),
            "{control}"
        );
        let label = "<Label value='x' model_score_threshold='30'/>";
        let control = format!("<BrushLabels name='b' toName='i'>{label}</BrushLabels>");
        let threshold = error(&format!("<View>{image}{control}</View>"));
        assert!(
            threshold.contains("model_score_threshold") && threshold.contains("from 0 to 1"),
            "{threshold}"
        );
        let config = parsed(&format!("<View>{image}</View>"));
        let text_area = config.text_area(config.image().unwrap()).unwrap_err();
        assert!(
            text_area
                .to_string()
                .contains("no <TextArea> for the image \"i\"")
        );
    }

    #[test]
    fn entities_comments_and_other_names_are_accepted() {
        let config = parsed(
            "\n<View><!-- two pictures --><Image name='a' value='$left'/><Image\n name=' b ' value='$right'/>
             <View><RectangleLabels name='r' toName='b'><View><Label value='Salt &amp; Pepper'/></View></RectangleLabels></View>
             <TextArea name='what' toName='b'/></View>",
        );
        let image = config.image().unwrap();
        assert_eq!(image.data_key(), "right");
        assert_eq!(names(config.labels(image)), ["Salt & Pepper"]);
    }

    #[test]
    fn the_text_area_named_or_classed_prompt_is_preferred() {
        let xml = |areas: &str| {
            parsed(&format!(
                "<View><Image name='i' value='$i'/><Text name='t' value='$t'/>{areas}
                 <Brush name='b' toName='i'/></View>"
            ))
        };
        let chosen = |areas: &str| {
            let config = xml(areas);
            let image = config.image().unwrap();
            config.text_area(image).map(|area| area.name.clone()).ok()
        };
        let notes = "<TextArea name='notes' toName='i'/>";
        assert_eq!(chosen(notes).unwrap(), "notes");
        let named = format!("{notes}<TextArea name='prompt' toName='i'/>");
        assert_eq!(chosen(&named).unwrap(), "prompt");
        let classed =
            format!("{notes}<View className='wide prompt'><TextArea name='p' toName='i'/></View>");
        assert_eq!(chosen(&classed).unwrap(), "p");
        assert_eq!(
            chosen("<TextArea name='prompt' toName='t'/>").unwrap(),
            "prompt"
        );
        assert_eq!(chosen("<TextArea name='other' toName='t'/>"), None);
        assert_eq!(
            chosen("<TextArea name='c' toName='i' perRegion='true'/>"),
            None
        );
    }

    #[test]
    fn shapes_use_all_labels_tags_of_their_image() {
        let config = parsed(
            "<View><Image name='i' value='$i'/>
             <Labels name='l' toName='i' model_score_threshold='0.6'>
               <Label value='Cup' alias='cup' predicted_values='mug, , glass'/><Label value='Pot' score_threshold='0.2'/><Label/>
             </Labels>
             <Labels name='m' toName='i'><Label value='Lid'/></Labels><Number name='n'/>
             <Rectangle name='r' toName='i'/><Polygon name='p' toName='i'/></View>",
        );
        let image = config.image().unwrap();
        assert_eq!(config.region_controls(image).count(), 2);
        let polygon = config.region_controls(image).last().unwrap();
        assert_eq!(polygon.label_for("lid").unwrap().0.name, "m");
        let labels = config.labels(image);
        assert_eq!(labels[0].phrases(), ["mug", "glass"]);
        assert_eq!(labels[1].phrases(), ["Pot"]);
        let thresholds: Vec<_> = labels.iter().map(|l| l.score_threshold).collect();
        assert_eq!(thresholds, [Some(0.6), Some(0.2), None]);
        assert_eq!(names(labels), ["cup", "Pot", "Lid"]);
    }

    #[test]
    fn the_prompt_of_labels_has_their_negative_phrases() {
        let config = parsed(
            "<View><Image name='i' value='$i'/><RectangleLabels name='r' toName='i'>
             <Label value='Cup' prompt='tea cup. mug. -saucer. -plate'/><Label value='Plate'/>
             <Label value='-5 V rail' predicted_values='rail, -'/></RectangleLabels></View>",
        );
        let prompt = config.prompt_of_labels(&config.images[0]).unwrap();
        // what another label wants is not negative
        assert_eq!(prompt.to_string(), "tea cup. mug. plate. rail. -. -saucer.");
        assert_eq!(prompt.wanted().count(), 5);
    }

    #[test]
    fn marks_decide_what_a_control_is_for() {
        let kinds = |controls: &str| -> Vec<ControlKind> {
            let config = parsed(&format!(
                "<View><Image name='i' value='$i'/>{controls}</View>"
            ));
            config.controls.iter().map(|control| control.kind).collect()
        };
        let boxes = "<RectangleLabels name='label' toName='i'><Label value='x'/></RectangleLabels>";
        let outputs = ControlKind::ShapeLabels(Shape::Rectangle);
        let roi = ControlKind::RegionOfInterest;
        assert_eq!(
            kinds(&format!("<Rectangle name='roi' toName='i'/>{boxes}")),
            [roi, outputs]
        );
        let classed = "<View className='a roi'><RectangleLabels name='where' toName='i'/></View>";
        assert_eq!(kinds(&format!("{boxes}{classed}")), [outputs, roi]);
        // the only output of its image
        assert_eq!(kinds("<RectangleLabels name='roi' toName='i'/>"), [outputs]);
        let elsewhere = "<Image name='j' value='$j'/><RectangleLabels name='label' toName='j'/>";
        let only = kinds(&format!(
            "<RectangleLabels name='roi' toName='i'/>{elsewhere}"
        ));
        assert_eq!(only, [outputs, outputs]);
        let brush = "<BrushLabels name='roi' toName='i'/>";
        assert_eq!(kinds(brush), [ControlKind::ShapeLabels(Shape::Brush)]);

        let status = "<Text name='t' value='$i'/><TextArea name='groundling-status' toName='t'/>";
        let with_status = format!("{status}<TextArea name='notes' toName='i'/>{boxes}");
        assert_eq!(kinds(&with_status)[0], ControlKind::Status);
        let config = parsed(&format!(
            "<View><Image name='i' value='$i'/>{with_status}</View>"
        ));
        // it never holds the prompt
        let area = config.text_area(&config.images[0]).unwrap();
        assert_eq!(area.name, "notes");
        assert_eq!(config.status_area().unwrap().to_names, ["t"]);
    }
}
