//! Resolves the user's model names (`--detector`, `--segmenter`) to checkpoints on this machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::hub::{Hub, HubError, HubSettings, MAIN, ProgressObserver, RepoRevision};
use super::registry::{self, Entry};
use super::{DEMO, Role, demo};
use crate::models::weights::{Checkpoint, weights_among, weights_in};

/// Why a checkpoint cannot be located.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocateError {
    /// The name is unknown.
    #[error(
        "there is no {role} {name:?}: it is not a file or folder, not in {model_dir} (MODEL_DIR), and not a name that `groundling models` lists; a repository of the hub has the form OWNER/NAME"
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
    #[error("{name} is a {is}, but a {role} is needed here")]
    #[allow(missing_docs)]
    WrongRole {
        name: &'static str,
        is: &'static str,
        role: &'static str,
    },
    /// This build has no demo models.
    #[error(
        "this build does not contain the demo models: build groundling from its repository, or name other models"
    )]
    NoDemo,
    /// The checkpoint is known, but cannot be downloaded.
    #[error(transparent)]
    Hub(#[from] HubError),
}

/// Resolves names to files.
#[derive(Debug)]
pub struct Locator {
    model_dir: PathBuf,
    hub: Hub,
}

impl Locator {
    /// Searches in `model_dir` first, then on the hub and in its cache.
    pub fn new(model_dir: impl Into<PathBuf>, hub: HubSettings) -> Self {
        Self {
            model_dir: model_dir.into(),
            hub: Hub::new(hub),
        }
    }

