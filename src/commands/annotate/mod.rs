//! `groundling annotate`: pre-annotates a whole project, without Label Studio's time limit.

mod summary;

use std::io::{self, IsTerminal};
use std::sync::Arc;

use anyhow::bail;
use futures_util::{StreamExt, stream};
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc;
use tracing::Instrument;

use self::summary::Summary;
use super::export::{ExportWriter, project_export};
use super::project::{
    Access, CONCURRENT_TASKS, Pages, Progress, until_interrupted, wait_for_models,
};
use super::{print_result, print_status, setup};
use crate::config::{AnnotateArgs, TypedPrompts};
use crate::label_studio::api::{self, Api, ApiError, Project};
use crate::pipeline::scheduler::{StepError, Urgency};
use crate::pipeline::settings::ModelNames;
use crate::pipeline::stages::StageError;
use crate::preannotation::{
    BatchPlan, ImageSink, PreannotationError, Preannotator, SearchedImage, Task, TaskPrediction,
};
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
    setup::require_detector(&ModelNames::new(&args.tasks.setup.models.settings(), false))?;
    let part = args.tasks.part()?;
    let model_dir = args.tasks.setup.models.model_dir.clone();
    let can_ask = io::stdin().is_terminal() && io::stderr().is_terminal();
    if args.replace && !args.yes && !can_ask {
        bail!(
            "--replace deletes predictions, and there is no terminal to ask on: add --yes to delete them without a question"
        );
    }
    let Access {
        api,
        project,
        config,
        projects,
        origin,
    } = Access::with_extra_params(&args.tasks.setup, args.tasks.project).await?;
    let preannotator = Arc::new(setup::preannotator(
        args.tasks.setup,
        projects,
        TypedPrompts::default(),
        CONCURRENT_TASKS,
    )?);
    let plan = preannotator.plan(origin, config, args.prompt.as_deref(), Urgency::Batch)?;
    let export = project_export(&args.export, &plan, preannotator.projects().has_segmenter())?;
    let prompts: Vec<String> = plan.prompts().map(Prompt::to_string).collect();
    print_status(format_args!(
        "project {} {:?}: searching for {}",
        project.id,
        project.title,
        prompts.join(" and ")
    ));
    if args.replace && !args.yes {
        confirm(&api, &project, plan.version()).await?;
    }
    wait_for_models(&preannotator).await?;
    let (plan, images, writer) = match export {
        None => (plan, None, None),
        Some(export) => {
            let (sender, writer) = ExportWriter::start(export);
            let images = ImageSink {
                sender: sender.clone(),
                with_masks: args.export.uses_masks(),
            };
            (plan.with_images(images), Some(sender), Some(writer))
        }
    };
    let mut run = Run {
        api,
        preannotator,
        plan,
        images,
        only_unlabeled: args.tasks.only_unlabeled,
        part,
        replace: args.replace,
        as_json: args.json,
        summary: Summary::default(),
        progress: Progress::new(&model_dir, "annotate", project.id),
    };
    let outcome = until_interrupted(run.process_project(project.id)).await;
    run.progress.finish();
    match args.json {
        true => run.summary.print_json(),
        false => run.summary.print(args.replace),
    }
    if run.summary.deleted > 0 {
        run.warn_of_selected_version(&project);
    }
    let Run {
        plan,
        images,
        summary,
        ..
    } = run;
    if let Some(writer) = writer {
        // with the last sender, the channel is closed
        drop((plan, images));
        print_result(writer.finish().await?);
    }
    outcome?;
    summary.result()
}

/// Whether a model version is one of groundling's: its name and a version number, as in `groundling 0.1.0 demo+demo`.
fn is_of_groundling(model_version: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let Some(rest) = model_version.strip_prefix("groundling ") else {
        return false;
    };
    let release = rest.split([' ', '-', '+']).next().unwrap_or_default();
    let parts: Vec<&str> = release.split('.').collect();
    parts.len() == 3 && parts.into_iter().all(is_number)
}

