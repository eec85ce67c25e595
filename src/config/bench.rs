//! `groundling bench`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::{DetectionArgs, ImageLimitArgs, LogArgs, ModelArgs};
use crate::geometry::ImageSize;

/// `groundling bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The image to measure with; without one, noise.
    #[arg(
        long,
        short,
        value_name = "FILE",
        conflicts_with_all = ["image_size"]
    )]
    pub image: Option<PathBuf>,
    /// Height and width of the noise, the same on every run.
    #[arg(long, value_name = "HxW", default_value = "800x1066")]
    pub image_size: Dimensions,
    /// What to find; its number of tokens is part of the detector's work.
    #[arg(long, short, default_value = "cat. remote. person.")]
    pub prompt: String,
    /// Have this many boxes cut out, spread over the image, in place of those that the detector finds: as
    /// many on every image and with every checkpoint.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub boxes: Option<u32>,
    /// Load and measure one of the two models alone; the segmenter then cuts out one box, or as many as
    /// --boxes says.
    #[arg(long, value_enum, value_name = "MODEL")]
    pub only: Option<Half>,
    /// Repetitions that are timed.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Repetitions before them that are not: the first one fills caches and finds its memory.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub warm_up: u32,
    /// JSON, for scripts, with the time of every repetition.
    #[arg(long)]
    pub json: bool,
    /// Also write the timed repetitions in Chrome's trace format, for <https://ui.perfetto.dev> or
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

/// Of either side; a mistyped size must not take all memory.
const LONGEST_SIDE: usize = 1 << 14;

impl FromStr for Dimensions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let side = |text: &str| {
            let side = text.trim().parse().ok();
            side.filter(|side| (1..=LONGEST_SIDE).contains(side))
        };
        text.split_once(['x', 'X'])
            .and_then(|(height, width)| {
                Some(Self(ImageSize {
                    height: side(height)?,
                    width: side(width)?,
                }))
            })
            .ok_or_else(|| {
                format!("it must be HEIGHTxWIDTH, such as 800x1066, of 1 to {LONGEST_SIDE} pixels")
            })
    }
}
