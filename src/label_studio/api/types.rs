//! The objects of Label Studio's API, with the fields that groundling uses.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// A project.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Project {
    pub id: u64,
    #[serde(default)]
    pub title: String,
    pub label_config: String,
    /// Which predictions annotators see: those of this model version, or of the backend with this title.
    #[serde(default)]
    pub model_version: Option<String>,
}

/// A task. The regions of predictions are not kept.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct StoredTask {
    pub id: u64,
    /// The number of its project.
    #[serde(default)]
    pub project: u64,
    #[serde(default)]
    pub data: Map<String, Value>,
    #[serde(default)]
    pub total_annotations: u64,
    #[serde(default)]
    pub predictions: Vec<StoredPrediction>,
    #[serde(default)]
    pub annotations: Vec<StoredAnnotation>,
}

/// An annotation stored in Label Studio.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct StoredAnnotation {
    #[serde(default)]
    pub id: u64,
    /// Whether the annotator skipped the task.
    #[serde(default)]
    pub was_cancelled: bool,
    #[serde(default)]
    pub ground_truth: bool,
    /// Its regions. They contain masks and may be many MB, so they stay unparsed text until they are needed.
    #[serde(default)]
    pub result: Option<Box<RawValue>>,
}

/// A prediction stored in Label Studio.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct StoredPrediction {
    #[serde(default)]
    pub id: Option<u64>,
    #[serde(default)]
    pub model_version: Option<String>,
}

/// One page of a project's tasks.
#[derive(Debug, Clone, Deserialize)]
pub struct TaskPage {
    /// The tasks, ordered by id.
    pub tasks: Vec<StoredTask>,
    /// Number of tasks in the whole project.
    pub total: u64,
}

/// A connected ML backend.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Backend {
    pub id: u64,
    #[serde(default)]
    pub title: String,
    #[serde(default)]
    pub url: String,
    #[serde(default)]
    pub readable_state: String,
    #[serde(default)]
    pub error_message: Option<String>,
    #[serde(default)]
    pub is_interactive: bool,
    #[serde(default)]
    pub extra_params: Value,
    /// `BASIC_AUTH` or `NONE`.
    #[serde(default)]
    pub auth_method: Option<String>,
    #[serde(default)]
    pub basic_auth_user: Option<String>,
    #[serde(default)]
    pub model_version: Option<String>,
}

/// The predictions of a backend for one task, which are not stored.
#[derive(Debug, Clone, Deserialize)]
pub struct BackendTest {
    /// The task.
    pub task: StoredTask,
    /// One prediction per task; `None` if the backend's answer has none.
    #[serde(default)]
    pub response: Option<Vec<TestPrediction>>,
}

/// A prediction of a test.
#[derive(Debug, Clone, Deserialize)]
pub struct TestPrediction {
    /// The regions.
    #[serde(default)]
    pub result: Vec<Value>,
    /// Why there are none: groundling's answer for a task that failed.
    #[serde(default)]
    pub error: Option<String>,
}

/// The user that a token belongs to.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct User {
    #[serde(default)]
    pub email: String,
}
