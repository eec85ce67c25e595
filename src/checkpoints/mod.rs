//! From what the user wrote (`--detector`, `--segmenter`) to a checkpoint on this machine.

pub mod choice;
pub mod hub;
pub mod registry;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::hub::{Hub, HubError, Source, Watcher};
use self::registry::Entry;
use crate::config::ModelArgs;
use crate::models::weights::{Checkpoint, WEIGHT_ENDINGS};

/// The name of the models that are compiled in.
pub const DEMO: &str = "demo";
/// The segmenter that is none.
pub const NONE: &str = "none";

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// A name that means nothing.
    #[error(
        "there is no {role} {name:?}: it is no file or folder, not in {model_dir} (MODEL_DIR), and no name that `groundling models` lists; an id of the hub has the form OWNER/NAME"
    )]
    Unknown {
        /// `detector` or `segmenter`.
        role: &'static str,
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        model_dir: String,
    },
    /// It is known, and cannot be had.
    #[error(transparent)]
    Hub(#[from] HubError),
}

/// What a checkpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Finds.
    Detector,
    /// Cuts out.
    Segmenter,
}

impl Role {
    fn describe(self) -> &'static str {
        match self {
            Self::Detector => "detector",
            Self::Segmenter => "segmenter",
        }
    }
}

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

/// The models that are compiled in.
pub fn demo(role: Role) -> Checkpoint {
    match role {
        Role::Detector => embedded!(
            "demo/detector",
            [
                "config.json",
                "preprocessor_config.json",
                "tokenizer.json",
                "model.safetensors"
            ]
        ),
        Role::Segmenter => embedded!(
            "demo/segmenter",
            [
                "config.json",
                "preprocessor_config.json",
                "model.safetensors"
            ]
        ),
    }
}

/// The road from names to files.
#[derive(Debug)]
pub struct Locator {
    model_dir: PathBuf,
    hub: Hub,
}

impl Locator {
    /// As configured.
    pub fn new(args: &ModelArgs) -> Self {
        Self {
            model_dir: args.model_dir.clone(),
            hub: Hub::new(&args.hub),
        }
    }

    /// The hub and its cache.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The checkpoint of this name, wherever it is first found: compiled in, a file or folder, in
    /// `MODEL_DIR`, in the hub's cache, on the hub.
    ///
    /// # Errors
    /// If there is none, or it cannot be fetched.
    pub fn locate(
        &self,
        role: Role,
        name: &str,
        watcher: &Arc<dyn Watcher>,
    ) -> Result<Checkpoint, LocateError> {
        if name == DEMO {
            return Ok(demo(role));
        }
        if let Some(checkpoint) = self.local(name) {
            return Ok(checkpoint);
        }
        if let Some(entry) = registry::find(name) {
            return Ok(self.fetch_entry(entry, watcher)?);
        }
        match source(name) {
            Some(source) => Ok(self.fetch_source(&source, watcher)?),
            None => Err(LocateError::Unknown {
                role: role.describe(),
                name: name.to_owned(),
                model_dir: self.model_dir.display().to_string(),
            }),
        }
    }

    /// A checkpoint that needs no network.
    pub fn local(&self, name: &str) -> Option<Checkpoint> {
        let path = |path: PathBuf| {
            if path.is_dir() {
                Some(Checkpoint::Folder(path))
            } else {
                path.is_file().then_some(Checkpoint::File(path))
            }
        };
        let mut places = vec![PathBuf::from(name), self.model_dir.join(name)];
        let entry = registry::find(name);
        if let Some(entry) = entry {
            places = vec![
                self.model_dir.join(entry.name),
                self.model_dir.join(entry.hub_id),
            ];
            if entry.others.is_empty() {
                places.push(self.model_dir.join(entry.weights.name));
            }
        }
        places.into_iter().find_map(path).or_else(|| match entry {
            Some(entry) => self.cached_entry(entry),
            None => self.cached_source(&source(name)?),
        })
    }

    /// Fetches what is missing of a checkpoint.
    fn fetch_entry(
        &self,
        entry: &Entry,
        watcher: &Arc<dyn Watcher>,
    ) -> Result<Checkpoint, HubError> {
        let pinned = entry_source(entry, entry.revision);
        match self.fetch_files(&pinned, entry, watcher) {
            // a commit may be gone after a repository was rewritten
            Err(HubError::NotFound { .. }) if entry.revision != MAIN => {
                watcher.waiting(&format!(
                    "{} is not there any more, main is taken",
                    entry.revision
                ));
                self.fetch_files(&entry_source(entry, MAIN), entry, watcher)
            }
            result => result,
        }
    }

    fn fetch_files(
        &self,
        source: &Source,
        entry: &Entry,
        watcher: &Arc<dyn Watcher>,
    ) -> Result<Checkpoint, HubError> {
        // the small ones first: what cannot be had is known early
        for file in entry.others {
            self.hub.fetch(source, file, None, watcher)?;
        }
        let weights = &entry.weights;
        let path = self
            .hub
            .fetch(source, weights.name, weights.sha256, watcher)?;
        Ok(entry_checkpoint(entry, path))
    }

