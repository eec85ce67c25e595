//! `groundling evaluate`: compares predictions with the annotations of a Label Studio project or of a COCO file.

mod apply;
mod coco;
mod html;
mod project;
mod summary;

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, bail};

use self::summary::Summary;
use super::{print_problem, print_result, print_status};
use crate::config::{EvaluateArgs, Protocol};
use crate::evaluation::{
    CocoCategory, CocoDataset, CocoImage, FoundObject, IouType, TrueObject, coco_results,
};

/// Predicts all annotated images with each detector, compares, and prints and writes the results.
///
/// # Errors
/// If the annotations cannot be read or the models cannot be loaded. If single images failed, the error is returned after
/// the results of all others are printed.
pub fn run(args: &EvaluateArgs) -> anyhow::Result<()> {
    if args.apply.is_some() && args.models.detectors.len() > 1 {
        bail!("--apply writes the thresholds of one detector: name one");
    }
    if args.predictions.is_some() && args.models.detectors.len() > 1 {
        bail!("--predictions writes the predictions of one detector: name one");
    }
    if args.protocol == Protocol::Papers && args.coco.is_none() {
        bail!("--protocol papers needs a COCO file: use it with --coco FILE --images DIR");
    }
    let mut compared = vec![];
    for setup in args.runs() {
        let result = match &args.coco {
            Some(file) => coco::compare(args, &setup, file)?,
            None => project::compare(args, setup)?,
        };
        compared.push(result);
    }
    let summaries: Vec<Summary> = compared.iter().map(Summary::new).collect();
    summary::print(&summaries, args.json)?;
    if args.protocol == Protocol::Papers {
        print_status(
            "with --protocol papers, scores are means over the tokens of a category: the thresholds above are no box thresholds",
        );
    }
    if let Some(file) = &args.report {
        fs::write(file, html::report(&compared, &summaries))
            .with_context(|| format!("cannot write {}", file.display()))?;
        print_status(format_args!("the report is in {}", file.display()));
    }
    if let (Some(file), [compared]) = (&args.predictions, compared.as_slice()) {
        let results = coco_results(&compared.dataset(), compared.best_found());
        let json = serde_json::to_vec(&results)?;
        fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
        print_status(format_args!(
            "{} predictions are in {}",
            results.len(),
            file.display()
        ));
    }
    if let (Some(to), [compared], [summary]) =
        (args.apply, compared.as_slice(), summaries.as_slice())
    {
        apply::apply(args, to, compared, summary)?;
    }
    let failures: usize = compared
        .iter()
        .map(|compared| compared.failures.len())
        .sum();
    if failures > 0 {
        bail!(
            "{failures} images could not be predicted and are not in the results; the messages above say why"
        );
    }
    Ok(())
}

/// The predictions of one detector and what is true.
struct Compared {
    /// groundling's version and the models' names.
    models: String,
    detector: String,
    /// What was searched for, for people.
    prompt: String,
    images: Vec<ComparedImage>,
    /// The labels, with their ids in COCO results.
    categories: Vec<CocoCategory>,
    boxes: Comparison,
    /// `None` if nothing true has a mask.
    masks: Option<Comparison>,
    /// The box threshold of each label by the settings.
    thresholds: BTreeMap<String, f32>,
    /// The threshold of the candidates.
    lowest: f32,
    /// Images that could not be predicted, with the reason.
    failures: Vec<(String, String)>,
}

/// What is compared in one way.
#[derive(Default)]
struct Comparison {
    truth: Vec<TrueObject>,
    found: Vec<FoundObject>,
}

/// An image that was compared.
struct ComparedImage {
    id: u64,
    /// Its file or its task.
    name: String,
    /// The pixels, shrunk for the report, as JPEG; empty without a report.
    thumbnail: Vec<u8>,
    width: usize,
    height: usize,
}

impl Compared {
    /// What tells most: the boxes if anything true has one, else the masks.
    fn main(&self) -> (&Comparison, IouType) {
        match &self.masks {
            Some(masks) if self.boxes.truth.is_empty() => (masks, IouType::Masks),
            _ => (&self.boxes, IouType::Boxes),
        }
    }

    /// The predictions with masks, if there are any, else those with boxes.
    fn best_found(&self) -> &[FoundObject] {
        match &self.masks {
            Some(masks) if !masks.found.is_empty() => &masks.found,
            _ => &self.boxes.found,
        }
    }

    /// The images and labels with their ids, for COCO results.
    fn dataset(&self) -> CocoDataset {
        CocoDataset {
            images: self
                .images
                .iter()
                .map(|image| CocoImage {
                    id: image.id,
                    file_name: image.name.clone(),
                    width: image.width,
                    height: image.height,
                })
                .collect(),
            categories: self.categories.clone(),
            objects: vec![],
        }
    }
}

/// Prints a failure.
fn report_failure(failures: &mut Vec<(String, String)>, name: String, error: String) {
    print_problem(format_args!("{name}: {error}"));
    failures.push((name, error));
}

/// A table for people: the first column is aligned to the left, the others to the right.
fn print_table(heads: &[&str], rows: &[Vec<String>]) {
    let columns = 0..heads.len();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells
            .chain([heads[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = columns.map(width).collect();
    let line = |cells: Vec<&str>| {
        let cells = cells.iter().zip(&widths).enumerate();
        let padded = cells.map(|(i, (cell, width))| match i {
            0 => format!("{cell:width$}"),
            _ => format!("{cell:>width$}"),
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    print_result(line(heads.to_vec()));
    for row in rows {
        print_result(line(row.iter().map(String::as_str).collect()));
    }
}
