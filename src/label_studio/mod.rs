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
    is_stranger: bool,
}

/// A setting that is not a valid address of Label Studio.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{host:?} is not an address of Label Studio ({reason}): it must be like http://localhost:8080"
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
            is_stranger: false,
        })
    }

    /// Fills in missing parts: if `self` has an address but no token, the result has the token of `other`; if `self`
    /// has no address, the result is `other` as a whole. A token of `self` is never combined with the address of
    /// `other`, because `other` comes from `/setup`, which anyone may send.
    pub fn or(&self, other: &Self) -> Self {
        if self.base.is_none() {
            return other.clone();
        }
        let credentials = self.credentials.as_ref().or(other.credentials.as_ref());
        Self {
            base: self.base.clone(),
            credentials: credentials.cloned(),
            is_stranger: false,
        }
    }

    /// Marks the address as untrusted: it came from an unauthenticated request, so it gets no more trust than the host
    /// of any image.
    pub fn as_stranger(self) -> Self {
        Self {
            is_stranger: true,
            ..self
        }
    }

    /// Whether the address is untrusted.
    pub fn is_stranger(&self) -> bool {
        self.is_stranger
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
    pub fn owns(&self, url: &Url) -> bool {
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

    /// Discards an access token that was refused. Returns whether a retry makes sense, which is true for personal
    /// access tokens only.
    pub async fn forget_access(&self) -> bool {
        match &self.credentials {
            Some(credentials) => credentials.forget_access().await,
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
        return Err(malformed("it is neither http nor https"));
    }
    if !base.username().is_empty() || base.password().is_some() {
        // the message does not repeat the address, because it contains a password
        return Err(AddressError {
            host: "...@".to_owned(),
            reason: "it has a user name in it; use LABEL_STUDIO_ACCESS_TOKEN".to_owned(),
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
    fn an_address_is_http_with_a_host() {
        let studio = LabelStudio::new(Some(" http://ls:8080/studio/ "), None).unwrap();
        assert_eq!(studio.base(), Some("http://ls:8080/studio"));
        assert_eq!(studio.prefix(), "/studio");
        assert_eq!(studio.origin().unwrap(), "http://ls:8080");
        let owns = |url: &str| studio.owns(&Url::parse(url).unwrap());
        assert!(owns("http://ls:8080/x"));
        assert!(!owns("https://ls:8080/x") && !owns("http://ls/x") && !owns("http://ls:8081/x"));
        for host in ["localhost:8080", "ftp://ls", "ls", ""] {
            let error = LabelStudio::new(Some(host), None).unwrap_err().to_string();
            assert!(error.contains("http://localhost:8080"), "{error}");
        }
        let secret = |token| Credentials::new(token, TokenSource::Settings);
        let token_only = LabelStudio::new(None, Some(secret("mine".into()))).unwrap();
        let sent = LabelStudio::new(Some("http://anywhere"), None).unwrap();
        assert!(token_only.or(&sent).credentials().is_none());
        let error = LabelStudio::new(Some("http://me:word@ls"), None).unwrap_err();
        assert!(!error.to_string().contains("word"));
    }
}
