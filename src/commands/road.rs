//! Builds the components of `serve`, `annotate`, `warm` and `doctor` from the settings.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::progress;
use crate::budget::Budget;
use crate::config::{MediaArgs, PromptMemory, RoadArgs, StoreArgs};
use crate::label_studio::{Credentials, LabelStudio, TokenSource};
use crate::media::guard::AllowedHosts;
use crate::media::{Fetcher, FetcherConfig, ImageLimits, Images};
use crate::pipeline::Plan;
use crate::pipeline::loading::{Loading, Pauses};
use crate::pipeline::scheduler::Scheduler;
use crate::pipeline::stages::{STAGES_PERCENT, Stages};
use crate::pipeline::warm::WarmEmbeddings;
use crate::preannotation::project::memory::ProjectMemory;
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
    args: RoadArgs,
    memory: ProjectMemory,
    prompts: PromptMemory,
    queue: usize,
) -> anyhow::Result<Preannotator> {
    let RoadArgs {
        media,
        models,
        detection,
        store,
        ..
    } = args;
    let plan = Plan::new(&models);
    let defaults = Defaults {
        label_studio: label_studio(&media)?,
        options: detection.options(),
        polygon_tolerance: detection.polygon_tolerance.0,
        models: version::models(plan.choice(), plan.precision(), plan.detector_size()),
        remembers_prompts: prompts == PromptMemory::Project,
    };
    let warm = warm_embeddings(&store, &models.model_dir);
    let disk = warm.as_ref().map(|warm| warm.disk().clone());
    let plan = match disk {
        Some(_) => plan.identifying(),
        None => plan,
    };
    let loading = Loading::start(Pauses::default(), move |reporter| {
        // on the loading thread, because listing many files takes a while
        if let Some(disk) = &disk {
            disk.scan_and_evict();
        }
        plan.load(&progress::logged(reporter))
    })?;
    let bytes = store.memory_bytes();
    let stages = Stages::new(Scheduler::start()?, loading, bytes, warm);
    // the share that the stages leave
    let limits = ImageLimits {
        cache_bytes: bytes / 100 * (100 - STAGES_PERCENT),
        ..ImageLimits::default()
    };
    Ok(Preannotator::new(
        Projects::new(defaults, memory),
        Images::new(fetcher(&media, store.request_bytes)?, limits),
        stages,
        queue,
    ))
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
pub(super) fn label_studio(args: &MediaArgs) -> anyhow::Result<LabelStudio> {
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
