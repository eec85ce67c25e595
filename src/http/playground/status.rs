//! `GET /playground/api/status`: what the server does, for the status page.

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::AppState;
use crate::findings::{Finding, Findings};
use crate::http::error::{RequestError, run_blocking};
use crate::pipeline::handle::LoadStatus;
use crate::pipeline::scheduler::Urgency;
use crate::preannotation::BatchProgress;
use crate::recent_problems::{self, Problem};
use crate::runs::{self, RunProgress, RunState};
use crate::store::Usage;

/// The state of the server.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    models: Models,
    /// Requests of annotators that wait or are processed.
    requests: usize,
    /// The steps of models that wait or run, per urgency.
    steps: Vec<Steps>,
    batches: Vec<Batch>,
    /// Runs of commands for whole projects on this machine.
    runs: Vec<Run>,
    caches: Vec<Cache>,
    /// Memory that requests use now, and the most that they have used, in bytes.
    request_bytes: usize,
    request_bytes_peak: usize,
    problems: Vec<RecentProblem>,
    /// What `groundling doctor` found last; null if it did not run with the same `MODEL_DIR`.
    doctor: Option<Doctor>,
}

#[derive(Debug, Serialize)]
struct Doctor {
    project: Option<u64>,
    seconds: u64,
    findings: Vec<Finding>,
}

/// The state of the models.
#[derive(Debug, Serialize)]
struct Models {
    /// groundling's version and the models' names.
    version: String,
    device: Option<String>,
    /// Why they are not ready; null if they are.
    waits_for: Option<String>,
}

#[derive(Debug, Serialize)]
struct Steps {
    urgency: &'static str,
    count: usize,
}

#[derive(Debug, Serialize)]
struct Batch {
    project: String,
    total: usize,
    done: usize,
    failed: usize,
    last_error: Option<String>,
    seconds: u64,
    is_running: bool,
}

#[derive(Debug, Serialize)]
struct Run {
    command: String,
    project: u64,
    state: RunState,
    total: u64,
    done: u64,
    failed: u64,
    last_error: Option<String>,
    seconds: u64,
}

#[derive(Debug, Serialize)]
struct Cache {
    name: &'static str,
    entries: u64,
    bytes: u64,
    capacity: u64,
    hits: u64,
    misses: u64,
}

#[derive(Debug, Serialize)]
struct RecentProblem {
    is_error: bool,
    text: String,
    count: u32,
    seconds: u64,
}

pub(super) async fn status(State(state): State<AppState>) -> Result<Json<Status>, RequestError> {
    let model_dir = state.model_dir.clone();
    let files = move || (runs::list(&model_dir), Findings::last(&model_dir));
    let (runs, findings) = run_blocking(files).await?;
    let preannotator = &state.preannotator;
    // the caches count new results at their maintenance
    preannotator.tidy().await;
    let steps = preannotator.stages().scheduler().waiting();
    let steps = Urgency::ALL.into_iter().zip(steps);
    let budget = preannotator.budget();
    Ok(Json(Status {
        models: models(&state),
        requests: preannotator.waiting(),
        steps: steps
            .map(|(urgency, count)| Steps {
                urgency: urgency.name(),
                count,
            })
            .collect(),
        batches: preannotator.batches().into_iter().map(batch).collect(),
        caches: preannotator.cache_usage().into_iter().map(cache).collect(),
        request_bytes: budget.used(),
        request_bytes_peak: budget.peak(),
        problems: recent_problems::list().into_iter().map(problem).collect(),
        runs: runs.into_iter().map(run).collect(),
        doctor: findings.map(|last| Doctor {
            seconds: last.age().as_secs(),
            project: last.project,
            findings: last.findings,
        }),
    }))
}

fn run(run: RunProgress) -> Run {
    Run {
        state: run.state(),
        seconds: run.age().as_secs(),
        command: run.command,
        project: run.project,
        total: run.total,
        done: run.done,
        failed: run.failed,
        last_error: run.last_error,
    }
}

fn models(state: &AppState) -> Models {
    let preannotator = &state.preannotator;
    let (device, waits_for) = match preannotator.models_handle().status() {
        LoadStatus::Ready(models) => (Some(models.device()), None),
        LoadStatus::Loading { step } | LoadStatus::Downloading { step } => (None, Some(step)),
        LoadStatus::Failed { reason, .. } | LoadStatus::DeviceLost { reason } => {
            (None, Some(reason))
        }
    };
    Models {
        version: preannotator.projects().version("", None),
        device,
        waits_for,
    }
}

fn batch(progress: BatchProgress) -> Batch {
    Batch {
        project: progress.project,
        total: progress.total,
        done: progress.done,
        failed: progress.failed,
        last_error: progress.last_error,
        seconds: progress.age.as_secs(),
        is_running: progress.is_running,
    }
}

fn cache((name, usage): (&'static str, Usage)) -> Cache {
    Cache {
        name,
        entries: usage.entries,
        bytes: usage.bytes,
        capacity: usage.capacity,
        hits: usage.hits,
        misses: usage.misses,
    }
}

fn problem(problem: Problem) -> RecentProblem {
    RecentProblem {
        seconds: problem.age().as_secs(),
        is_error: problem.is_error,
        text: problem.text,
        count: problem.count,
    }
}
