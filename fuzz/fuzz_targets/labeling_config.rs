//! Any text as a labeling config is an error, or a consistent config: it has an image, the labels of an image have
//! different names, and every label is found by its name and its value.

#![no_main]

use groundling::labeling::LabelingConfig;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

fuzz_target!(|xml: &str| {
    let Ok(config) = LabelingConfig::parse(xml) else {
        return;
    };
    assert!(config.image().is_ok());
    let data = data();
    for image in &config.images {
        if let Ok(pages) = image.pages(&data) {
            assert!(!pages.is_empty() && pages.iter().all(|page| !page.url.trim().is_empty()));
        }
        if let Ok(area) = config.text_area(image) {
            assert!(config.controls.iter().any(|control| control == area));
        }
        let labels = config.labels(image);
        for (i, label) in labels.iter().enumerate().take(100) {
            assert!(labels[..i].iter().all(|other| other.name() != label.name()));
        }
        for control in config.region_controls(image) {
            for label in control.labels.iter().flat_map(|tag| &tag.labels).take(100) {
                assert!(control.label_named(label.name()).is_some());
                assert!(control.label_for(&label.value).is_some());
            }
        }
    }
});

/// The data of a task: a text, a nested text and a number.
fn data() -> Map<String, Value> {
    match json!({"image": "/data/upload/1/a.png", "a": {"b": "c"}, "n": 1}) {
        Value::Object(data) => data,
        _ => Map::new(),
    }
}
