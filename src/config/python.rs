//! The variables that name the models of the Python backends. They apply if `--detector` and `--segmenter` are not set.

use std::path::{Path, PathBuf};

use clap::Args;

use super::values::Switch;
use crate::checkpoints::{NONE, registry};

/// The variables that name the models of the Python backends.
#[derive(Debug, Clone, Default, Args)]
pub struct PythonArgs {
    /// The detector's weights: a path, or a file name in the folder `weights` of `GROUNDINGDINO_REPO_PATH`.
    #[arg(long, env = "GROUNDING_DINO_WEIGHTS", value_name = "FILE", hide = true)]
    pub grounding_dino_weights: Option<PathBuf>,
    /// The folder of the Grounding DINO repository.
    #[arg(long, env = "GROUNDINGDINO_REPO_PATH", value_name = "DIR", hide = true)]
    pub groundingdino_repo_path: Option<PathBuf>,
    /// Whether SAM segments the detections.
    #[arg(long, env = "USE_SAM", value_name = "BOOL", hide = true)]
    pub use_sam: Option<Switch>,
    /// Whether MobileSAM segments the detections; it takes precedence over SAM.
    #[arg(long, env = "USE_MOBILE_SAM", value_name = "BOOL", hide = true)]
    pub use_mobile_sam: Option<Switch>,
    /// SAM's weights.
    #[arg(long, env = "SAM_CHECKPOINT", value_name = "FILE", hide = true)]
    pub sam_checkpoint: Option<PathBuf>,
    /// MobileSAM's weights.
    #[arg(long, env = "MOBILESAM_CHECKPOINT", value_name = "FILE", hide = true)]
    pub mobilesam_checkpoint: Option<PathBuf>,
    /// `SAM` or `MobileSAM`.
    #[arg(long, env = "SAM_CHOICE", value_name = "NAME", hide = true)]
    pub sam_choice: Option<String>,
    /// SAM's weights if `SAM_CHOICE` is `SAM`.
    #[arg(long, env = "VITH_CHECKPOINT", value_name = "FILE", hide = true)]
    pub vith_checkpoint: Option<PathBuf>,
}

/// The segmenter's weights that the Python backend would load.
enum SegmenterWeights {
    File(PathBuf),
    None,
}

impl PythonArgs {
    /// The detector that the Python backend would load; `None` if no variable names one.
    pub(super) fn detector(&self, model_dir: &Path) -> Option<String> {
        let weights = self.detector_weights()?;
        Some(self.local_or_published(&weights, model_dir))
    }

    /// The segmenter that the Python backend would load; `none` if it is switched off, `None` if no variable names one.
    pub(super) fn segmenter(&self, model_dir: &Path) -> Option<String> {
        Some(match self.segmenter_weights()? {
            SegmenterWeights::File(weights) => self.local_or_published(&weights, model_dir),
            SegmenterWeights::None => NONE.to_owned(),
        })
    }

    /// The `grounding_dino` backend joins both variables; `grounding_sam` uses only the folder.
    fn detector_weights(&self) -> Option<PathBuf> {
        let in_repository = || {
            let repository = self.groundingdino_repo_path.as_ref()?;
            let path = repository
                .join("weights")
                .join("groundingdino_swint_ogc.pth");
            path.is_file().then_some(path)
        };
        self.grounding_dino_weights.clone().or_else(in_repository)
    }

