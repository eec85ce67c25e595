//! The routes of `groundling connect`: projects are created, images uploaded, and backends connected. The fake calls the
//! backend as Label Studio does.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::StudioState;
use super::routes::{SharedState, query};

/// Project 7 as Label Studio names it to backends.
const PROJECT: &str = "7.1795353181";

pub(super) fn router() -> Router<Arc<StudioState>> {
    Router::new()
        .route("/api/projects/", get(projects).post(create_project))
        .route("/api/projects/{project}/import", post(import))
        .route("/api/ml", get(backends).post(connect))
        .route("/api/ml/{backend}", patch(update))
        .route("/api/ml/{backend}/predict/test", post(test))
}

/// Lists the created project, if its title contains the wanted text.
async fn projects(State(studio): SharedState, uri: Uri, headers: HeaderMap) -> Response {
    let wanted = query(&uri, "title").unwrap_or_default();
    let created = studio.created_project.lock().unwrap().clone();
    let found = created.filter(|title| title.contains(&wanted));
    let config = studio.label_config();
    let found: Vec<Value> = found
        .map(|title| json!({"id": 7, "title": title, "label_config": config}))
        .into_iter()
        .collect();
    studio.if_authorized(&headers, || {
        Json(json!({"count": found.len(), "next": null, "results": found})).into_response()
    })
}

async fn create_project(
    State(studio): SharedState,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    studio.if_authorized(&headers, || {
        let text = |field: &str| body[field].as_str().unwrap().to_owned();
        *studio.created_project.lock().unwrap() = Some(text("title"));
        *studio.label_config.lock().unwrap() = Some(text("label_config"));
        let project =
            json!({"id": 7, "title": text("title"), "label_config": text("label_config")});
        (StatusCode::CREATED, Json(project)).into_response()
    })
}

/// Creates a task of every uploaded file.
async fn import(State(studio): SharedState, headers: HeaderMap, form: Bytes) -> Response {
    let form = String::from_utf8_lossy(&form);
    let names = form.split("; filename=\"").skip(1);
    studio.if_authorized(&headers, || {
        let mut tasks = studio.tasks.lock().unwrap();
        for name in names {
            let file = name.split('"').next().unwrap();
            let id = 100 + tasks.len();
            tasks.push(json!({"id": id, "data": {"image": format!("/data/upload/7/{file}")}}));
        }
        (StatusCode::CREATED, Json(json!({}))).into_response()
    })
}

async fn backends(State(studio): SharedState, headers: HeaderMap) -> Response {
    let backends = studio.backends.lock().unwrap().clone();
    studio.if_authorized(&headers, || Json(backends).into_response())
}

async fn connect(
    State(studio): SharedState,
    headers: HeaderMap,
    Json(mut backend): Json<Value>,
) -> Response {
    if !studio.is_authorized(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if let Err(refusal) = call(&studio, &mut backend).await {
        return refusal;
    }
    let mut backends = studio.backends.lock().unwrap();
    backend["id"] = (backends.len() + 1).into();
    backends.push(backend.clone());
    if studio.blocks_webhooks {
        return blocked();
    }
    (StatusCode::CREATED, Json(backend)).into_response()
}

async fn update(
    State(studio): SharedState,
    Path(id): Path<usize>,
    headers: HeaderMap,
    Json(mut backend): Json<Value>,
) -> Response {
    if !studio.is_authorized(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if let Err(refusal) = call(&studio, &mut backend).await {
        return refusal;
    }
    backend["id"] = id.into();
    studio.backends.lock().unwrap()[id - 1] = backend.clone();
    Json(backend).into_response()
}

/// The refusal of a private address.
fn blocked() -> Response {
    let text = "URL resolves to a reserved network address (block: 127.0.0.0/8)";
    (StatusCode::FORBIDDEN, Json(json!({"detail": text}))).into_response()
}

/// Calls `/health` and `/setup` of a backend, and notes its model version.
async fn call(studio: &StudioState, backend: &mut Value) -> Result<(), Response> {
    if studio.blocks_private_addresses {
        return Err(blocked());
    }
    let refused = |url: &str| {
        let text = format!(
            "Can't connect to ML backend {url}, health check failed. Make sure it is up and your firewall is properly configured."
        );
        let errors = json!({"non_field_errors": [text]});
        let body = json!({"detail": "Validation error", "validation_errors": errors});
        (StatusCode::BAD_REQUEST, Json(body)).into_response()
    };
    let url = backend["url"].as_str().unwrap().to_owned();
    let health = request(backend, "health", None).await;
    health.ok_or_else(|| refused(&url))?;
    let setup = json!({
        "project": PROJECT, "schema": studio.label_config(), "hostname": "http://localhost:8080",
        "access_token": "", "extra_params": null,
    });
    let setup = request(backend, "setup", Some(setup)).await;
    let setup = setup.ok_or_else(|| refused(&url))?;
    backend["model_version"] = setup["model_version"].clone();
    Ok(())
}

/// Requests a prediction for the first task, which is not stored.
async fn test(State(studio): SharedState, Path(id): Path<usize>) -> Response {
    let backend = studio.backends.lock().unwrap()[id - 1].clone();
    let task = studio.tasks.lock().unwrap()[0].clone();
    let body = json!({
        "tasks": [task], "project": PROJECT, "label_config": studio.label_config(),
        "params": {"login": null, "password": null, "context": null},
    });
    match request(&backend, "predict", Some(body)).await {
        Some(answer) => Json(json!({"task": task, "response": answer["results"]})).into_response(),
        None => {
            let text =
                "ML backend did not return any predictions, check ML backend logs for more details";
            let body = json!({"detail": text});
            (StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response()
        }
    }
}

/// The JSON of a backend's successful response.
async fn request(backend: &Value, path: &str, body: Option<Value>) -> Option<Value> {
    let url = format!("{}/{path}", backend["url"].as_str()?);
    let client = groundling::outgoing::client().no_proxy().build().unwrap();
    let mut request = match body {
        Some(body) => client.post(url).json(&body),
        None => client.get(url),
    };
    if backend["auth_method"] == "BASIC_AUTH" {
        let field = |name: &str| backend[name].as_str().unwrap().to_owned();
        request = request.basic_auth(field("basic_auth_user"), Some(field("basic_auth_pass")));
    }
    let response = request.send().await.ok()?.error_for_status().ok()?;
    response.json().await.ok()
}