/// Asks on the terminal whether the predictions of groundling's other model versions may be deleted. Asks nothing if
/// the project has none.
///
/// # Errors
/// If the answer is not yes.
async fn confirm(api: &Api, project: &Project, version: &str) -> anyhow::Result<()> {
    let id = project.id;
    let mut others = api.model_versions(id).await?;
    others.retain(|other, _| is_of_groundling(other) && other != version);
    if others.is_empty() {
        return Ok(());
    }
    print_status(format_args!("project {id} has predictions of:"));
    for (other, count) in &others {
        print_status(format_args!("{count:8} {}", printable(other)));
    }
    print_status(format_args!(
        "delete the predictions of older versions of groundling in project {id}? [y/N]"
    ));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => bail!("not confirmed: no prediction was made or deleted"),
    }
}

/// A text from Label Studio without control characters, which a terminal would obey.
fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// The state of a run over a project.
struct Run {
    api: Api,
    preannotator: Arc<Preannotator>,
    plan: BatchPlan,
    /// A sender of the channel to the export, if there is one.
    images: Option<mpsc::Sender<SearchedImage>>,
    only_unlabeled: bool,
    /// The part of the tasks.
    part: (u64, u64),
    replace: bool,
    /// Whether lines of JSON are printed.
    as_json: bool,
    summary: Summary,
    progress: Progress,
}

/// The work on one task.
struct TaskWork {
    task: api::StoredTask,
    /// Whether the task has a prediction of the current version already.
    is_predicted: bool,
    /// Ids of the predictions to delete.
    replaced: Vec<u64>,
}

/// What was done for a task, also if it failed after that.
#[derive(Default)]
struct TaskOutcome {
    /// The number of regions of the new prediction, if one was stored.
    regions: Option<usize>,
    /// Number of predictions that were deleted.
    deleted: usize,
    error: Option<TaskError>,
}

