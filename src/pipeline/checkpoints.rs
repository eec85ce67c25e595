//! From what the user wrote (`--detector`, `--segmenter`) to a checkpoint.

use std::path::{Path, PathBuf};

use crate::models::weights::Checkpoint;

/// The name of the models that are compiled in.
pub const DEMO: &str = "demo";

macro_rules! embedded {
    ($name:literal, [$($file:literal),+]) => {
        Checkpoint::Embedded {
            name: $name,
            files: &[$((
                $file,
                include_bytes!(concat!("../../models/", $name, "/", $file)),
            )),+],
        }
    };
}

/// A name that is no checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no {role} {name:?}: it is neither a folder nor in {model_dir}; give a folder with config.json and model.safetensors, or \"demo\""
)]
pub struct UnknownCheckpoint {
    /// `detector` or `segmenter`.
    pub role: &'static str,
    /// What was asked for.
    pub name: String,
    /// Where it was looked for.
    pub model_dir: String,
}

/// The detector of this name: `demo`, a folder, or a folder in `model_dir`.
///
/// # Errors
/// If there is none.
pub fn detector(name: &str, model_dir: &Path) -> Result<Checkpoint, UnknownCheckpoint> {
    if name == DEMO {
        return Ok(embedded!(
            "demo/detector",
            [
                "config.json",
                "preprocessor_config.json",
                "tokenizer.json",
                "model.safetensors"
            ]
        ));
    }
    folder("detector", name, model_dir)
}

/// The segmenter of this name: `demo`, a folder, or a folder in `model_dir`; `None` for `none`.
///
/// # Errors
/// If there is no such folder.
pub fn segmenter(name: &str, model_dir: &Path) -> Result<Option<Checkpoint>, UnknownCheckpoint> {
    match name {
        "none" => Ok(None),
        DEMO => Ok(Some(embedded!(
            "demo/segmenter",
            [
                "config.json",
                "preprocessor_config.json",
                "model.safetensors"
            ]
        ))),
        _ => folder("segmenter", name, model_dir).map(Some),
    }
}

fn folder(
    role: &'static str,
    name: &str,
    model_dir: &Path,
) -> Result<Checkpoint, UnknownCheckpoint> {
    [PathBuf::from(name), model_dir.join(name)]
        .into_iter()
        .find(|path| path.is_dir())
        .map(Checkpoint::Folder)
        .ok_or_else(|| UnknownCheckpoint {
            role,
            name: name.to_owned(),
            model_dir: model_dir.display().to_string(),
        })
}
