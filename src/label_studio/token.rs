//! Kinds of API tokens, and the exchange of a personal access token.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Url;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::outgoing::{self, error_chain};

/// The kind of a token, recognised by its form (contract, section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// 40 hexadecimal digits, sent as `Token ...`; disabled by default in new organisations.
    Legacy,
    /// A JWT refresh token, which is exchanged for short-lived access tokens.
    Personal,
    /// A JWT access token, valid for five minutes, sent as `Bearer ...`.
    Access,
}

/// Where a token came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenSource {
    /// `LABEL_STUDIO_ACCESS_TOKEN` or `LABEL_STUDIO_API_KEY`.
    Settings,
    /// Label Studio's `/setup` request.
    Setup,
}

/// Why no token is available to authenticate a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Label Studio rejected the personal access token.
    #[error(
        "Label Studio answered {0} to the personal access token in LABEL_STUDIO_ACCESS_TOKEN: it was revoked, or it is from another Label Studio; create a new one under Account & Settings"
    )]
    Refused(u16),
    /// The token exchange failed.
    #[error("the personal access token could not be exchanged at {url}: {reason}")]
    #[allow(missing_docs)]
    Unreachable { url: String, reason: String },
    /// The token contains characters that an HTTP header cannot have.
    #[error("LABEL_STUDIO_ACCESS_TOKEN contains characters that an HTTP header cannot have")]
    InvalidCharacters,
}

/// A token and, if it is a personal one, its current access token. Clones share both.
#[derive(Debug, Clone)]
pub struct Credentials(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    token: SecretString,
    kind: TokenKind,
    source: TokenSource,
    access: Mutex<Option<AccessToken>>,
}

#[derive(Debug)]
struct AccessToken {
    header: HeaderValue,
    renew_at: Instant,
}

/// The claims of a JWT that are used. The signature is not verified; Label Studio does that.
#[derive(Debug, Default, Deserialize)]
struct Claims {
    token_type: Option<String>,
    exp: Option<f64>,
    iat: Option<f64>,
}

/// How long before its expiry an access token is renewed.
const RENEWAL_MARGIN: Duration = Duration::from_secs(60);
/// Assumed lifetime of an access token without lifetime claims.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(300);
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);

impl TokenKind {
    /// Recognises the kind of a token.
    pub fn of(token: &str) -> Self {
        match claims(token) {
            None => Self::Legacy,
            Some(claims) if claims.token_type.as_deref() == Some("access") => Self::Access,
            Some(_) => Self::Personal,
        }
    }

    /// A description for messages, such as "a personal access token".
    pub fn describe(self) -> &'static str {
        match self {
            Self::Legacy => "a legacy token",
            Self::Personal => "a personal access token",
            Self::Access => "a short-lived access token",
        }
    }
}

impl Credentials {
    /// Creates credentials from a token.
    pub fn new(token: SecretString, source: TokenSource) -> Self {
        let kind = TokenKind::of(token.expose_secret());
        Self(Arc::new(Inner {
            token,
            kind,
            source,
            access: Mutex::new(None),
        }))
    }

    /// The kind of the token.
    pub fn kind(&self) -> TokenKind {
        self.0.kind
    }

    pub(super) async fn header(
        &self,
        base: &Url,
        client: &reqwest::Client,
    ) -> Result<HeaderValue, TokenError> {
        let token = self.0.token.expose_secret();
        match self.0.kind {
            TokenKind::Legacy => authorization_header("Token", token),
            TokenKind::Access => authorization_header("Bearer", token),
            TokenKind::Personal => {
                // the lock is held during the exchange, so that concurrent requests wait for the same new token
                let mut access = self.0.access.lock().await;
                match &*access {
                    Some(known) if Instant::now() < known.renew_at => Ok(known.header.clone()),
                    _ => {
                        let renewed = exchange(token, base, client).await?;
                        Ok(access.insert(renewed).header.clone())
                    }
                }
            }
        }
    }

    pub(super) async fn discard_access_token(&self) -> bool {
        // a concurrent request may already have discarded it, and a retry still makes sense
        *self.0.access.lock().await = None;
        self.0.kind == TokenKind::Personal
    }

