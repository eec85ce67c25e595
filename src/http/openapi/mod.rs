//! `GET /api-docs`: the OpenAPI document of all routes.
//!
//! Each handler declares its own request and response bodies with `#[utoipa::path]`, and their schemas are derived from
//! the types that serde uses. This module adds what the routes share: error responses, credentials, and the schemas of
//! values without a fixed type ([`shapes`]).

mod refusals;
pub(super) mod shapes;

use std::sync::Arc;

use axum::Extension;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};

pub(super) use self::refusals::BodyRefusals;
use super::AppState;
use super::error::ErrorBody;

/// The title, the description and the shared schemas of the document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "groundling",
        description = "A Label Studio ML backend: words in, boxes and masks out. Bodies may be gzip-encoded, and answers are where the client takes it."
    ),
    components(schemas(ErrorBody))
)]
pub(super) struct ApiDoc;

/// The document as JSON.
#[derive(Debug, Clone)]
pub(super) struct ApiDocs(Arc<str>);

impl ApiDocs {
    /// Merges the documents of the routes with and without basic auth.
    pub(super) fn new(guarded: Document, open: Document, state: &AppState) -> Self {
        let mut guarded = refusals::add_common(guarded);
        if state.basic_auth.is_some() {
            guarded = with_credentials(guarded);
        }
        let mut all = guarded.merge_from(refusals::add_common(open));
        refusals::add_request_id(&mut all);
        Self(all.to_json().unwrap_or_default().into())
    }
}

/// Adds the basic-auth scheme and the 401 response to every operation.
fn with_credentials(mut document: Document) -> Document {
    let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Basic));
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("basic", scheme);
    for operation in refusals::operations(&mut document) {
        let no_scopes: [String; 0] = [];
        operation.security = Some(vec![SecurityRequirement::new("basic", no_scopes)]);
        refusals::add(operation, "401", refusals::unauthorized());
    }
    document
}

/// The OpenAPI document of this server.
#[utoipa::path(
    get,
    path = "/api-docs",
    responses((status = 200, description = "OpenAPI 3.1", body = shapes::OpenApiDocument))
)]
pub(super) async fn api_docs(Extension(docs): Extension<ApiDocs>) -> Response {
    ([(CONTENT_TYPE, "application/json")], docs.0.to_string()).into_response()
}
