//! Why a task has no prediction.

use super::admission::Busy;
use crate::labeling::LabelingError;
use crate::media::MediaError;
use crate::pipeline::stages::SharedStageError;
use crate::prompt::PromptError;

/// Limit of a typed or configured prompt, in bytes; this is thousands of words.
pub(super) const MAX_PROMPT: usize = 8 << 10;

/// Why a task has no prediction.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreannotationError {
    /// The labeling config cannot be used.
    #[error(transparent)]
    Labeling(#[from] LabelingError),
    /// The prompt has no phrase to find.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The prompt is longer than `MAX_PROMPT`.
    #[error("the prompt has {0} bytes, but at most {MAX_PROMPT} are allowed: use fewer phrases")]
    LongPrompt(usize),
    /// Too many annotator requests are in progress.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The image cannot be loaded.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// A model stage failed.
    #[error(transparent)]
    Stage(#[from] SharedStageError),
    /// A defect: building the regions panicked. Only this task fails; the server continues.
    #[error(
        "building the regions panicked; this is a bug in groundling, and the log has the details"
    )]
    Regions,
}
