//! Error responses shared by several routes. Each has the body `{"error": text}`.

use std::collections::BTreeMap;

use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

use super::super::error::ErrorBody;

/// Adds the responses that every route can give: 403 and 500, and 415 if the route has a request body.
pub(super) fn add_common(mut document: OpenApi) -> OpenApi {
    for operation in operations(&mut document) {
        let other_site = "The request comes from a page of another site, or its Host header names another host (ALLOWED_ORIGINS)";
        add_response(operation, "403", error_response(other_site));
        let internal = "An internal error; the log of the server has details";
        add_response(operation, "500", error_response(internal));
        if operation.request_body.is_some() {
            let encoding = "The Content-Encoding of the body is neither gzip nor identity";
            add_response(operation, "415", error_response(encoding));
        }
    }
    document
}

/// Documents the `X-Request-Id` header of every response.
pub(super) fn add_request_id(document: &mut OpenApi) {
    for operation in operations(document) {
        for response in operation.responses.responses.values_mut() {
            if let RefOr::T(response) = response {
                let id = HeaderBuilder::new()
                    .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
                    .description(Some(
                        "The id of the request in the log: the X-Request-Id of the request, or a new id",
                    ));
                let header = RefOr::T(id.build());
                response.headers.insert("X-Request-Id".to_owned(), header);
            }
        }
    }
}

/// All operations of a document.
pub(super) fn operations(document: &mut OpenApi) -> impl Iterator<Item = &mut Operation> {
    let paths = document.paths.paths.values_mut();
    paths.flat_map(|path| [&mut path.get, &mut path.post].into_iter().flatten())
}

/// Adds a response, unless the operation already describes this status.
pub(super) fn add_response(operation: &mut Operation, status: &str, response: Response) {
    let responses = &mut operation.responses.responses;
    responses
        .entry(status.to_owned())
        .or_insert(RefOr::T(response));
}

/// The 401 response.
pub(super) fn unauthorized() -> Response {
    let challenge = HeaderBuilder::new()
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .description(Some("The scheme Basic and its realm"));
    let mut response =
        error_response("The credentials are missing or wrong (BASIC_AUTH_USER, BASIC_AUTH_PASS)");
    let header = RefOr::T(challenge.build());
    response
        .headers
        .insert("WWW-Authenticate".to_owned(), header);
    response
}

/// The error responses of routes that read a JSON body.
pub(in super::super) struct BodyErrorResponses;

impl IntoResponses for BodyErrorResponses {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let retry_after = HeaderBuilder::new()
            .schema(Some(
                ObjectBuilder::new()
                    .schema_type(Type::Integer)
                    .minimum(Some(0)),
            ))
            .description(Some("Seconds after which to send the request again"));
        let busy = "Too many requests wait, there is not enough memory for the request, or the models are not loaded; `Retry-After` says when to send it again";
        let mut busy = error_response(busy);
        let header = RefOr::T(retry_after.build());
        busy.headers.insert("Retry-After".to_owned(), header);
        let responses = [
            (
                "400",
                error_response(
                    "The request is invalid; the text names the field and what it must be",
                ),
            ),
            ("408", error_response("The body was not received in time")),
            (
                "413",
                error_response(
                    "The body is larger than MAX_BODY_BYTES, before or after decompression",
                ),
            ),
            (
                "415",
                error_response(
                    "The body is not JSON, or its Content-Encoding is neither gzip nor identity",
                ),
            ),
            ("503", busy),
        ];
        responses
            .into_iter()
            .map(|(status, response)| (status.to_owned(), RefOr::T(response)))
            .collect()
    }
}

/// An error response with the body `{"error": text}`.
fn error_response(description: &str) -> Response {
    let error = Ref::from_schema_name(ErrorBody::name());
    let content = ContentBuilder::new().schema(Some(error)).build();
    ResponseBuilder::new()
        .description(description)
        .content("application/json", content)
        .build()
}
