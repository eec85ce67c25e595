//! Resolves the user's model names (`--detector`, `--segmenter`) to checkpoints on this machine.

pub mod cache;
pub mod choice;
pub mod hub;
pub mod registry;
mod transfer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::hub::{Hub, HubError, Source, Watcher};
use self::registry::Entry;
use crate::config::ModelArgs;
use crate::models::weights::{
    Architecture, Checkpoint, WEIGHT_EXTENSIONS, weights_among, weights_in,
};

/// The name of the compiled-in models.
pub const DEMO: &str = "demo";
/// The name for running without a segmenter.
pub const NONE: &str = "none";

/// Why a checkpoint cannot be located.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// The name is unknown.
    #[error(
        "there is no {role} {name:?}: it is no file or folder, not in {model_dir} (MODEL_DIR), and no name that `groundling models` lists; an id of the hub has the form OWNER/NAME"
    )]
    Unknown {
        /// `detector` or `segmenter`.
        role: &'static str,
        /// The name from the settings.
        name: String,
        /// The model folder that was searched.
        model_dir: String,
    },
    /// The checkpoint is a segmenter but a detector is needed, or the other way round.
    #[error("{name} is a {is}, and a {role} is needed here")]
    #[allow(missing_docs)]
    WrongRole {
        name: &'static str,
        is: &'static str,
        role: &'static str,
    },
    /// The checkpoint is known, but cannot be downloaded.
    #[error(transparent)]
    Hub(#[from] HubError),
}

/// The role of a checkpoint in the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Detects objects.
    Detector,
    /// Segments objects.
    Segmenter,
}

impl Role {
    /// The role of an architecture.
    pub fn of(architecture: Architecture) -> Self {
        match architecture {
            Architecture::GroundingDino => Self::Detector,
            Architecture::Sam => Self::Segmenter,
        }
    }

    /// `detector` or `segmenter`.
    pub fn describe(self) -> &'static str {
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

/// The compiled-in models.
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

/// Resolves names to files.
#[derive(Debug)]
pub struct Locator {
    model_dir: PathBuf,
    hub: Hub,
}

impl Locator {
    /// Reads the settings.
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

    /// The checkpoint with this name. The places are searched in this order: compiled in, a file or folder,
    /// `MODEL_DIR`, the hub's cache, the hub.
    ///
    /// # Errors
    /// If it is not found, or cannot be downloaded.
    pub fn locate(
        &self,
        role: Role,
        name: &str,
        watcher: &Arc<dyn Watcher>,
    ) -> Result<Checkpoint, LocateError> {
        if name == DEMO {
            return Ok(demo(role));
        }
        if let Some(entry) = registry::find(tidy(name)) {
            let is = Role::of(entry.architecture);
            if is != role {
                return Err(LocateError::WrongRole {
                    name: entry.name,
                    is: is.describe(),
                    role: role.describe(),
                });
            }
        }
        let local = self.local(name);
        let damaged = local.as_ref().and_then(|here| self.hub.damaged(here));
        match (local, damaged) {
            (Some(checkpoint), None) => return Ok(checkpoint),
            (_, Some(path)) if self.hub.may_fetch(name).is_err() => {
                let path = path.display().to_string();
                return Err(HubError::Damaged { path }.into());
            }
            _ => {}
        }
        match self.fetch(name, watcher)? {
            Some(checkpoint) => Ok(checkpoint),
            None => Err(LocateError::Unknown {
                role: role.describe(),
                name: name.to_owned(),
                model_dir: self.model_dir.display().to_string(),
            }),
        }
    }

    /// The checkpoint with this name, if it is available without the network.
    pub fn local(&self, name: &str) -> Option<Checkpoint> {
        let name = tidy(name);
        if let Some(entry) = registry::find(name) {
            return self
                .placed_entry(entry)
                .or_else(|| self.cached_entry(entry));
        }
        let without_revision = name.split('@').next().unwrap_or(name);
        let places = [
            PathBuf::from(name),
            self.model_dir.join(name),
            self.model_dir.join(without_revision),
        ];
        let path = places.into_iter().find(|path| path.exists());
        match path {
            Some(path) if path.is_dir() => Some(Checkpoint::Folder(path)),
            Some(path) => Some(Checkpoint::File(path)),
            None => self.cached_source(&source(name)?),
        }
    }

    /// A registered checkpoint in `MODEL_DIR`: a folder with its name, or the original file of its authors.
    fn placed_entry(&self, entry: &Entry) -> Option<Checkpoint> {
        let folders = [entry.name, entry.hub_id].map(|name| self.model_dir.join(name));
        for folder in folders.into_iter().filter(|folder| folder.is_dir()) {
            match weights_in(&folder) {
                Ok(_) => return Some(Checkpoint::Folder(folder)),
                // an unfinished download, or an empty folder that Docker created for a mount
                Err(error) => tracing::warn!(%error, "passed over"),
            }
        }
        let own_name = Some(entry.weights.name).filter(|_| entry.others.is_empty());
        let mut files = entry
            .original
            .into_iter()
            .chain(own_name)
            .map(|file| self.model_dir.join(file));
        files.find(|file| file.is_file()).map(Checkpoint::File)
    }

