//! `groundling predict`.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, bail};
use image::RgbImage;

use super::export::check_segmenter;
use super::image_files::image_files;
use super::{is_device_lost, progress, setup, signals};
use crate::config::{OutputFormat, PredictArgs};
use crate::labeling::LabelingConfig;
use crate::media::decode;
use crate::pipeline::{ModelLoader, Models, Prediction, Query};
use crate::preannotation::project::settings::PredictionSettings;
use crate::preannotation::project::version;
use crate::prompt::Prompt;
use crate::regions::{RegionOptions, Unlabeled};
use crate::report::export::{Export, ImageContent, NewImage};
use crate::report::image_file::write_png;
use crate::report::label_studio::{ImportTask, default_config, import_task};
use crate::report::names::Names;
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
    setup::require_detector(loader.names())?;
    check_segmenter(&args.export, loader.names().has_segmenter())?;
    let settings = args.detection.settings(&loader.names().detector);
    let version = version::models(loader.names(), loader.precision(), loader.detector_size());
    let version = version::plain(&version, &settings);
    let export = args.export.options(
        prompt.wanted().map(str::to_owned).collect(),
        version.clone(),
        settings.polygon_tolerance,
    );
    let export = export.map(Export::new).transpose()?;
    let models = loader.load(&progress::to_terminal())?;
    let mut run = Run {
        args,
        settings,
        prompt,
        labeling,
        version,
        models,
        export,
        overlays: Names::default(),
        reports: vec![],
        tasks: vec![],
    };
    let progress = progress::bar(files.len(), "images");
    let started = Instant::now();
    let is_stopped = signals::stop_flag().context("cannot wait for signals")?;
    let (mut done, mut failed) = (0, 0);
    for file in &files {
        if is_stopped.load(Ordering::Relaxed) {
            break;
        }
        progress.set_message(match failed {
            0 => file.display().to_string(),
            failed => format!("{failed} failed, {}", file.display()),
        });
        done += 1;
        match run.image(file) {
            Ok(summary) => progress.suspend(|| super::print_status(summary)),
            Err(error) => {
                failed += 1;
                let is_last = is_device_lost(&error);
                let error = format!("{error:#}");
                let line = format!("{}: {error}", file.display());
                run.reports.push(ImageReport::Failed {
                    image: file.display().to_string(),
                    error,
                });
                progress.suspend(|| super::print_problem(line));
                if is_last {
                    break;
                }
            }
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    let export = run.export.take();
    run.write()?;
    if let Some(export) = export {
        super::print_status(export.finish()?);
    }
    if files.len() > 1 {
        super::print_status(format_args!(
            "{done} of {} images, {failed} failed, in {:.1} s",
            files.len(),
            started.elapsed().as_secs_f64()
        ));
    }
    if done < files.len() {
        bail!(
            "interrupted after {done} of {} images; the results of these are written. Run the command with the other images to go on",
            files.len()
        );
    }
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
    /// The model version.
    version: String,
    models: Models,
    export: Option<Export>,
    /// The names of the overlays.
    overlays: Names,
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
        if let Some(folder) = &self.args.overlay {
            let stem = file.file_stem().unwrap_or(file.as_os_str());
            let name = self.overlays.unique(&stem.to_string_lossy());
            let target = folder.join(format!("{name}.png"));
            let drawing = overlay::draw(&image, &prediction, &self.prompt);
            write_png(&drawing, &target)
                .with_context(|| format!("cannot write {}", target.display()))?;
            summary += &format!(" -> {}", target.display());
        }
        if let Some(left_out) = self.export(file, &bytes, &image, &prediction)? {
            summary += &format!(", {left_out}");
        }
        match self.args.format {
            OutputFormat::Json => self.reports.push(ImageReport::Predicted(report)),
            OutputFormat::LabelStudio => {
                let style = RegionOptions {
                    unlabeled: Unlabeled::Drop,
                    polygon_tolerance: self.settings.polygon_tolerance,
                    page: None,
                };
                let (task, dropped) =
                    import_task(&name, &prediction, &self.labeling, &style, &self.version)?;
                self.tasks.push(task);
                if dropped > 0 {
                    summary += &format!(
                        ", {dropped} objects left out, because the labeling config has no label for them"
                    );
                }
            }
        }
        Ok(summary)
    }

    /// Adds an image to the export, if there is one. The classes are the phrases. Returns what is left out of it, as text.
    fn export(
        &mut self,
        file: &Path,
        bytes: &[u8],
        image: &RgbImage,
        prediction: &Prediction,
    ) -> anyhow::Result<Option<String>> {
        let Some(export) = &mut self.export else {
            return Ok(None);
        };
        let stem = file.file_stem().unwrap_or(file.as_os_str());
        let objects = prediction.objects.iter();
        let left_out = export.add(NewImage {
            name: &stem.to_string_lossy(),
            size: prediction.size,
            content: ImageContent::of_file(file, bytes, image),
            objects: objects
                .map(|object| (object, object.detection.phrase.as_deref()))
                .collect(),
        })?;
        Ok(left_out.describe())
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
