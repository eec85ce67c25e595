//! Restricts calls from browsers to pages of this server's own address and of configured origins.
//!
//! Label Studio's server calls groundling directly, without an `Origin` header. A web page of another site that a user
//! visits can make the browser send requests to this machine; such requests have an `Origin` header.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use reqwest::Url;

use super::AppState;
use super::error::error_response;

/// The allowed origins, and whether the server is only for this machine.
#[derive(Debug, Clone, Default)]
pub struct AllowedOrigins {
    /// Origins such as `https://host:port`, in lower case.
    allowed: Vec<String>,
    is_local: bool,
}

/// An entry of `ALLOWED_ORIGINS` that is not an origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "ALLOWED_ORIGINS contains {0:?}, which is not an origin such as https://studio.example.org"
)]
pub struct InvalidOrigin(pub String);

impl AllowedOrigins {
    /// Parses a list separated by commas. `is_local` must be true if the server listens on loopback only.
    ///
    /// # Errors
    /// If an entry is not an origin.
    pub fn new(allowed: &str, is_local: bool) -> Result<Self, InvalidOrigin> {
        let entries = allowed.split(',').map(str::trim);
        let allowed = entries.filter(|entry| !entry.is_empty()).map(|entry| {
            let url = Url::parse(entry).ok().filter(|url| url.has_host());
            url.map(|url| url.origin().ascii_serialization())
                .ok_or_else(|| InvalidOrigin(entry.to_owned()))
        });
        Ok(Self {
            allowed: allowed.collect::<Result<_, _>>()?,
            is_local,
        })
    }

    /// Returns the reason if a request with these headers must be rejected.
    fn rejection_reason(&self, headers: &HeaderMap) -> Option<&'static str> {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or(""));
        let host = text(HOST);
        if self.is_local && host.is_some_and(|host| !self.is_allowed_host(host)) {
            return Some(
                "the server listens on loopback only, and the Host header names another host: add its origin to ALLOWED_ORIGINS, or change BIND_ADDRESS",
            );
        }
        let origin = text(ORIGIN)?.to_ascii_lowercase();
        let is_own = origin
            .split_once("://")
            .is_some_and(|(_, own)| host.is_some_and(|host| host.eq_ignore_ascii_case(own)));
        (!is_own && !self.allowed.contains(&origin))
            .then_some("requests from pages of other sites are rejected: ALLOWED_ORIGINS lists the sites that are allowed")
    }

    /// Whether a `Host` value is a loopback name of this machine or the host of an allowed origin. Any other name could
    /// be a DNS name that an attacker points at this machine (DNS rebinding).
    fn is_allowed_host(&self, host: &str) -> bool {
        let Some(url) = Url::parse(&format!("http://{host}")).ok() else {
            return false;
        };
        let name = url.host_str().unwrap_or_default();
        let address: Result<IpAddr, _> = name.trim_matches(['[', ']']).parse();
        let is_loopback = match address {
            Ok(address) => address.is_loopback(),
            Err(_) => name == "localhost" || name.ends_with(".localhost"),
        };
        let is_its_host = |origin: &String| {
            let origin = Url::parse(origin).ok();
            origin.is_some_and(|origin| origin.host_str() == url.host_str())
        };
        is_loopback || self.allowed.iter().any(is_its_host)
    }
}

/// Middleware that answers 403 to requests from pages of other sites.
pub(super) async fn check_origin(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    match state.origins.rejection_reason(request.headers()) {
        Some(reason) => {
            tracing::warn!(path = request.uri().path(), "request rejected: {reason}");
            error_response(StatusCode::FORBIDDEN, reason)
        }
        None => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_rejected(origins: &AllowedOrigins, host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        origins.rejection_reason(&headers).is_some()
    }

    #[test]
    fn requests_from_pages_of_other_sites_are_rejected() {
        let open =
            AllowedOrigins::new("https://studio.example.org, http://10.0.0.5:8080", false).unwrap();
        for (host, origin) in [
            ("groundling:9090", None),
            ("any.name.of.a.container", None),
            ("localhost:9090", Some("http://localhost:9090")),
            ("groundling:9090", Some("https://studio.example.org")),
            ("groundling:9090", Some("HTTP://10.0.0.5:8080")),
        ] {
            assert!(!is_rejected(&open, host, origin), "{host} {origin:?}");
        }
        for origin in [
            "https://evil.example",
            "null",
            "",
            "https://studio.example.org.evil.example",
            "http://studio.example.org",
            "http://localhost:8080",
        ] {
            assert!(
                is_rejected(&open, "localhost:9090", Some(origin)),
                "{origin}"
            );
        }
    }

    #[test]
    fn on_loopback_only_local_and_allowed_hosts_are_accepted() {
        let local = AllowedOrigins::new("https://studio.example.org", true).unwrap();
        for host in [
            "localhost:9090",
            "LOCALHOST",
            "a.localhost",
            "127.0.0.1:9090",
            "127.9.9.9",
            "[::1]:9090",
            "studio.example.org",
        ] {
            assert!(!is_rejected(&local, host, None), "{host}");
        }
        for host in [
            "evil.example:9090",
            "localhost.evil.example",
            "10.0.0.5",
            "a b",
            "",
        ] {
            assert!(is_rejected(&local, host, None), "{host}");
        }
        assert!(AllowedOrigins::new("studio.example.org", true).is_err());
    }
}
