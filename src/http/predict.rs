//! `POST /predict`: tasks in, regions out.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::AppState;
use super::error::ApiError;
use crate::labeling::{ControlKind, ImageTag, LabelingConfig, LabelingError};
use crate::pipeline::worker::Request;
use crate::prompt::Prompt;
use crate::regions::{Region, Unlabeled, regions};

#[derive(Debug, Deserialize)]
struct PredictRequest {
    tasks: Vec<Task>,
    label_config: Option<String>,
    #[serde(default)]
    params: Params,
}

#[derive(Debug, Deserialize)]
struct Task {
    #[serde(default)]
    id: Value,
    #[serde(default)]
    data: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Params {
    /// `{"result": [...]}` interactively, null in a batch; other clients send any JSON.
    context: Value,
}

/// One entry per task, in their order.
#[derive(Debug, Serialize)]
pub(super) struct PredictResponse {
    results: Vec<TaskResult>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum TaskResult {
    Done {
        result: Vec<Region>,
        score: f32,
        model_version: String,
    },
    /// Without `result` Label Studio stores nothing and will ask again.
    Failed { error: String },
}

/// What to do with every task of a request.
struct Job<'a> {
    config: &'a LabelingConfig,
    image: &'a ImageTag,
    prompt: Prompt,
    unlabeled: Unlabeled,
}

pub(super) async fn predict(
    State(state): State<AppState>,
    body: axum::body::Bytes,
) -> Result<Json<PredictResponse>, ApiError> {
    // a body may hold many MB of annotations: reading it is not for the async threads
    let request: PredictRequest =
        tokio::task::spawn_blocking(move || serde_json::from_slice(&body))
            .await
            .map_err(|e| ApiError::Body(e.to_string()))?
            .map_err(|e| ApiError::Body(e.to_string()))?;
    let xml = request.label_config.as_deref().unwrap_or_default();
    let context = request
        .params
        .context
        .get("result")
        .and_then(Value::as_array);
    if context.is_some_and(Vec::is_empty) {
        // sent after Submit: there is nothing to do
        let empty = |_: &Task| TaskResult::Done {
            result: vec![],
            score: 0.0,
            model_version: state.model_version.to_string(),
        };
        let results = request.tasks.iter().map(empty).collect();
        return Ok(Json(PredictResponse { results }));
    }
    let config = LabelingConfig::parse(xml)?;
    let image = config.image()?;
    let is_interactive = context.is_some();
    let (prompt, unlabeled) = match context {
        Some(context) => (typed_prompt(context, &config, image)?, Unlabeled::Keep),
        None => (labels_as_prompt(&config, image)?, Unlabeled::Drop),
    };
    if !config
        .controls_of(image)
        .any(|c| c.kind != ControlKind::TextArea)
    {
        return Err(LabelingError::NoLabels(image.name.clone()).into());
    }
    let job = Job {
        config: &config,
        image,
        prompt,
        unlabeled,
    };
    let mut results = vec![];
    for task in &request.tasks {
        match predict_task(&state, &job, task).await {
            Ok(result) => results.push(result),
            // the one task of an interactive request is the request
            Err(error) if is_interactive => return Err(error),
            Err(error) => {
                tracing::error!(task = %task.id, "{error}");
                results.push(TaskResult::Failed {
                    error: error.to_string(),
                });
            }
        }
    }
    Ok(Json(PredictResponse { results }))
}

/// The text that was typed, from the context's text area regions.
fn typed_prompt(
    context: &[Value],
    config: &LabelingConfig,
    image: &ImageTag,
) -> Result<Prompt, ApiError> {
    let is_text = |region: &&Value| region["type"] == "textarea";
    let mut texts = vec![];
    for region in context.iter().filter(is_text) {
        match &region["value"]["text"] {
            Value::String(text) => texts.push(text.as_str()),
            Value::Array(lines) => texts.extend(lines.iter().filter_map(Value::as_str)),
            _ => {}
        }
    }
    if !context.iter().any(|region| is_text(&region)) {
        let kinds: Vec<&str> = context.iter().filter_map(|r| r["type"].as_str()).collect();
        return Err(ApiError::Body(format!(
            "its context has regions of type {kinds:?}; only text typed into a <TextArea> is a prompt"
        )));
    }
    config.text_area(image)?;
    Ok(Prompt::parse(&texts.join("\n"))?)
}

/// In a batch nobody types: the labels are what to look for.
fn labels_as_prompt(config: &LabelingConfig, image: &ImageTag) -> Result<Prompt, ApiError> {
    Prompt::from_phrases(config.labels(image))
        .map_err(|_| LabelingError::NoLabels(image.name.clone()).into())
}

async fn predict_task(
    state: &AppState,
    job: &Job<'_>,
    task: &Task,
) -> Result<TaskResult, ApiError> {
    let key = &job.image.data_key;
    let url = task.data.get(key).and_then(Value::as_str).ok_or_else(|| {
        ApiError::Body(format!(
            "the data of task {} has no text under {key:?}, which <Image name=\"{}\"> shows",
            task.id, job.image.name
        ))
    })?;
    let image = state.fetcher.load(url).await?;
    let mut controls = job.config.controls_of(job.image);
    let with_masks = controls.any(|c| matches!(c.kind, ControlKind::BrushLabels(_)));
    let prediction = state
        .worker
        .predict(Request {
            image: Arc::new(image),
            prompt: job.prompt.clone(),
            options: state.options,
            with_masks,
        })
        .await?;
    let made = regions(&prediction, job.config, job.image, job.unlabeled);
    tracing::info!(
        task = %task.id,
        prompt = %job.prompt,
        box_threshold = state.options.box_threshold,
        text_threshold = state.options.text_threshold,
        found = prediction.objects.len(),
        regions = made.regions.len(),
        without_label = made.dropped,
        detector_ms = prediction.detector_time.as_millis() as u64,
        segmenter_ms = prediction.segmenter_time.as_millis() as u64,
        "predicted"
    );
    Ok(TaskResult::Done {
        result: made.regions,
        score: made.score,
        model_version: state.model_version.to_string(),
    })
}
