//! `groundling predict`.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};

use super::image_files::image_files;
use super::progress;
use crate::config::{OutputFormat, PredictArgs};
use crate::labeling::LabelingConfig;
use crate::media::decode;
use crate::pipeline::{ModelLoader, Models, Query};
use crate::preannotation::project::settings::PredictionSettings;
use crate::preannotation::project::version;
use crate::prompt::Prompt;
use crate::regions::{RegionOptions, Unlabeled};
use crate::report::label_studio::{ImportTask, default_config, import_task};
use crate::report::{ImageReport, PredictionReport, Report, overlay};

/// Predicts every image and writes the results. An image that fails does not stop the others.
///
/// # Errors
/// If a setting is wrong or the models cannot be loaded. If single images failed, the error is returned after all
/// other results are written.
pub fn run(args: &PredictArgs) -> anyhow::Result<()> {
    let prompt = Prompt::parse(&args.prompt)?;
    let labeling = match &args.labeling_config {
        Some(file) => {
            let xml = fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            LabelingConfig::parse(&xml).with_context(|| file.display().to_string())?
        }
        None => default_config(&prompt),
    };
    let labeling = labeling.with_outputs(args.detection.outputs());
    if let Some(folder) = &args.overlay {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    }
    let files = image_files(&args.images)?;
    let loader = ModelLoader::new(args.models.settings());
    let version = version::models(loader.names(), loader.precision(), loader.detector_size());
    let models = loader.load(&progress::to_terminal())?;
    let mut run = Run {
        args,
        settings: args.detection.settings(&loader.names().detector),
        prompt,
        labeling,
        version,
        models,
        overlays: HashSet::new(),
        reports: vec![],
        tasks: vec![],
    };
    let progress = progress::bar(files.len(), "images");
    let mut failed = 0;
    for file in &files {
        progress.set_message(file.display().to_string());
        let line = match run.image(file) {
            Ok(summary) => summary,
            Err(error) => {
                failed += 1;
                let error = format!("{error:#}");
                let line = format!("{}: {error}", file.display());
                run.reports.push(ImageReport::Failed {
                    image: file.display().to_string(),
                    error,
                });
                line
            }
        };
        progress.suspend(|| super::print_status(line));
        progress.inc(1);
    }
    progress.finish_and_clear();
    run.write()?;
    if failed > 0 {
        bail!(
            "{failed} of {} images could not be predicted; the messages above say why",
            files.len()
        );
    }
    Ok(())
}

/// A run over images, and its results so far.
struct Run<'a> {
    args: &'a PredictArgs,
    settings: PredictionSettings,
    prompt: Prompt,
    labeling: LabelingConfig,
    /// The start of the model version.
    version: String,
    models: Models,
    /// Paths of overlays that are already written.
    overlays: HashSet<PathBuf>,
    reports: Vec<ImageReport>,
    tasks: Vec<ImportTask>,
}

impl Run<'_> {
    /// Predicts one image; returns a summary line.
    fn image(&mut self, file: &Path) -> anyhow::Result<String> {
        let limits = &self.args.limits;
        let name = file.display().to_string();
        let start = Instant::now();
        let length = fs::metadata(file).context("cannot read the file")?.len();
        if length > limits.max_image_bytes as u64 {
            let limit = limits.max_image_bytes;
            bail!("the file has {length} bytes, but MAX_IMAGE_BYTES allows only {limit}");
        }
        let bytes = fs::read(file).context("cannot read the file")?;
        let image = decode(&bytes, limits.max_image_pixels)?;
        let decode_time = start.elapsed();
        let settings = &self.settings;
        let query = Query {
            tiling: settings.tiling,
            ..Query::new(self.prompt.clone(), settings.options)
        };
        let (prediction, times) = self.models.predict(&image, &query)?;
        let prediction = prediction.with_clean_masks(settings.cleanup);

        let report =
            PredictionReport::new(name.clone(), &self.prompt, &prediction, decode_time, times);
        let objects = prediction.objects.iter();
        let found: Vec<String> = objects.map(|object| object.detection.describe()).collect();
        let found = if found.is_empty() {
            "nothing found".to_owned()
        } else {
            found.join(", ")
        };
        let mut summary = format!("{name}: {found} ({:.0} ms)", report.timings.total_ms);
        match self.args.format {
            OutputFormat::Json => self.reports.push(ImageReport::Predicted(report)),
            OutputFormat::LabelStudio => {
                let version = version::plain(&self.version, settings);
                let style = RegionOptions {
                    unlabeled: Unlabeled::Drop,
                    polygon_tolerance: settings.polygon_tolerance,
                    page: None,
                };
                let (task, dropped) =
                    import_task(&name, &prediction, &self.labeling, &style, &version)?;
                self.tasks.push(task);
                if dropped > 0 {
                    summary += &format!(
                        ", {dropped} objects left out, because the labeling config has no label for them"
                    );
                }
            }
        }
        if let Some(folder) = &self.args.overlay {
            let target = overlay_path(folder, file, &mut self.overlays);
            overlay::draw(&image, &prediction, &self.prompt)
                .save(&target)
                .with_context(|| format!("cannot write {}", target.display()))?;
            summary += &format!(" -> {}", target.display());
        }
        Ok(summary)
    }

    /// Writes the results to the output file, or to stdout.
    fn write(self) -> anyhow::Result<()> {
        let mut text = match self.args.format {
            OutputFormat::Json => serde_json::to_string_pretty(&Report {
                results: self.reports,
            })?,
            OutputFormat::LabelStudio => serde_json::to_string_pretty(&self.tasks)?,
        };
        text.push('\n');
        match &self.args.output {
            Some(file) => {
                fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
            }
            None => std::io::stdout()
                .write_all(text.as_bytes())
                .context("cannot write to the standard output"),
        }
    }
}

/// `folder/name.png`, with a number if several images have the same name.
fn overlay_path(folder: &Path, file: &Path, taken: &mut HashSet<PathBuf>) -> PathBuf {
    let stem = file
        .file_stem()
        .unwrap_or(file.as_os_str())
        .to_string_lossy();
    let numbered = (2..).map(|i| folder.join(format!("{stem}-{i}.png")));
    let mut names = std::iter::once(folder.join(format!("{stem}.png"))).chain(numbered);
    let name = names.find(|name| !taken.contains(name)).unwrap_or_default();
    taken.insert(name.clone());
    name
}
