//! The location of a checkpoint's files.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::CheckpointError;

/// The location of a checkpoint's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checkpoint {
    /// A folder as published: the weights and, if present, `config.json`, `preprocessor_config.json` and
    /// `tokenizer.json`.
    Folder(PathBuf),
    /// Only a file of weights; the configuration is derived from its tensors.
    File(PathBuf),
    /// Files compiled into the program.
    Embedded {
        /// The name in messages.
        name: &'static str,
        /// File names and contents.
        files: &'static [(&'static str, &'static [u8])],
    },
}

/// The file that configures a model.
pub(super) const MODEL_CONFIG: &str = "config.json";

/// The file that configures the sizes and the normalisation of images.
pub const PREPROCESSOR_CONFIG: &str = "preprocessor_config.json";

/// The published file names of weights; the first one that exists is used.
const PUBLISHED_WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// The file name of compiled-in weights.
pub(super) const EMBEDDED_WEIGHTS: &str = PUBLISHED_WEIGHTS[0];

/// The extensions of other files of weights.
pub const WEIGHT_EXTENSIONS: [&str; 5] = ["safetensors", "pth", "pt", "bin", "ckpt"];

impl Checkpoint {
    /// The path of a file in messages.
    pub fn describe(&self, file: &str) -> String {
        match self {
            Self::Folder(folder) => folder.join(file).display().to_string(),
            Self::File(path) => path.display().to_string(),
            Self::Embedded { name, .. } => format!("built-in {name}/{file}"),
        }
    }

    /// The bytes of a small file next to the weights; `None` if it does not exist.
    ///
    /// # Errors
    /// [`CheckpointError::Read`] if it exists but cannot be read.
    pub fn read(&self, file: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        match self {
            Self::Folder(folder) => match std::fs::read(folder.join(file)) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(reason) => Err(CheckpointError::Read {
                    file: self.describe(file),
                    reason,
                }),
            },
            Self::File(_) => Ok(None),
            Self::Embedded { .. } => Ok(self.embedded(file).map(<[u8]>::to_vec)),
        }
    }

    /// The error for a required file that does not exist.
    pub fn missing_file(&self, file: &str) -> CheckpointError {
        CheckpointError::Read {
            file: self.describe(file),
            reason: std::io::Error::new(std::io::ErrorKind::NotFound, "the file does not exist"),
        }
    }

    /// Reads the file of weights from its start to its end, block by block: for a digest of it.
    ///
    /// # Errors
    /// If there is no file of weights, or it cannot be read.
    pub fn read_weights(&self, mut read: impl FnMut(&[u8])) -> Result<(), CheckpointError> {
        let path = match self {
            Self::Embedded { .. } => {
                read(self.embedded(EMBEDDED_WEIGHTS).unwrap_or_default());
                return Ok(());
            }
            Self::File(path) => path.clone(),
            Self::Folder(folder) => weights_in(folder)?,
        };
        read_blocks(&path, read).map_err(|reason| CheckpointError::Read {
            file: path.display().to_string(),
            reason,
        })
    }

    /// The bytes of a compiled-in file.
    pub(super) fn embedded(&self, file: &str) -> Option<&'static [u8]> {
        match self {
            Self::Folder(_) | Self::File(_) => None,
            Self::Embedded { files, .. } => files
                .iter()
                .find(|(name, _)| *name == file)
                .map(|(_, bytes)| *bytes),
        }
    }
}

fn read_blocks(path: &Path, mut read: impl FnMut(&[u8])) -> std::io::Result<()> {
    let mut file = std::fs::File::open(path)?;
    let mut block = vec![0; 1 << 18];
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(count) => read(&block[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The file of weights in a folder.
///
/// # Errors
/// If the folder cannot be read, has no weights, or has several files of weights and none has a published name.
pub fn weights_in(folder: &Path) -> Result<PathBuf, CheckpointError> {
    let entries = std::fs::read_dir(folder).map_err(|reason| CheckpointError::Read {
        file: folder.display().to_string(),
        reason,
    })?;
    let mut files: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|file| folder.join(file).is_file())
        .collect();
    files.sort();
    match weights_among(&files) {
        Ok(file) => Ok(folder.join(file)),
        Err(several) if several.is_empty() => Err(CheckpointError::NoWeights {
            folder: folder.to_owned(),
        }),
        Err(several) => Err(CheckpointError::SeveralWeights {
            folder: folder.to_owned(),
            files: several.into_iter().map(str::to_owned).collect(),
        }),
    }
}

/// The file of weights among the file names of a folder or a repository: one with a published name, else the only
/// file with the first extension that occurs.
///
/// # Errors
/// All files of weights, if there are none or several.
pub fn weights_among(files: &[String]) -> Result<&str, Vec<&str>> {
    let exists = |name: &&str| files.iter().any(|file| file == name);
    if let Some(name) = PUBLISHED_WEIGHTS.into_iter().find(exists) {
        return Ok(name);
    }
    let mut all: Vec<&str> = vec![];
    for extension in WEIGHT_EXTENSIONS {
        let has_extension =
            |file: &&str| file.rsplit_once('.').is_some_and(|(_, e)| e == extension);
        let found: Vec<&str> = files
            .iter()
            .map(String::as_str)
            .filter(has_extension)
            .collect();
        if let ([only], true) = (found.as_slice(), all.is_empty()) {
            return Ok(only);
        }
        all.extend(found);
    }
    Err(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_file_names_come_first_and_other_names_must_be_unique() {
        let among = |files: &[&str]| {
            let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
            weights_among(&files).ok().map(str::to_owned)
        };
        let published = ["a.safetensors", "model.safetensors", "config.json"];
        assert_eq!(among(&published).as_deref(), Some("model.safetensors"));
        assert_eq!(among(&["README.md", "sam.pt"]).as_deref(), Some("sam.pt"));
        assert_eq!(among(&["a.safetensors", "b.safetensors"]), None);
        assert_eq!(among(&["README.md"]), None);
    }

    #[test]
    fn the_error_for_missing_weights_lists_all_extensions() {
        let folder = tempfile::tempdir().unwrap();
        let error = weights_in(folder.path()).unwrap_err().to_string();
        for extension in WEIGHT_EXTENSIONS {
            assert!(error.contains(&format!(".{extension}")), "{error}");
        }
    }
}
