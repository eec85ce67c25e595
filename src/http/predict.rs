//! `POST /predict`: tasks in, regions out.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tracing::Instrument;

use super::AppState;
use super::body::{Sent, Whole};
use super::error::{ApiError, off_thread};
use super::request_span::belongs_to;
use super::setup::project_name;
use crate::budget::Reservation;
use crate::labeling::{ControlKind, LabelingConfig};
use crate::pipeline::scheduler::Urgency;
use crate::preannotation::{Origin, Outcome, Task, TaskPrediction};

#[derive(Debug, Deserialize)]
struct PredictRequest {
    tasks: Vec<WireTask>,
    label_config: Option<String>,
    #[serde(default)]
    project: Value,
    #[serde(default)]
    params: Option<Params>,
}

/// Annotations hold masks and may be many MB: they stay text until somebody needs them.
#[derive(Debug, Deserialize)]
struct WireTask {
    #[serde(default)]
    id: Value,
    #[serde(default)]
    data: Value,
    #[serde(default)]
    annotations: Option<Box<RawValue>>,
    #[serde(default)]
    drafts: Option<Box<RawValue>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Params {
    /// `{"result": [...]}` interactively, null in a batch; other clients send any JSON.
    context: Value,
    /// For protected image URLs.
    login: Option<String>,
    password: Option<String>,
}

/// One entry per task, in their order.
#[derive(Debug, Serialize)]
pub(super) struct PredictResponse {
    results: Vec<TaskResult>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum TaskResult {
    Done(TaskPrediction),
    /// Without `result` Label Studio stores nothing and will ask again.
    Failed {
        error: String,
    },
}

/// Regions for tasks. With `params.context.result`, one task and what an annotator did in it; without,
/// any number of tasks, as many as the deadline allows.
#[utoipa::path(
    post,
    path = "/predict",
    request_body(content = Value, description = "`{tasks, project, label_config, params: {context, login, password}}`"),
    responses(
        (status = 200, description = "`{results: [{result, score, model_version} or {error}]}`, one per task", body = Value),
        (status = 400, description = "The request, the labeling config or the prompt is not usable", body = Value),
        (status = 422, description = "The image is not usable", body = Value),
        (status = 502, description = "The image's host does not give it", body = Value),
        (status = 503, description = "Too many wait, or the models are not loaded", body = Value)
    )
)]
pub(super) async fn predict(
    State(state): State<AppState>,
    body: Whole,
) -> Result<Response, ApiError> {
    // a body may hold many MB of annotations: reading it is not for the async threads
    let asked = off_thread(move || read(body)).await??;
    belongs_to(&asked.origin.project);
    let results = match asked.context.get("result").and_then(Value::as_array) {
        Some(context) => interact(&state, &asked, context).await?,
        None => batch(&state, asked).await?,
    };
    answer(&state, PredictResponse { results }).await
}

/// An answer as JSON; its memory is given back when it was sent.
async fn answer(state: &AppState, response: PredictResponse) -> Result<Response, ApiError> {
    let budget = state.preannotator.budget().clone();
    // masks are long: not for the async threads
    let write = move || {
        let bytes = serde_json::to_vec(&response)?;
        Ok::<_, serde_json::Error>(Sent::new(bytes, &budget))
    };
    let sent = off_thread(write).await?;
    let sent = sent.map_err(|e| ApiError::Defect(e.to_string()))?;
    let kind = (CONTENT_TYPE, "application/json");
    Ok(([kind], Body::from(sent)).into_response())
}

/// What a request asks for.
struct Asked {
    origin: Origin,
    config: Arc<LabelingConfig>,
    tasks: Vec<Task>,
    context: Value,
    /// What the tasks take.
    memory: Reservation,
}

fn read(body: Whole) -> Result<Asked, ApiError> {
    let request: PredictRequest =
        serde_json::from_slice(&body.bytes).map_err(|e| ApiError::Body(e.to_string()))?;
    let xml = request.label_config.as_deref().unwrap_or_default();
    if xml.trim().is_empty() {
        return Err(ApiError::Body("it has no label_config".to_owned()));
    }
    let config = LabelingConfig::parse(xml)?;
    let params = request.params.unwrap_or_default();
    let login = params.login.filter(|login| !login.is_empty());
    let tasks = request.tasks.into_iter();
    let tasks: Vec<Task> = tasks.map(|task| task.read(&config)).collect();
    let mut memory = body.memory;
    drop(body.bytes);
    memory.shrink_to(tasks.iter().map(Task::bytes).sum());
    Ok(Asked {
        origin: Origin {
            project: project_name(&request.project),
            login: login.map(|user| {
                let password = params.password.unwrap_or_default();
                (user, SecretString::from(password.as_str()))
            }),
        },
        tasks,
        config: Arc::new(config),
        context: params.context,
        memory,
    })
}

