//! `groundling annotate`: pre-annotates a whole project, without Label Studio's time limit.

use std::sync::Arc;

use anyhow::bail;
use futures_util::{StreamExt, stream};
use serde::Serialize;
use tracing::Instrument;

use super::project::{
    Access, CONCURRENT_TASKS, Failures, Pages, Progress, until_interrupted, wait_for_models,
};
use super::{print_result, print_status, setup};
use crate::config::{AnnotateArgs, TypedPrompts};
use crate::label_studio::LabelStudio;
use crate::label_studio::api::{self, Api, ApiError};
use crate::pipeline::scheduler::{StepError, Urgency};
use crate::pipeline::stages::StageError;
use crate::preannotation::{BatchPlan, PreannotationError, Preannotator, Task, TaskPrediction};
use crate::prompt::Prompt;

/// Predicts the project's tasks and stores the predictions in Label Studio.
///
/// # Errors
/// If Label Studio or the models cannot be used. If single tasks failed, the error is returned after all other tasks
/// are done.
pub fn run(args: AnnotateArgs) -> anyhow::Result<()> {
    setup::runtime()?.block_on(annotate(args))
}

async fn annotate(args: AnnotateArgs) -> anyhow::Result<()> {
    if let Some(prompt) = &args.prompt {
        Prompt::parse(prompt)?;
    }
    let Access {
        api,
        project,
        config,
        projects,
        origin,
    } = Access::new(&args.tasks.setup, args.tasks.project).await?;
    // also apply the extra_params of the connected backend
    if let Ok(backends) = api.backends(project.id).await
        && let Some(backend) = backends.first()
    {
        let label_studio = LabelStudio::default();
        projects.apply_setup(&origin.project, &backend.extra_params, label_studio);
    }
    let preannotator = Arc::new(setup::preannotator(
        args.tasks.setup,
        projects,
        TypedPrompts::default(),
        CONCURRENT_TASKS,
    )?);
    let plan = preannotator.plan(origin, config, args.prompt.as_deref(), Urgency::Batch)?;
    let prompts: Vec<String> = plan.prompts().map(Prompt::to_string).collect();
    print_status(format_args!(
        "project {} {:?}: searching for {}",
        project.id,
        project.title,
        prompts.join(" and ")
    ));
    wait_for_models(&preannotator).await?;
    let mut run = Run {
        api,
        preannotator,
        plan,
        only_unlabeled: args.tasks.only_unlabeled,
        summary: Summary::default(),
        progress: Progress::new(),
    };
    let outcome = until_interrupted(run.process_project(project.id)).await;
    run.progress.finish();
    run.summary.print();
    outcome?;
    match run.summary.failures.count() {
        0 => Ok(()),
        failed => bail!(
            "{failed} tasks failed and have no prediction; run the command again to retry them"
        ),
    }
}

/// The state of a run over a project.
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
    /// Processed tasks.
    tasks: u64,
    predicted: u64,
    regions: usize,
    /// Tasks that already had a prediction of this version.
    already_predicted: u64,
    /// Tasks that were skipped because of their annotations.
    annotated: u64,
    failures: Failures,
}

/// Why no prediction was stored for a task.
#[derive(Debug, thiserror::Error)]
enum TaskError {
    #[error(transparent)]
    Preannotation(#[from] PreannotationError),
    #[error("the prediction could not be stored in Label Studio: {0}")]
    Api(#[from] ApiError),
}

impl TaskError {
    /// Whether every other task would fail too.
    fn is_fatal(&self) -> bool {
        match self {
            Self::Api(error) => matches!(error, ApiError::Refused { .. } | ApiError::Token(_)),
            Self::Preannotation(PreannotationError::Stage(error)) => matches!(
                **error,
                StageError::ModelsUnavailable(_) | StageError::Step(StepError::Stopped)
            ),
            Self::Preannotation(_) => false,
        }
    }
}

impl Run {
    /// Processes the project page by page. It skips tasks that have this prediction already, so an interrupted run
    /// can be resumed.
    async fn process_project(&mut self, project: u64) -> anyhow::Result<()> {
        let mut pages = Pages::new(project);
        while let Some((tasks, total)) = pages.next(&self.api).await? {
            self.progress.set_total(total);
            let mut pending = tasks;
            pending.retain(|task| self.needs_prediction(task));
            self.process_page(pending).await?;
        }
        Ok(())
    }

    fn needs_prediction(&mut self, task: &api::StoredTask) -> bool {
        self.summary.tasks += 1;
        let version = Some(self.plan.version());
        let mut predictions = task.predictions.iter();
        if self.only_unlabeled && task.total_annotations > 0 {
            self.summary.annotated += 1;
        } else if predictions.any(|p| p.model_version.as_deref() == version) {
            self.summary.already_predicted += 1;
        } else {
            return true;
        }
        self.progress.skip();
        false
    }

    async fn process_page(&mut self, tasks: Vec<api::StoredTask>) -> anyhow::Result<()> {
        let (api, preannotator) = (&self.api, &self.preannotator);
        let plan = &self.plan;
        let work = tasks.into_iter().map(|task| async move {
            let id = task.id;
            (id, predict_and_store(api, preannotator, plan, task).await)
        });
        let mut work = stream::iter(work).buffer_unordered(CONCURRENT_TASKS);
        while let Some((task, outcome)) = work.next().await {
            match outcome {
                Ok(regions) => {
                    self.summary.predicted += 1;
                    self.summary.regions += regions;
                }
                Err(error) if error.is_fatal() => return Err(error.into()),
                Err(error) => self.summary.failures.add(task, &error, &self.progress),
            }
            self.progress.step();
        }
        Ok(())
    }
}

/// A prediction in the form that Label Studio stores.
#[derive(Debug, Serialize)]
struct NewPrediction<'a> {
    /// The task's id.
    task: u64,
    #[serde(flatten)]
    prediction: &'a TaskPrediction,
}

/// Predicts a task and stores the prediction. Returns the number of its regions.
async fn predict_and_store(
    api: &Api,
    preannotator: &Preannotator,
    plan: &BatchPlan,
    task: api::StoredTask,
) -> Result<usize, TaskError> {
    let wanted = Task {
        id: Some(task.id),
        data: task.data,
        regions: vec![],
    };
    let prediction = preannotator
        .predict(plan, &wanted)
        .instrument(wanted.span())
        .await?;
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
        print_result(format_args!(
            "{} tasks: {} predicted with {} regions, {} already had this prediction, {} skipped because they have annotations, {} failed",
            self.tasks,
            self.predicted,
            self.regions,
            self.already_predicted,
            self.annotated,
            self.failures.count()
        ));
        self.failures.print();
    }
}
