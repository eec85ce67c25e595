//! Adds labels to the XML of a labeling config, without any other change to it.

use roxmltree::{Document, Node};

use super::{ControlKind, ControlTag, ImageTag, Label, LabelingConfig, LabelingError};

impl LabelingConfig {
    /// The phrases that no control of an image has a label for. Empty if the image has no control with labels, because
    /// labels are then not wanted, or if its labels come from the task's data.
    pub fn unknown_phrases<'a>(
        &self,
        image: &ImageTag,
        phrases: impl IntoIterator<Item = &'a str>,
    ) -> Vec<&'a str> {
        let controls: Vec<&ControlTag> = self.labeled_controls(image).collect();
        let has_label = |phrase: &str| {
            let mut controls = controls.iter();
            controls.any(|control| Label::find(&control.labels, phrase).is_some())
        };
        let unknown = phrases.into_iter().filter(|phrase| !has_label(phrase));
        match controls.is_empty() {
            true => vec![],
            false => unknown.collect(),
        }
    }

    /// The controls of an image to which labels can be added.
    fn labeled_controls<'a>(
        &'a self,
        image: &'a ImageTag,
    ) -> impl Iterator<Item = &'a ControlTag> + 'a {
        self.controls_of(image).filter(|control| {
            let has_labels = matches!(
                control.kind,
                ControlKind::Labels | ControlKind::ShapeLabels(_)
            );
            has_labels && control.labels_key.is_none()
        })
    }
}

/// The XML of a labeling config with further labels in every control tag of an image that holds labels. A control that has
/// a label for a phrase is not changed.
///
/// # Errors
/// If the XML is not a labeling config.
pub fn with_labels(xml: &str, image: &str, phrases: &[&str]) -> Result<String, LabelingError> {
    let config = LabelingConfig::parse(xml)?;
    let malformed = |error: roxmltree::Error| LabelingError::Malformed(error.to_string());
    let document = Document::parse(xml).map_err(malformed)?;
    let Some(image) = config.image_named(image) else {
        return Ok(xml.to_owned());
    };
    // from the end, so that earlier positions stay valid
    let mut insertions: Vec<(Node, String)> = vec![];
    for control in config.labeled_controls(image) {
        let unknown = phrases
            .iter()
            .filter(|phrase| Label::find(&control.labels, phrase).is_none());
        let labels: String = unknown
            .map(|phrase| format!("<Label value=\"{}\"/>", escaped(phrase)))
            .collect();
        let is_tag = |node: &Node| {
            node.is_element()
                && node.attribute("name").map(str::trim) == Some(control.name.as_str())
        };
        let node = document.descendants().find(is_tag);
        insertions.extend(
            node.filter(|_| !labels.is_empty())
                .map(|node| (node, labels)),
        );
    }
    insertions.sort_by_key(|(node, _)| std::cmp::Reverse(node.range().end));
    let mut changed = xml.to_owned();
    for (node, labels) in insertions {
        let range = node.range();
        let element = &xml[range.clone()];
        match element.strip_suffix("/>").filter(|_| !node.has_children()) {
            Some(start) => {
                let name = node.tag_name().name();
                let text = format!("{}>{labels}</{name}>", start.trim_end());
                changed.replace_range(range, &text);
            }
            None => {
                let end = element.rfind("</").unwrap_or(element.len());
                changed.insert_str(range.start + end, &labels);
            }
        }
    }
    Ok(changed)
}

/// A text for XML or HTML, also as the value of an attribute in double quotes.
pub fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_added_and_nothing_else_is_changed() {
        let xml = "<View>\n  <!-- mine -->\n  <Image name='i' value='$i'/>\n  <RectangleLabels name='r' toName='i'>\n    <Label value='Cup'/>\n  </RectangleLabels >
  <Labels name='l' toName='i' /><Brush name='b' toName='i'/><BrushLabels name='other' toName='j'/><Image name='j' value='$j'/></View>";
        let changed = with_labels(xml, "i", &["cups", "salt & \"pepper\" <1>"]).unwrap();
        let label = "<Label value=\"salt &amp; &quot;pepper&quot; &lt;1&gt;\"/>";
        let expected = xml
            .replace(
                "  </RectangleLabels >",
                &format!("  {label}</RectangleLabels >"),
            )
            .replace(
                "<Labels name='l' toName='i' />",
                &format!("<Labels name='l' toName='i'><Label value=\"cups\"/>{label}</Labels>"),
            );
        assert_eq!(changed, expected);
        let config = LabelingConfig::parse(&changed).unwrap();
        let names: Vec<_> = config.controls[0].labels.iter().map(Label::name).collect();
        assert_eq!(names, ["Cup", "salt & \"pepper\" <1>"]);
        // what is known already changes nothing
        assert_eq!(with_labels(&changed, "i", &["cups"]).unwrap(), changed);
    }

    #[test]
    fn only_phrases_without_a_label_are_unknown() {
        let config = |controls: &str| {
            let xml = format!("<View><Image name='i' value='$i'/>{controls}</View>");
            LabelingConfig::parse(&xml).unwrap()
        };
        let unknown = |config: &LabelingConfig| -> Vec<String> {
            let image = config.image().unwrap();
            let found = config.unknown_phrases(image, ["cups", "pot"]);
            found.into_iter().map(str::to_owned).collect()
        };
        let labels = "<RectangleLabels name='r' toName='i'><Label value='Cup'/></RectangleLabels>";
        assert_eq!(unknown(&config(labels)), ["pot"]);
        assert!(unknown(&config("<Rectangle name='r' toName='i'/>")).is_empty());
        let of_task = "<RectangleLabels name='r' toName='i' value='$labels'/>";
        assert!(unknown(&config(of_task)).is_empty());
    }
}
