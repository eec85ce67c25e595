//! The model version: a text that changes with every setting that changes predictions.
//!
//! As long as it stays the same, Label Studio does not request tasks again that already have a prediction.

use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use super::settings::PredictionSettings;
use crate::detector::DetectionOptions;
use crate::geometry::MaskCleanup;
use crate::labeling::LabelingConfig;
use crate::pipeline::settings::{ModelNames, Precision};
use crate::pipeline::tiles::{Tiles, Tiling};
use crate::prompt::Prompt;

/// The start of every model version, for example `groundling 0.1.0 demo+demo`.
pub fn models(names: &ModelNames, precision: Precision, detector_size: Option<usize>) -> String {
    let name = |model: &str| {
        let file_name = Path::new(model).file_name();
        file_name.map_or(model.to_owned(), |name| name.to_string_lossy().into_owned())
    };
    let precision = match precision {
        Precision::F32 => "",
        Precision::F16 => " f16",
        Precision::Bf16 => " bf16",
    };
    let size = detector_size.map(|size| format!(" size={size}"));
    let size = size.unwrap_or_default();
    format!(
        "groundling {} {}+{}{precision}{size}",
        env!("CARGO_PKG_VERSION"),
        name(&names.detector),
        name(&names.segmenter)
    )
}

/// The models and how they search, for predictions outside any project.
pub fn plain(models: &str, settings: &PredictionSettings) -> String {
    let DetectionOptions {
        box_threshold,
        text_threshold,
        nms_iou_threshold,
        max_detections,
    } = settings.options;
    let mut version =
        format!("{models} box={box_threshold} text={text_threshold} nms={nms_iou_threshold}");
    // writing to a String cannot fail
    if let Some(max) = max_detections {
        let _ = write!(version, " max={max}");
    }
    let Tiling { tiles, overlap } = settings.tiling;
    if tiles != Tiles::Off {
        let _ = write!(version, " tiles={tiles} overlap={overlap}");
    }
    let MaskCleanup {
        fill_holes,
        drop_islands,
    } = settings.cleanup;
    if fill_holes > 0.0 {
        let _ = write!(version, " holes={fill_holes}");
    }
    if drop_islands > 0.0 {
        let _ = write!(version, " islands={drop_islands}");
    }
    version
}

/// The model version of a project. It adds the settings, the prompt, and a digest of what predictions use of the labeling
/// config.
pub fn of_project(
    models: &str,
    settings: &PredictionSettings,
    prompt: Option<&str>,
    config: Option<&LabelingConfig>,
) -> String {
    let mut version = plain(models, settings);
    // writing to a String cannot fail
    if !settings.segment {
        let _ = write!(version, " segment=no");
    }
    if let Some(config) = config {
        let mut shapes = config.images.iter().flat_map(|i| config.region_controls(i));
        if shapes.any(|control| control.shape.is_outline()) {
            let _ = write!(version, " polygon={}", settings.polygon_tolerance);
        }
        let _ = write!(version, " labels={:06x}", digest(&config.fingerprint()));
    }
    if let Some(Ok(prompt)) = prompt.map(Prompt::parse) {
        let prompt = prompt.to_string();
        let _ = match prompt.char_indices().nth(60) {
            Some((end, _)) => write!(
                version,
                " prompt={:?}..{:06x}",
                &prompt[..end],
                digest(&prompt)
            ),
            None => write!(version, " prompt={prompt:?}"),
        };
    }
    version
}

/// 24 bits are enough to tell the configs of one project apart.
fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish() & 0xff_ffff
}

#[cfg(test)]
mod tests {
    use super::super::settings::ProjectSettings;
    use super::*;

    /// A changed version makes Label Studio request every task again, so a release must not change it by accident.
    #[test]
    fn the_version_of_a_project_is_stable() {
        let xml = include_str!("../../../examples/label-studio/labeling_config.xml");
        let config = LabelingConfig::parse(xml).unwrap();
        let settings = PredictionSettings::default();
        let version = of_project("groundling", &settings, None, Some(&config));
        assert_eq!(
            version,
            "groundling box=0.3 text=0.25 nms=0.7 labels=7d79e4"
        );
    }

    #[test]
    fn the_version_changes_exactly_with_what_changes_predictions() {
        let xml = |label: &str| {
            let control = format!("<BrushLabels name='b' toName='i'>{label}</BrushLabels>");
            let xml = format!("<View><Image name='i' value='$i'/>{control}</View>");
            LabelingConfig::parse(&xml).unwrap()
        };
        let version =
            |settings: &PredictionSettings, prompt: Option<&str>, config: &LabelingConfig| {
                of_project("groundling", settings, prompt, Some(config))
            };
        let cup = xml("<Label value='Cup'/>");
        let nothing = PredictionSettings::default();
        let plain = version(&nothing, None, &cup);
        assert!(
            plain.starts_with("groundling box=0.3 text=0.25 nms=0.7 labels="),
            "{plain}"
        );
        // a label's colour does not change predictions
        let red = xml("<Label value='Cup' background='red'/>");
        assert_eq!(version(&nothing, None, &red), plain);
        let prompted = |prompt: &str| version(&nothing, Some(prompt), &cup);
        assert_eq!(prompted("Dog, cat"), prompted("dog. cat."));
        let strict = nothing.with(&ProjectSettings {
            box_threshold: Some(0.5),
            ..ProjectSettings::default()
        });
        let tiled = nothing.with(&ProjectSettings {
            tiles: Some(Tiles::Auto),
            ..ProjectSettings::default()
        });
        let long = "a long prompt, ".repeat(2) + &"with many words ".repeat(20);
        let mut all = vec![
            plain,
            version(&nothing, None, &xml("<Label value='Pot'/>")),
            prompted("dog"),
            version(&strict, None, &cup),
            version(&tiled, None, &cup),
            prompted(&long),
            prompted(&format!("{long} more")),
        ];
        assert!(all.iter().all(|version| version.len() < 200));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 7);
    }
}
