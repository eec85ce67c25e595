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

use super::{AppState, error};

/// The required user name and password.
#[derive(Debug, Clone)]
pub struct BasicAuth {
    /// `user:password` in UTF-8 and, if it can be encoded so, in Latin-1: Label Studio sends Latin-1, other clients
    /// send UTF-8.
    accepted: Vec<SecretSlice<u8>>,
}

impl BasicAuth {
    /// Creates the credentials from the values of `BASIC_AUTH_USER` and `BASIC_AUTH_PASS`.
    ///
    /// # Errors
    /// If the user name contains a colon, because in basic auth the first colon ends the user name.
    pub fn new(user: &str, password: &str) -> Result<Self, String> {
        if user.contains(':') {
            return Err("BASIC_AUTH_USER must not have a colon in it".to_owned());
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
    fn admits(&self, headers: &HeaderMap) -> bool {
        let given = headers
            .get(AUTHORIZATION)
            .and_then(|header| header.to_str().ok())
            .and_then(|header| header.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
            .and_then(|(_, encoded)| STANDARD.decode(encoded.trim()).ok());
        let given = given.unwrap_or_default();
        let matches = self
            .accepted
            .iter()
            .map(|pair| pair.expose_secret().ct_eq(&given));
        matches.fold(Choice::from(0), |any, this| any | this).into()
    }
}

/// Middleware for HTTP basic auth: answers 401 to requests without valid credentials.
pub(super) async fn require(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    match &state.basic_auth {
        Some(auth) if !auth.admits(request.headers()) => {
            tracing::warn!(
                path = request.uri().path(),
                "refused: wrong or no credentials"
            );
            let text =
                "this groundling wants basic authentication: BASIC_AUTH_USER and BASIC_AUTH_PASS";
            let challenge =
                HeaderValue::from_static("Basic realm=\"groundling\", charset=\"UTF-8\"");
            let answer = error::failure(StatusCode::UNAUTHORIZED, text);
            ([(WWW_AUTHENTICATE, challenge)], answer).into_response()
        }
        _ => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(header: &str) -> bool {
        let auth = BasicAuth::new("user", "pa ss:wörd").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, header.parse().unwrap());
        auth.admits(&headers)
    }

    #[test]
    fn both_encodings_are_taken_and_nothing_else() {
        let utf_8 = STANDARD.encode("user:pa ss:wörd");
        let latin_1 = STANDARD.encode(b"user:pa ss:w\xf6rd");
        assert!(admits(&format!("Basic {utf_8}")) && admits(&format!("basic {latin_1}")));
        let short = STANDARD.encode("user:pa ss");
        for wrong in [
            format!("Bearer {utf_8}"),
            format!("Basic {short}"),
            "Basic".to_owned(),
        ] {
            assert!(!admits(&wrong), "{wrong}");
        }
        assert!(!admits("Basic ") && !admits("Basic Og=="));
        assert!(BasicAuth::new("a:b", "c").is_err());
        // this password cannot be encoded in Latin-1
        assert_eq!(BasicAuth::new("user", "пароль").unwrap().accepted.len(), 1);
    }
}
