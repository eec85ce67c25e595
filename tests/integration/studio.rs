//! A stand-in for Label Studio's web server, as it was recorded: uploads, local files, token exchange,
//! cloud URIs, and the few calls of its API that `annotate` makes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::support::{SHAPES, SHAPES_CONFIG, app_with};

/// The legacy token.
pub const LEGACY: &str = "0123456789abcdef0123456789abcdef01234567";

/// A running stand-in.
#[derive(Debug, Clone)]
pub struct Studio {
    /// `http://127.0.0.1:port`, with the prefix.
    pub host: String,
    /// The same machine by another name: another origin.
    pub elsewhere: String,
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    elsewhere: String,
    has_legacy: bool,
    /// How often the personal access token was exchanged; the number is part of the access token.
    exchanges: AtomicUsize,
    /// Access tokens before this one are refused.
    valid_from: AtomicUsize,
    /// Seconds that access tokens live.
    life: u64,
    images_served: AtomicUsize,
    tasks: Vec<Value>,
    predictions: Mutex<Vec<Value>>,
    /// The next so many predictions are stored and answered with 500.
    stumbles: AtomicUsize,
    has_own_images: bool,
}

/// How it is set up.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// A path that everything lives under, such as `/studio`.
    pub prefix: &'static str,
    /// Whether legacy tokens work.
    pub has_legacy: bool,
    /// Seconds that access tokens live.
    pub life: u64,
    /// Tasks of project 7.
    pub tasks: usize,
    /// Predictions that are stored and then answered with 500.
    pub stumbles: usize,
    /// Whether each upload has bytes of its own; the picture is the same.
    pub has_own_images: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            prefix: "",
            has_legacy: true,
            life: 300,
            tasks: 0,
            stumbles: 0,
            has_own_images: false,
        }
    }
}

/// A JSON web token of these claims.
pub fn jwt(claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2ln", part(&json!({"alg": "HS256"})), part(claims))
}

/// The personal access token that is exchanged.
pub fn personal() -> String {
    jwt(&json!({"token_type": "refresh", "exp": 8_000_000_000u64, "user": "someone"}))
}

impl Studio {
    /// Starts it on a free port.
    pub async fn start(setup: Setup) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let elsewhere = format!("http://localhost:{port}");
        let task = |i: usize| {
            let image = match i % 10 {
                3 => "/data/upload/7/missing.png".to_owned(),
                _ => format!("/data/upload/7/shapes-{i}.png"),
            };
            let annotations = u64::from(i % 10 == 5);
            json!({"id": 100 + i, "data": {"image": image}, "total_annotations": annotations})
        };
        let inner = Arc::new(Inner {
            elsewhere: elsewhere.clone(),
            has_legacy: setup.has_legacy,
            life: setup.life,
            tasks: (0..setup.tasks).map(task).collect(),
            stumbles: setup.stumbles.into(),
            has_own_images: setup.has_own_images,
            ..Inner::default()
        });
        let routes = Router::new()
            .route("/data/upload/{project}/{file}", get(upload))
            .route("/storage-data/uploaded/", get(stored_upload))
            .route("/data/local-files/", get(local_file))
            .route("/data/local-files", get(local_file))
            .route("/tasks/{task}/resolve/", get(resolve))
            .route("/open.png", get(open))
            .route(
                "/loop.png",
                get(|| async { Redirect::temporary("/loop.png") }),
            )
            .route("/text.png", get(|| async { "this is no image" }))
            .route("/slow.png", get(slow))
            .route("/api/token/refresh/", post(refresh))
            .route(
                "/api/version",
                get(|| async { Json(json!({"release": "1.23.2"})) }),
            )
            .route("/api/current-user/whoami", get(whoami))
            .route("/api/projects/{project}/", get(project))
            .route("/api/tasks/", get(tasks))
            .route("/api/ml", get(backends))
            .route("/api/predictions/", get(predictions).post(store))
            .with_state(inner.clone());
        let routes = match setup.prefix {
            "" => routes,
            prefix => Router::new().nest(prefix, routes),
        };
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self {
            host: format!("http://127.0.0.1:{port}{}", setup.prefix),
            elsewhere,
            inner,
        }
    }

    /// A server whose images come from here, with this token.
    pub fn app(&self, token: &str, flags: &[&str]) -> Router {
        let connection = [
            "--label-studio-host",
            &self.host,
            "--label-studio-access-token",
            token,
        ];
        app_with(&[&connection, flags].concat())
    }

    /// How often the personal access token was exchanged.
    pub fn exchanges(&self) -> usize {
        self.inner.exchanges.load(Ordering::SeqCst)
    }

    /// Refuses all access tokens given out so far.
    pub fn revoke_access(&self) {
        self.inner
            .valid_from
            .store(self.exchanges() + 1, Ordering::SeqCst);
    }

    /// How many images were given out.
    pub fn images_served(&self) -> usize {
        self.inner.images_served.load(Ordering::SeqCst)
    }

    /// The predictions that were stored.
    pub fn stored(&self) -> Vec<Value> {
        self.inner.predictions.lock().unwrap().clone()
    }
}

