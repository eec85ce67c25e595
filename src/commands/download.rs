//! `groundling download`: models for later, or for a machine without a network.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::{print, progress};
use crate::checkpoints::{DEMO, Locator, NONE, Role, registry};
use crate::config::DownloadArgs;
use crate::models::weights::{Architecture, Checkpoint};
use crate::pipeline::Plan;

/// Fetches every model, and looks whether it can be used.
///
/// # Errors
/// If one cannot be had, stored, or used; those before it are kept.
pub fn run(args: &DownloadArgs) -> anyhow::Result<()> {
    let locator = Locator::new(&args.models);
    let watcher = progress::shown();
    for (role, name) in wanted(args)? {
        if name == DEMO || name == NONE {
            print(format_args!("{name} needs no download"));
            continue;
        }
        let checkpoint = locator.locate(role, &name, &watcher)?;
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

/// The models that were named, else those that would run.
fn wanted(args: &DownloadArgs) -> anyhow::Result<Vec<(Role, String)>> {
    if args.names.is_empty() {
        let plan = Plan::new(&args.models);
        let choice = plan.choice().clone();
        return Ok(vec![
            (Role::Detector, choice.detector),
            (Role::Segmenter, choice.segmenter),
        ]);
    }
    let mut wanted = vec![];
    for name in &args.names {
        let role = match registry::find(name).map(|entry| entry.architecture) {
            Some(Architecture::Sam) => Role::Segmenter,
            // an id of the hub says not what it is, and the role only chooses a word in an error
            Some(Architecture::GroundingDino) | None => Role::Detector,
        };
        if registry::find(name).is_none() && !name.contains('/') && name != DEMO && name != NONE {
            let known: Vec<&str> = registry::REGISTRY.iter().map(|entry| entry.name).collect();
            bail!(
                "{name:?} is no model that is known by name ({}); an id of the hub has the form OWNER/NAME",
                known.join(", ")
            );
        }
        wanted.push((role, name.clone()));
    }
    Ok(wanted)
}

fn place(checkpoint: &Checkpoint) -> PathBuf {
    match checkpoint {
        Checkpoint::Folder(path) | Checkpoint::File(path) => path.clone(),
        Checkpoint::Embedded { name, .. } => PathBuf::from(name),
    }
}

/// Puts the files of a checkpoint into `output/NAME`, where MODEL_DIR finds them.
///
/// # Errors
/// If the folder cannot be written, or the disk is full.
fn copied(checkpoint: &Checkpoint, output: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let folder = output.join(name.split('@').next().unwrap_or(name));
    fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let files = match checkpoint {
        Checkpoint::File(path) => vec![path.clone()],
        Checkpoint::Folder(path) => fs::read_dir(path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<Vec<_>>>()?,
        Checkpoint::Embedded { .. } => vec![],
    };
    for file in files.iter().filter(|file| file.is_file()) {
        let target = folder.join(file.file_name().unwrap_or_default());
        let error = || format!("cannot store {}", target.display());
        let part = target.with_extension("part");
        // never a half file under the whole one's name
        if let Err(reason) = fs::copy(file, &part) {
            let _ = fs::remove_file(&part);
            return Err(reason).with_context(error);
        }
        fs::rename(&part, &target).with_context(error)?;
    }
    Ok(folder)
}
