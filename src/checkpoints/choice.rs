//! Chooses the two models: from the settings, else from the variables of the Python backends, else the defaults.

use std::path::{Path, PathBuf};

use super::registry::{self, DEFAULT_DETECTOR, DEFAULT_SEGMENTER_CPU, DEFAULT_SEGMENTER_GPU};
use super::{DEMO, NONE};
use crate::config::{ModelArgs, PythonArgs, Switch};

/// The names of the models, as accepted by [`super::Locator::locate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The detector.
    pub detector: String,
    /// The segmenter; `none` to detect boxes only.
    pub segmenter: String,
}

impl Choice {
    /// Resolves the settings; the default segmenter depends on whether the models run on a GPU.
    pub fn new(args: &ModelArgs, on_gpu: bool) -> Self {
        let python = &args.python;
        let places = |path: &Path| {
            let mut places = vec![path.to_owned()];
            if let Some(repository) = &python.groundingdino_repo_path {
                places.push(repository.join("weights").join(path));
            }
            places.extend(path.file_name().map(|name| args.model_dir.join(name)));
            places
        };
        let default_segmenter = match on_gpu {
            true => DEFAULT_SEGMENTER_GPU,
            false => DEFAULT_SEGMENTER_CPU,
        };
        let detector = || match detector_weights(python) {
            Some(path) => found_or_published(&path, &places(&path)),
            None => DEFAULT_DETECTOR.to_owned(),
        };
        let segmenter = || match segmenter_weights(python) {
            Some(Weights::File(path)) => found_or_published(&path, &places(&path)),
            Some(Weights::None) => NONE.to_owned(),
            None => default_segmenter.to_owned(),
        };
        Self {
            detector: built_in(args.detector.clone().unwrap_or_else(detector)),
            segmenter: built_in(args.segmenter.clone().unwrap_or_else(segmenter)),
        }
    }

    /// Whether one of them is a demo model, which detects only coloured shapes.
    pub fn has_demo(&self) -> bool {
        self.detector == DEMO || self.segmenter == DEMO
    }
}

/// Normalises the case of the names that are not files.
fn built_in(name: String) -> String {
    let known = [DEMO, NONE].into_iter();
    let mut known = known.filter(|known| name.eq_ignore_ascii_case(known));
    known.next().map(str::to_owned).unwrap_or(name)
}

/// The weights that the Python backend would load.
enum Weights {
    File(PathBuf),
    None,
}

/// The `grounding_dino` backend joins both variables; `grounding_sam` uses only the folder.
fn detector_weights(python: &PythonArgs) -> Option<PathBuf> {
    let in_repository = || {
        let repository = python.groundingdino_repo_path.as_ref()?;
        let path = repository
            .join("weights")
            .join("groundingdino_swint_ogc.pth");
        path.is_file().then_some(path)
    };
    python.grounding_dino_weights.clone().or_else(in_repository)
}

/// The `grounding_sam` backend has two switches, and MobileSAM's has precedence; `segment_anything_model` has one
/// setting.
fn segmenter_weights(python: &PythonArgs) -> Option<Weights> {
    let file = |path: &Option<PathBuf>, usual: &str| {
        Some(Weights::File(path.clone().unwrap_or_else(|| usual.into())))
    };
    let mobile = || file(&python.mobilesam_checkpoint, "mobile_sam.pt");
    let sam = |path| file(path, "sam_vit_h_4b8939.pth");
    let is_on = |switch: Option<Switch>| switch.is_some_and(|switch| switch.0);
    if is_on(python.use_mobile_sam) {
        return mobile();
    }
    if is_on(python.use_sam) {
        return sam(&python.sam_checkpoint);
    }
    if python.use_sam.is_some() || python.use_mobile_sam.is_some() {
        return Some(Weights::None);
    }
    match python.sam_choice.as_deref() {
        Some("SAM") => return sam(&python.vith_checkpoint),
        Some("MobileSAM") => return mobile(),
        Some(other) => tracing::warn!(
            SAM_CHOICE = other,
            "it must be SAM or MobileSAM, and is not heeded; SEGMENTER names the segmenter"
        ),
        None => {}
    }
    match (&python.sam_checkpoint, &python.mobilesam_checkpoint) {
        (Some(path), _) | (None, Some(path)) => Some(Weights::File(path.clone())),
        (None, None) => None,
    }
}

/// The first place that has the file, else the name of the published checkpoint with the same weights, if it is
/// known.
fn found_or_published(path: &Path, places: &[PathBuf]) -> String {
    if let Some(found) = places.iter().find(|place| place.is_file()) {
        return found.display().to_string();
    }
    let name = path.file_name().map(|name| name.to_string_lossy());
    let entry = name.and_then(|name| registry::by_original(&name));
    match entry {
        Some(entry) => {
            tracing::warn!(
                file = %path.display(),
                model = entry.name,
                "the file is not here, the same model is taken from the hub"
            );
            entry.name.to_owned()
        }
        None => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        models: ModelArgs,
    }

    fn choice(flags: &[&str], on_gpu: bool) -> (String, String) {
        let line = Line::try_parse_from([&["groundling"], flags].concat()).unwrap();
        let choice = Choice::new(&line.models, on_gpu);
        (choice.detector, choice.segmenter)
    }

    fn segmenter(flags: &[&str]) -> String {
        choice(flags, false).1
    }

    #[test]
    fn the_defaults_depend_on_the_device() {
        let named = |d: &str, s: &str| (d.to_owned(), s.to_owned());
        assert_eq!(
            choice(&[], false),
            named("grounding-dino-tiny", "mobile-sam")
        );
        assert_eq!(
            choice(&[], true),
            named("grounding-dino-tiny", "sam-vit-base")
        );
        let flags = [
            "--detector",
            "demo",
            "--segmenter",
            "none",
            "--use-sam",
            "1",
        ];
        assert_eq!(choice(&flags, true), named("demo", "none"));
    }

    #[test]
    fn switches_of_the_python_backends() {
        assert_eq!(segmenter(&["--use-sam", "True"]), "sam-vit-huge");
        let both = ["--use-sam", "true", "--use-mobile-sam", "true"];
        assert_eq!(segmenter(&both), "mobile-sam");
        assert_eq!(segmenter(&["--use-sam", "false"]), "none");
        assert_eq!(segmenter(&["--sam-choice", "SAM"]), "sam-vit-huge");
        assert_eq!(segmenter(&["--sam-choice", "MobileSAM"]), "mobile-sam");
        let named = ["--use-sam", "1", "--sam-checkpoint", "sam_vit_b_01ec64.pth"];
        assert_eq!(segmenter(&named), "sam-vit-base");
        assert_eq!(segmenter(&["--sam-checkpoint", "my.pth"]), "my.pth");
    }

    #[test]
    fn files_of_the_python_backends_are_found_where_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("weights");
        std::fs::create_dir(&weights).unwrap();
        let usual = weights.join("groundingdino_swint_ogc.pth");
        let other = weights.join("mine.pth");
        std::fs::write(&usual, "").unwrap();
        std::fs::write(&other, "").unwrap();
        let repository = ["--groundingdino-repo-path", folder.path().to_str().unwrap()];
        let detector = |flags: &[&str]| choice(&[&repository[..], flags].concat(), false).0;
        assert_eq!(detector(&[]), usual.to_str().unwrap());
        let flag = "--grounding-dino-weights";
        assert_eq!(detector(&[flag, "mine.pth"]), other.to_str().unwrap());
        let swinb = [flag, "groundingdino_swinb_cogcoor.pth"];
        assert_eq!(detector(&swinb), "grounding-dino-base");
    }
}
