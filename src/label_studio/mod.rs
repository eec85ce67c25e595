//! The connection to Label Studio: its address, its token and its API.

pub mod api;
mod token;

use reqwest::Url;
use reqwest::header::HeaderValue;

pub use token::{Credentials, TokenError, TokenKind, TokenSource};

/// Label Studio's address and credentials. Clones share the access token of the last exchange.
#[derive(Debug, Clone, Default)]
pub struct LabelStudio {
    base: Option<Url>,
    credentials: Option<Credentials>,
    is_untrusted: bool,
}

/// A setting that is not a valid address of Label Studio.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{host:?} is not an address of Label Studio ({reason}); an example of one is http://localhost:8080"
)]
#[allow(missing_docs)]
pub struct AddressError {
    pub host: String,
    pub reason: String,
}

impl LabelStudio {
    /// Creates a `LabelStudio` from an address, `http(s)://host[:port][/prefix]` as in `LABEL_STUDIO_HOST`, and a
    /// token.
    ///
    /// # Errors
    /// If the host is not such a URL.
    pub fn new(host: Option<&str>, credentials: Option<Credentials>) -> Result<Self, AddressError> {
        let base = host.map(parse).transpose()?;
        Ok(Self {
            base,
            credentials,
            is_untrusted: false,
        })
    }

    /// Fills in missing parts from `fallback`: if `self` has an address but no token, the result has the token of
    /// `fallback`; if `self` has no address, the result is `fallback` as a whole. A token of `self` is never combined
    /// with the address of `fallback`, because `fallback` comes from `/setup`, which anyone may send.
    pub fn with_fallback(&self, fallback: &Self) -> Self {
        if self.base.is_none() {
            return fallback.clone();
        }
        let credentials = self.credentials.as_ref().or(fallback.credentials.as_ref());
        Self {
            base: self.base.clone(),
            credentials: credentials.cloned(),
            is_untrusted: false,
        }
    }

    /// Marks the address as untrusted: it came from an unauthenticated request, so it gets no more trust than the host
    /// of any image.
    pub fn untrusted(self) -> Self {
        Self {
            is_untrusted: true,
            ..self
        }
    }

    /// Whether the address is untrusted.
    pub fn is_untrusted(&self) -> bool {
        self.is_untrusted
    }

    /// The address without a trailing slash.
    pub fn base(&self) -> Option<&str> {
        self.base
            .as_ref()
            .map(|base| base.as_str().trim_end_matches('/'))
    }

    /// The path prefix of Label Studio, such as `/studio`; empty if it is at the root.
    pub fn prefix(&self) -> &str {
        let path = self.base.as_ref().map_or("", |base| base.path());
        path.trim_end_matches('/')
    }

    /// The origin (scheme, host and port), without a trailing slash.
    pub fn origin(&self) -> Option<String> {
        let base = self.base.as_ref()?;
        Some(base.origin().ascii_serialization())
    }

    /// Whether a URL has the same origin (scheme, host and port) as Label Studio.
    pub fn is_same_origin(&self, url: &Url) -> bool {
        let base = self.base.as_ref();
        base.is_some_and(|base| base.origin() == url.origin())
    }

    /// The credentials, if there are any.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// The `Authorization` header for a request to Label Studio; `None` without a token. A personal access token is
    /// exchanged through `client` for a short-lived access token, which is reused until shortly before it expires.
    ///
    /// # Errors
    /// If the exchange fails, or the token contains characters that a header cannot have.
    pub async fn authorization(
        &self,
        client: &reqwest::Client,
    ) -> Result<Option<HeaderValue>, TokenError> {
        match (&self.base, &self.credentials) {
            (Some(base), Some(credentials)) => {
                let header = credentials.header(base, client).await?;
                Ok(Some(header))
            }
            _ => Ok(None),
        }
    }

    /// Discards an access token that was rejected. Returns whether a retry makes sense, which is true for personal
    /// access tokens only.
    pub async fn discard_access_token(&self) -> bool {
        match &self.credentials {
            Some(credentials) => credentials.discard_access_token().await,
            None => false,
        }
    }

    /// Advice for the user after a 401 or 403 from Label Studio.
    pub fn refusal_hint(&self) -> &'static str {
        match &self.credentials {
            None => {
                "set LABEL_STUDIO_ACCESS_TOKEN to a personal access token (Label Studio: Account & Settings)"
            }
            Some(credentials) => credentials.refusal_hint(),
        }
    }
}

fn parse(host: &str) -> Result<Url, AddressError> {
    let malformed = |reason: &str| AddressError {
        host: host.to_owned(),
        reason: reason.to_owned(),
    };
    let mut base = Url::parse(host.trim()).map_err(|e| malformed(&e.to_string()))?;
    if !matches!(base.scheme(), "http" | "https") || base.host().is_none() {
        return Err(malformed("its scheme must be http or https"));
    }
    if !base.username().is_empty() || base.password().is_some() {
        // the message does not repeat the address, because it contains a password
        return Err(AddressError {
            host: "...@".to_owned(),
            reason: "it must not contain a user name or password; use LABEL_STUDIO_ACCESS_TOKEN"
                .to_owned(),
        });
    }
    base.set_query(None);
    base.set_fragment(None);
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_an_http_url_without_credentials() {
        let studio = LabelStudio::new(Some(" http://ls:8080/studio/ "), None).unwrap();
        assert_eq!(studio.base(), Some("http://ls:8080/studio"));
        assert_eq!(studio.prefix(), "/studio");
        assert_eq!(studio.origin().unwrap(), "http://ls:8080");
        let is_same_origin = |url: &str| studio.is_same_origin(&Url::parse(url).unwrap());
        assert!(is_same_origin("http://ls:8080/x"));
        assert!(
            !is_same_origin("https://ls:8080/x")
                && !is_same_origin("http://ls/x")
                && !is_same_origin("http://ls:8081/x")
        );
        for host in ["localhost:8080", "ftp://ls", "ls", ""] {
            let error = LabelStudio::new(Some(host), None).unwrap_err().to_string();
            assert!(error.contains("http://localhost:8080"), "{error}");
        }
        let secret = |token| Credentials::new(token, TokenSource::Settings);
        let token_only = LabelStudio::new(None, Some(secret("mine".into()))).unwrap();
        let fallback = LabelStudio::new(Some("http://anywhere"), None).unwrap();
        assert!(token_only.with_fallback(&fallback).credentials().is_none());
        let error = LabelStudio::new(Some("http://me:hunter2@ls"), None).unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }
}
