//! The routes of the fake Label Studio.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{LEGACY_TOKEN, StudioState, backends, count_down, jwt, personal_access_token};
use crate::support::{SHAPES, SHAPES_CONFIG};

pub(super) fn router(state: Arc<StudioState>) -> Router {
    Router::new()
        // images
        .route("/data/upload/{project}/{file}", get(upload))
        .route("/storage-data/uploaded/", get(upload_in_cloud_storage))
        .route("/data/local-files/", get(local_file))
        .route("/data/local-files", get(local_file))
        .route("/tasks/{task}/resolve/", get(resolve_storage_uri))
        .route("/open.png", get(public_image))
        .route("/protected.png", get(protected_image))
        .route("/protected-moved.png", get(protected_redirect))
        .route("/no-credentials.png", get(image_without_credentials))
        .route(
            "/loop.png",
            get(|| async { Redirect::temporary("/loop.png") }),
        )
        .route("/text.png", get(|| async { "this is not an image" }))
        .route("/slow.png", get(slow))
        // the API
        .route("/api/token/refresh/", post(exchange_token))
        .route(
            "/api/version",
            get(|| async { Json(json!({"release": "1.23.2"})) }),
        )
        .route("/api/current-user/whoami", get(whoami))
        .route(
            "/api/projects/{project}/",
            get(project).patch(change_project),
        )
        .route("/api/tasks/", get(tasks))
        .route("/api/tasks/{task}/", get(one_task))
        .route("/api/predictions/", get(predictions).post(store_prediction))
        .route("/api/predictions/{prediction}/", delete(delete_prediction))
        .merge(backends::router())
        .with_state(state)
}

pub(super) type SharedState = State<Arc<StudioState>>;

impl StudioState {
    /// The labeling config of project 7.
    pub(super) fn label_config(&self) -> String {
        let changed = self.label_config.lock().unwrap().clone();
        changed.unwrap_or_else(|| SHAPES_CONFIG.to_owned())
    }

    /// Whether a request has a valid token.
    pub(super) fn is_authorized(&self, headers: &HeaderMap) -> bool {
        let header = headers.get("authorization").and_then(|v| v.to_str().ok());
        match header.and_then(|header| header.split_once(' ')) {
            Some(("Token", token)) => self.accepts_legacy_tokens && token == LEGACY_TOKEN,
            Some(("Bearer", token)) => {
                let payload = token.split('.').nth(1).unwrap_or_default();
                let claims = URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
                let claims: Value = serde_json::from_slice(&claims).unwrap_or_default();
                let number = claims["number"].as_u64().unwrap_or(0) as usize;
                claims["token_type"] == "access"
                    && number >= self.first_valid_token.load(Ordering::SeqCst)
            }
            _ => false,
        }
    }

    /// The response to an authorized request, or 401.
    pub(super) fn if_authorized(
        &self,
        headers: &HeaderMap,
        response: impl FnOnce() -> Response,
    ) -> Response {
        match self.is_authorized(headers) {
            true => response(),
            false => {
                let text = json!({"detail": "Invalid token."});
                (StatusCode::UNAUTHORIZED, Json(text)).into_response()
            }
        }
    }

    /// The picture of shapes. PNG decoders ignore the bytes in `suffix`.
    fn picture(&self, suffix: &[u8]) -> Response {
        self.images_served.fetch_add(1, Ordering::SeqCst);
        let png = [SHAPES, suffix].concat();
        ([("content-type", "image/png")], png).into_response()
    }
}

