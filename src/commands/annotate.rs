//! `groundling annotate`: a whole project, without Label Studio's time-out.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::{StreamExt, stream};
use indicatif::{HumanDuration, ProgressBar, ProgressState, ProgressStyle};
use serde::Serialize;

use super::{print, road, tell};
use crate::config::{AnnotateArgs, PromptMemory};
use crate::label_studio::api::{self, Api, ApiError};
use crate::labeling::LabelingConfig;
use crate::pipeline::loading::NotReady;
use crate::pipeline::scheduler::{StepError, Urgency};
use crate::pipeline::stages::StageError;
use crate::preannotation::project::memory::ProjectMemory;
use crate::preannotation::{
    BatchPlan, Origin, PreannotationError, Preannotator, Task, TaskPrediction,
};
use crate::prompt::Prompt;

/// Tasks asked for at a time: with all their annotations, masks included.
const PAGE: u64 = 50;
/// Tasks on their way at a time: fetched, computed, stored.
const AT_ONCE: usize = 3;
/// Failures that are told one by one.
const TOLD: usize = 20;
/// Between lines of progress where there is no terminal to draw on.
const BETWEEN_LINES: Duration = Duration::from_secs(15);

/// Predicts the project's tasks and stores what was found.
///
/// # Errors
/// If Label Studio or the models cannot be used; and, after everything else is done, if a task failed.
pub fn run(args: AnnotateArgs) -> anyhow::Result<()> {
    road::runtime()?.block_on(annotate(args))
}

async fn annotate(args: AnnotateArgs) -> anyhow::Result<()> {
    if let Some(prompt) = &args.prompt {
        Prompt::parse(prompt)?;
    }
    let label_studio = road::label_studio(&args.road.media)?;
    let api = Api::new(label_studio)?;
    let project = api
        .project(args.project)
        .await
        .with_context(|| format!("project {} cannot be read", args.project))?;
    let config = LabelingConfig::parse(&project.label_config)
        .with_context(|| format!("project {}", project.id))?;

    let memory = ProjectMemory::look(&args.road.models.model_dir);
    let name = memory.name_of_number(project.id);
    let origin = Origin {
        project: name.unwrap_or_else(|| project.id.to_string()),
        login: None,
    };
    // what the connected backend was given counts here too
    if let Ok(backends) = api.backends(project.id).await
        && let Some(backend) = backends.first()
    {
        let nobody = Default::default();
        memory.remember_setup(&origin.project, &backend.extra_params, nobody);
    }
    let preannotator = Arc::new(road::preannotator(
        args.road,
        memory,
        PromptMemory::Off,
        AT_ONCE,
    )?);
    let plan = preannotator.plan(
        origin,
        Arc::new(config),
        args.prompt.as_deref(),
        Urgency::Batch,
    )?;
    let prompts: Vec<String> = plan.prompts().map(Prompt::to_string).collect();
    tell(format_args!(
        "project {} {:?}: looking for {}",
        project.id,
        project.title,
        prompts.join(" and ")
    ));
    if let Err(NotReady::Failed { reason, .. }) = preannotator.loading().fetched().await {
        bail!("the models could not be loaded: {reason}");
    }
    let mut run = Run {
        api,
        preannotator,
        plan,
        only_unlabeled: args.only_unlabeled,
        summary: Summary::default(),
        progress: Progress::new(),
    };
    let outcome = tokio::select! {
        outcome = run.all(project.id) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("stopped; run it again to go on")),
    };
    run.progress.bar.finish_and_clear();
    run.summary.print();
    outcome?;
    match run.summary.failures.len() {
        0 => Ok(()),
        failed => bail!("{failed} tasks have no prediction; run it again to try them again"),
    }
}

/// A run over a project.
struct Run {
    api: Api,
    preannotator: Arc<Preannotator>,
    plan: BatchPlan,
    only_unlabeled: bool,
    summary: Summary,
    progress: Progress,
}

#[derive(Debug, Default)]
struct Summary {
    /// Looked at.
    tasks: u64,
    predicted: u64,
    regions: usize,
    /// Had a prediction of this version.
    known: u64,
    /// Left out because of their annotations.
    annotated: u64,
    failures: Vec<(u64, String)>,
}