    /// Downloads a checkpoint of the hub into the cache, and verifies the checksum of every file. `None` if the hub
    /// has no such name.
    ///
    /// # Errors
    /// If it cannot be downloaded.
    pub fn fetch(
        &self,
        name: &str,
        watcher: &Arc<dyn Watcher>,
    ) -> Result<Option<Checkpoint>, HubError> {
        let name = tidy(name);
        let (entry, source) = (registry::find(name), source(name));
        if entry.is_none() && source.is_none() {
            return Ok(None);
        }
        if let Err(offline) = self.hub.may_fetch(name) {
            let here = self.local(name);
            let here = here.filter(|here| self.hub.damaged(here).is_none());
            return here.map(Some).ok_or(offline);
        }
        match (entry, source) {
            (Some(entry), _) => self.fetch_entry(entry, watcher).map(Some),
            (None, Some(source)) => self.fetch_source(&source, watcher).map(Some),
            (None, None) => Ok(None),
        }
    }

    fn fetch_entry(
        &self,
        entry: &Entry,
        watcher: &Arc<dyn Watcher>,
    ) -> Result<Checkpoint, HubError> {
        let pinned = entry_source(entry, entry.revision);
        match self.fetch_files(&pinned, entry, watcher) {
            // a commit disappears if the repository's history is rewritten
            Err(HubError::NotFound { .. }) if entry.revision != MAIN => {
                tracing::warn!(
                    model = entry.name,
                    commit = entry.revision,
                    "the commit is not there any more, main is taken"
                );
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
        // small files first, so that a failure is known early
        for file in entry.others {
            self.hub.fetch(source, file, watcher)?;
        }
        let path = self.hub.fetch(source, entry.weights.name, watcher)?;
        let blob = path.canonicalize().unwrap_or_else(|_| path.clone());
        let etag = blob.file_name().map(|name| name.to_string_lossy());
        let differs = |known: &&str| {
            etag.as_deref()
                .is_some_and(|e| e.len() == 64 && e != *known)
        };
        if entry.weights.sha256.filter(differs).is_some() {
            tracing::warn!(
                model = entry.name,
                "the published file is not the one that this version of groundling knows"
            );
        }
        Ok(entry_checkpoint(entry, path))
    }

    fn cached_entry(&self, entry: &Entry) -> Option<Checkpoint> {
        // files that other tools downloaded are equally valid
        [entry.revision, MAIN].into_iter().find_map(|revision| {
            let folder = self.hub.snapshot(&entry_source(entry, revision))?;
            let mut files = entry.others.iter().chain([&entry.weights.name]);
            let is_whole = files.all(|file| folder.join(file).is_file());
            is_whole.then(|| entry_checkpoint(entry, folder.join(entry.weights.name)))
        })
    }

    /// Downloads the weights and the companion files of any repository of the hub.
    fn fetch_source(
        &self,
        source: &Source,
        watcher: &Arc<dyn Watcher>,
    ) -> Result<Checkpoint, HubError> {
        let files = self.hub.list(source)?;
        let weights = weights_among(&files).map_err(|several| HubError::NoWeights {
            id: source.id.clone(),
            found: match several.as_slice() {
                [] => "no weights".to_owned(),
                several => format!("several files of weights ({})", several.join(", ")),
            },
        })?;
        for file in BESIDE
            .iter()
            .filter(|file| files.iter().any(|f| f == *file))
        {
            self.hub.fetch(source, file, watcher)?;
        }
        let path = self.hub.fetch(source, weights, watcher)?;
        Ok(beside_or_alone(&path))
    }

    fn cached_source(&self, source: &Source) -> Option<Checkpoint> {
        let folder = self.hub.snapshot(source)?;
        let has = |file: &str| folder.join(file).is_file();
        // other tools download only the files they need
        if has(CONFIG) && !has(PREPROCESSOR) {
            return None;
        }
        Some(beside_or_alone(&weights_in(&folder).ok()?))
    }
}

/// Normalises a name: trims it and removes the hub's URL and trailing slashes.
fn tidy(name: &str) -> &str {
    let name = name.trim();
    let name = name.strip_prefix("https://huggingface.co/").unwrap_or(name);
    match name.trim_end_matches('/') {
        "" => name,
        tidy => tidy,
    }
}

const MAIN: &str = "main";

/// Companion files of weights.
const BESIDE: [&str; 4] = [CONFIG, PREPROCESSOR, "tokenizer.json", "vocab.txt"];
const CONFIG: &str = "config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";

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

/// The folder as a checkpoint if it has a configuration, else only the file of weights.
fn beside_or_alone(weights: &Path) -> Checkpoint {
    match weights.parent() {
        Some(folder) if folder.join(CONFIG).is_file() => Checkpoint::Folder(folder.to_owned()),
        _ => Checkpoint::File(weights.to_owned()),
    }
}

/// Parses `OWNER/NAME` or `OWNER/NAME@REVISION`.
fn source(name: &str) -> Option<Source> {
    let (id, revision) = name.split_once('@').unwrap_or((name, MAIN));
    let fits = |part: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(fits)
    };
    if !revision.split('/').all(fits) {
        return None;
    }
    let (owner, repository) = id.split_once('/')?;
    let ending = repository.rsplit_once('.').map_or("", |(_, ending)| ending);
    let is_file = WEIGHT_EXTENSIONS.contains(&ending);
    (fits(owner) && fits(repository) && !is_file).then(|| Source {
        id: id.to_owned(),
        revision: revision.to_owned(),
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
}
