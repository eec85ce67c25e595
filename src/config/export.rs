//! Datasets that are written beside other results.

use std::path::PathBuf;

use clap::Args;

use crate::report::export::{ExportFormat, ExportOptions};

/// A dataset of the predictions.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Also write the images and what was found in them to this folder, as a dataset for training. The folder must be new or
    /// empty. `annotate` then also predicts the tasks that have this prediction already, but does not store it again.
    #[arg(long, value_name = "DIR")]
    pub export: Option<PathBuf>,
    /// The formats of the dataset, separated by commas. Several formats have a subfolder each, with their names.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_values_t = [ExportFormat::Coco],
        requires = "export",
        value_name = "FORMAT[,FORMAT]"
    )]
    pub export_format: Vec<ExportFormat>,
}

impl ExportArgs {
    /// The options of the export; `None` if there is none. `classes`, `model_version` and `polygon_tolerance` as in
    /// [`ExportOptions`].
    pub fn options(
        &self,
        classes: Vec<String>,
        model_version: String,
        polygon_tolerance: f32,
    ) -> Option<ExportOptions> {
        Some(ExportOptions {
            folder: self.export.clone()?,
            formats: self.export_format.clone(),
            classes,
            model_version,
            polygon_tolerance,
        })
    }

    /// Whether there is an export that stores masks if there are any.
    pub fn uses_masks(&self) -> bool {
        self.export.is_some() && self.export_format.iter().any(|format| format.uses_masks())
    }

    /// The name of a format that cannot do without masks, if the export has one.
    pub fn needs_masks(&self) -> Option<&'static str> {
        self.export.as_ref()?;
        let mut formats = self.export_format.iter();
        formats
            .find(|format| format.needs_masks())
            .map(|format| format.name())
    }
}