/// Why a task failed.
#[derive(Debug, thiserror::Error)]
enum TaskError {
    #[error(transparent)]
    Preannotation(#[from] PreannotationError),
    #[error("the prediction could not be stored in Label Studio: {0}")]
    Api(#[from] ApiError),
    #[error("an older prediction could not be deleted from Label Studio: {0}")]
    Deletion(ApiError),
}

impl TaskError {
    /// Whether every other task would fail too.
    fn is_fatal(&self) -> bool {
        match self {
            Self::Api(error) | Self::Deletion(error) => {
                matches!(error, ApiError::Refused { .. } | ApiError::Token(_))
            }
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
        let mut pages = Pages::new(project, self.part);
        while let Some((tasks, total)) = pages.next(&self.api).await? {
            self.progress.set_total(total);
            let pending = tasks.into_iter().filter_map(|task| self.work_on(task));
            let pending = pending.collect();
            self.process_page(pending).await?;
        }
        Ok(())
    }

    /// What is left to do for a task; `None` if nothing.
    fn work_on(&mut self, task: api::StoredTask) -> Option<TaskWork> {
        self.summary.tasks += 1;
        if self.only_unlabeled && task.total_annotations > 0 {
            self.summary.annotated += 1;
            self.progress.skip();
            return None;
        }
        let current = self.plan.version();
        let versions = task.predictions.iter().map(|p| p.model_version.as_deref());
        let is_predicted = versions.clone().any(|version| version == Some(current));
        let replaced = if self.replace {
            self.replaced(&task)
        } else {
            vec![]
        };
        self.summary.already_predicted += u64::from(is_predicted);
        // for an export, it is predicted again
        if is_predicted && replaced.is_empty() && self.images.is_none() {
            self.progress.skip();
            return None;
        }
        Some(TaskWork {
            task,
            is_predicted,
            replaced,
        })
    }

    /// Ids of the task's predictions of groundling's other model versions.
    fn replaced(&self, task: &api::StoredTask) -> Vec<u64> {
        let is_replaced = |prediction: &&api::StoredPrediction| {
            let version = prediction.model_version.as_deref().unwrap_or_default();
            is_of_groundling(version) && version != self.plan.version()
        };
        let replaced = task.predictions.iter().filter(is_replaced);
        replaced.filter_map(|prediction| prediction.id).collect()
    }

    async fn process_page(&mut self, pending: Vec<TaskWork>) -> anyhow::Result<()> {
        let (api, preannotator) = (&self.api, &self.preannotator);
        let plan = &self.plan;
        let exports = self.images.is_some();
        let work = pending.into_iter().map(|work| async move {
            let id = work.task.id;
            let mut done = TaskOutcome::default();
            let run = work.run(api, preannotator, plan, exports, &mut done);
            done.error = run.await.err();
            (id, done)
        });
        let mut work = stream::iter(work).buffer_unordered(CONCURRENT_TASKS);
        while let Some((task, done)) = work.next().await {
            let summary = &mut self.summary;
            if let Some(regions) = done.regions {
                summary.predicted += 1;
                summary.regions += regions;
            }
            summary.deleted += done.deleted;
            if self.as_json {
                print_result(json!({
                    "task": task,
                    "regions": done.regions,
                    "deleted": done.deleted,
                    "error": done.error.as_ref().map(ToString::to_string),
                }));
            }
            match done.error {
                Some(error) if error.is_fatal() => bail!("{error}"),
                Some(error) => {
                    summary.undeleted += usize::from(matches!(error, TaskError::Deletion(_)));
                    summary.failures.add(task, &error, &mut self.progress);
                }
                None => {}
            }
            self.progress.step();
            if self.images.as_ref().is_some_and(mpsc::Sender::is_closed) {
                bail!("the export ended early");
            }
        }
        Ok(())
    }

    /// Says so if annotators see the predictions of a version that was replaced.
    fn warn_of_selected_version(&self, project: &Project) {
        let selected = project.model_version.as_deref().unwrap_or_default();
        if is_of_groundling(selected) && selected != self.plan.version() {
            print_status(format_args!(
                "annotators see no predictions of the new version yet, because the project's selected version is {:?}: select the new one in Settings > Annotation > Prelabeling",
                printable(selected)
            ));
        }
    }
}

impl TaskWork {
    /// Stores a prediction unless there is one already, and then deletes the predictions that it replaces. If there is an
    /// export, the task is predicted in any case.
    async fn run(
        self,
        api: &Api,
        preannotator: &Preannotator,
        plan: &BatchPlan,
        exports: bool,
        done: &mut TaskOutcome,
    ) -> Result<(), TaskError> {
        if exports || !self.is_predicted {
            let id = self.task.id;
            let prediction = predict(preannotator, plan, self.task).await?;
            if !self.is_predicted {
                done.regions = Some(store(api, id, &prediction).await?);
            }
        }
        for id in self.replaced {
            api.delete_prediction(id)
                .await
                .map_err(TaskError::Deletion)?;
            done.deleted += 1;
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

/// Predicts a task.
async fn predict(
    preannotator: &Preannotator,
    plan: &BatchPlan,
    task: api::StoredTask,
) -> Result<TaskPrediction, PreannotationError> {
    let wanted = Task {
        id: Some(task.id),
        data: task.data,
        regions: vec![],
    };
    let predicted = preannotator.predict(plan, &wanted);
    predicted.instrument(wanted.span()).await
}

/// Stores the prediction of a task. Returns the number of its regions.
async fn store(api: &Api, task: u64, prediction: &TaskPrediction) -> Result<usize, ApiError> {
    let body = NewPrediction { task, prediction };
    api.store_prediction(task, &prediction.model_version, &body)
        .await?;
    let found = prediction
        .result
        .iter()
        .filter(|region| region.score.is_some());
    Ok(found.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_version_is_groundlings_if_a_version_number_follows_its_name() {
        for version in [
            "groundling 0.1.0 demo+demo box=0.3",
            "groundling 12.0.3",
            "groundling 1.0.0-rc.1 demo+demo",
            "groundling 1.0.0+cuda demo+demo",
        ] {
            assert!(is_of_groundling(version), "{version}");
        }
        for version in [
            "",
            "groundling",
            "groundling ",
            "groundling box=0.3",
            "groundling 2 of Anna",
            "groundling 1.0 final",
            "groundling 1..0 demo",
            "groundling 1.0.0.1 demo",
            "groundling v1.0.0 demo",
            "my groundling 1.0.0 demo",
            "groundling-tuned 1.0.0 demo",
            "Groundling 1.0.0 demo",
        ] {
            assert!(!is_of_groundling(version), "{version}");
        }
    }
}