/// An annotator waits: what fails is the answer.
async fn interact(
    state: &AppState,
    asked: &Asked,
    context: &[Value],
) -> Result<Vec<TaskResult>, ApiError> {
    let preannotator = &state.preannotator;
    let mut results = vec![];
    for task in &asked.tasks {
        let span = task.span();
        let answer = preannotator
            .interact(&asked.origin, &asked.config, task, context)
            .instrument(span.clone())
            .await;
        let answer = answer.map_err(|error| {
            preannotator.metrics().failed();
            let error = ApiError::Task {
                task: task.id,
                error,
            };
            span.in_scope(|| error.log());
            error
        });
        results.push(TaskResult::Done(answer?));
    }
    Ok(results)
}

/// Nobody waits for a single task: one that fails costs only itself.
async fn batch(state: &AppState, asked: Asked) -> Result<Vec<TaskResult>, ApiError> {
    let preannotator = &state.preannotator;
    let Asked {
        origin,
        config,
        tasks,
        memory,
        ..
    } = asked;
    // Label Studio asks for one task when somebody opens it
    let urgency = match tasks.len() {
        1 => Urgency::Opened,
        _ => Urgency::Batch,
    };
    let planning = {
        let preannotator = preannotator.clone();
        // thousands of labels take a while
        off_thread(move || preannotator.plan(origin, config, None, urgency))
    };
    let plan = planning.await??;
    let mut stop = state.stop.subscribe();
    let time_is_up = async {
        tokio::select! {
            () = tokio::time::sleep(state.predict_deadline) => {}
            // an error means that nobody is left to say so
            Ok(_) = stop.wait_for(|is_stopping| *is_stopping) => {}
        }
    };
    let outcomes = preannotator
        .predict_until(plan, tasks, memory, time_is_up)
        .await;
    let seconds = state.predict_deadline.as_secs();
    let result = |outcome| match outcome {
        Outcome::Done(prediction) => TaskResult::Done(prediction),
        Outcome::Failed(error) => TaskResult::Failed {
            error: error.to_string(),
        },
        Outcome::Later => TaskResult::Failed {
            error: format!(
                "not within {seconds} s (PREDICT_DEADLINE_S); it is being worked on: ask again"
            ),
        },
    };
    Ok(outcomes.into_iter().map(result).collect())
}

impl WireTask {
    /// Its regions are read only for a labeling config with thresholds in it.
    fn read(self, config: &LabelingConfig) -> Task {
        let is_number = |kind: &ControlKind| matches!(kind, ControlKind::Number { .. });
        let mut controls = config.controls.iter();
        let regions = match controls.any(|control| is_number(&control.kind)) {
            true => asked_before(self.annotations.as_deref(), self.drafts.as_deref()),
            false => vec![],
        };
        Task {
            id: self.id.as_u64(),
            // without its data, the task fails by itself
            data: match self.data {
                Value::Object(data) => data,
                _ => Map::new(),
            },
            regions,
        }
    }
}

/// The regions that say what was asked before, what counts most last: those of the newest draft, which is the asker's
/// own, and before them those of the annotation, if there is one and not several people's.
fn asked_before(annotations: Option<&RawValue>, drafts: Option<&RawValue>) -> Vec<Value> {
    let entries = |part: Option<&RawValue>| -> Vec<Value> {
        let part = part.and_then(|part| serde_json::from_str(part.get()).ok());
        part.unwrap_or_default()
    };
    let mut annotations = entries(annotations);
    annotations.retain(|annotation| annotation["was_cancelled"] != true);
    let annotation = match annotations.len() {
        1 => annotations.pop(),
        _ => None,
    };
    let time = |draft: &Value| {
        let times = [&draft["updated_at"], &draft["created_at"]];
        // dates of one form: as text in the order of time
        times.into_iter().find_map(Value::as_str).map(str::to_owned)
    };
    let draft = entries(drafts).into_iter().max_by_key(time);
    let results = [annotation, draft].into_iter().flatten();
    let lists = results.filter_map(|mut entry| match entry.get_mut("result").map(Value::take) {
        Some(Value::Array(regions)) => Some(regions),
        _ => None,
    });
    lists.flatten().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_draft_counts_and_the_only_annotation() {
        let raw = |value: Value| serde_json::value::to_raw_value(&value).unwrap();
        let entry = |time: &str, region: &str| json!({"updated_at": time, "result": [region]});
        let read = |annotations: Value, drafts: Value| {
            asked_before(Some(&raw(annotations)), Some(&raw(drafts)))
        };
        let drafts = json!([
            entry("2026-02-01T00:00:00Z", "new"),
            entry("2026-01-01T00:00:00Z", "old")
        ]);
        let one = json!([entry("2026-03-01T00:00:00Z", "annotation")]);
        assert_eq!(read(one.clone(), drafts.clone()), ["annotation", "new"]);
        let skipped = json!({"was_cancelled": true, "result": ["skipped"]});
        let with_skipped = json!([one[0], skipped]);
        assert_eq!(read(with_skipped, json!([])), ["annotation"]);
        // of several people's annotations none is the asker's
        let two = json!([one[0], one[0]]);
        assert_eq!(read(two.clone(), drafts), ["new"]);
        assert!(read(two, json!(null)).is_empty());
        assert!(read(json!("odd"), json!([{"result": 5}, 7])).is_empty());
    }
}
