//! `groundling bench`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::values::InvalidValue;
use super::{DetectionArgs, ImageLimitArgs, LogArgs, ModelArgs};
use crate::geometry::ImageSize;

/// `groundling bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The image to measure with. [default: noise]
    #[arg(
        long,
        short,
        value_name = "FILE",
        conflicts_with_all = ["image_size"]
    )]
    pub image: Option<PathBuf>,
    /// Height and width of the noise image; its pixels are the same in every run.
    #[arg(long, value_name = "HxW", default_value = "800x1066")]
    pub image_size: Dimensions,
    /// The objects to find. The detector's time grows with the number of tokens.
    #[arg(long, short, default_value = "cat. remote. person.")]
    pub prompt: String,
    /// Segment this many boxes, spread over the image, instead of the detected ones. The number then does not depend on
    /// the image and the checkpoint.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub boxes: Option<u32>,
    /// Load and measure only one of the two models. The segmenter alone segments one box, or as many as --boxes says.
    #[arg(long, value_enum, value_name = "MODEL")]
    pub only: Option<Half>,
    /// Number of timed repetitions.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Number of untimed repetitions before them: the first one fills caches and allocates memory.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub warm_up: u32,
    /// Print JSON, for scripts, with the time of every repetition.
    #[arg(long)]
    pub json: bool,
    /// Also write the timed repetitions to this file in Chrome's trace format, for <https://ui.perfetto.dev> or
    /// chrome://tracing.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub limits: ImageLimitArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub models: ModelArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub detection: DetectionArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub log: LogArgs,
}

/// One of the two models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Half {
    /// Image and prompt to boxes.
    Detector,
    /// Boxes to masks.
    Segmenter,
}

/// The size of an image, as `HxW`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dimensions(pub ImageSize);

/// Limit of each side in pixels, so that a typo cannot use up the memory.
const MAX_SIDE: usize = 1 << 14;

impl FromStr for Dimensions {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let side = |text: &str| {
            let side = text.trim().parse().ok();
            side.filter(|side| (1..=MAX_SIDE).contains(side))
        };
        text.split_once(['x', 'X'])
            .and_then(|(height, width)| {
                Some(Self(ImageSize {
                    height: side(height)?,
                    width: side(width)?,
                }))
            })
            .ok_or_else(|| {
                InvalidValue(format!(
                    "it must be HEIGHTxWIDTH, such as 800x1066, with 1 to {MAX_SIDE} pixels each"
                ))
            })
    }
}
