//! `groundling warm`: computes the image embeddings of a whole project ahead of time and stores them on disk.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::bail;
use futures_util::{StreamExt, stream};
use tokio::sync::Notify;
use tracing::Instrument;

use super::progress::mebibytes;
use super::project::{AT_ONCE, Access, Failures, Pages, Progress, loaded, until_stopped};
use super::{print, road, tell};
use crate::config::{PromptMemory, Switch, WarmArgs};
use crate::label_studio::api::{self, Api};
use crate::media::Digest;
use crate::pipeline::PredictError;
use crate::pipeline::scheduler::StepError;
use crate::pipeline::stages::StageError;
use crate::pipeline::warm::{KeepError, Warmed};
use crate::preannotation::{PreannotationError, Preannotator, Task, WarmPlan, WarmingError};
use crate::store::DiskStore;

/// Computes the image embeddings of a project's tasks and stores them on disk.
///
/// # Errors
/// If Label Studio or the models cannot be used, or the store is full. If single images failed, the error is returned
/// after all others are done.
pub fn run(args: WarmArgs) -> anyhow::Result<()> {
    road::runtime()?.block_on(warm(args))
}

async fn warm(mut args: WarmArgs) -> anyhow::Result<()> {
    let Access {
        api,
        project,
        config,
        memory,
        origin,
    } = Access::new(&args.road, args.project).await?;
    // this command writes every embedding itself, exactly once
    args.road.store.warm_on_serve = Switch(false);
    let preannotator = road::preannotator(args.road, memory, PromptMemory::Off, AT_ONCE)?;
    let Some(warm) = preannotator.stages().warm_embeddings() else {
        bail!(KeepError::NoStore);
    };
    let disk = warm.disk().clone();
    let plan = preannotator.plan_warming(origin, config)?;
    let images: Vec<&str> = plan.images().iter().map(|image| &*image.name).collect();
    tell(format_args!(
        "project {} {:?}: looking at {}",
        project.id,
        project.title,
        images.join(" and ")
    ));
    loaded(&preannotator).await?;
    let bytes_of_one = preannotator.stages().warm_bytes().await?;
    if bytes_of_one > disk.bytes_after_eviction() {
        bail!(
            "an image embedding takes {bytes_of_one} bytes on disk, and WARM_BYTES={} has no room for one",
            disk.capacity()
        );
    }
    let mut run = Run {
        api,
        room: Room::new(disk.bytes_after_eviction(), bytes_of_one),
        preannotator: Arc::new(preannotator),
        plan,
        only_unlabeled: args.only_unlabeled,
        summary: Summary::default(),
        progress: Progress::new(),
    };
    let outcome = until_stopped(run.all(project.id)).await;
    run.progress.finish();
    run.summary.print(&disk);
    outcome?;
    match run.summary.failures.count() {
        0 => Ok(()),
        failed => bail!("{failed} images are not warm; run it again to try them again"),
    }
}

/// The state of a run over a project.
struct Run {
    api: Api,
    preannotator: Arc<Preannotator>,
    plan: WarmPlan,
    room: Room,
    only_unlabeled: bool,
    summary: Summary,
    progress: Progress,
}

#[derive(Debug, Default)]
struct Summary {
    computed: u64,
    /// Images that were on disk already.
    known: u64,
    /// Tasks that were skipped because of their annotations.
    annotated: u64,
    failures: Failures,
}

/// Why an image was not warmed.
#[derive(Debug, thiserror::Error)]
enum ImageError {
    #[error(
        "WARM_BYTES is full of the images of this project: {0} of them are warm, and one more would take the place of another; more bytes keep more of them"
    )]
    Full(usize),
    #[error(transparent)]
    Warming(#[from] WarmingError),
}

