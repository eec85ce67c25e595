//! `POST /predict`: returns regions for tasks.

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
use utoipa::ToSchema;

use super::AppState;
use super::body::{JsonBody, TrackedBody};
use super::error::{ErrorBody, RequestError, run_blocking};
use super::openapi::{BodyErrorResponses, schemas};
use super::request_span::record_project;
use super::wire::{BoundedJson, BoundedList, Object, ProjectName, max_value_count, parse_object};
use crate::budget::Reservation;
use crate::labeling::{ControlKind, LabelingConfig};
use crate::pipeline::scheduler::Urgency;
use crate::preannotation::protocol::{ProtocolAnswer, ProtocolRequest};
use crate::preannotation::{Origin, Outcome, Task, TaskPrediction};

/// Maximum number of tasks in a request. Label Studio sends at most a thousand.
const MAX_TASKS: usize = 10_000;
/// Maximum number of JSON values in the data of all tasks of a request.
const MAX_DATA_VALUES: usize = 1_000_000;
/// Maximum number of JSON values in `params.context`.
const MAX_CONTEXT_VALUES: usize = 100_000;
/// Maximum number of JSON values in the annotations, and in the drafts, of a task that are searched for thresholds. It
/// is large because masks are lists of numbers.
const MAX_ANNOTATION_VALUES: usize = 2_000_000;

/// A prediction request as Label Studio sends it. Fields that are not listed here are ignored.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct PredictRequest<'a> {
    #[schema(value_type = Vec<WireTask>, max_items = 10000)]
    #[serde(borrow)]
    tasks: BoundedList<Object<WireTask<'a>>, MAX_TASKS>,
    /// The labeling config: XML with an `<Image>` tag, at most 4 MiB.
    #[schema(
        format = "labeling-config",
        min_length = 1,
        example = "<View><Image name=\"image\" value=\"$image\"/><TextArea name=\"prompt\" toName=\"image\"/><RectangleLabels name=\"label\" toName=\"image\"><Label value=\"Red Circle\"/></RectangleLabels></View>"
    )]
    label_config: String,
    #[serde(default)]
    project: ProjectName,
    #[serde(default)]
    #[schema(value_type = Option<Params>)]
    params: Option<Object<Params>>,
}

/// A task.
// Annotations contain masks and may be many MB: they stay unparsed text until they are needed.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Task)]
struct WireTask<'a> {
    #[serde(default)]
    #[schema(schema_with = schemas::task_id)]
    id: Value,
    #[serde(borrow, default)]
    #[schema(schema_with = schemas::task_data)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    #[schema(schema_with = schemas::annotations)]
    annotations: Option<&'a RawValue>,
    #[serde(borrow, default)]
    #[schema(schema_with = schemas::annotations)]
    drafts: Option<&'a RawValue>,
}

/// Options of the request.
#[derive(Debug, Default, Deserialize, ToSchema)]
struct Params {
    #[serde(default)]
    #[schema(schema_with = schemas::context)]
    context: BoundedJson<MAX_CONTEXT_VALUES>,
    /// The user for protected image URLs.
    login: Option<String>,
    /// The password for protected image URLs.
    password: Option<String>,
}

/// The results: one entry per task, in the order of the tasks.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PredictResponse {
    results: Vec<TaskResult>,
}

/// A prediction, or the reason why there is none.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum TaskResult {
    Predicted(TaskPrediction),
    /// The answer to a request of Label Studio's capability protocol.
    Protocol(ProtocolAnswer),
    /// The task failed. Because there is no `result` field, Label Studio stores nothing and will ask again.
    Failed(ErrorBody),
}

