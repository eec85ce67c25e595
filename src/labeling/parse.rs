//! XML to [`LabelingConfig`].

use roxmltree::{Document, Node};

use super::{ControlKind, ControlTag, ImageTag, LabelingConfig, LabelingError};

pub(super) fn parse(xml: &str) -> Result<LabelingConfig, LabelingError> {
    let document =
        Document::parse(xml.trim()).map_err(|e| LabelingError::Malformed(e.to_string()))?;
    let mut config = LabelingConfig {
        images: vec![],
        controls: vec![],
    };
    for node in document.descendants().filter(Node::is_element) {
        let kind = match node.tag_name().name() {
            "Image" => {
                config.images.push(image(node)?);
                continue;
            }
            "TextArea" => ControlKind::TextArea,
            "RectangleLabels" => ControlKind::RectangleLabels(labels(node)),
            "BrushLabels" => ControlKind::BrushLabels(labels(node)),
            _ => continue,
        };
        config.controls.push(ControlTag {
            name: required(node, "name", "a control needs a name")?,
            to_name: required(node, "toName", "it must be the name of an <Image>")?,
            kind,
        });
    }
    if config.images.is_empty() {
        return Err(LabelingError::NoImage);
    }
    Ok(config)
}

fn image(node: Node) -> Result<ImageTag, LabelingError> {
    let value = required(node, "value", "it must be like \"$image\"")?;
    let data_key = value.strip_prefix('$').filter(|key| !key.is_empty());
    Ok(ImageTag {
        name: required(node, "name", "controls refer to it")?,
        data_key: data_key
            .ok_or_else(|| LabelingError::Attribute {
                tag: "Image".to_owned(),
                attribute: "value",
                hint: "it must be like \"$image\", the key of a task's data after a dollar",
            })?
            .to_owned(),
    })
}

/// The `<Label value="...">` below a control, at any depth.
fn labels(node: Node) -> Vec<String> {
    node.descendants()
        .filter(|child| child.has_tag_name("Label"))
        .filter_map(|child| child.attribute("value"))
        .map(str::to_owned)
        .collect()
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

    const SEED: &str = include_str!("../../examples/label-studio/labeling_config.xml");

    #[test]
    fn the_example_is_understood() {
        let config = LabelingConfig::parse(SEED).unwrap();
        let image = config.image().unwrap();
        assert_eq!(
            (image.name.as_str(), image.data_key.as_str()),
            ("image", "image")
        );
        assert_eq!(config.text_area(image).unwrap(), "prompt");
        assert_eq!(config.labels(image), ["Bok Choi", "Pot"]);
        let names: Vec<_> = config.controls_of(image).map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["prompt", "label", "label2"]);
        assert_eq!(config.controls[1].label_for("bok  choi"), Some("Bok Choi"));
        assert_eq!(config.controls[1].label_for("dog"), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |xml: &str| LabelingConfig::parse(xml).unwrap_err().to_string();
        assert!(error("<View><Text name=\"t\" value=\"$t\"/></View>").contains("no <Image> tag"));
        assert!(error("<View><Image name=\"i\" value=\"$i\"></View>").contains("not well-formed"));
        assert!(error("<View><Image name=\"i\"/></View>").contains("<Image> has no usable value"));
        let image = "<Image name=\"i\" value=\"$i\"/>";
        let control = error(&format!("<View>{image}<BrushLabels name=\"b\"/></View>"));
        assert!(
            control.contains("<BrushLabels> has no usable toName"),
            "{control}"
        );
        let config = LabelingConfig::parse(&format!("<View>{image}</View>")).unwrap();
        let text_area = config.text_area(config.image().unwrap()).unwrap_err();
        assert!(
            text_area
                .to_string()
                .contains("no <TextArea> for the image \"i\"")
        );
    }

    #[test]
    fn entities_comments_and_other_names_are_fine() {
        let config = LabelingConfig::parse(
            "\n<View><!-- two pictures --><Image name='a' value='$left'/><Image name='b' value='$right'/>
             <View><RectangleLabels name='r' toName='b'><View><Label value='Salt &amp; Pepper'/></View></RectangleLabels></View>
             <TextArea name='what' toName='b'/></View>",
        )
        .unwrap();
        let image = config.image().unwrap();
        assert_eq!(image.data_key, "right");
        assert_eq!(config.labels(image), ["Salt & Pepper"]);
    }
}