impl ImageError {
    /// Whether every other image would fail too.
    fn is_hopeless(&self) -> bool {
        match self {
            Self::Full(_) => true,
            Self::Warming(WarmingError::Keep(error)) => !matches!(error, KeepError::Bytes(_)),
            Self::Warming(WarmingError::Preannotation(PreannotationError::Stage(error))) => {
                matches!(
                    **error,
                    StageError::NotReady(_)
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
struct Room {
    /// The limit of all files together, in bytes.
    bytes: u64,
    /// The size of one image's file, in bytes.
    bytes_of_one: u64,
    taken: Mutex<Taken>,
    /// Notified when a reserved image is stored or has failed.
    settled: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    /// Images of this project that are on disk.
    warm: HashSet<Digest>,
    /// Number of images in progress.
    coming: u64,
}

impl Room {
    fn new(bytes: u64, bytes_of_one: u64) -> Self {
        Self {
            bytes,
            bytes_of_one,
            taken: Mutex::default(),
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
                let mut taken = self.taken();
                let warm = taken.warm.len() as u64;
                if !self.has_room(warm) {
                    return Err(ImageError::Full(taken.warm.len()));
                }
                if self.has_room(warm + taken.coming) {
                    taken.coming += 1;
                    return Ok(());
                }
            }
            settled.await;
        }
    }

    /// Whether there is space for one more image in addition to `images`.
    fn has_room(&self, images: u64) -> bool {
        (images + 1).saturating_mul(self.bytes_of_one) <= self.bytes
    }

    /// Ends a reservation: the image is stored, or has failed.
    fn settle(&self, warmed: Option<&Warmed>) {
        let mut taken = self.taken();
        taken.coming -= 1;
        taken.warm.extend(warmed.map(|warmed| warmed.digest));
        drop(taken);
        self.settled.notify_waiters();
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Run {
    /// Processes the project page by page. Images on disk are not computed again, so an interrupted run can be
    /// resumed.
    async fn all(&mut self, project: u64) -> anyhow::Result<()> {
        let mut pages = Pages::new(project);
        while let Some((mut tasks, total)) = pages.next(&self.api).await? {
            self.progress.set_total(total);
            tasks.retain(|task| self.is_wanted(task));
            self.some(tasks).await?;
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

    async fn some(&mut self, tasks: Vec<api::StoredTask>) -> anyhow::Result<()> {
        let (preannotator, plan, room) = (&self.preannotator, &self.plan, &self.room);
        let work = tasks.into_iter().map(|task| async move {
            let id = task.id;
            (id, one(preannotator, plan, room, task).await)
        });
        let mut work = stream::iter(work).buffer_unordered(AT_ONCE);
        while let Some((task, outcomes)) = work.next().await {
            for outcome in outcomes {
                match outcome {
                    Ok(warmed) if warmed.is_new => self.summary.computed += 1,
                    Ok(_) => self.summary.known += 1,
                    Err(error) if error.is_hopeless() => return Err(error.into()),
                    Err(error) => self.summary.failures.add(task, &error, &self.progress),
                }
            }
            self.progress.step();
        }
        Ok(())
    }
}

/// Warms the images of a task, one after the other.
async fn one(
    preannotator: &Preannotator,
    plan: &WarmPlan,
    room: &Room,
    task: api::StoredTask,
) -> Vec<Result<Warmed, ImageError>> {
    let task = Task {
        id: Some(task.id),
        data: task.data,
        regions: vec![],
    };
    let mut outcomes = vec![];
    for image in plan.images() {
        if let Err(full) = room.reserve().await {
            outcomes.push(Err(full));
            break;
        }
        let warmed = preannotator.warm(plan, &task, image);
        let warmed = warmed.instrument(task.span()).await;
        room.settle(warmed.as_ref().ok());
        outcomes.push(warmed.map_err(ImageError::from));
    }
    outcomes
}

impl Summary {
    fn print(&self, disk: &DiskStore) {
        // other processes use the folder too
        disk.scan_and_evict();
        let usage = disk.usage();
        print(format_args!(
            "{} images: {} computed, {} were there, {} failed; {} tasks left out for their annotations",
            self.computed + self.known + self.failures.count() as u64,
            self.computed,
            self.known,
            self.failures.count(),
            self.annotated
        ));
        print(format_args!(
            "{} holds {} image embeddings in {} of {} (WARM_BYTES); {} that were not used for longest were deleted",
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
    async fn what_was_written_does_not_go_for_what_is_written_next() {
        let room = Room::new(35, 10);
        let warmed = |bytes: &[u8]| Warmed {
            digest: Digest::of(bytes),
            bytes: 10,
            is_new: true,
        };
        for image in [b"a", b"b", b"a"] {
            room.reserve().await.unwrap();
            room.settle(Some(&warmed(image)));
        }
        // two images are stored and one is in progress, which fails: the waiting task gets its space
        room.reserve().await.unwrap();
        let fails = async {
            tokio::task::yield_now().await;
            assert_eq!(room.taken().coming, 1, "somebody did not wait");
            room.settle(None);
        };
        let (reserved, ()) = tokio::join!(room.reserve(), fails);
        reserved.unwrap();
        room.settle(Some(&warmed(b"c")));
        let full = room.reserve().await.unwrap_err();
        assert!(full.is_hopeless());
        assert!(full.to_string().contains("3 of them are warm"), "{full}");
    }
}
