//! Builds the components of `serve`, `annotate`, `warm` and `doctor` from the settings.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use secrecy::SecretString;

use super::progress;
use crate::budget::Budget;
use crate::checkpoints::{NONE, registry};
use crate::config::{HttpArgs, LabelStudioArgs, MediaArgs, SetupArgs, StoreArgs, TypedPrompts};
use crate::label_studio::{Credentials, LabelStudio, TokenSource};
use crate::media::guard::AllowedHosts;
use crate::media::{Fetcher, FetcherConfig, ImageLimits, Images};
use crate::pipeline::device;
use crate::pipeline::handle::{ModelsHandle, RetryDelays};
use crate::pipeline::scheduler::Scheduler;
use crate::pipeline::settings::{ModelNames, ModelSettings};
use crate::pipeline::stages::{STAGES_PERCENT, Stages};
use crate::pipeline::warm::WarmEmbeddings;
use crate::pipeline::{LoadError, ModelLoader, PredictError};
use crate::preannotation::playground::{ComparedModel, ComparedModels};
use crate::preannotation::project::settings::PredictionSettings;
use crate::preannotation::project::store::ProjectStore;
use crate::preannotation::project::version;
use crate::preannotation::{Defaults, Preannotator, Projects};
use crate::store::DiskStore;

/// The async runtime.
///
/// # Errors
/// If its threads cannot be started.
pub(super) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
}

/// Builds the preannotator, and starts the thread that loads the models.
///
/// # Errors
/// If a setting is wrong.
pub(super) fn preannotator(
    args: SetupArgs,
    projects: ProjectStore,
    prompts: TypedPrompts,
    queue: usize,
) -> anyhow::Result<Preannotator> {
    let SetupArgs {
        media,
        models,
        detection,
        store,
        ..
    } = args;
    let loader = ModelLoader::new(models.settings());
    // the loading thread would try it again and again
    if !loader.names().has_detector() && !loader.names().has_segmenter() {
        return Err(LoadError::NoModels.into());
    }
    let defaults = Defaults {
        label_studio: label_studio(&media.label_studio)?,
        prediction: PredictionSettings {
            add_labels: prompts.add_labels,
            ..detection.settings(&loader.names().detector)
        },
        models: version::models(loader.names(), loader.precision(), loader.detector_size()),
        has_detector: loader.names().has_detector(),
        has_segmenter: loader.names().has_segmenter(),
        remembers_prompts: prompts.are_remembered,
    };
    let bytes = cache_bytes(&store, &loader);
    let warm = warm_embeddings(&store, &models.model_dir);
    let disk = warm.as_ref().map(|warm| warm.disk().clone());
    let loader = match disk {
        Some(_) => loader.with_weights_digest(),
        None => loader,
    };
    let models = ModelsHandle::start(RetryDelays::default(), move |progress| {
        // on the loading thread, because listing many files takes a while
        if let Some(disk) = &disk {
            disk.scan_and_evict();
        }
        loader.load(&progress::to_log(progress))
    })?;
    let stages = Stages::new(Scheduler::start()?, models, bytes, warm);
    // the share that the stages leave
    let limits = ImageLimits {
        cache_bytes: bytes / 100 * (100 - STAGES_PERCENT),
        ..ImageLimits::default()
    };
    Ok(Preannotator::new(
        Projects::new(defaults, projects),
        Images::new(fetcher(&media, store.request_bytes)?, limits),
        stages,
        queue,
    ))
}

/// Whether something can be searched for.
///
/// # Errors
/// If no detector is chosen.
pub(super) fn require_detector(names: &ModelNames) -> anyhow::Result<()> {
    match names.has_detector() {
        true => Ok(()),
        false => Err(PredictError::NoDetector.into()),
    }
}

/// Further models for the playground, with the settings of the server's own ones. None is loaded yet.
///
/// # Errors
/// If a list names `none`.
pub(super) fn compared_models(args: &SetupArgs, http: &HttpArgs) -> anyhow::Result<ComparedModels> {
    let none = || Some(NONE.to_owned());
    let model = |name: &str, settings: ModelSettings| {
        let store = args.store.clone();
        ComparedModel::new(name.to_owned(), move |own| {
            let loader = ModelLoader::new(settings.clone());
            let bytes = cache_bytes(&store, &loader) / COMPARED_CACHE_SHARE;
            let load = move |progress| loader.load(&progress::to_log(progress));
            let models = ModelsHandle::start(RetryDelays::default(), load)?;
            Ok(Stages::beside(own, models, bytes))
        })
    };
    // the other model of each pair is the server's own one
    let detector = |name: &str| {
        let settings = ModelSettings {
            detector: Some(name.to_owned()),
            segmenter: none(),
            ..args.models.settings()
        };
        (registry::box_threshold(name), model(name, settings))
    };
    let segmenter = |name: &str| {
        let settings = ModelSettings {
            detector: none(),
            segmenter: Some(name.to_owned()),
            ..args.models.settings()
        };
        model(name, settings)
    };
    let detectors = names("PLAYGROUND_DETECTORS", &http.playground_detectors)?;
    let segmenters = names("PLAYGROUND_SEGMENTERS", &http.playground_segmenters)?;
    Ok(ComparedModels {
        detectors: detectors.into_iter().map(detector).collect(),
        segmenters: segmenters.into_iter().map(segmenter).collect(),
    })
}