    pub(super) fn refusal_hint(&self) -> &'static str {
        match (self.0.source, self.0.kind) {
            (TokenSource::Setup, _) => {
                "LABEL_STUDIO_ACCESS_TOKEN is not set, and Label Studio rejects the legacy token that it sent with /setup: set LABEL_STUDIO_ACCESS_TOKEN to a personal access token (Label Studio: Account & Settings)"
            }
            (TokenSource::Settings, TokenKind::Legacy) => {
                "Label Studio rejects the legacy token in LABEL_STUDIO_ACCESS_TOKEN: it is wrong, or the organisation has disabled legacy tokens; use a personal access token (Account & Settings)"
            }
            (TokenSource::Settings, TokenKind::Personal) => {
                "the user of the personal access token in LABEL_STUDIO_ACCESS_TOKEN has no access to it"
            }
            (TokenSource::Settings, TokenKind::Access) => {
                "LABEL_STUDIO_ACCESS_TOKEN is a short-lived access token that has expired: use a personal access token (Account & Settings)"
            }
        }
    }
}

fn authorization_header(scheme: &str, token: &str) -> Result<HeaderValue, TokenError> {
    let mut header = HeaderValue::from_str(&format!("{scheme} {token}"))
        .map_err(|_| TokenError::InvalidCharacters)?;
    header.set_sensitive(true);
    Ok(header)
}

/// Upper limit for the lifetime of an access token, whatever its claims are.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Maximum size in bytes of a response with a token.
const MAX_RESPONSE_BYTES: usize = 64 << 10;

/// Exchanges a personal access token for an access token: `POST /api/token/refresh/`.
async fn exchange(
    token: &str,
    base: &Url,
    client: &reqwest::Client,
) -> Result<AccessToken, TokenError> {
    #[derive(Deserialize)]
    struct RefreshResponse {
        access: String,
    }
    let url = format!("{}/api/token/refresh/", base.as_str().trim_end_matches('/'));
    let unreachable = |error: reqwest::Error| TokenError::Unreachable {
        url: url.clone(),
        reason: error_chain(&error.without_url()),
    };
    let response = client
        .post(&url)
        .timeout(EXCHANGE_TIMEOUT)
        .json(&serde_json::json!({ "refresh": token }))
        .send()
        .await
        .map_err(unreachable)?;
    let status = response.status();
    if matches!(status.as_u16(), 400 | 401 | 403) {
        return Err(TokenError::Refused(status.as_u16()));
    }
    if !status.is_success() {
        return Err(TokenError::Unreachable {
            url,
            reason: format!("the response has status {status}"),
        });
    }
    let invalid = |reason: String| TokenError::Unreachable {
        url: url.clone(),
        reason,
    };
    // the host may not be Label Studio, and could answer without end
    let body = outgoing::read_body(response, MAX_RESPONSE_BYTES).await;
    let body = body.map_err(|error| invalid(error.to_string()))?;
    let response: RefreshResponse = serde_json::from_slice(&body)
        .map_err(|error| invalid(format!("the response has no access token: {error}")))?;
    let claims = claims(&response.access).unwrap_or_default();
    // the lifetime is computed from the token's own times, because the clock of this machine may differ
    let lifetime = match (claims.exp, claims.iat) {
        (Some(expires), Some(issued)) => {
            let lifetime = Duration::try_from_secs_f64(expires - issued);
            lifetime.unwrap_or(DEFAULT_LIFETIME).min(MAX_LIFETIME)
        }
        _ => DEFAULT_LIFETIME,
    };
    tracing::debug!(
        seconds = lifetime.as_secs(),
        "exchanged the personal access token"
    );
    Ok(AccessToken {
        header: authorization_header("Bearer", &response.access)?,
        renew_at: Instant::now() + lifetime.saturating_sub(RENEWAL_MARGIN),
    })
}

/// The claims of a JWT; `None` if the token is not a JWT.
fn claims(token: &str) -> Option<Claims> {
    let mut parts = token.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&payload).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_a_token_is_recognized_by_its_form() {
        let jwt = |payload: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload));
        assert_eq!(
            TokenKind::of("0123456789abcdef0123456789abcdef01234567"),
            TokenKind::Legacy
        );
        assert_eq!(
            TokenKind::of(&jwt("{\"token_type\":\"refresh\",\"exp\":9.5}")),
            TokenKind::Personal
        );
        assert_eq!(
            TokenKind::of(&jwt("{\"token_type\":\"access\"}")),
            TokenKind::Access
        );
        assert_eq!(TokenKind::of("a.b.c"), TokenKind::Legacy);
    }

    #[test]
    fn a_token_is_never_printed() {
        let credentials = Credentials::new(SecretString::from("hush"), TokenSource::Settings);
        assert!(!format!("{credentials:?}").contains("hush"));
        let header = authorization_header("Token", "hush").unwrap();
        assert!(!format!("{header:?}").contains("hush"));
    }
}