type Shared = State<Arc<Inner>>;

impl Inner {
    /// Whether a request may see what is not public.
    fn admits(&self, headers: &HeaderMap) -> bool {
        let sent = headers.get("authorization").and_then(|v| v.to_str().ok());
        match sent.and_then(|sent| sent.split_once(' ')) {
            Some(("Token", token)) => self.has_legacy && token == LEGACY,
            Some(("Bearer", token)) => {
                let payload = token.split('.').nth(1).unwrap_or_default();
                let claims = URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
                let claims: Value = serde_json::from_slice(&claims).unwrap_or_default();
                let number = claims["number"].as_u64().unwrap_or(0) as usize;
                claims["token_type"] == "access" && number >= self.valid_from.load(Ordering::SeqCst)
            }
            _ => false,
        }
    }

    fn png(&self) -> Response {
        self.images_served.fetch_add(1, Ordering::SeqCst);
        ([("content-type", "image/png")], SHAPES).into_response()
    }

    fn guarded(&self, headers: &HeaderMap, answer: impl FnOnce() -> Response) -> Response {
        match self.admits(headers) {
            true => answer(),
            false => {
                let text = json!({"detail": "Invalid token."});
                (StatusCode::UNAUTHORIZED, Json(text)).into_response()
            }
        }
    }
}

