//! A request's body as bytes, whole, with errors as JSON.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::response::Response;

use super::error::failure;

/// The whole body, unpacked.
pub(super) struct Whole(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Whole {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let body = Bytes::from_request(request, state).await;
        body.map(Self).map_err(|rejection| {
            let text = format!("the body cannot be read: {}", rejection.body_text());
            failure(rejection.status(), &text)
        })
    }
}
