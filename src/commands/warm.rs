//! `groundling warm`: computes the image embeddings of a whole project ahead of time and stores them on disk.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::bail;
use futures_util::{StreamExt, stream};
use tokio::sync::Notify;
use tracing::Instrument;

use super::progress::mebibytes;
use super::project::{
    Access, CONCURRENT_TASKS, Failures, Pages, Progress, until_interrupted, wait_for_models,
};
use super::{print_result, print_status, setup};
use crate::config::{TypedPrompts, WarmArgs};
use crate::label_studio::api::{self, Api};
use crate::media::Digest;
use crate::pipeline::PredictError;
use crate::pipeline::scheduler::StepError;
use crate::pipeline::stages::StageError;
use crate::pipeline::warm::{EmbeddingStoreError, WarmedImage};
use crate::preannotation::{PreannotationError, Preannotator, Task, WarmPlan, WarmingError};
use crate::store::DiskStore;

/// Computes the image embeddings of a project's tasks and stores them on disk.
///
/// # Errors
/// If Label Studio or the models cannot be used, or the store is full. If single images failed, the error is returned
/// after all others are done.
pub fn run(args: WarmArgs) -> anyhow::Result<()> {
    setup::runtime()?.block_on(warm(args))
}

async fn warm(mut args: WarmArgs) -> anyhow::Result<()> {
    let part = args.tasks.part()?;
    let model_dir = args.tasks.setup.models.model_dir.clone();
    let Access {
        api,
        project,
        config,
        projects,
        origin,
    } = Access::new(&args.tasks.setup, args.tasks.project).await?;
    // this command writes every embedding itself, exactly once
    args.tasks.setup.store.warm_on_serve.0 = false;
    let preannotator = setup::preannotator(
        args.tasks.setup,
        projects,
        TypedPrompts::default(),
        CONCURRENT_TASKS,
    )?;
    let Some(warm) = preannotator.stages().warm_embeddings() else {
        bail!(EmbeddingStoreError::NoStore);
    };
    let disk = warm.disk().clone();
    let plan = preannotator.plan_warming(origin, config)?;
    let images: Vec<&str> = plan.images().iter().map(|image| &*image.name).collect();
    print_status(format_args!(
        "project {} {:?}: computing image embeddings of {}",
        project.id,
        project.title,
        images.join(" and ")
    ));
    wait_for_models(&preannotator).await?;
    let bytes_per_image = preannotator.stages().embedding_file_bytes().await?;
    if bytes_per_image > disk.bytes_after_eviction() {
        bail!(
            "an image embedding takes {bytes_per_image} bytes on disk, which is more than WARM_BYTES={} allows",
            disk.capacity()
        );
    }
    let mut run = Run {
        api,
        space: DiskSpace::new(disk.bytes_after_eviction(), bytes_per_image),
        preannotator: Arc::new(preannotator),
        plan,
        only_unlabeled: args.tasks.only_unlabeled,
        part,
        summary: Summary::default(),
        progress: Progress::new(&model_dir, "warm", project.id),
    };
    let outcome = until_interrupted(run.process_project(project.id)).await;
    run.progress.finish();
    run.summary.print(&disk);
    outcome?;
    match run.summary.failures.count() {
        0 => Ok(()),
        failed => bail!("{failed} images failed; run the command again to retry them"),
    }
}

/// The state of a run over a project.
struct Run {
    api: Api,
    preannotator: Arc<Preannotator>,
    plan: WarmPlan,
    space: DiskSpace,
    only_unlabeled: bool,
    /// The part of the tasks.
    part: (u64, u64),
    summary: Summary,
    progress: Progress,
}

#[derive(Debug, Default)]
struct Summary {
    computed: u64,
    /// Images that were on disk already.
    already_stored: u64,
    /// Tasks that were skipped because of their annotations.
    annotated: u64,
    failures: Failures,
}

/// Why an image was not warmed.
#[derive(Debug, thiserror::Error)]
enum ImageError {
    #[error(
        "WARM_BYTES is too small for this project: the embeddings of {0} of its images are stored, and one more would evict one of them; increase WARM_BYTES to store all"
    )]
    Full(usize),
    #[error(transparent)]
    Warming(#[from] WarmingError),
}

impl ImageError {
    /// Whether every other image would fail too.
    fn is_fatal(&self) -> bool {
        match self {
            Self::Full(_) => true,
            Self::Warming(WarmingError::Store(error)) => {
                !matches!(error, EmbeddingStoreError::Bytes(_))
            }
            Self::Warming(WarmingError::Preannotation(PreannotationError::Stage(error))) => {
                matches!(
                    **error,
                    StageError::ModelsUnavailable(_)
                        | StageError::Step(StepError::Stopped)
                        | StageError::Predict(PredictError::NoSegmenter)
                )
            }
            Self::Warming(WarmingError::Preannotation(_)) => false,
        }
    }
}

/// Tracks the disk space of this run, so that new embeddings do not evict those of the same run.
#[derive(Debug)]
struct DiskSpace {
    /// The limit of all files together, in bytes.
    bytes: u64,
    /// The size of one image's file, in bytes.
    bytes_per_image: u64,
    used: Mutex<Used>,
    /// Notified when a reserved image is stored or has failed.
    settled: Notify,
}

#[derive(Debug, Default)]
struct Used {
    /// Images of this project that are on disk.
    stored: HashSet<Digest>,
    /// Number of images in progress.
    in_progress: u64,
}

impl DiskSpace {
    fn new(bytes: u64, bytes_per_image: u64) -> Self {
        Self {
            bytes,
            bytes_per_image,
            used: Mutex::default(),
            settled: Notify::new(),
        }
    }

