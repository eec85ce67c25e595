//! Shared code of the commands for a whole project: access to it, paging through its tasks, progress and failures.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{HumanDuration, ProgressBar, ProgressState, ProgressStyle};

use super::signals::stop_signal;
use super::{print_problem, print_result, print_status, progress, setup};
use crate::config::SetupArgs;
use crate::label_studio::LabelStudio;
use crate::label_studio::api::{Api, ApiError, Project, StoredTask};
use crate::labeling::LabelingConfig;
use crate::pipeline::handle::ModelsUnavailable;
use crate::preannotation::project::store::ProjectStore;
use crate::preannotation::{Origin, Preannotator};
use crate::runs::RunFile;

/// Tasks per page; each task includes all its annotations and masks.
const PAGE_SIZE: u64 = 50;
/// Tasks in progress at a time: fetched, computed, stored.
pub(super) const CONCURRENT_TASKS: usize = 3;
/// Limit of failures that the summary lists one by one.
const MAX_LISTED_FAILURES: usize = 20;
/// Interval of progress lines without a terminal.
const PROGRESS_LINE_INTERVAL: Duration = Duration::from_secs(15);

/// A project, and its remembered settings.
pub(super) struct Access {
    pub(super) api: Api,
    pub(super) project: Project,
    pub(super) config: Arc<LabelingConfig>,
    pub(super) projects: ProjectStore,
    pub(super) origin: Origin,
}

impl Access {
    /// Reads the project with this id, and the settings that a server on this machine remembers for it.
    ///
    /// # Errors
    /// If Label Studio cannot be reached, or the labeling config cannot be used.
    pub(super) async fn new(args: &SetupArgs, number: u64) -> anyhow::Result<Self> {
        let api = Api::new(setup::label_studio(&args.media.label_studio)?)?;
        let project = api
            .project(number)
            .await
            .with_context(|| format!("cannot read project {number}"))?;
        let config = LabelingConfig::parse(&project.label_config)
            .with_context(|| format!("project {}", project.id))?;
        let projects = setup::remembered_projects(&args.store, &args.models.model_dir)?;
        let name = projects.name_of_number(project.id);
        let origin = Origin {
            project: name.unwrap_or_else(|| project.id.to_string()),
            login: None,
        };
        Ok(Self {
            api,
            project,
            config: Arc::new(config),
            projects,
            origin,
        })
    }

    /// Like [`Self::new`], with the *extra params* of the connected backend.
    ///
    /// # Errors
    /// See [`Self::new`].
    pub(super) async fn with_extra_params(args: &SetupArgs, number: u64) -> anyhow::Result<Self> {
        let access = Self::new(args, number).await?;
        if let Ok(backends) = access.api.backends(access.project.id).await
            && let Some(backend) = backends.first()
        {
            access.projects.apply_setup(
                &access.origin.project,
                &backend.extra_params,
                LabelStudio::default(),
            );
        }
        Ok(access)
    }
}

/// Waits until the models are loaded.
///
/// # Errors
/// If they cannot be loaded.
pub(super) async fn wait_for_models(preannotator: &Preannotator) -> anyhow::Result<()> {
    match preannotator.models_handle().get_after_download().await {
        Err(ModelsUnavailable::Failed { reason, .. }) => {
            bail!("the models could not be loaded: {reason}")
        }
        // other states are reported by the next use of the models
        _ => Ok(()),
    }
}

/// Runs `work` until it completes, or until Ctrl-C or SIGTERM.
///
/// # Errors
/// The error of `work`, or that it was interrupted.
pub(super) async fn until_interrupted(
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    tokio::select! {
        outcome = work => outcome,
        () = stop_signal() => bail!("interrupted; run the command again to continue"),
    }
}

/// Iterates over the tasks of a project, or of a part of them, page by page.
pub(super) struct Pages {
    project: u64,
    /// The index of the part, and the number of parts.
    part: (u64, u64),
    /// The number of the next page; `None` after the last one.
    next: Option<u64>,
}

