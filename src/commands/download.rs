//! `groundling download`: downloads models, also for a machine without a network.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::{print, progress};
use crate::checkpoints::registry::{self, REGISTRY};
use crate::checkpoints::{DEMO, Locator, NONE};
use crate::config::DownloadArgs;
use crate::models::weights::Checkpoint;
use crate::pipeline::Plan;

/// Downloads every model, verifies the checksums of existing files, and checks that each model can be used.
///
/// # Errors
/// If a model cannot be downloaded, stored or used; the models before it are kept.
pub fn run(args: &DownloadArgs) -> anyhow::Result<()> {
    let locator = Locator::new(&args.models);
    let watcher = progress::shown();
    for name in wanted(args) {
        if [DEMO, NONE].contains(&name.to_lowercase().as_str()) {
            print(format_args!("{name} needs no download"));
            continue;
        }
        let Some(checkpoint) = locator.fetch(&name, &watcher)? else {
            let known: Vec<&str> = REGISTRY.iter().map(|entry| entry.name).collect();
            bail!(
                "{name:?} is no model that is known by name ({}); an id of the hub has the form OWNER/NAME",
                known.join(", ")
            );
        };
        let weights = checkpoint.open()?;
        let place = match &args.output {
            Some(folder) => copied(&checkpoint, folder, &name)?,
            None => place(&checkpoint),
        };
        print(format_args!(
            "{name}: {} in {}",
            weights.layout().name,
            place.display()
        ));
    }
    Ok(())
}

/// The named models, else the models that the settings select.
fn wanted(args: &DownloadArgs) -> Vec<String> {
    if !args.names.is_empty() {
        return args.names.clone();
    }
    let choice = Plan::new(&args.models).choice().clone();
    vec![choice.detector, choice.segmenter]
}

fn place(checkpoint: &Checkpoint) -> PathBuf {
    match checkpoint {
        Checkpoint::Folder(path) | Checkpoint::File(path) => path.clone(),
        Checkpoint::Embedded { name, .. } => PathBuf::from(name),
    }
}

/// Copies the files of a checkpoint to `output/NAME`, where MODEL_DIR finds them.
///
/// # Errors
/// If the folder cannot be written, or the disk is full.
fn copied(checkpoint: &Checkpoint, output: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let known = registry::find(name).map(|entry| entry.name);
    let name = known.unwrap_or(name.split('@').next().unwrap_or(name));
    let folder = output.join(name);
    // copy to a temporary name first, so that an existing folder is always complete
    let part = folder.with_extension("part");
    let stored = |folder: &Path| -> std::io::Result<()> {
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
    let error = || format!("cannot store {}", folder.display());
    if let Err(reason) = stored(&part) {
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
