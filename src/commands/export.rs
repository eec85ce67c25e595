//! Datasets of `predict` and `annotate`. Those of `annotate` are written while the next images are predicted.

use anyhow::{Context, bail};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::config::ExportArgs;
use crate::geometry::ImageSize;
use crate::preannotation::{BatchPlan, SearchedImage};
use crate::report::export::{Export, ExportError, ExportSummary, ImageContent, LeftOut, NewImage};
use crate::report::names::stem_of_url;

/// Checks that objects have masks if a format of the export cannot do without.
///
/// # Errors
/// If there is no segmenter.
pub(super) fn check_segmenter(args: &ExportArgs, has_segmenter: bool) -> anyhow::Result<()> {
    match args.needs_masks() {
        Some(format) if !has_segmenter => {
            bail!(
                "the export format `{format}` needs masks, but SEGMENTER is none: name a segmenter"
            )
        }
        _ => Ok(()),
    }
}

/// The export of a project, if the settings name one. The classes are the labels.
///
/// # Errors
/// If its folder has files, or a format needs masks and there are none.
pub(super) fn project_export(
    args: &ExportArgs,
    plan: &BatchPlan,
    has_segmenter: bool,
) -> anyhow::Result<Option<Export>> {
    check_segmenter(args, has_segmenter)?;
    if let Some(format) = args.needs_masks()
        && !plan.segments()
    {
        bail!(
            "the export format `{format}` needs masks, but the extra params of the connected model have \"segment\": false"
        );
    }
    let version = plan.version().to_owned();
    let options = args.options(plan.labels(), version, plan.polygon_tolerance());
    Ok(options.map(Export::new).transpose()?)
}

/// An export that takes images from a channel. It ends when the channel is closed, or at the first error.
#[derive(Debug)]
pub(super) struct ExportWriter(JoinHandle<Result<ExportSummary, ExportError>>);

impl ExportWriter {
    /// Starts a thread that writes the images that are sent.
    pub(super) fn start(mut export: Export) -> (mpsc::Sender<SearchedImage>, Self) {
        // one waits while another one is written
        let (sender, mut images) = mpsc::channel::<SearchedImage>(1);
        let writer = tokio::task::spawn_blocking(move || {
            while let Some(image) = images.blocking_recv() {
                add(&mut export, &image)?;
            }
            export.finish()
        });
        (sender, Self(writer))
    }

    /// Waits until all images are written. All senders must be dropped before.
    ///
    /// # Errors
    /// If the export could not be written.
    pub(super) async fn finish(self) -> anyhow::Result<ExportSummary> {
        let written = self.0.await.context("the export panicked")?;
        Ok(written?)
    }
}

fn add(export: &mut Export, image: &SearchedImage) -> Result<LeftOut, ExportError> {
    let objects = image.objects.iter();
    export.add(NewImage {
        name: &name(image),
        size: ImageSize::of(&image.pixels),
        content: ImageContent::Pixels(&image.pixels),
        objects: objects
            .map(|object| (&object.object, object.label.as_deref()))
            .collect(),
    })
}

/// The number of the task and the name of the image's file. With the number, parts of a project that were exported on
/// different machines have different names.
fn name(image: &SearchedImage) -> String {
    let stem = stem_of_url(&image.url);
    match image.task {
        Some(task) if stem.is_empty() => format!("{task}"),
        Some(task) => format!("{task}-{stem}"),
        None => stem,
    }
}
