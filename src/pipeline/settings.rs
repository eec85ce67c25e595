//! Which models run, on which device, and in which precision.

use std::path::PathBuf;
use std::str::FromStr;

use candle_core::DType;

use crate::checkpoints::hub::HubSettings;
use crate::checkpoints::registry::{
    DEFAULT_DETECTOR, DEFAULT_SEGMENTER_CPU, DEFAULT_SEGMENTER_GPU,
};
use crate::checkpoints::{DEMO, NONE};

/// The settings of the models.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ModelSettings {
    /// The detector, as [`crate::checkpoints::Locator::locate`] accepts it; `none` to segment what a person marks only,
    /// `None` for the default.
    pub detector: Option<String>,
    /// The segmenter; `none` to detect boxes only, `None` for the device's default.
    pub segmenter: Option<String>,
    /// The folder in which models are searched first.
    pub model_dir: PathBuf,
    /// The hub and its cache.
    pub hub: HubSettings,
    /// Where the models run.
    pub device: DeviceChoice,
    /// The precision of the models' numbers.
    pub precision: Precision,
    /// The short side in pixels that images are resized to for the detector; `None` for the checkpoint's.
    pub detector_size: Option<usize>,
}

impl ModelSettings {
    /// The default models, on a GPU if there is one, in f32.
    pub fn new(model_dir: impl Into<PathBuf>, hub: HubSettings) -> Self {
        Self {
            detector: None,
            segmenter: None,
            model_dir: model_dir.into(),
            hub,
            device: DeviceChoice::Auto,
            precision: Precision::F32,
            detector_size: None,
        }
    }
}

/// The names of the two models that run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelNames {
    /// The detector; `none` to segment what a person marks only.
    pub detector: String,
    /// The segmenter; `none` to detect boxes only.
    pub segmenter: String,
}

impl ModelNames {
    /// The configured names, else the defaults; the default segmenter depends on whether the models run on a GPU.
    pub fn new(settings: &ModelSettings, on_gpu: bool) -> Self {
        let default_segmenter = match on_gpu {
            true => DEFAULT_SEGMENTER_GPU,
            false => DEFAULT_SEGMENTER_CPU,
        };
        let name = |configured: &Option<String>, default: &str| {
            special_name(configured.clone().unwrap_or_else(|| default.to_owned()))
        };
        Self {
            detector: name(&settings.detector, DEFAULT_DETECTOR),
            segmenter: name(&settings.segmenter, default_segmenter),
        }
    }

    /// Whether there is a detector.
    pub fn has_detector(&self) -> bool {
        self.detector != NONE
    }

    /// Whether there is a segmenter.
    pub fn has_segmenter(&self) -> bool {
        self.segmenter != NONE
    }

    /// Whether one of them is a demo model, which detects only coloured shapes.
    pub fn has_demo(&self) -> bool {
        self.detector == DEMO || self.segmenter == DEMO
    }
}

/// Normalizes the case of the names that are not files.
fn special_name(name: String) -> String {
    let special = [DEMO, NONE].into_iter();
    let mut special = special.filter(|special| name.eq_ignore_ascii_case(special));
    special.next().map(str::to_owned).unwrap_or(name)
}

/// Where the models run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU if the build and the machine have one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this number.
    Cuda(usize),
}

/// A text that names no device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it must be auto, cpu, cuda or cuda:N")]
pub struct InvalidDevice;

impl FromStr for DeviceChoice {
    type Err = InvalidDevice;

    fn from_str(text: &str) -> Result<Self, InvalidDevice> {
        match text.trim().to_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" | "gpu" => Ok(Self::Cuda(0)),
            other => other
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or(InvalidDevice),
        }
    }
}

/// The precision of the models' numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 16 bits with an 11-bit significand (IEEE half precision). For GPUs only.
    F16,
    /// 16 bits with an 8-bit significand and the exponents of f32.
    Bf16,
}

impl Precision {
    /// The dtype of the models' tensors.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_segmenter_depends_on_the_device() {
        let settings = |detector: Option<&str>, segmenter: Option<&str>| ModelSettings {
            detector: detector.map(str::to_owned),
            segmenter: segmenter.map(str::to_owned),
            ..ModelSettings::new("", HubSettings::new(""))
        };
        let names = |settings: &ModelSettings, on_gpu| {
            let ModelNames {
                detector,
                segmenter,
            } = ModelNames::new(settings, on_gpu);
            format!("{detector} {segmenter}")
        };
        let defaults = settings(None, None);
        assert_eq!(names(&defaults, false), "grounding-dino-tiny mobile-sam");
        assert_eq!(names(&defaults, true), "grounding-dino-tiny sam-vit-base");
        let named = settings(Some("Demo"), Some("NONE"));
        assert_eq!(names(&named, true), "demo none");
    }

    #[test]
    fn devices_are_named_as_in_torch() {
        let parsed = |text: &str| text.parse::<DeviceChoice>();
        assert_eq!(parsed("AUTO"), Ok(DeviceChoice::Auto));
        assert_eq!(parsed("cuda"), Ok(DeviceChoice::Cuda(0)));
        assert_eq!(parsed("cuda:1"), Ok(DeviceChoice::Cuda(1)));
        assert_eq!(parsed("cuda:"), Err(InvalidDevice));
        assert_eq!(parsed("tpu"), Err(InvalidDevice));
    }
}