async fn upload(
    State(studio): Shared,
    Path((_, file)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    studio.guarded(&headers, || match file.as_str() {
        // as Label Studio does it
        "missing.png" => (
            StatusCode::INTERNAL_SERVER_ERROR,
            Json(json!({"detail": "no"})),
        )
            .into_response(),
        // this one lies in cloud storage
        "stored.png" => StatusCode::NOT_FOUND.into_response(),
        "https.png" => {
            let secure = studio
                .elsewhere
                .replace("http://localhost", "https://127.0.0.1");
            Redirect::permanent(&format!("{secure}/data/upload/1/https.png")).into_response()
        }
        "moved.png" => {
            Redirect::temporary(&format!("{}/open.png", studio.elsewhere)).into_response()
        }
        // decoders ignore what follows a picture
        name if studio.has_own_images => {
            studio.images_served.fetch_add(1, Ordering::SeqCst);
            let png = [SHAPES, name.as_bytes()].concat();
            ([("content-type", "image/png")], png).into_response()
        }
        _ => studio.png(),
    })
}

/// What a query has under a key, decoded.
fn query(uri: &Uri, key: &str) -> Option<String> {
    let url = reqwest::Url::parse(&format!("http://host{uri}")).unwrap();
    let mut pairs = url.query_pairs();
    pairs
        .find(|(name, _)| name == key)
        .map(|(_, value)| value.into_owned())
}

async fn stored_upload(State(studio): Shared, uri: Uri, headers: HeaderMap) -> Response {
    studio.guarded(&headers, || match query(&uri, "filepath").as_deref() {
        Some("upload/1/stored.png") => studio.png(),
        _ => StatusCode::BAD_REQUEST.into_response(),
    })
}

async fn local_file(State(studio): Shared, uri: Uri, headers: HeaderMap) -> Response {
    studio.guarded(&headers, || match query(&uri, "d").as_deref() {
        Some("missing.png") | None => StatusCode::NOT_FOUND.into_response(),
        Some(_) => studio.png(),
    })
}

async fn resolve(
    State(studio): Shared,
    Path(task): Path<u64>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let uri = query(&uri, "fileuri").unwrap_or_default();
    let uri = base64::engine::general_purpose::URL_SAFE
        .decode(uri)
        .unwrap_or_default();
    studio.guarded(&headers, || match (task, uri.as_slice()) {
        (71, b"s3://bucket/a b.png") => Redirect::to(&format!(
            "{}/open.png?X-Amz-Signature=secret",
            studio.elsewhere
        ))
        .into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    })
}

/// Only for those who do not bring a token where it does not belong.
async fn open(State(studio): Shared, headers: HeaderMap) -> Response {
    let sent = headers
        .get("authorization")
        .and_then(|v| v.to_str().ok())
        .unwrap_or("Basic");
    match sent.starts_with("Basic") {
        true => studio.png(),
        false => StatusCode::IM_A_TEAPOT.into_response(),
    }
}

async fn slow() -> StatusCode {
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    StatusCode::OK
}

async fn refresh(State(studio): Shared, Json(body): Json<Value>) -> Response {
    if body["refresh"] != personal() {
        return (
            StatusCode::UNAUTHORIZED,
            Json(json!({"detail": "Token is invalid"})),
        )
            .into_response();
    }
    let number = studio.exchanges.fetch_add(1, Ordering::SeqCst) + 1;
    let claims =
        json!({"token_type": "access", "iat": 1000, "exp": 1000 + studio.life, "number": number});
    Json(json!({"access": jwt(&claims)})).into_response()
}

async fn whoami(State(studio): Shared, headers: HeaderMap) -> Response {
    studio.guarded(&headers, || {
        Json(json!({"email": "user@example.com"})).into_response()
    })
}

async fn project(State(studio): Shared, Path(id): Path<u64>, headers: HeaderMap) -> Response {
    studio.guarded(&headers, || match id {
        7 => {
            Json(json!({"id": 7, "title": "shapes", "label_config": SHAPES_CONFIG})).into_response()
        }
        _ => (StatusCode::NOT_FOUND, Json(json!({"detail": "Not found."}))).into_response(),
    })
}

async fn backends(State(studio): Shared, headers: HeaderMap) -> Response {
    studio.guarded(&headers, || Json(json!([])).into_response())
}

async fn tasks(State(studio): Shared, uri: Uri, headers: HeaderMap) -> Response {
    let number = |key: &str| query(&uri, key).unwrap().parse::<usize>().unwrap();
    let (page, size) = (number("page"), number("page_size"));
    let stored = studio.predictions.lock().unwrap().clone();
    let page = studio.tasks.iter().skip((page - 1) * size).take(size);
    let tasks: Vec<Value> = page
        .map(|task| {
            let mut task = task.clone();
            let own = stored.iter().filter(|p| p["task"] == task["id"]);
            task["predictions"] = own.cloned().collect();
            task
        })
        .collect();
    let body = json!({"tasks": tasks, "total": studio.tasks.len()});
    studio.guarded(&headers, || Json(body).into_response())
}

async fn predictions(State(studio): Shared, uri: Uri) -> Json<Value> {
    let stored = studio.predictions.lock().unwrap().clone();
    let task: u64 = query(&uri, "task").unwrap().parse().unwrap();
    let own = stored.into_iter().filter(|p| p["task"] == task);
    Json(own.collect())
}

async fn store(State(studio): Shared, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    if !studio.admits(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if !body["task"].is_u64() {
        return (
            StatusCode::BAD_REQUEST,
            Json(json!({"task": ["This field is required."]})),
        )
            .into_response();
    }
    studio.predictions.lock().unwrap().push(body.clone());
    let less = |count: usize| count.checked_sub(1);
    match studio
        .stumbles
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
    {
        Ok(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Err(_) => (StatusCode::CREATED, Json(body)).into_response(),
    }
}
