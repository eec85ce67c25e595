//! A text that changes with everything in a labeling config that changes predictions.

use std::fmt::Write;

use super::{ControlKind, Label, LabelingConfig};

impl LabelingConfig {
    /// The images, the outputs with their labels, the default thresholds and the regions of interest, in order. It does
    /// not contain what only changes how the editor looks. Its digest is part of the model version, so a change of its
    /// format makes Label Studio request every task again.
    pub fn fingerprint(&self) -> String {
        let mut text = String::new();
        // writing to a String cannot fail
        for image in &self.images {
            let _ = writeln!(text, "image {:?} {:?}", image.name, image.value);
            if image.is_list {
                text.push_str("pages\n");
            }
        }
        for control in &self.controls {
            let (name, images) = (&control.name, &control.to_names);
            let _ = match control.kind {
                ControlKind::TextArea { .. } | ControlKind::Status => Ok(()),
                ControlKind::Number { default } => writeln!(text, "number {name:?} {default:?}"),
                ControlKind::RegionOfInterest => writeln!(text, "roi {name:?} {images:?}"),
                ControlKind::Labels => writeln!(text, "labels {name:?} {images:?}"),
                ControlKind::ShapeLabels(shape) if self.is_output(control, shape) => {
                    writeln!(text, "{} {name:?} {images:?}", shape.labels_kind())
                }
                ControlKind::Shape(shape) if self.is_output(control, shape) => {
                    writeln!(text, "{} {name:?} {images:?}", shape.kind())
                }
                ControlKind::ShapeLabels(_) | ControlKind::Shape(_) => continue,
            };
            if let Some(key) = &control.labels_key {
                let _ = writeln!(text, " key {key:?}");
            }
            if let Some(tolerance) = control.polygon_tolerance {
                let _ = writeln!(text, " tolerance {tolerance}");
            }
            for label in &control.labels {
                write_label(&mut text, label);
            }
        }
        text
    }
}

fn write_label(text: &mut String, label: &Label) {
    let Label {
        value,
        alias,
        prompts,
        negative_prompts,
        predicted_values,
        hint,
        score_threshold,
    } = label;
    let _ = writeln!(
        text,
        " label {value:?} {alias:?} {prompts:?} {negative_prompts:?} {predicted_values:?} {hint:?} {score_threshold:?}"
    );
}
