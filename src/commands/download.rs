//! `groundling download`: downloads models, also for a machine without a network.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::{print_result, progress};
use crate::checkpoints::registry;
use crate::checkpoints::{DEMO, Locator, NONE};
use crate::config::DownloadArgs;
use crate::models::weights::Checkpoint;
use crate::pipeline::ModelLoader;

/// Downloads every model, verifies the checksums of existing files, and checks that each model can be used.
///
/// # Errors
/// If a model cannot be downloaded, stored or used; the models before it are kept.
pub fn run(args: &DownloadArgs) -> anyhow::Result<()> {
    let settings = args.models.settings();
    let locator = Locator::new(settings.model_dir, settings.hub);
    let observer = progress::to_terminal();
    for name in selected_names(args) {
        if [DEMO, NONE].contains(&name.to_lowercase().as_str()) {
            print_result(format_args!("{name}: no download needed"));
            continue;
        }
        let existing = locator.local(&name).filter(|_| args.if_missing);
        let checkpoint = match existing {
            Some(checkpoint) => Some(checkpoint),
            None => locator.fetch(&name, &observer)?,
        };
        let Some(checkpoint) = checkpoint else {
            let known: Vec<&str> = registry::entries().map(|entry| entry.name).collect();
            bail!(
                "{name:?} is not a known model (the known ones are {}); a repository of the hub has the form OWNER/NAME",
                known.join(", ")
            );
        };
        let weights = checkpoint.open()?;
        let path = match &args.output {
            Some(folder) => copy_files(&checkpoint, folder, &name)?,
            None => path_of(&checkpoint),
        };
        print_result(format_args!(
            "{name}: {} in {}",
            weights.layout().name,
            path.display()
        ));
    }
    Ok(())
}

/// The named models, else the models that the settings select.
fn selected_names(args: &DownloadArgs) -> Vec<String> {
    if !args.names.is_empty() {
        return args.names.clone();
    }
    let loader = ModelLoader::new(args.models.settings());
    let names = loader.names();
    let names = [&names.detector, &names.segmenter].into_iter();
    names.filter(|name| *name != NONE).cloned().collect()
}

fn path_of(checkpoint: &Checkpoint) -> PathBuf {
    match checkpoint {
        Checkpoint::Folder(path) | Checkpoint::File(path) => path.clone(),
        Checkpoint::Embedded { name, .. } => PathBuf::from(name),
    }
}

/// Copies the files of a checkpoint to `output/NAME`, where MODEL_DIR finds them.
///
/// # Errors
/// If the folder cannot be written, or the disk is full.
fn copy_files(checkpoint: &Checkpoint, output: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let known = registry::find(name).map(|entry| entry.name);
    let name = known.unwrap_or(name.split('@').next().unwrap_or(name));
    let folder = output.join(name);
    // copy to a temporary name first, so that an existing folder is always complete
    let part = folder.with_extension("part");
    let copy = |folder: &Path| -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        let files = match checkpoint {
            Checkpoint::File(path) => vec![path.clone()],
            Checkpoint::Folder(path) => fs::read_dir(path)?
                .map(|entry| Ok(entry?.path()))
                .collect::<std::io::Result<_>>()?,
            Checkpoint::Embedded { .. } => vec![],
        };
        for file in files.iter().filter(|file| file.is_file()) {
            fs::copy(file, folder.join(file.file_name().unwrap_or_default()))?;
        }
        Ok(())
    };
    let error = || format!("cannot copy the files to {}", folder.display());
    if let Err(reason) = copy(&part) {
        // a partial copy is useless
        let _ = fs::remove_dir_all(&part);
        return Err(reason).with_context(error);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(error)?;
    }
    fs::rename(&part, &folder).with_context(error)?;
    Ok(folder)
}
