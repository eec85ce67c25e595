//! The arguments of `groundling evaluate`.

use std::path::PathBuf;

use clap::{ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueEnum};

use super::values::{Fraction, UpTo};
use super::{DetectionArgs, ImageLimitArgs, LogArgs, MediaArgs, ModelArgs, SetupArgs, StoreArgs};

/// `groundling evaluate`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("truth").required(true))]
pub struct EvaluateArgs {
    /// Compare with the annotations of this Label Studio project; the number is in its address:
    /// http://localhost:8080/projects/7.
    #[arg(long, value_name = "N", group = "truth")]
    pub project: Option<u64>,
    /// Compare with a COCO annotation file. The names of its categories are the prompt.
    #[arg(long, value_name = "FILE", group = "truth", requires = "images")]
    pub coco: Option<PathBuf>,
    /// The folder of the COCO file's images.
    #[arg(long, value_name = "DIR", requires = "coco")]
    pub images: Option<PathBuf>,
    /// The objects to find. [default: the labels of the project, or the categories of the COCO file]
    #[arg(long)]
    pub prompt: Option<String>,
    /// Evaluate at most this many images. [default: all]
    #[arg(long, value_name = "COUNT")]
    pub limit: Option<usize>,
    /// The lowest score of the candidates, 0 to 1. Thresholds below it are not evaluated. A lower one takes longer, because
    /// more candidates are segmented. Candidates below `--text-threshold` have no label and do not count.
    /// `--protocol papers` has no thresholds, limits or tiles.
    #[arg(long, default_value_t = UpTo(0.05), value_name = "0..1")]
    pub lowest_score: Fraction,
    /// How a box gets its label and its score: "groundling" as in predictions; "papers" rates each box for every category by
    /// the mean probability of its tokens, and keeps the best 300 of an image without any threshold, as the published
    /// numbers of Grounding DINO on COCO are computed. Its scores are no box thresholds.
    #[arg(
        long,
        value_enum,
        default_value_t = Protocol::Groundling,
        value_name = "groundling|papers"
    )]
    pub protocol: Protocol,
    /// Print JSON instead of tables.
    #[arg(long)]
    pub json: bool,
    /// Write a report with curves and with pictures of the worst misses to this HTML file.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Write the predictions to this file, as a list of COCO results.
    #[arg(long, value_name = "FILE")]
    pub predictions: Option<PathBuf>,
    /// Write the best thresholds into the project: "labels" sets `score_threshold` of each label in the labeling config,
    /// "extra-params" sets `box_threshold` of the connected backend to the best common one.
    #[arg(
        long,
        value_enum,
        value_name = "labels|extra-params",
        conflicts_with = "coco"
    )]
    pub apply: Option<ApplyTo>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub media: MediaArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub models: ComparedModelArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub detection: DetectionArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub store: StoreArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub log: LogArgs,
}

/// How a box gets its label and its score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// As in predictions.
    Groundling,
    /// Each box is rated for every category.
    Papers,
}

/// Where the best thresholds are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ApplyTo {
    /// `score_threshold` of each label in the labeling config.
    Labels,
    /// `box_threshold` in the backend's `extra_params`.
    ExtraParams,
}

impl EvaluateArgs {
    /// The settings of a run with each detector; one run without a name if none is named.
    pub fn runs(&self) -> Vec<SetupArgs> {
        let ComparedModelArgs { detectors, models } = &self.models;
        let detectors = match detectors.as_slice() {
            [] => vec![None],
            names => names.iter().cloned().map(Some).collect(),
        };
        let runs = detectors.into_iter().map(|detector| SetupArgs {
            media: self.media.clone(),
            models: ModelArgs {
                detector,
                ..models.clone()
            },
            detection: self.detection.clone(),
            store: self.store.clone(),
            log: self.log.clone(),
        });
        runs.collect()
    }

    /// The limits of image files.
    pub fn image_limits(&self) -> &ImageLimitArgs {
        &self.media.limits
    }
}

/// [`ModelArgs`] with any number of detectors: `--detector A --detector B`.
#[derive(Debug, Clone)]
pub struct ComparedModelArgs {
    /// The names of the detectors.
    pub detectors: Vec<String>,
    /// All other settings.
    pub models: ModelArgs,
}

impl Args for ComparedModelArgs {
    fn augment_args(command: Command) -> Command {
        ModelArgs::augment_args(command).mut_arg("detector", |arg| {
            arg.action(ArgAction::Append)
                .help("A detector to evaluate; several are compared: --detector A --detector B [default: grounding-dino-tiny]")
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ComparedModelArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Self::from_arg_matches_mut(&mut matches.clone())
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, clap::Error> {
        let detectors = matches.get_many("detector").into_iter().flatten();
        let detectors = detectors.cloned().collect();
        let models = ModelArgs::from_arg_matches_mut(matches)?;
        Ok(Self { detectors, models })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