    /// The hub and its cache.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The checkpoint with this name. Searches in this order: compiled in, a file or folder, `MODEL_DIR`, the hub's
    /// cache, the hub.
    ///
    /// # Errors
    /// If it is not found, or cannot be downloaded.
    pub fn locate(
        &self,
        role: Role,
        name: &str,
        observer: &Arc<dyn ProgressObserver>,
    ) -> Result<Checkpoint, LocateError> {
        if name == DEMO {
            return demo(role).ok_or(LocateError::NoDemo);
        }
        if let Some(entry) = registry::find(normalized(name)) {
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
        let damaged = local
            .as_ref()
            .and_then(|local| self.hub.damaged_weights(local));
        match (local, damaged) {
            (Some(checkpoint), None) => return Ok(checkpoint),
            (_, Some(path)) if self.hub.check_online(name).is_err() => {
                let path = path.display().to_string();
                return Err(HubError::Damaged { path }.into());
            }
            _ => {}
        }
        match self.fetch(name, observer)? {
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
        let name = normalized(name);
        if let Some(entry) = registry::find(name) {
            return self
                .entry_in_model_dir(entry)
                .or_else(|| self.entry_in_cache(entry));
        }
        let without_revision = name.split('@').next().unwrap_or(name);
        let candidates = [
            PathBuf::from(name),
            self.model_dir.join(name),
            self.model_dir.join(without_revision),
        ];
        let path = candidates.into_iter().find(|path| path.exists());
        match path {
            Some(path) if path.is_dir() => Some(Checkpoint::Folder(path)),
            Some(path) => Some(Checkpoint::File(path)),
            None => self.repo_in_cache(&RepoRevision::parse(name)?),
        }
    }

    /// A registered checkpoint in `MODEL_DIR`: a folder with its name, or the original file of its authors.
    fn entry_in_model_dir(&self, entry: &Entry) -> Option<Checkpoint> {
        let folders = [entry.name, entry.hub_id].map(|name| self.model_dir.join(name));
        for folder in folders.into_iter().filter(|folder| folder.is_dir()) {
            match weights_in(&folder) {
                Ok(_) => return Some(Checkpoint::Folder(folder)),
                // an unfinished download, or an empty folder that Docker created for a mount
                Err(error) => tracing::warn!(%error, "a model folder without weights is ignored"),
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

    /// Downloads a checkpoint of the hub into the cache, and verifies the checksum of every file. `None` if the name is
    /// neither registered nor the id of a repository.
    ///
    /// # Errors
    /// If it cannot be downloaded.
    pub fn fetch(
        &self,
        name: &str,
        observer: &Arc<dyn ProgressObserver>,
    ) -> Result<Option<Checkpoint>, HubError> {
        let name = normalized(name);
        let (entry, repo) = (registry::find(name), RepoRevision::parse(name));
        if entry.is_none() && repo.is_none() {
            return Ok(None);
        }
        if let Err(offline) = self.hub.check_online(name) {
            let local = self.local(name);
            let local = local.filter(|local| self.hub.damaged_weights(local).is_none());
            return local.map(Some).ok_or(offline);
        }
        match (entry, repo) {
            (Some(entry), _) => self.fetch_entry(entry, observer).map(Some),
            (None, Some(repo)) => self.fetch_repo(&repo, observer).map(Some),
            (None, None) => Ok(None),
        }
    }

    fn fetch_entry(
        &self,
        entry: &Entry,
        observer: &Arc<dyn ProgressObserver>,
    ) -> Result<Checkpoint, HubError> {
        let pinned = RepoRevision::new(entry.hub_id, entry.revision);
        match self.fetch_files(&pinned, entry, observer) {
            // a commit disappears if the repository's history is rewritten
            Err(HubError::NotFound { .. }) if entry.revision != MAIN => {
                tracing::warn!(
                    model = entry.name,
                    commit = entry.revision,
                    "the hub no longer has the verified commit; the branch main is used instead"
                );
                let main = RepoRevision::new(entry.hub_id, MAIN);
                self.fetch_files(&main, entry, observer)
            }
            result => result,
        }
    }

    fn fetch_files(
        &self,
        repo: &RepoRevision,
        entry: &Entry,
        observer: &Arc<dyn ProgressObserver>,
    ) -> Result<Checkpoint, HubError> {
        // small files first, so that a failure is known early
        for file in entry.others {
            self.hub.fetch(repo, file, observer)?;
        }
        let path = self.hub.fetch(repo, entry.weights.name, observer)?;
        let blob = path.canonicalize().unwrap_or_else(|_| path.clone());
        let etag = blob.file_name().map(|name| name.to_string_lossy());
        let differs = |known: &&str| {
            etag.as_deref()
                .is_some_and(|etag| etag.len() == 64 && etag != *known)
        };
        if entry.weights.sha256.filter(differs).is_some() {
            tracing::warn!(
                model = entry.name,
                "the hub's file of weights is not the one that this version of groundling was checked with"
            );
        }
        Ok(entry_checkpoint(entry, path))
    }

    fn entry_in_cache(&self, entry: &Entry) -> Option<Checkpoint> {
        // files that other tools downloaded are equally valid
        [entry.revision, MAIN].into_iter().find_map(|revision| {
            let repo = RepoRevision::new(entry.hub_id, revision);
            let folder = self.hub.snapshot(&repo)?;
            let mut files = entry.others.iter().chain([&entry.weights.name]);
            let is_complete = files.all(|file| folder.join(file).is_file());
            is_complete.then(|| entry_checkpoint(entry, folder.join(entry.weights.name)))
        })
    }

    /// Downloads the weights and the companion files of any repository of the hub.
    fn fetch_repo(
        &self,
        repo: &RepoRevision,
        observer: &Arc<dyn ProgressObserver>,
    ) -> Result<Checkpoint, HubError> {
        let files = self.hub.list(repo)?;
        let weights = weights_among(&files).map_err(|several| HubError::NoWeights {
            id: repo.id.clone(),
            found: match several.as_slice() {
                [] => "no weights".to_owned(),
                several => format!("several files of weights ({})", several.join(", ")),
            },
        })?;
        for file in COMPANIONS
            .iter()
            .filter(|file| files.iter().any(|f| f == *file))
        {
            self.hub.fetch(repo, file, observer)?;
        }
        let path = self.hub.fetch(repo, weights, observer)?;
        Ok(checkpoint_of_weights(&path))
    }

    fn repo_in_cache(&self, repo: &RepoRevision) -> Option<Checkpoint> {
        let folder = self.hub.snapshot(repo)?;
        let has = |file: &str| folder.join(file).is_file();
        // other tools download only the files they need
        if has(CONFIG) && !has(PREPROCESSOR) {
            return None;
        }
        Some(checkpoint_of_weights(&weights_in(&folder).ok()?))
    }
}

/// Trims a name and removes the hub's URL and trailing slashes.
fn normalized(name: &str) -> &str {
    let name = name.trim();
    let name = name.strip_prefix("https://huggingface.co/").unwrap_or(name);
    match name.trim_end_matches('/') {
        "" => name,
        trimmed => trimmed,
    }
}

/// Companion files of weights.
const COMPANIONS: [&str; 4] = [CONFIG, PREPROCESSOR, "tokenizer.json", "vocab.txt"];
const CONFIG: &str = "config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";

fn entry_checkpoint(entry: &Entry, weights: PathBuf) -> Checkpoint {
    match weights.parent() {
        Some(folder) if !entry.others.is_empty() => Checkpoint::Folder(folder.to_owned()),
        _ => Checkpoint::File(weights),
    }
}

/// The weights' folder as a checkpoint if it has a configuration, else only the file of weights.
fn checkpoint_of_weights(weights: &Path) -> Checkpoint {
    match weights.parent() {
        Some(folder) if folder.join(CONFIG).is_file() => Checkpoint::Folder(folder.to_owned()),
        _ => Checkpoint::File(weights.to_owned()),
    }
}
