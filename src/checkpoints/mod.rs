//! From the name of a model to its files: compiled in, local, or downloaded from the hub.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use groundling::candle_core::{DType, Device};
//! use groundling::checkpoints::hub::{HubSettings, ProgressObserver, Silent};
//! use groundling::checkpoints::{Locator, Role};
//! use groundling::detector::Detector;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let locator = Locator::new("models", HubSettings::new("cache"));
//! let observer: Arc<dyn ProgressObserver> = Arc::new(Silent);
//! let checkpoint = locator.locate(Role::Detector, "grounding-dino-tiny", &observer)?;
//! let detector = Detector::load(&checkpoint, DType::F32, &Device::Cpu)?;
//! # Ok(())
//! # }
//! ```

mod embedded;
pub mod hub;
mod locator;
pub mod recommend;
pub mod registry;

pub use self::embedded::demo;
pub use self::locator::{LocateError, Locator};
use crate::models::weights::Architecture;

/// The name of the compiled-in models.
pub const DEMO: &str = "demo";
/// The name for running without a segmenter.
pub const NONE: &str = "none";

/// The role of a checkpoint in the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Detects objects.
    Detector,
    /// Segments objects.
    Segmenter,
}

impl Role {
    /// The role of an architecture.
    pub fn of(architecture: Architecture) -> Self {
        match architecture {
            Architecture::GroundingDino => Self::Detector,
            Architecture::Sam => Self::Segmenter,
        }
    }

    /// `detector` or `segmenter`.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Detector => "detector",
            Self::Segmenter => "segmenter",
        }
    }
}
