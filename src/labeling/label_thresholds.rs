//! Writes score thresholds into the XML of a labeling config, without any other change to it.

use std::collections::BTreeMap;

use roxmltree::{Document, Node};

use super::{LabelingConfig, LabelingError};

/// The XML of a labeling config in which every `<Label>` with one of these names (its `alias`, else its `value`) has a
/// `score_threshold`, 0..1. Other labels are not changed.
///
/// # Errors
/// If the XML is not a labeling config.
pub fn with_thresholds(
    xml: &str,
    thresholds: &BTreeMap<String, f32>,
) -> Result<String, LabelingError> {
    LabelingConfig::parse(xml)?;
    let document = Document::parse(xml)
        .map_err(|error: roxmltree::Error| LabelingError::Malformed(error.to_string()))?;
    let mut changed = xml.to_owned();
    let labels: Vec<Node> = document
        .descendants()
        .filter(|node| node.has_tag_name("Label"))
        .collect();
    // from the end, so that earlier positions stay valid
    for node in labels.into_iter().rev() {
        let name = |attribute| node.attribute(attribute).filter(|name| !name.is_empty());
        let name = name("alias").or_else(|| name("value")).unwrap_or_default();
        let Some(threshold) = thresholds.get(name.trim()) else {
            continue;
        };
        let attributes = node.attributes();
        // the older name is read too, so it is replaced and not left beside the new one
        let existing = attributes.filter(|attribute| {
            matches!(
                attribute.name(),
                "score_threshold" | "model_score_threshold"
            )
        });
        let text = format!("score_threshold=\"{threshold}\"");
        let existing: Vec<_> = existing.map(|attribute| attribute.range()).collect();
        match existing.as_slice() {
            [] => {
                let start = node.range().start + "<Label".len();
                changed.insert_str(start, &format!(" {text}"));
            }
            [first, others @ ..] => {
                for other in others.iter().rev() {
                    changed.replace_range(other.clone(), "");
                }
                changed.replace_range(first.clone(), &text);
            }
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_get_thresholds_and_nothing_else_is_changed() {
        let xml = "<View><!-- Label --><Image name='i' value='$i'/>\n<RectangleLabels name='r' toName='i'>
  <Label value='Cup' background='red'/><Label value='Pot' alias='pot' score_threshold='0.2' hint='x'/>
  <Label model_score_threshold='0.9' value=\"a &amp; b\"></Label><Label value='other'/></RectangleLabels></View>";
        let thresholds = [("Cup", 0.45), ("pot", 0.3), ("Pot", 0.9), ("a & b", 0.25)];
        let thresholds = thresholds.map(|(name, threshold)| (name.to_owned(), threshold));
        let changed = with_thresholds(xml, &thresholds.into()).unwrap();
        let expected = xml
            .replace(
                "<Label value='Cup'",
                "<Label score_threshold=\"0.45\" value='Cup'",
            )
            .replace("score_threshold='0.2'", "score_threshold=\"0.3\"")
            .replace("model_score_threshold='0.9'", "score_threshold=\"0.25\"");
        assert_eq!(changed, expected);
        let config = LabelingConfig::parse(&changed).unwrap();
        let read: Vec<_> = config.controls[0]
            .labels
            .iter()
            .map(|label| label.score_threshold)
            .collect();
        assert_eq!(read, [Some(0.45), Some(0.3), Some(0.25), None]);
    }
}
