//! `groundling models`: lists the registered models, and which of them are on this machine; with `--recommend` it
//! suggests two of them.

mod recommend;

use std::fs;
use std::path::PathBuf;

use anyhow::bail;
use serde::Serialize;

use super::{print_result, progress};
use crate::checkpoints::hub::cache;
use crate::checkpoints::recommend::ranking_benchmark;
use crate::checkpoints::registry::{self, Entry, MEASURED_ON};
use crate::checkpoints::{Locator, Role};
use crate::config::ModelsArgs;
use crate::models::weights::{Checkpoint, weights_in};
use crate::pipeline::ModelLoader;

/// One model of the list.
#[derive(Debug, Serialize)]
struct Line {
    name: &'static str,
    role: &'static str,
    hub: &'static str,
    parameters_millions: f32,
    bytes: Option<u64>,
    input: &'static str,
    licence: &'static str,
    about: &'static str,
    /// Published accuracies.
    accuracy: Vec<AccuracyLine>,
    /// The accuracy by which models of this role are ranked, in percent.
    #[serde(skip)]
    ranking_ap: Option<f32>,
    /// Measured on two cores; `null` if it was not measured.
    seconds: Option<f32>,
    memory_mib: Option<u32>,
    /// The local path; `None` if it is not on this machine.
    path: Option<PathBuf>,
    /// What is wrong with the local files, if they were checked.
    damaged: Option<String>,
}

/// A published average precision in percent.
#[derive(Debug, Serialize)]
struct AccuracyLine {
    benchmark: &'static str,
    ap: f32,
    source: &'static str,
}

/// Lists the registered models, or suggests two of them.
///
/// # Errors
/// If a local model is damaged.
pub fn run(args: &ModelsArgs) -> anyhow::Result<()> {
    if args.recommend {
        return recommend::run(args);
    }
    let settings = args.models.settings();
    let locator = Locator::new(&settings.model_dir, settings.hub.clone());
    let lines: Vec<Line> = registry::entries()
        .map(|entry| line(entry, &locator, args.verify))
        .collect();
    if args.json {
        print_result(serde_json::to_string_pretty(&lines)?);
    } else {
        print_table(&lines);
        let loader = ModelLoader::new(settings);
        let names = loader.names();
        print_result(format_args!(
            "\nThe settings select the detector {:?} and the segmenter {:?}. \"demo\" is built in.\nSearched folders: {} (MODEL_DIR), {} (the hub's cache).",
            names.detector,
            names.segmenter,
            args.models.model_dir.display(),
            locator.hub().cache().display()
        ));
    }
    match lines.iter().filter(|line| line.damaged.is_some()).count() {
        0 => Ok(()),
        damaged => bail!(
            "{damaged} of the local models are damaged: download them again with `groundling download`, or delete their files"
        ),
    }
}

fn line(entry: &'static Entry, locator: &Locator, verify: bool) -> Line {
    let checkpoint = locator.local(entry.name);
    let weights = checkpoint.as_ref().and_then(|checkpoint| match checkpoint {
        Checkpoint::Folder(folder) => weights_in(folder).ok(),
        Checkpoint::File(path) => Some(path.clone()),
        Checkpoint::Embedded { .. } => None,
    });
    let size = |path: &PathBuf| fs::metadata(path).ok().map(|file| file.len());
    let role = Role::of(entry.architecture);
    Line {
        name: entry.name,
        role: role.describe(),
        hub: entry.hub_id,
        parameters_millions: entry.parameters,
        bytes: entry
            .weights
            .bytes
            .or_else(|| weights.as_ref().and_then(size)),
        input: entry.input,
        licence: entry.licence,
        about: entry.about,
        accuracy: accuracies(entry),
        ranking_ap: entry.accuracy_of(ranking_benchmark(role)),
        seconds: entry.cost.map(|cost| cost.seconds),
        memory_mib: entry.cost.map(|cost| cost.memory_mib),
        damaged: checkpoint
            .as_ref()
            .and_then(|checkpoint| damage(entry, checkpoint, weights.as_ref(), verify)),
        path: weights,
    }
}

/// Checks the structure of a checkpoint's files, and with `verify` also their checksums. Returns what is wrong.
fn damage(
    entry: &Entry,
    checkpoint: &Checkpoint,
    weights: Option<&PathBuf>,
    verify: bool,
) -> Option<String> {
    let opened = checkpoint.open();
    if let Err(error) = opened.and_then(|weights| weights.require(entry.architecture)) {
        return Some(error.to_string());
    }
    // a file in another format has another checksum
    let published = |path: &&PathBuf| path.file_name().is_some_and(|n| n == entry.weights.name);
    let path = weights.filter(published).filter(|_| verify)?;
    let expected = entry.weights.sha256?;
    match cache::sha256(path) {
        Ok(found) if found == expected => None,
        Ok(found) => Some(format!(
            "{} differs from the published file: its SHA-256 is {found} instead of {expected}",
            path.display()
        )),
        Err(error) => Some(format!("cannot read {}: {error}", path.display())),
    }
}

fn accuracies(entry: &Entry) -> Vec<AccuracyLine> {
    let published = entry.accuracy.iter();
    published
        .map(|accuracy| AccuracyLine {
            benchmark: accuracy.benchmark.name(),
            ap: accuracy.ap,
            source: accuracy.source,
        })
        .collect()
}

fn print_table(lines: &[Line]) {
    let width = lines.iter().map(|line| line.name.len()).max().unwrap_or(0);
    print_result(format_args!(
        "{:<width$} {:<9} {:>7} {:>9} {:>5} {:>7} {:>9}  {:<9} {:<11} {}",
        "NAME", "ROLE", "PARAMS", "SIZE", "AP", "TIME", "MEMORY", "INPUT", "LICENCE", "HERE"
    ));
    for line in lines {
        let here = match (&line.path, &line.damaged) {
            (_, Some(damage)) => format!("no: {damage}"),
            (Some(path), None) => path.display().to_string(),
            (None, None) => format!("no ({})", line.about),
        };
        // an unknown size is estimated from the parameters, four bytes each
        let size = match line.bytes {
            Some(bytes) => progress::mebibytes(bytes),
            None => format!("~{} MiB", (line.parameters_millions * 4e6) as u64 >> 20),
        };
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        print_result(format_args!(
            "{:<width$} {:<9} {:>5.0} M {size:>9} {:>5} {:>7} {:>9}  {:<9} {:<11} {here}",
            line.name,
            line.role,
            line.parameters_millions,
            or_dash(line.ranking_ap.map(|ap| format!("{ap:.1}"))),
            or_dash(line.seconds.map(|seconds| format!("{seconds:.2} s"))),
            or_dash(line.memory_mib.map(|mib| format!("{mib} MiB"))),
            line.input,
            line.licence
        ));
    }
    print_result(format_args!(
        "\nAP: published, in percent: {}, {}.\nTIME, MEMORY: one image (segmenters: and one box) on {MEASURED_ON}, in f32.\n--json prints all published numbers with their sources; --recommend suggests a pair.",
        ranking_benchmark(Role::Detector).name(),
        ranking_benchmark(Role::Segmenter).name(),
    ));
}
