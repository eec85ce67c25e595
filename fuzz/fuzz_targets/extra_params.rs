//! Any `extra_params` of a project give fractions from 0 to 1 and a positive number of detections. An object gives the
//! same settings as its JSON text.

#![no_main]

use groundling::preannotation::project::settings::ProjectSettings;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|text: &str| {
    check(&Value::String(text.to_owned()));
    let Ok(value) = serde_json::from_str::<Value>(text) else {
        return;
    };
    let settings = check(&value);
    if value.is_object() {
        let from_text = check(&Value::String(value.to_string()));
        assert_eq!(settings, from_text);
    }
});

fn check(extra_params: &Value) -> ProjectSettings {
    let (settings, problems) = ProjectSettings::parse(extra_params);
    let fractions = [
        settings.box_threshold,
        settings.text_threshold,
        settings.nms_iou,
    ];
    for fraction in fractions.into_iter().flatten() {
        assert!((0.0..=1.0).contains(&fraction), "{fraction}");
    }
    assert_ne!(settings.max_detections, Some(0));
    assert!(problems.iter().all(|problem| !problem.is_empty()));
    settings
}
