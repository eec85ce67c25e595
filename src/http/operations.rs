//! `GET /versions` and `GET /metrics`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::error::error_response;

/// The available model versions.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Versions {
    versions: Vec<String>,
}

/// Lists the available model versions; there is always exactly one.
#[utoipa::path(
    get,
    path = "/versions",
    responses((status = 200, description = "The only version", body = Versions))
)]
pub(super) async fn versions(State(state): State<AppState>) -> Json<Versions> {
    Json(Versions {
        versions: vec![state.preannotator.projects().version("", None)],
    })
}

/// Metrics in the OpenMetrics text format, for Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text"))
)]
pub(super) async fn metrics(State(state): State<AppState>) -> Response {
    match state.preannotator.render_metrics() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => error_response(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}