    /// Reserves space for one more image. If the space is used up by images in progress, it waits for them, because
    /// they may fail or may be stored already.
    ///
    /// # Errors
    /// If the stored images of this project fill the space.
    async fn reserve(&self) -> Result<(), ImageError> {
        loop {
            let settled = self.settled.notified();
            {
                let mut used = self.used();
                let stored = used.stored.len() as u64;
                if !self.fits_one_more(stored) {
                    return Err(ImageError::Full(used.stored.len()));
                }
                if self.fits_one_more(stored + used.in_progress) {
                    used.in_progress += 1;
                    return Ok(());
                }
            }
            settled.await;
        }
    }

    /// Whether there is space for one more image in addition to `images`.
    fn fits_one_more(&self, images: u64) -> bool {
        (images + 1).saturating_mul(self.bytes_per_image) <= self.bytes
    }

    /// Ends a reservation: the image is stored, or has failed.
    fn settle(&self, warmed: Option<&WarmedImage>) {
        let mut used = self.used();
        used.in_progress -= 1;
        used.stored.extend(warmed.map(|warmed| warmed.digest));
        drop(used);
        self.settled.notify_waiters();
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Run {
    /// Processes the project page by page. Images on disk are not computed again, so an interrupted run can be
    /// resumed.
    async fn process_project(&mut self, project: u64) -> anyhow::Result<()> {
        let mut pages = Pages::new(project, self.part);
        while let Some((mut tasks, total)) = pages.next(&self.api).await? {
            self.progress.set_total(total);
            tasks.retain(|task| self.is_wanted(task));
            self.process_page(tasks).await?;
        }
        Ok(())
    }

    fn is_wanted(&mut self, task: &api::StoredTask) -> bool {
        let is_wanted = !self.only_unlabeled || task.total_annotations == 0;
        if !is_wanted {
            self.summary.annotated += 1;
            self.progress.skip();
        }
        is_wanted
    }

    async fn process_page(&mut self, tasks: Vec<api::StoredTask>) -> anyhow::Result<()> {
        let (preannotator, plan, space) = (&self.preannotator, &self.plan, &self.space);
        let work = tasks.into_iter().map(|task| async move {
            let id = task.id;
            (id, warm_task(preannotator, plan, space, task).await)
        });
        let mut work = stream::iter(work).buffer_unordered(CONCURRENT_TASKS);
        while let Some((task, outcomes)) = work.next().await {
            for outcome in outcomes {
                match outcome {
                    Ok(warmed) if warmed.is_new => self.summary.computed += 1,
                    Ok(_) => self.summary.already_stored += 1,
                    Err(error) if error.is_fatal() => return Err(error.into()),
                    Err(error) => self.summary.failures.add(task, &error, &mut self.progress),
                }
            }
            self.progress.step();
        }
        Ok(())
    }
}

/// Warms the images of a task, all pages included, one after the other.
async fn warm_task(
    preannotator: &Preannotator,
    plan: &WarmPlan,
    space: &DiskSpace,
    task: api::StoredTask,
) -> Vec<Result<WarmedImage, ImageError>> {
    let task = Task {
        id: Some(task.id),
        data: task.data,
        regions: vec![],
    };
    let mut outcomes = vec![];
    for page in plan.pages(&task) {
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                outcomes.push(Err(error.into()));
                continue;
            }
        };
        if let Err(full) = space.reserve().await {
            outcomes.push(Err(full));
            break;
        }
        let warmed = preannotator.warm(plan, &task, &page);
        let warmed = warmed.instrument(task.span()).await;
        space.settle(warmed.as_ref().ok());
        outcomes.push(warmed.map_err(ImageError::from));
    }
    outcomes
}

impl Summary {
    fn print(&self, disk: &DiskStore) {
        // other processes use the folder too
        disk.scan_and_evict();
        let usage = disk.usage();
        print_result(format_args!(
            "{} images: {} computed, {} already stored, {} failed; {} tasks skipped because they have annotations",
            self.computed + self.already_stored + self.failures.count() as u64,
            self.computed,
            self.already_stored,
            self.failures.count(),
            self.annotated
        ));
        print_result(format_args!(
            "{} has {} image embeddings in {} of {} (WARM_BYTES); {} least recently used ones were deleted",
            disk.folder().display(),
            usage.entries,
            mebibytes(usage.bytes),
            mebibytes(usage.capacity),
            disk.evicted()
        ));
        self.failures.print();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn embeddings_of_one_run_do_not_evict_each_other() {
        let space = DiskSpace::new(35, 10);
        let warmed = |bytes: &[u8]| WarmedImage {
            digest: Digest::of(bytes),
            bytes: 10,
            is_new: true,
        };
        for image in [b"a", b"b", b"a"] {
            space.reserve().await.unwrap();
            space.settle(Some(&warmed(image)));
        }
        // two images are stored and one is in progress, which fails: the waiting task gets its space
        space.reserve().await.unwrap();
        let fails = async {
            tokio::task::yield_now().await;
            assert_eq!(
                space.used().in_progress,
                1,
                "the second reservation must wait"
            );
            space.settle(None);
        };
        let (reserved, ()) = tokio::join!(space.reserve(), fails);
        reserved.unwrap();
        space.settle(Some(&warmed(b"c")));
        let full = space.reserve().await.unwrap_err();
        assert!(full.is_fatal());
        assert!(
            full.to_string().contains("embeddings of 3 of its images"),
            "{full}"
        );
    }
}
