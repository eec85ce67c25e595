//! `GET /api-docs`: the OpenAPI document of all routes.
//!
//! Each handler declares its own request and response bodies with `#[utoipa::path]`, and their schemas are derived from
//! the types that serde uses. This module adds what the routes share: error responses, credentials, and the schemas of
//! values without a fixed type ([`schemas`]).

mod error_responses;
pub(super) mod schemas;

use std::sync::Arc;

use axum::Extension;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};

pub(super) use self::error_responses::BodyErrorResponses;
use super::AppState;
use super::error::ErrorBody;

/// The title, the description and the shared schemas of the document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "groundling",
        description = "A Label Studio ML backend: words in, boxes and masks out. Request bodies may be gzip-encoded; responses are gzip-encoded if the client accepts it."
    ),
    components(schemas(ErrorBody))
)]
pub(super) struct ApiDoc;

/// The document as JSON.
#[derive(Debug, Clone)]
pub(super) struct ApiDocs(Arc<str>);

impl ApiDocs {
    /// Merges the documents of the routes with and without basic auth.
    pub(super) fn new(protected: Document, public: Document, state: &AppState) -> Self {
        let mut protected = error_responses::add_common(protected);
        if state.basic_auth.is_some() {
            protected = add_credentials(protected);
        }
        let mut document = protected.merge_from(error_responses::add_common(public));
        error_responses::add_request_id(&mut document);
        Self(document.to_json().unwrap_or_default().into())
    }
}

/// Adds the basic-auth scheme and the 401 response to every operation.
fn add_credentials(mut document: Document) -> Document {
    let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Basic));
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("basic", scheme);
    for operation in error_responses::operations(&mut document) {
        let no_scopes: [String; 0] = [];
        operation.security = Some(vec![SecurityRequirement::new("basic", no_scopes)]);
        error_responses::add_response(operation, "401", error_responses::unauthorized());
    }
    document
}

/// The OpenAPI document of this server.
#[utoipa::path(
    get,
    path = "/api-docs",
    responses((status = 200, description = "OpenAPI 3.1", body = schemas::OpenApiDocument))
)]
pub(super) async fn api_docs(Extension(docs): Extension<ApiDocs>) -> Response {
    ([(CONTENT_TYPE, "application/json")], docs.0.to_string()).into_response()
}
