//! The images and annotations of a COCO file.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};

use super::html::thumbnail;
use super::{Compared, ComparedImage, Comparison, report_failure};
use crate::commands::{is_device_lost, progress, setup};
use crate::config::{EvaluateArgs, Protocol, SetupArgs};
use crate::detector::DetectionOptions;
use crate::evaluation::{CocoBox, CocoDataset, CocoImage, FoundObject};
use crate::labeling::Label;
use crate::media::decode;
use crate::pipeline::tiles::Tiling;
use crate::pipeline::{ModelLoader, Models, Query, Rating};
use crate::preannotation::project::version;
use crate::prompt::Prompt;

/// The number of rated boxes of an image that papers count.
const OF_PAPERS: usize = 300;

/// Predicts the images of a COCO file.
///
/// # Errors
/// If the file cannot be read, or the models cannot be loaded.
pub(super) fn compare(
    args: &EvaluateArgs,
    setup: &SetupArgs,
    file: &Path,
) -> anyhow::Result<Compared> {
    let mut dataset = CocoDataset::read(file)?;
    if let Some(limit) = args.limit {
        dataset.images.truncate(limit);
        let images = &dataset.images;
        let is_kept = |id| images.iter().any(|image| image.id == id);
        dataset.objects.retain(|object| is_kept(object.image));
    }
    if dataset.images.is_empty() {
        bail!("{} has no images", file.display());
    }
    let names = dataset
        .categories
        .iter()
        .map(|category| category.name.as_str());
    let prompt = match &args.prompt {
        Some(prompt) => Prompt::parse(prompt)?,
        None => Prompt::from_phrases(names.clone())
            .with_context(|| format!("the categories of {}", file.display()))?,
    };
    let loader = ModelLoader::new(setup.models.settings());
    setup::require_detector(loader.names())?;
    let models = loader.load(&progress::to_terminal())?;
    let settings = setup.detection.settings(&loader.names().detector);
    let has_masks = dataset.objects.iter().any(|object| object.mask.is_some());
    // what limits or divides the search is a setting of groundling, and no part of the papers' protocol
    let (lowest, rating, tiling, max_detections) = match args.protocol {
        Protocol::Groundling => {
            let limit = settings.options.max_detections;
            let lowest = args.lowest_score.0;
            (lowest, Rating::BestPhrase, settings.tiling, limit)
        }
        Protocol::Papers => {
            let rating = Rating::EveryPhrase { most: OF_PAPERS };
            (0.0, rating, Tiling::default(), None)
        }
    };
    let options = DetectionOptions {
        box_threshold: lowest,
        max_detections,
        ..settings.options
    };
    let query = Query {
        tiling,
        rating,
        with_masks: has_masks || args.predictions.is_some(),
        skips_unencodable: args.prompt.is_none(),
        ..Query::new(prompt.clone(), options)
    };
    let folder = args.images.as_deref().unwrap_or(Path::new("."));
    let mut compared = Compared {
        models: version::models(loader.names(), loader.precision(), loader.detector_size()),
        detector: loader.names().detector.clone(),
        prompt: prompt.to_string(),
        images: vec![],
        categories: dataset.categories.clone(),
        boxes: Comparison::default(),
        masks: None,
        thresholds: names
            .clone()
            .map(|name| (name.to_owned(), settings.options.box_threshold))
            .collect(),
        lowest,
        failures: vec![],
    };
    // phrases match categories as they match the labels of a labeling config
    let labels: Vec<Label> = names.map(Label::new).collect();
    let mut found = vec![];
    let bar = progress::bar(dataset.images.len(), "images");
    for image in &dataset.images {
        bar.set_message(image.file_name.clone());
        match predict(args, &models, &query, image, folder, &labels) {
            Ok((objects, thumbnail)) => {
                found.extend(objects);
                compared.images.push(ComparedImage {
                    id: image.id,
                    name: image.file_name.clone(),
                    thumbnail,
                    width: image.width,
                    height: image.height,
                });
            }
            Err(error) if is_device_lost(&error) => {
                return Err(error.context("the GPU cannot be used any more"));
            }
            Err(error) => {
                let (name, error) = (image.file_name.clone(), format!("{error:#}"));
                bar.suspend(|| report_failure(&mut compared.failures, name, error));
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if compared.images.is_empty() {
        bail!("no image could be predicted");
    }
    let predicted: Vec<u64> = compared.images.iter().map(|image| image.id).collect();
    dataset
        .objects
        .retain(|object| predicted.contains(&object.image));
    let comparison = || Comparison {
        truth: dataset.objects.clone(),
        found: found.clone(),
    };
    compared.masks = has_masks.then(comparison);
    compared.boxes = comparison();
    Ok(compared)
}

fn predict(
    args: &EvaluateArgs,
    models: &Models,
    query: &Query,
    image: &CocoImage,
    folder: &Path,
    labels: &[Label],
) -> anyhow::Result<(Vec<FoundObject>, Vec<u8>)> {
    let path = folder.join(&image.file_name);
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let pixels = decode(&bytes, args.image_limits().max_image_pixels)?;
    if (pixels.width() as usize, pixels.height() as usize) != (image.width, image.height) {
        bail!(
            "the file has {}x{} pixels, but the annotations are for {}x{}",
            pixels.width(),
            pixels.height(),
            image.width,
            image.height
        );
    }
    let (prediction, _) = models.predict(&pixels, query)?;
    let found = prediction.objects.into_iter().filter_map(|object| {
        let detection = object.detection;
        Some(FoundObject {
            image: image.id,
            label: Label::find(labels, detection.phrase.as_deref()?)?
                .value
                .clone(),
            score: detection.score,
            bounding_box: CocoBox::from(detection.bounding_box.clamped(image.size())),
            mask: object.mask.map(|scored| Arc::new(scored.mask.clone())),
        })
    });
    let thumbnail = match args.report {
        Some(_) => thumbnail(&pixels)?,
        None => vec![],
    };
    Ok((found.collect(), thumbnail))
}