/// Predicts regions for tasks.
///
/// With `params.context.result`, the request is interactive: it has one task and the input of an annotator. With
/// `params.context.event`, or with points and boxes without names, it belongs to Label Studio's capability protocol. Without
/// both, the request is a batch: it has any number of tasks, and those that are not finished within the deadline are
/// answered with an error.
#[utoipa::path(
    post,
    path = "/predict",
    request_body = PredictRequest,
    responses(
        (status = 200, description = "One result per task, in their order", body = PredictResponse),
        (status = 422, description = "Interactive request: the image cannot be used", body = ErrorBody),
        (status = 502, description = "Interactive request: the image cannot be fetched from its host", body = ErrorBody),
        BodyErrorResponses
    )
)]
pub(super) async fn predict(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Response, RequestError> {
    // a body may contain many MB of annotations, so it is parsed outside of the async threads
    let input = run_blocking(move || parse(body)).await??;
    record_project(&input.origin.project);
    let results = match (
        ProtocolRequest::parse(&input.context),
        input.context.get("result").and_then(Value::as_array),
    ) {
        (Some(request), _) => answer_protocol(&state, &input, &request).await?,
        (None, Some(context)) => interact(&state, &input, context).await?,
        (None, None) => batch(&state, input).await?,
    };
    respond(&state, PredictResponse { results }).await
}

/// Serializes the response as JSON. Its memory is released when it was sent.
async fn respond(state: &AppState, response: PredictResponse) -> Result<Response, RequestError> {
    let budget = state.preannotator.budget().clone();
    // masks are large, so they are serialized outside of the async threads
    let serialize = move || {
        let bytes = serde_json::to_vec(&response)?;
        Ok::<_, serde_json::Error>(TrackedBody::new(bytes, &budget))
    };
    let body = run_blocking(serialize).await?;
    let body = body.map_err(|e| RequestError::Defect(e.to_string()))?;
    let kind = (CONTENT_TYPE, "application/json");
    Ok(([kind], Body::from(body)).into_response())
}

/// A parsed prediction request.
struct PredictInput {
    origin: Origin,
    config: Arc<LabelingConfig>,
    tasks: Vec<Task>,
    context: Value,
    /// The memory reservation for `tasks`.
    memory: Reservation,
}

fn parse(body: JsonBody) -> Result<PredictInput, RequestError> {
    let request: PredictRequest = parse_object(&body.bytes)?;
    if request.label_config.trim().is_empty() {
        let text = "label_config is empty: it must be the project's labeling config";
        return Err(RequestError::Body(text.to_owned()));
    }
    let config = LabelingConfig::parse(&request.label_config)?;
    let params = request.params.map(|Object(params)| params);
    let params = params.unwrap_or_default();
    let login = params.login.filter(|login| !login.is_empty());
    let mut tasks = vec![];
    let mut data_values = 0;
    for (i, Object(task)) in request.tasks.0.into_iter().enumerate() {
        data_values += task.data.map_or(0, |data| max_value_count(data.get()));
        if data_values > MAX_DATA_VALUES {
            return Err(RequestError::Body(format!(
                "tasks[{i}].data: the data of the tasks up to this one has more than {MAX_DATA_VALUES} JSON values"
            )));
        }
        tasks.push(task.parse(&config));
    }
    let mut memory = body.memory;
    memory.shrink_to(tasks.iter().map(Task::bytes).sum());
    Ok(PredictInput {
        origin: Origin {
            project: request.project.0,
            login: login.map(|user| {
                let password = params.password.unwrap_or_default();
                (user, SecretString::from(password.as_str()))
            }),
        },
        tasks,
        config: Arc::new(config),
        context: params.context.0,
        memory,
    })
}

/// Answers an interactive request. If the labeling config has a text area for messages, it tells the annotator why a task
/// failed; else the first task that fails makes the whole request fail.
async fn interact(
    state: &AppState,
    input: &PredictInput,
    context: &[Value],
) -> Result<Vec<TaskResult>, RequestError> {
    let preannotator = &state.preannotator;
    let mut results = vec![];
    for task in &input.tasks {
        let span = task.span();
        let prediction = preannotator
            .interact(&input.origin, &input.config, task, context)
            .instrument(span.clone())
            .await;
        let prediction = match prediction {
            Ok(prediction) => prediction,
            Err(error) => {
                preannotator.metrics().record_failure();
                let explanation =
                    preannotator.explain(&input.origin, &input.config, &error.to_string());
                let error = RequestError::Task {
                    task: task.id,
                    error,
                };
                span.in_scope(|| error.log());
                // Label Studio's page shows no errors, but it shows a message
                explanation.ok_or(error)?
            }
        };
        results.push(TaskResult::Predicted(prediction));
    }
    Ok(results)
}

/// Answers a request of Label Studio's capability protocol.
async fn answer_protocol(
    state: &AppState,
    input: &PredictInput,
    request: &ProtocolRequest,
) -> Result<Vec<TaskResult>, RequestError> {
    let preannotator = &state.preannotator;
    let mut results = vec![];
    for task in &input.tasks {
        let span = task.span();
        let answer = preannotator
            .answer_protocol(&input.origin, &input.config, task, request)
            .instrument(span.clone())
            .await;
        let answer = answer.map_err(|error| {
            preannotator.metrics().record_failure();
            let error = RequestError::Task {
                task: task.id,
                error,
            };
            span.in_scope(|| error.log());
            error
        });
        results.push(TaskResult::Protocol(answer?));
    }
    Ok(results)
}

/// Answers a batch. A task that fails gets an error entry, and the others are not affected.
async fn batch(state: &AppState, input: PredictInput) -> Result<Vec<TaskResult>, RequestError> {
    let preannotator = &state.preannotator;
    let PredictInput {
        origin,
        config,
        tasks,
        memory,
        ..
    } = input;
    // Label Studio requests a single task when an annotator opens it
    let urgency = match tasks.len() {
        1 => Urgency::Opened,
        _ => Urgency::Batch,
    };
    let planning = {
        let preannotator = preannotator.clone();
        // planning is slow if the labeling config has thousands of labels
        run_blocking(move || preannotator.plan(origin, config, None, urgency))
    };
    let plan = planning.await??;
    let mut stop = state.stop.subscribe();
    let time_is_up = async {
        tokio::select! {
            () = tokio::time::sleep(state.predict_deadline) => {}
            // an error means that the sender is gone, so the signal can no longer come
            Ok(_) = stop.wait_for(|is_stopping| *is_stopping) => {}
        }
    };
    let outcomes = preannotator
        .predict_until(plan, tasks, memory, time_is_up)
        .await;
    let seconds = state.predict_deadline.as_secs();
    let result = |outcome| match outcome {
        Outcome::Done(prediction) => TaskResult::Predicted(prediction),
        Outcome::Failed(error) => TaskResult::Failed(ErrorBody {
            error: error.to_string(),
        }),
        Outcome::NotReached => TaskResult::Failed(ErrorBody {
            error: format!(
                "the task was not finished within {seconds} s (PREDICT_DEADLINE_S) and continues in the background: request it again"
            ),
        }),
    };
    Ok(outcomes.into_iter().map(result).collect())
}

impl WireTask<'_> {
    /// Converts the task. Its annotations and drafts are parsed only if the labeling config has `<Number>` controls,
    /// which hold thresholds, controls for regions of interest, or an image with pages, each of which may have its own prompt.
    fn parse(self, config: &LabelingConfig) -> Task {
        let is_read = |kind: &ControlKind| {
            matches!(
                kind,
                ControlKind::Number { .. } | ControlKind::RegionOfInterest
            )
        };
        let mut controls = config.controls.iter();
        let has_pages = config.images.iter().any(|image| image.is_list);
        let regions = match has_pages || controls.any(|control| is_read(&control.kind)) {
            true => previous_regions(self.annotations, self.drafts),
            false => vec![],
        };
        Task {
            id: self.id.as_u64(),
            // a task without data fails later, without an effect on the others
            data: match self.data.map(|data| serde_json::from_str(data.get())) {
                Some(Ok(Value::Object(data))) => data,
                _ => Map::new(),
            },
            regions,
        }
    }
}