/// The names of a setting, without spaces and empty entries.
///
/// # Errors
/// If one of them is `none`.
fn names<'a>(setting: &str, list: &'a [String]) -> anyhow::Result<Vec<&'a str>> {
    let names = list.iter().map(|name| name.trim());
    let names: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
    match names.contains(&NONE) {
        true => bail!("{setting}: \"none\" is not a model that can be compared"),
        false => Ok(names),
    }
}

/// The caches of a further model take this share of `CACHE_BYTES`, besides those of the server's own models.
const COMPARED_CACHE_SHARE: u64 = 8;

/// Memory for cached results in bytes. Tensors are cached where they are, so by default an eighth of a GPU's memory is not
/// exceeded either.
pub(super) fn cache_bytes(store: &StoreArgs, loader: &ModelLoader) -> u64 {
    let gpu = loader.device().ok().and_then(device::gpu_properties);
    match (store.cache_bytes, gpu) {
        (None, Some(gpu)) => store.memory_bytes().min(gpu.memory / 8),
        _ => store.memory_bytes(),
    }
}

/// The remembered prompts and settings of projects: in the shared database if there is one, else in a file.
///
/// # Errors
/// If `DATABASE_URL` cannot be used by this build, or cannot be read.
pub(super) fn project_store(args: &StoreArgs, model_dir: &Path) -> anyhow::Result<ProjectStore> {
    match &args.database_url {
        Some(url) => shared_projects(url),
        None => Ok(local_projects(model_dir)),
    }
}

/// What the servers with the same `DATABASE_URL`, or else the same `MODEL_DIR`, remember; nothing is written.
///
/// # Errors
/// If the database cannot be read.
pub(super) fn remembered_projects(
    args: &StoreArgs,
    model_dir: &Path,
) -> anyhow::Result<ProjectStore> {
    match &args.database_url {
        Some(url) => read_shared_projects(url),
        None => Ok(read_local_projects(model_dir)),
    }
}

#[cfg(feature = "postgres")]
fn shared_projects(url: &SecretString) -> anyhow::Result<ProjectStore> {
    ProjectStore::open_shared(url).context("DATABASE_URL")
}

#[cfg(feature = "postgres")]
fn read_shared_projects(url: &SecretString) -> anyhow::Result<ProjectStore> {
    ProjectStore::read_shared(url).context("DATABASE_URL")
}

#[cfg(not(feature = "postgres"))]
fn shared_projects(_: &SecretString) -> anyhow::Result<ProjectStore> {
    anyhow::bail!("DATABASE_URL needs a build with the feature \"postgres\"")
}

#[cfg(not(feature = "postgres"))]
use self::shared_projects as read_shared_projects;

#[cfg(feature = "sqlite")]
fn local_projects(model_dir: &Path) -> ProjectStore {
    ProjectStore::open(model_dir)
}

#[cfg(feature = "sqlite")]
fn read_local_projects(model_dir: &Path) -> ProjectStore {
    ProjectStore::open_read_only(model_dir)
}

#[cfg(not(feature = "sqlite"))]
fn local_projects(_: &Path) -> ProjectStore {
    tracing::warn!("prompts are lost at a restart, because this build has no SQLite");
    ProjectStore::in_memory()
}

/// This build cannot read what a server remembers.
#[cfg(not(feature = "sqlite"))]
fn read_local_projects(_: &Path) -> ProjectStore {
    ProjectStore::in_memory()
}

/// The store of image embeddings on disk; `None` if the settings disable it.
fn warm_embeddings(args: &StoreArgs, model_dir: &Path) -> Option<WarmEmbeddings> {
    if args.warm_bytes == 0 {
        return None;
    }
    let disk = DiskStore::new(args.embeddings(model_dir), args.warm_bytes);
    Some(WarmEmbeddings::new(disk, args.warm_on_serve.0))
}

/// Label Studio's address and credentials from the settings.
///
/// # Errors
/// If the address is invalid.
pub(super) fn label_studio(args: &LabelStudioArgs) -> anyhow::Result<LabelStudio> {
    let token = args.token();
    let credentials = token.map(|token| Credentials::new(token, TokenSource::Settings));
    LabelStudio::new(args.host(), credentials).context("LABEL_STUDIO_HOST")
}

/// The image fetcher from the settings; all requests share `request_bytes` bytes of memory.
///
/// # Errors
/// If the system's TLS settings cannot be read.
pub(super) fn fetcher(args: &MediaArgs, request_bytes: usize) -> anyhow::Result<Fetcher> {
    let config = FetcherConfig {
        timeout: Duration::from_secs(args.image_timeout_s),
        max_bytes: args.limits.max_image_bytes,
        max_pixels: args.limits.max_image_pixels,
        allowed_hosts: AllowedHosts::parse(&args.allowed_image_hosts),
        local_files: args.local_files().cloned(),
    };
    Ok(Fetcher::new(config, Budget::new(request_bytes))?)
}