/// Why a task has nothing stored.
#[derive(Debug, thiserror::Error)]
enum TaskError {
    #[error(transparent)]
    Preannotation(#[from] PreannotationError),
    #[error("its prediction could not be stored: {0}")]
    Api(#[from] ApiError),
}

impl TaskError {
    /// Whether every other task would fail too.
    fn is_hopeless(&self) -> bool {
        match self {
            Self::Api(error) => matches!(error, ApiError::Refused { .. } | ApiError::Token(_)),
            Self::Preannotation(PreannotationError::Stage(error)) => matches!(
                **error,
                StageError::NotReady(_) | StageError::Step(StepError::Stopped)
            ),
            Self::Preannotation(_) => false,
        }
    }
}

impl Run {
    /// Page by page: tasks that have this prediction already are left out, so a run that was stopped goes
    /// on where it was.
    async fn all(&mut self, project: u64) -> anyhow::Result<()> {
        for page in 1.. {
            let tasks = self.api.tasks(project, page, PAGE).await?;
            self.progress.bar.set_length(tasks.total);
            let wanted: Vec<api::Task> = tasks
                .tasks
                .into_iter()
                .filter(|task| self.is_wanted(task))
                .collect();
            self.some(wanted).await?;
            if page * PAGE >= tasks.total {
                break;
            }
        }
        Ok(())
    }

    fn is_wanted(&mut self, task: &api::Task) -> bool {
        self.summary.tasks += 1;
        let version = Some(self.plan.version());
        let mut predictions = task.predictions.iter();
        if self.only_unlabeled && task.total_annotations > 0 {
            self.summary.annotated += 1;
        } else if predictions.any(|p| p.model_version.as_deref() == version) {
            self.summary.known += 1;
        } else {
            return true;
        }
        self.progress.bar.inc(1);
        false
    }

    async fn some(&mut self, tasks: Vec<api::Task>) -> anyhow::Result<()> {
        let (api, preannotator) = (&self.api, &self.preannotator);
        let plan = &self.plan;
        let work = tasks.into_iter().map(|task| async move {
            let id = task.id;
            (id, one(api, preannotator, plan, task).await)
        });
        let mut work = stream::iter(work).buffer_unordered(AT_ONCE);
        while let Some((task, outcome)) = work.next().await {
            match outcome {
                Ok(regions) => {
                    self.summary.predicted += 1;
                    self.summary.regions += regions;
                }
                Err(error) if error.is_hopeless() => return Err(error.into()),
                Err(error) => {
                    let line = format!("task {task}: {error}");
                    self.progress.bar.suspend(|| tell(line));
                    self.summary.failures.push((task, error.to_string()));
                }
            }
            self.progress.step();
        }
        Ok(())
    }
}

/// A prediction as Label Studio stores it.
#[derive(Debug, Serialize)]
struct NewPrediction<'a> {
    /// Label Studio's number.
    task: u64,
    #[serde(flatten)]
    prediction: &'a TaskPrediction,
}

/// Predicts a task and stores the prediction; how many regions it has.
async fn one(
    api: &Api,
    preannotator: &Preannotator,
    plan: &BatchPlan,
    task: api::Task,
) -> Result<usize, TaskError> {
    let wanted = Task {
        id: Some(task.id),
        data: task.data,
        regions: vec![],
    };
    let prediction = preannotator.predict(plan, &wanted).await?;
    let body = NewPrediction {
        task: task.id,
        prediction: &prediction,
    };
    api.store_prediction(task.id, &prediction.model_version, &body)
        .await?;
    let found = prediction
        .result
        .iter()
        .filter(|region| region.score.is_some());
    Ok(found.count())
}

impl Summary {
    fn print(&self) {
        print(format_args!(
            "{} tasks: {} predicted with {} regions, {} had this prediction already, {} left out for their annotations, {} failed",
            self.tasks,
            self.predicted,
            self.regions,
            self.known,
            self.annotated,
            self.failures.len()
        ));
        for (task, cause) in self.failures.iter().take(TOLD) {
            print(format_args!("  task {task}: {cause}"));
        }
        if self.failures.len() > TOLD {
            print(format_args!("  and {} more", self.failures.len() - TOLD));
        }
    }
}

/// A bar on a terminal, a line now and then elsewhere.
struct Progress {
    bar: ProgressBar,
    is_drawn: bool,
    last_line: Instant,
}

impl Progress {
    fn new() -> Self {
        let is_drawn = std::io::stderr().is_terminal();
        let bar = if is_drawn {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let template = "{bar:30} {pos}/{len} tasks, {rate}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            let rate = |state: &ProgressState, line: &mut dyn std::fmt::Write| {
                // writing to a line does not fail
                let _ = write!(line, "{:.1}/s", state.per_sec());
            };
            bar.set_style(style.with_key("rate", rate));
        }
        Self {
            bar,
            is_drawn,
            last_line: Instant::now(),
        }
    }

    fn step(&mut self) {
        self.bar.inc(1);
        if !self.is_drawn && self.last_line.elapsed() > BETWEEN_LINES {
            self.last_line = Instant::now();
            tell(format_args!(
                "{}/{} tasks, {:.1}/s, {} left",
                self.bar.position(),
                self.bar.length().unwrap_or(0),
                self.bar.per_sec(),
                HumanDuration(self.bar.eta())
            ));
        }
    }
}