/// Collects the regions that may hold earlier settings, such as thresholds, in increasing priority: first those of the
/// annotation, if there is exactly one (several are by different people), then those of the newest draft, which belongs
/// to the user who asks.
fn previous_regions(annotations: Option<&RawValue>, drafts: Option<&RawValue>) -> Vec<Value> {
    let entries = |part: Option<&RawValue>| -> Vec<Value> {
        let part = part.filter(|part| {
            let is_small = max_value_count(part.get()) <= MAX_ANNOTATION_VALUES;
            if !is_small {
                tracing::warn!(
                    "annotations with more than {MAX_ANNOTATION_VALUES} JSON values are not searched for thresholds"
                );
            }
            is_small
        });
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
        // all dates have the same format, so the order of the strings is the order in time
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
    fn regions_come_from_the_only_annotation_and_the_newest_draft() {
        let raw = |value: Value| serde_json::value::to_raw_value(&value).unwrap();
        let entry = |time: &str, region: &str| json!({"updated_at": time, "result": [region]});
        let read = |annotations: Value, drafts: Value| {
            previous_regions(Some(&raw(annotations)), Some(&raw(drafts)))
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
        // with annotations of several people, it is not known which one belongs to the user
        let two = json!([one[0], one[0]]);
        assert_eq!(read(two.clone(), drafts), ["new"]);
        assert!(read(two, json!(null)).is_empty());
        assert!(read(json!("odd"), json!([{"result": 5}, 7])).is_empty());
    }
}
