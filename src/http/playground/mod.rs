//! `GET /playground`: a page on which a person tries prompts and thresholds on images of their own. The page and its
//! interface ([`api`]) belong together: the interface is not for other programs, and may change in any release.
//!
//! The page is part of the binary and loads nothing from other hosts.

mod api;
mod status;
mod task;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use super::AppState;
use super::error::{error_response, not_found_text};

/// Whether the playground is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaygroundAccess {
    /// It is served.
    Open,
    /// The settings switch it off.
    Off,
    /// Other machines can reach the server, and no credentials are required.
    Unprotected,
}

impl PlaygroundAccess {
    /// Why the playground is not served; `None` if it is.
    fn refusal(self) -> Option<&'static str> {
        match self {
            Self::Open => None,
            Self::Off => Some("the playground is switched off (PLAYGROUND=off)"),
            Self::Unprotected => Some(
                "the playground is served only if the server listens on loopback (BIND_ADDRESS=127.0.0.1) or requires credentials: set BASIC_AUTH_USER and BASIC_AUTH_PASS",
            ),
        }
    }
}

/// The files of the page: name, type and contents.
const FILES: [(&str, &str, &[u8]); 8] = [
    ("style.css", CSS, include_bytes!("page/style.css")),
    ("app.js", SCRIPT, include_bytes!("page/app.js")),
    ("pane.js", SCRIPT, include_bytes!("page/pane.js")),
    ("canvas.js", SCRIPT, include_bytes!("page/canvas.js")),
    ("masks.js", SCRIPT, include_bytes!("page/masks.js")),
    ("server.js", SCRIPT, include_bytes!("page/server.js")),
    ("status.js", SCRIPT, include_bytes!("page/status.js")),
    (
        "shapes.png",
        "image/png",
        include_bytes!("../../../examples/images/shapes.png"),
    ),
];
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const PAGE: &[u8] = include_bytes!("page/index.html");

/// Scripts, styles and requests of the page itself only; images are also made from files that a person chose.
const SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The routes of the page.
pub(super) fn routes(state: AppState) -> Router<AppState> {
    Router::new()
        .route("/playground", get(page))
        .route("/playground/{file}", get(file))
        .route("/playground/api/settings", get(api::settings))
        .route("/playground/api/status", get(status::status))
        .route("/playground/api/task/{number}", get(task::picture))
        .route("/playground/api/find", post(api::find))
        .route("/playground/api/segment", post(api::segment))
        .route("/playground/api/mark", post(api::mark))
        .route_layer(from_fn_with_state(state, require_access))
}

/// Middleware that answers 404 with the reason if the playground is not served.
async fn require_access(State(state): State<AppState>, request: Request, next: Next) -> Response {
    match state.playground.refusal() {
        Some(reason) => error_response(StatusCode::NOT_FOUND, reason),
        None => next.run(request).await,
    }
}

async fn page() -> Response {
    asset("text/html; charset=utf-8", PAGE)
}

async fn file(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|(file, ..)| *file == name) {
        Some((_, kind, contents)) => asset(kind, contents),
        None => error_response(
            StatusCode::NOT_FOUND,
            &not_found_text(&format!("/playground/{name}")),
        ),
    }
}

fn asset(kind: &'static str, contents: &'static [u8]) -> Response {
    let headers: [(HeaderName, &str); 5] = [
        (CONTENT_TYPE, kind),
        // a new version of the program has a new page
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, SECURITY_POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, contents).into_response()
}

/// Whether a client prefers a page to JSON: browsers name `text/html` when they open an address, and no other client of
/// groundling does.
pub(super) fn wants_page(state: &AppState, headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT);
    let accept = accept.and_then(|accept| accept.to_str().ok());
    state.playground.refusal().is_none()
        && accept.is_some_and(|accept| accept.contains("text/html"))
}
