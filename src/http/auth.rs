//! HTTP basic authentication, as configured in Label Studio's form for connecting a model.

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretSlice};
use subtle::{Choice, ConstantTimeEq};

use super::AppState;
use super::error::error_response;

/// The required user name and password.
#[derive(Debug, Clone)]
pub struct BasicAuth {
    /// `user:password` in UTF-8 and, if it can be encoded so, in Latin-1: Label Studio sends Latin-1, other clients
    /// send UTF-8.
    accepted: Vec<SecretSlice<u8>>,
}

/// The user name contains a colon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("BASIC_AUTH_USER must not contain a colon")]
pub struct InvalidUserName;

impl BasicAuth {
    /// Creates the credentials from the values of `BASIC_AUTH_USER` and `BASIC_AUTH_PASS`.
    ///
    /// # Errors
    /// If the user name contains a colon, because in basic auth the first colon ends the user name.
    pub fn new(user: &str, password: &str) -> Result<Self, InvalidUserName> {
        if user.contains(':') {
            return Err(InvalidUserName);
        }
        let pair = format!("{user}:{password}");
        let latin_1: Result<Vec<u8>, _> = pair.chars().map(u8::try_from).collect();
        let accepted = [Some(pair.into_bytes()), latin_1.ok()];
        Ok(Self {
            accepted: accepted
                .into_iter()
                .flatten()
                .map(SecretSlice::from)
                .collect(),
        })
    }

    /// Whether the headers contain valid credentials. The comparison takes constant time, so that the time does not
    /// reveal how much of a guess is right.
    fn is_authorized(&self, headers: &HeaderMap) -> bool {
        let credentials = headers
            .get(AUTHORIZATION)
            .and_then(|header| header.to_str().ok())
            .and_then(|header| header.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
            .and_then(|(_, encoded)| STANDARD.decode(encoded.trim()).ok());
        let credentials = credentials.unwrap_or_default();
        let matches = self
            .accepted
            .iter()
            .map(|pair| pair.expose_secret().ct_eq(&credentials));
        matches.fold(Choice::from(0), |any, this| any | this).into()
    }
}

/// Middleware for HTTP basic auth: answers 401 to requests without valid credentials.
pub(super) async fn require_credentials(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    match &state.basic_auth {
        Some(auth) if !auth.is_authorized(request.headers()) => {
            tracing::warn!(
                path = request.uri().path(),
                "request rejected: its credentials are missing or wrong"
            );
            let text = "this server requires HTTP basic authentication with BASIC_AUTH_USER and BASIC_AUTH_PASS";
            let challenge =
                HeaderValue::from_static("Basic realm=\"groundling\", charset=\"UTF-8\"");
            let response = error_response(StatusCode::UNAUTHORIZED, text);
            ([(WWW_AUTHENTICATE, challenge)], response).into_response()
        }
        _ => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_authorized(header: &str) -> bool {
        let auth = BasicAuth::new("user", "pa ss:wörd").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, header.parse().unwrap());
        auth.is_authorized(&headers)
    }

    #[test]
    fn credentials_are_accepted_in_utf_8_and_in_latin_1() {
        let utf_8 = STANDARD.encode("user:pa ss:wörd");
        let latin_1 = STANDARD.encode(b"user:pa ss:w\xf6rd");
        assert!(
            is_authorized(&format!("Basic {utf_8}")) && is_authorized(&format!("basic {latin_1}"))
        );
        let short = STANDARD.encode("user:pa ss");
        for wrong in [
            format!("Bearer {utf_8}"),
            format!("Basic {short}"),
            "Basic".to_owned(),
        ] {
            assert!(!is_authorized(&wrong), "{wrong}");
        }
        assert!(!is_authorized("Basic ") && !is_authorized("Basic Og=="));
        assert!(BasicAuth::new("a:b", "c").is_err());
        // this password cannot be encoded in Latin-1
        assert_eq!(BasicAuth::new("user", "пароль").unwrap().accepted.len(), 1);
    }
}
