//! Maps errors to HTTP statuses and JSON bodies.

use std::any::Any;

use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::budget::OutOfMemory;
use crate::detector::DetectError;
use crate::labeling::LabelingError;
use crate::media::MediaError;
use crate::pipeline::PredictError;
use crate::pipeline::stages::StageError;
use crate::preannotation::PreannotationError;

/// Why a request failed. The text goes to the client and to the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The body does not have the form that Label Studio sends.
    #[error("invalid request: {0}")]
    Body(String),
    /// A thread of the server panicked. The request is not the cause.
    #[error("internal error: {0}; the log has details")]
    Defect(String),
    /// The image that a request names by its digest is not cached.
    #[error("the pixels of the image are no longer in memory: send it again")]
    Forgotten,
    /// Other requests use the memory budget.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// No prediction can be made.
    #[error(transparent)]
    Preannotation(#[from] PreannotationError),
    /// The task of an interactive request failed. The error is logged where it occurs, in the span of the task.
    #[error("{}{error}", .task.map(|task| format!("task {task}: ")).unwrap_or_default())]
    #[allow(missing_docs)]
    Task {
        task: Option<u64>,
        error: PreannotationError,
    },
}

impl From<LabelingError> for RequestError {
    fn from(error: LabelingError) -> Self {
        Self::Preannotation(error.into())
    }
}

impl RequestError {
    fn status(&self) -> StatusCode {
        let error = match self {
            Self::Body(_) => return StatusCode::BAD_REQUEST,
            Self::Forgotten => return StatusCode::GONE,
            Self::Defect(_) => return StatusCode::INTERNAL_SERVER_ERROR,
            Self::Memory(_) => return StatusCode::SERVICE_UNAVAILABLE,
            Self::Preannotation(error) | Self::Task { error, .. } => error,
        };
        match error {
            PreannotationError::Labeling(_)
            | PreannotationError::Prompt(_)
            | PreannotationError::LongPrompt(_) => StatusCode::BAD_REQUEST,
            PreannotationError::Media(error) => media_status(error),
            PreannotationError::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
            PreannotationError::Stage(error) => match &**error {
                StageError::ModelsUnavailable(_) | StageError::DeviceMemory(_) => {
                    StatusCode::SERVICE_UNAVAILABLE
                }
                StageError::Media(error) => media_status(error),
                StageError::Predict(
                    PredictError::NoDetector
                    | PredictError::NoSegmenter
                    | PredictError::Detect(
                        DetectError::PromptTooLong { .. }
                        | DetectError::TooManyPasses { .. }
                        | DetectError::PhraseWithoutTokens(_),
                    ),
                ) => StatusCode::BAD_REQUEST,
                StageError::Predict(_) | StageError::Step(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
            PreannotationError::Regions => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Logs server errors at level error, and others at level warn.
    pub(super) fn log(&self) {
        let status = self.status();
        if status.is_server_error() {
            tracing::error!(status = status.as_u16(), "{self}");
        } else {
            tracing::warn!(status = status.as_u16(), "{self}");
        }
    }

    /// The value of `Retry-After` in seconds, if the same request may succeed later.
    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Preannotation(error) | Self::Task { error, .. } => match error {
                PreannotationError::Busy(_)
                | PreannotationError::Media(MediaError::Memory { .. }) => Some(BUSY_RETRY_SECONDS),
                PreannotationError::Stage(error) => match &**error {
                    StageError::ModelsUnavailable(error) => Some(error.retry_after()),
                    StageError::Media(MediaError::Memory { .. }) | StageError::DeviceMemory(_) => {
                        Some(BUSY_RETRY_SECONDS)
                    }
                    _ => None,
                },
                _ => None,
            },
            Self::Memory(_) => Some(BUSY_RETRY_SECONDS),
            Self::Body(_) | Self::Forgotten | Self::Defect(_) => None,
        }
    }
}

/// Runs blocking work outside of the async threads.
pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RequestError> {
    let done = crate::pipeline::stages::off_thread(work).await;
    done.map_err(|error| RequestError::Defect(error.to_string()))
}

/// Value of `Retry-After` in seconds when the server is busy: by then some of the waiting requests are answered.
const BUSY_RETRY_SECONDS: u64 = 5;

fn media_status(error: &MediaError) -> StatusCode {
    match error {
        MediaError::Location(_)
        | MediaError::Private(_)
        | MediaError::Decode { .. }
        | MediaError::TooLarge { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        MediaError::Token(_)
        | MediaError::Unreachable { .. }
        | MediaError::Refused { .. }
        | MediaError::Status { .. }
        | MediaError::Changed(_) => StatusCode::BAD_GATEWAY,
        MediaError::Memory { .. } => StatusCode::SERVICE_UNAVAILABLE,
    }
}

impl IntoResponse for RequestError {
    fn into_response(self) -> Response {
        let status = self.status();
        // an image that was dropped is sent again, which is no problem
        if !matches!(self, Self::Task { .. } | Self::Forgotten) {
            self.log();
        }
        let mut response = error_response(status, &self.to_string());
        if let Some(seconds) = self.retry_after() {
            let headers = response.headers_mut();
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// An error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error)]
pub(super) struct ErrorBody {
    /// Names the field, URL or setting that is wrong, and what would be right.
    #[schema(min_length = 1)]
    pub(super) error: String,
}

/// A response with the body `{"error": text}`.
pub(super) fn error_response(status: StatusCode, text: &str) -> Response {
    let error = text.to_owned();
    (status, Json(ErrorBody { error })).into_response()
}

pub(super) async fn not_found(uri: Uri) -> Response {
    error_response(StatusCode::NOT_FOUND, &not_found_text(uri.path()))
}

pub(super) fn not_found_text(path: &str) -> String {
    format!("there is no route {path}; GET /api-docs lists all routes")
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let text = format!("{} does not support the method {method}", uri.path());
    error_response(StatusCode::METHOD_NOT_ALLOWED, &text)
}

pub(super) fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    tracing::error!("a handler panicked");
    error_response(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal error; the log has details",
    )
}
