//! From the name of a model to its files: compiled in, local, or downloaded from the hub.

mod embedded;
pub mod hub;
mod locator;
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
