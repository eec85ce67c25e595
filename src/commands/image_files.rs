//! The image files that a command line names.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};

/// The named files, and the images in the named folders.
///
/// # Errors
/// If a folder cannot be read or has no images.
pub(super) fn image_files(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = vec![];
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let folder = || format!("cannot read the folder {}", path.display());
        let mut inside = vec![];
        for entry in fs::read_dir(path).with_context(folder)? {
            let entry = entry.with_context(folder)?.path();
            if entry.is_file() && image::ImageFormat::from_path(&entry).is_ok() {
                inside.push(entry);
            }
        }
        if inside.is_empty() {
            bail!("the folder {} has no images", path.display());
        }
        inside.sort();
        files.extend(inside);
    }
    Ok(files)
}
