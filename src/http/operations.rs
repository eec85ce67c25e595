//! `GET /versions`, `GET /metrics`, `GET /api-docs`.

use std::future::{Ready, ready};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};

use super::{AppState, error};

/// The versions that can be asked for: the one there is.
#[utoipa::path(
    get,
    path = "/versions",
    responses((status = 200, description = "`{versions: [model_version]}`", body = Value))
)]
pub(super) async fn versions(State(state): State<AppState>) -> Json<Value> {
    Json(json!({ "versions": [state.preannotator.projects().version("", None)] }))
}

/// Counters in Prometheus' text format.
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
        Err(error) => error::failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// The routes as OpenAPI, with the credentials they want.
pub(super) fn document(mut docs: OpenApi, state: &AppState) -> Arc<str> {
    if state.basic_auth.is_some() {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Basic));
        let components = docs.components.get_or_insert_default();
        components.add_security_scheme("basic", scheme);
        let no_scopes: [String; 0] = [];
        docs.security = Some(vec![SecurityRequirement::new("basic", no_scopes)]);
    }
    docs.to_json().unwrap_or_default().into()
}

/// Answers with the document.
pub(super) fn api_docs(
    docs: Arc<str>,
) -> impl FnOnce() -> Ready<Response> + Clone + Send + 'static {
    move || {
        let docs = docs.to_string();
        ready(([(CONTENT_TYPE, "application/json")], docs).into_response())
    }
}