    fn cached_entry(&self, entry: &Entry) -> Option<Checkpoint> {
        let files: Vec<&str> = entry
            .others
            .iter()
            .copied()
            .chain([entry.weights.name])
            .collect();
        // what other tools fetched is as good
        [entry.revision, MAIN].into_iter().find_map(|revision| {
            let folder = self.hub.cached(&entry_source(entry, revision), &files)?;
            Some(entry_checkpoint(entry, folder.join(entry.weights.name)))
        })
    }

    /// Any repository of the hub: its weights, and what belongs to them.
    fn fetch_source(
        &self,
        source: &Source,
        watcher: &Arc<dyn Watcher>,
    ) -> Result<Checkpoint, HubError> {
        let files = self.hub.list(source)?;
        let weights = weights_among(&files).ok_or_else(|| HubError::NoWeights {
            id: source.id.clone(),
            wanted: format!("model.safetensors or one .{}", WEIGHT_ENDINGS.join(", .")),
            found: match files.as_slice() {
                [] => "no files".to_owned(),
                files => files.join(", "),
            },
        })?;
        for file in BESIDE
            .iter()
            .filter(|file| files.iter().any(|f| f == *file))
        {
            self.hub.fetch(source, file, None, watcher)?;
        }
        let path = self.hub.fetch(source, weights, None, watcher)?;
        Ok(beside_or_alone(&path))
    }

    fn cached_source(&self, source: &Source) -> Option<Checkpoint> {
        let folder = self.hub.cached(source, &[])?;
        let entries = std::fs::read_dir(&folder).ok()?;
        let files: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        let weights = folder.join(weights_among(&files)?);
        weights.is_file().then(|| beside_or_alone(&weights))
    }
}

const MAIN: &str = "main";

/// What may belong to weights.
const BESIDE: [&str; 4] = [
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "vocab.txt",
];

fn entry_source(entry: &Entry, revision: &str) -> Source {
    Source {
        id: entry.hub_id.to_owned(),
        revision: revision.to_owned(),
    }
}

fn entry_checkpoint(entry: &Entry, weights: PathBuf) -> Checkpoint {
    match weights.parent() {
        Some(folder) if !entry.others.is_empty() => Checkpoint::Folder(folder.to_owned()),
        _ => Checkpoint::File(weights),
    }
}

/// A folder where the weights have a configuration beside them.
fn beside_or_alone(weights: &Path) -> Checkpoint {
    match weights.parent() {
        Some(folder) if folder.join(BESIDE[0]).is_file() => Checkpoint::Folder(folder.to_owned()),
        _ => Checkpoint::File(weights.to_owned()),
    }
}

/// `OWNER/NAME` or `OWNER/NAME@REVISION`.
fn source(name: &str) -> Option<Source> {
    let (id, revision) = name.split_once('@').unwrap_or((name, MAIN));
    let is_word = |word: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !word.is_empty() && !word.starts_with('.') && word.chars().all(fits)
    };
    let (owner, repository) = id.split_once('/')?;
    let ending = repository.rsplit_once('.').map_or("", |(_, ending)| ending);
    let is_file = WEIGHT_ENDINGS.contains(&ending);
    (is_word(owner) && is_word(repository) && !is_file && !revision.is_empty()).then(|| Source {
        id: id.to_owned(),
        revision: revision.to_owned(),
    })
}

/// The file of weights among a repository's files.
fn weights_among(files: &[String]) -> Option<&str> {
    let named = |name: &str| files.iter().find(|file| *file == name);
    if let Some(file) = named("model.safetensors").or_else(|| named("pytorch_model.bin")) {
        return Some(file);
    }
    WEIGHT_ENDINGS.iter().find_map(|ending| {
        let ends = |file: &&String| file.rsplit_once('.').is_some_and(|(_, e)| e == *ending);
        let mut found = files.iter().filter(ends);
        match (found.next(), found.next()) {
            (Some(one), None) => Some(one.as_str()),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_hub_are_told_from_paths() {
        let parsed = |name| source(name).map(|s| format!("{} at {}", s.id, s.revision));
        let owner = "IDEA-Research/grounding-dino-tiny";
        assert_eq!(parsed(owner), Some(format!("{owner} at main")));
        assert_eq!(parsed("a/b@v1"), Some("a/b at v1".to_owned()));
        for path in ["a", "/a/b", "a/b/c", "./a", "a/b.pth", "a/", "a/b@", "../b"] {
            assert_eq!(parsed(path), None, "{path}");
        }
    }

    #[test]
    fn the_weights_of_a_repository() {
        let among = |files: &[&str]| {
            let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
            weights_among(&files).map(str::to_owned)
        };
        let published = ["a.safetensors", "model.safetensors", "config.json"];
        assert_eq!(among(&published).as_deref(), Some("model.safetensors"));
        assert_eq!(among(&["README.md", "sam.pt"]).as_deref(), Some("sam.pt"));
        assert_eq!(among(&["a.safetensors", "b.safetensors"]), None);
        assert_eq!(among(&["README.md"]), None);
    }
}
