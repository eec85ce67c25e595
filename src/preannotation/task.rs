//! A task as predictions need it, and its prediction.

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::Span;
use tracing::field::Empty;
use utoipa::ToSchema;

use crate::budget::Reservation;
use crate::regions::Region;

/// The parts of a task that predictions need.
#[derive(Debug, Clone, Default)]
pub struct Task {
    /// The task's id in Label Studio.
    pub id: Option<u64>,
    /// The task's data.
    pub data: Map<String, Value>,
    /// The regions of its annotations and drafts; read only if the labeling config has controls for thresholds or regions of
    /// interest.
    pub regions: Vec<Value>,
}

/// The prediction of a task, in the form that Label Studio stores and shows.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskPrediction {
    /// Its regions: rectangles, masks and polygons.
    pub result: Vec<Region>,
    /// The mean of the detections' scores, 0..1.
    #[schema(minimum = 0, maximum = 1)]
    pub score: f32,
    /// The models and settings that made the prediction.
    pub model_version: String,
    /// The memory of the regions in the budget of requests.
    #[serde(skip)]
    pub memory: Reservation,
}

impl Task {
    /// The tracing span of a task. Every log line about the task carries its id and, once they are known, the
    /// prompt's hash and the time of each stage. The hash shows whether two lines are about the same prompt without
    /// logging the prompt itself.
    pub fn span(&self) -> Span {
        // at the highest level, so that no LOG_LEVEL filters it out
        tracing::error_span!("task", id = self.id, prompt_hash = Empty, timings = Empty)
    }

    /// Approximate size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        let data = self
            .data
            .iter()
            .map(|(key, value)| key.len() + json_bytes(value));
        data.chain(self.regions.iter().map(json_bytes)).sum()
    }
}

/// Approximate size of a JSON value in memory, in bytes.
fn json_bytes(value: &Value) -> usize {
    let contents: usize = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(json_bytes).sum(),
        Value::Object(fields) => {
            let fields = fields.iter();
            fields
                .map(|(key, value)| size_of::<String>() + key.len() + json_bytes(value))
                .sum()
        }
    };
    size_of::<Value>() + contents
}
