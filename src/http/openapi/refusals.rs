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
        let other_site = "The request comes from a page of another site, or names another host (ALLOWED_ORIGINS)";
        add(operation, "403", refusal(other_site));
        let defect = "A defect of groundling; its log says more";
        add(operation, "500", refusal(defect));
        if operation.request_body.is_some() {
            let encoding = "The body is neither plain nor gzip-encoded";
            add(operation, "415", refusal(encoding));
        }
    }
    document
}

/// Documents the `X-Request-Id` header of every response.
pub(super) fn add_request_id(document: &mut OpenApi) {
    for operation in operations(document) {
        for answer in operation.responses.responses.values_mut() {
            if let RefOr::T(answer) = answer {
                let id = HeaderBuilder::new()
                    .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
                    .description(Some(
                        "The id of the request in the log: the client's, or a new one",
                    ));
                let header = RefOr::T(id.build());
                answer.headers.insert("X-Request-Id".to_owned(), header);
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
pub(super) fn add(operation: &mut Operation, status: &str, answer: Response) {
    let answers = &mut operation.responses.responses;
    answers.entry(status.to_owned()).or_insert(RefOr::T(answer));
}

/// The 401 response.
pub(super) fn unauthorized() -> Response {
    let challenge = HeaderBuilder::new()
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .description(Some("Basic, with its realm"));
    let mut answer = refusal("No credentials, or wrong ones (BASIC_AUTH_USER, BASIC_AUTH_PASS)");
    let header = RefOr::T(challenge.build());
    answer.headers.insert("WWW-Authenticate".to_owned(), header);
    answer
}

/// The error responses of routes that read a JSON body.
pub(in super::super) struct BodyRefusals;

impl IntoResponses for BodyRefusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let wait = HeaderBuilder::new()
            .schema(Some(
                ObjectBuilder::new()
                    .schema_type(Type::Integer)
                    .minimum(Some(0)),
            ))
            .description(Some("Seconds after which to ask again"));
        let busy = "Too many requests wait, or the models are not loaded; `Retry-After` says when to ask again";
        let mut busy = refusal(busy);
        let header = RefOr::T(wait.build());
        busy.headers.insert("Retry-After".to_owned(), header);
        let answers = [
            (
                "400",
                refusal("The request is not usable; the text names the field and what it must be"),
            ),
            (
                "408",
                refusal("The body stopped coming, or came too slowly"),
            ),
            (
                "413",
                refusal(
                    "The body, or what it becomes when it is unpacked, is larger than MAX_BODY_BYTES",
                ),
            ),
            (
                "415",
                refusal("The body is not JSON, or neither plain nor gzip-encoded"),
            ),
            ("503", busy),
        ];
        answers
            .into_iter()
            .map(|(status, answer)| (status.to_owned(), RefOr::T(answer)))
            .collect()
    }
}

/// An error response with the body `{"error": text}`.
fn refusal(description: &str) -> Response {
    let error = Ref::from_schema_name(ErrorBody::name());
    let content = ContentBuilder::new().schema(Some(error)).build();
    ResponseBuilder::new()
        .description(description)
        .content("application/json", content)
        .build()
}