impl Pages {
    pub(super) fn new(project: u64, part: (u64, u64)) -> Self {
        let next = Some(1);
        Self {
            project,
            part,
            next,
        }
    }

    /// The tasks of the next page that belong to the part, and the approximate number of tasks in the part. `None` after
    /// the last page.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub(super) async fn next(
        &mut self,
        api: &Api,
    ) -> Result<Option<(Vec<StoredTask>, u64)>, ApiError> {
        let Some(number) = self.next else {
            return Ok(None);
        };
        let mut page = api.tasks(self.project, number, PAGE_SIZE).await?;
        self.next = (number * PAGE_SIZE < page.total).then_some(number + 1);
        // a task's part does not change when tasks are added or deleted
        let (index, count) = self.part;
        page.tasks.retain(|task| task.id % count == index);
        Ok(Some((page.tasks, page.total.div_ceil(count))))
    }
}

/// The failed tasks and their errors.
#[derive(Debug, Default)]
pub(super) struct Failures(Vec<(u64, String)>);

impl Failures {
    /// Prints a failure immediately, and keeps it for the summary.
    pub(super) fn add(&mut self, task: u64, error: &impl Display, progress: &mut Progress) {
        progress.fail(format!("task {task}: {error}"));
        let line = format!("task {task}: {error}");
        progress.bar.suspend(|| print_problem(line));
        self.0.push((task, error.to_string()));
        progress
            .bar
            .set_message(format!(", {} failed", self.0.len()));
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Prints a line for each of the first failures.
    pub(super) fn print(&self) {
        for (task, cause) in self.0.iter().take(MAX_LISTED_FAILURES) {
            print_result(format_args!("  task {task}: {cause}"));
        }
        if self.count() > MAX_LISTED_FAILURES {
            print_result(format_args!(
                "  and {} more",
                self.count() - MAX_LISTED_FAILURES
            ));
        }
    }
}

/// A progress bar on a terminal, else a line at intervals.
pub(super) struct Progress {
    bar: ProgressBar,
    is_drawn: bool,
    last_line: Instant,
    /// For the status page.
    run: RunFile,
}

impl Progress {
    /// The progress of a command on a project.
    pub(super) fn new(model_dir: &Path, command: &str, project: u64) -> Self {
        let is_drawn = progress::is_drawn();
        let bar = if is_drawn {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let template = "{bar:30} {pos}/{len} tasks, {rate}, {eta} left{msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            let rate = |state: &ProgressState, line: &mut dyn std::fmt::Write| {
                // writing to a bar's line cannot fail
                let _ = write!(line, "{:.1}/s", state.per_sec());
            };
            bar.set_style(style.with_key("rate", rate));
        }
        Self {
            bar,
            is_drawn,
            last_line: Instant::now(),
            run: RunFile::start(model_dir, command, project),
        }
    }

    /// Sets the number of tasks.
    pub(super) fn set_total(&mut self, tasks: u64) {
        self.run.set_total(tasks);
        self.bar.set_length(tasks);
    }

    /// Counts a skipped task.
    pub(super) fn skip(&mut self) {
        self.run.step();
        self.bar.inc(1);
    }

    /// Counts a finished task, and prints a line if one is due.
    pub(super) fn step(&mut self) {
        self.run.step();
        self.bar.inc(1);
        if !self.is_drawn && self.last_line.elapsed() > PROGRESS_LINE_INTERVAL {
            self.last_line = Instant::now();
            print_status(format_args!(
                "{}/{} tasks, {:.1}/s, {} left",
                self.bar.position(),
                self.bar.length().unwrap_or(0),
                self.bar.per_sec(),
                HumanDuration(self.bar.eta())
            ));
        }
    }

    /// Counts a failure of a task, which is also counted by [`Self::step`].
    pub(super) fn fail(&mut self, error: String) {
        self.run.fail(error);
    }

    /// Removes the bar.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
