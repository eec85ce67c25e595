//! Writes labeling configs for new projects.

use super::escaped;
use crate::palette;

/// A labeling config with boxes and masks of these labels, and a field for prompts. Labels are between the field and the image,
/// because the editor's slider of the brush size, at the top of the image, would cover the field's button.
pub fn new_config(labels: &[&str]) -> String {
    let labels = labels.iter().enumerate().map(|(index, label)| {
        let colour = palette::html(palette::color(index));
        let label = escaped(label);
        format!("\n    <Label value=\"{label}\" background=\"{colour}\"/>")
    });
    let labels: String = labels.collect();
    format!(
        r#"<View>
  <Style>.lsf-main-content.lsf-requesting .prompt::before {{ content: ' loading...'; color: #808080; }}</Style>
  <View className="prompt">
    <Header value="What to find, such as: dog. red car."/>
    <TextArea name="prompt" toName="image" editable="true" rows="2" maxSubmissions="1" showSubmitButton="true"/>
  </View>
  <RectangleLabels name="box" toName="image" smart="true">{labels}
  </RectangleLabels>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="mask" toName="image" smart="true">{labels}
  </BrushLabels>
</View>
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labeling::LabelingConfig;

    #[test]
    fn the_config_of_a_new_project_has_its_labels_and_a_field_for_prompts() {
        let config = new_config(&["dog", "cats & \"dogs\"", "a<b"]);
        let config = LabelingConfig::parse(&config).unwrap();
        let image = config.image().unwrap();
        let labels = config.labels(image);
        let labels: Vec<&str> = labels.iter().map(|label| label.name()).collect();
        assert_eq!(labels, ["dog", "cats & \"dogs\"", "a<b"]);
        assert_eq!(config.text_area(image).unwrap().name, "prompt");
        assert_eq!(config.region_controls(image).count(), 2);
    }
}