async fn upload(
    State(studio): SharedState,
    Path((_, file)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    studio.if_authorized(&headers, || match file.as_str() {
        // Label Studio's status for an upload that does not exist
        "missing.png" => {
            let text = json!({"detail": "no"});
            (StatusCode::INTERNAL_SERVER_ERROR, Json(text)).into_response()
        }
        // an upload in cloud storage has another URL
        "stored.png" => StatusCode::NOT_FOUND.into_response(),
        "https.png" => {
            let https = studio
                .other_origin
                .replace("http://localhost", "https://127.0.0.1");
            Redirect::permanent(&format!("{https}/data/upload/1/https.png")).into_response()
        }
        "moved.png" => {
            Redirect::temporary(&format!("{}/open.png", studio.other_origin)).into_response()
        }
        name if studio.has_distinct_images => studio.picture(name.as_bytes()),
        _ => studio.picture(b""),
    })
}

/// The decoded value of a key in a query.
pub(super) fn query(uri: &Uri, key: &str) -> Option<String> {
    let url = reqwest::Url::parse(&format!("http://host{uri}")).unwrap();
    let mut pairs = url.query_pairs();
    pairs
        .find(|(name, _)| name == key)
        .map(|(_, value)| value.into_owned())
}

async fn upload_in_cloud_storage(
    State(studio): SharedState,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    studio.if_authorized(&headers, || match query(&uri, "filepath").as_deref() {
        Some("upload/1/stored.png") => studio.picture(b""),
        _ => StatusCode::BAD_REQUEST.into_response(),
    })
}

async fn local_file(State(studio): SharedState, uri: Uri, headers: HeaderMap) -> Response {
    studio.if_authorized(&headers, || match query(&uri, "d").as_deref() {
        Some("missing.png") | None => StatusCode::NOT_FOUND.into_response(),
        Some(_) => studio.picture(b""),
    })
}

/// Redirects a URI of cloud storage to a presigned URL of another origin.
async fn resolve_storage_uri(
    State(studio): SharedState,
    Path(task): Path<u64>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let uri = query(&uri, "fileuri").unwrap_or_default();
    let uri = URL_SAFE.decode(uri).unwrap_or_default();
    studio.if_authorized(&headers, || match (task, uri.as_slice()) {
        (71, b"s3://bucket/a b.png") => Redirect::to(&format!(
            "{}/open.png?X-Amz-Signature=secret",
            studio.other_origin
        ))
        .into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    })
}

/// An image without access control, as on another host. A request that brings Label Studio's token here is answered
/// with status 418, so that the test fails.
async fn public_image(State(studio): SharedState, headers: HeaderMap) -> Response {
    let header = headers
        .get("authorization")
        .and_then(|v| v.to_str().ok())
        .unwrap_or("Basic");
    match header.starts_with("Basic") {
        true => studio.picture(b""),
        false => StatusCode::IM_A_TEAPOT.into_response(),
    }
}

/// The login that protected images require: `user` with the password `word`.
fn has_login(headers: &HeaderMap) -> bool {
    let header = headers.get("authorization");
    header.is_some_and(|header| header == "Basic dXNlcjp3b3Jk")
}

async fn protected_image(State(studio): SharedState, headers: HeaderMap) -> Response {
    match has_login(&headers) {
        true => studio.picture(b""),
        false => StatusCode::UNAUTHORIZED.into_response(),
    }
}

/// Redirects an authorized request to an image of another origin.
async fn protected_redirect(State(studio): SharedState, headers: HeaderMap) -> Response {
    let origin = studio.other_origin.replace("localhost", "127.0.0.1");
    match has_login(&headers) {
        true => Redirect::temporary(&format!("{origin}/no-credentials.png")).into_response(),
        false => StatusCode::UNAUTHORIZED.into_response(),
    }
}

/// An image that is sent only to requests without any credentials.
async fn image_without_credentials(State(studio): SharedState, headers: HeaderMap) -> Response {
    match headers.contains_key("authorization") {
        false => studio.picture(b""),
        true => StatusCode::IM_A_TEAPOT.into_response(),
    }
}

async fn slow() -> StatusCode {
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    StatusCode::OK
}

async fn exchange_token(State(studio): SharedState, Json(body): Json<Value>) -> Response {
    if body["refresh"] != personal_access_token() {
        let text = json!({"detail": "Token is invalid"});
        return (StatusCode::UNAUTHORIZED, Json(text)).into_response();
    }
    let number = studio.token_exchanges.fetch_add(1, Ordering::SeqCst) + 1;
    let expiry = 1000 + studio.access_token_seconds;
    let claims = json!({"token_type": "access", "iat": 1000, "exp": expiry, "number": number});
    Json(json!({"access": jwt(&claims)})).into_response()
}

async fn whoami(State(studio): SharedState, headers: HeaderMap) -> Response {
    studio.if_authorized(&headers, || {
        Json(json!({"email": "user@example.com"})).into_response()
    })
}

async fn project(State(studio): SharedState, Path(id): Path<u64>, headers: HeaderMap) -> Response {
    studio.if_authorized(&headers, || match id {
        7 => Json(json!({"id": 7, "title": "shapes", "label_config": studio.label_config()}))
            .into_response(),
        _ => (StatusCode::NOT_FOUND, Json(json!({"detail": "Not found."}))).into_response(),
    })
}

/// Changes the labeling config of a project.
async fn change_project(
    State(studio): SharedState,
    Path(id): Path<u64>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    studio.if_authorized(&headers, || match body["label_config"].as_str() {
        Some(config) if id == 7 => {
            *studio.label_config.lock().unwrap() = Some(config.to_owned());
            Json(json!({"id": 7, "label_config": config})).into_response()
        }
        _ => StatusCode::BAD_REQUEST.into_response(),
    })
}

/// A page of tasks with their predictions.
async fn one_task(State(studio): SharedState, Path(id): Path<u64>, headers: HeaderMap) -> Response {
    let tasks = studio.tasks.lock().unwrap().clone();
    let task = tasks.into_iter().find(|task| task["id"] == id);
    studio.if_authorized(&headers, || match task {
        Some(mut task) => {
            task["project"] = 7.into();
            Json(task).into_response()
        }
        None => (
            StatusCode::NOT_FOUND,
            Json(json!({"detail": "No Task matches the given query."})),
        )
            .into_response(),
    })
}

async fn tasks(State(studio): SharedState, uri: Uri, headers: HeaderMap) -> Response {
    let number = |key: &str| query(&uri, key).unwrap().parse::<usize>().unwrap();
    let (page, size) = (number("page"), number("page_size"));
    let stored = studio.predictions.lock().unwrap().clone();
    let tasks = studio.tasks.lock().unwrap().clone();
    let total = tasks.len();
    let page = tasks.into_iter().skip((page - 1) * size).take(size);
    let tasks: Vec<Value> = page
        .map(|mut task| {
            let of_task = stored.iter().filter(|p| p["task"] == task["id"]);
            task["predictions"] = of_task.cloned().collect();
            task
        })
        .collect();
    let body = json!({"tasks": tasks, "total": total});
    studio.if_authorized(&headers, || Json(body).into_response())
}

async fn predictions(State(studio): SharedState, uri: Uri) -> Json<Value> {
    let stored = studio.predictions.lock().unwrap().clone();
    let task: u64 = query(&uri, "task").unwrap().parse().unwrap();
    let of_task = stored.into_iter().filter(|p| p["task"] == task);
    Json(of_task.collect())
}

async fn store_prediction(
    State(studio): SharedState,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    if !studio.is_authorized(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if !body["task"].is_u64() {
        let text = json!({"task": ["This field is required."]});
        return (StatusCode::BAD_REQUEST, Json(text)).into_response();
    }
    let stored = studio.store(body);
    match count_down(&studio.failing_stores) {
        true => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        false => (StatusCode::CREATED, Json(stored)).into_response(),
    }
}

async fn delete_prediction(
    State(studio): SharedState,
    Path(id): Path<u64>,
    headers: HeaderMap,
) -> StatusCode {
    if !studio.is_authorized(&headers) {
        return StatusCode::UNAUTHORIZED;
    }
    if let Some(status) = studio.refused_deletions.lock().unwrap().get(&id) {
        return StatusCode::from_u16(*status).unwrap();
    }
    let mut stored = studio.predictions.lock().unwrap();
    let before = stored.len();
    stored.retain(|prediction| prediction["id"] != id);
    if stored.len() == before {
        return StatusCode::NOT_FOUND;
    }
    match count_down(&studio.failing_deletions) {
        true => StatusCode::INTERNAL_SERVER_ERROR,
        false => StatusCode::NO_CONTENT,
    }
}