    /// The `grounding_sam` backend has two switches, and MobileSAM's has precedence; `segment_anything_model` has one
    /// setting.
    fn segmenter_weights(&self) -> Option<SegmenterWeights> {
        let file = |path: &Option<PathBuf>, default: &str| {
            let path = path.clone().unwrap_or_else(|| default.into());
            Some(SegmenterWeights::File(path))
        };
        let mobile = || file(&self.mobilesam_checkpoint, "mobile_sam.pt");
        let sam = |path| file(path, "sam_vit_h_4b8939.pth");
        let is_on = |switch: Option<Switch>| switch.is_some_and(|switch| switch.0);
        if is_on(self.use_mobile_sam) {
            return mobile();
        }
        if is_on(self.use_sam) {
            return sam(&self.sam_checkpoint);
        }
        if self.use_sam.is_some() || self.use_mobile_sam.is_some() {
            return Some(SegmenterWeights::None);
        }
        match self.sam_choice.as_deref() {
            Some("SAM") => return sam(&self.vith_checkpoint),
            Some("MobileSAM") => return mobile(),
            Some(other) => tracing::warn!(
                SAM_CHOICE = other,
                "SAM_CHOICE is ignored, because it is neither SAM nor MobileSAM; set SEGMENTER to choose a segmenter"
            ),
            None => {}
        }
        match (&self.sam_checkpoint, &self.mobilesam_checkpoint) {
            (Some(path), _) | (None, Some(path)) => Some(SegmenterWeights::File(path.clone())),
            (None, None) => None,
        }
    }

    /// The first existing file among the folders in which the Python backends and groundling search, else the name of
    /// the published checkpoint with the same weights, if it is known.
    fn local_or_published(&self, weights: &Path, model_dir: &Path) -> String {
        let repository = self.groundingdino_repo_path.as_ref();
        let in_repository = repository.map(|folder| folder.join("weights").join(weights));
        let in_model_dir = weights.file_name().map(|name| model_dir.join(name));
        let mut candidates = [Some(weights.to_owned()), in_repository, in_model_dir]
            .into_iter()
            .flatten();
        if let Some(local) = candidates.find(|path| path.is_file()) {
            return local.display().to_string();
        }
        let name = weights.file_name().map(|name| name.to_string_lossy());
        let entry = name.and_then(|name| registry::by_original(&name));
        match entry {
            Some(entry) => {
                tracing::warn!(
                    file = %weights.display(),
                    model = entry.name,
                    "the file of weights does not exist; the same model is taken from the hub"
                );
                entry.name.to_owned()
            }
            None => weights.display().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::config::ModelArgs;
    use crate::pipeline::settings::ModelNames;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        models: ModelArgs,
    }

    fn names(flags: &[&str], on_gpu: bool) -> (String, String) {
        let line = Line::try_parse_from([&["groundling"], flags].concat()).unwrap();
        let names = ModelNames::new(&line.models.settings(), on_gpu);
        (names.detector, names.segmenter)
    }

    fn segmenter(flags: &[&str]) -> String {
        names(flags, false).1
    }

    #[test]
    fn detector_and_segmenter_take_precedence_over_settings_of_the_python_backends() {
        let flags = [
            "--detector",
            "demo",
            "--segmenter",
            "none",
            "--use-sam",
            "1",
        ];
        let expected = ("demo".to_owned(), "none".to_owned());
        assert_eq!(names(&flags, true), expected);
    }

    #[test]
    fn the_switches_of_the_python_backends_choose_the_segmenter() {
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
    fn files_of_the_python_backends_are_found_in_their_folders() {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("weights");
        std::fs::create_dir(&weights).unwrap();
        let usual = weights.join("groundingdino_swint_ogc.pth");
        let other = weights.join("mine.pth");
        std::fs::write(&usual, "").unwrap();
        std::fs::write(&other, "").unwrap();
        let repository = ["--groundingdino-repo-path", folder.path().to_str().unwrap()];
        let detector = |flags: &[&str]| names(&[&repository[..], flags].concat(), false).0;
        assert_eq!(detector(&[]), usual.to_str().unwrap());
        let flag = "--grounding-dino-weights";
        assert_eq!(detector(&[flag, "mine.pth"]), other.to_str().unwrap());
        let swinb = [flag, "groundingdino_swinb_cogcoor.pth"];
        assert_eq!(detector(&swinb), "grounding-dino-base");
    }
}
