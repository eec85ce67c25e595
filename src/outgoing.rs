//! HTTP clients for outgoing requests.

use std::error::Error;
use std::time::Duration;
use std::{io, iter};

use reqwest::header::RETRY_AFTER;
use reqwest::redirect::Policy;
use rustls::CertificateError;
use rustls::crypto::ring;

/// A client builder with a `groundling/<version>` user agent that follows no redirects: callers check each hop
/// themselves.
pub fn client() -> reqwest::ClientBuilder {
    // an error means that a provider is already installed
    let _ = ring::default_provider().install_default();
    reqwest::Client::builder()
        .redirect(Policy::none())
        .user_agent(concat!("groundling/", env!("CARGO_PKG_VERSION")))
}

/// The `Retry-After` header of a 429 or 503 response, if it is given in seconds.
pub fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    if !matches!(response.status().as_u16(), 429 | 503) {
        return None;
    }
    let after = response.headers().get(RETRY_AFTER)?;
    let seconds: u32 = after.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.into()))
}

/// Why the body of a response could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadBodyError {
    /// The connection failed before the end of the body.
    #[error("{}", error_chain(.0))]
    Interrupted(reqwest::Error),
    /// The body is longer than the limit.
    #[error("the response is longer than {0} bytes")]
    TooLong(usize),
}

/// Reads the body of a response, of at most `limit` bytes.
///
/// # Errors
/// If the connection fails, or the body is longer than `limit`.
pub async fn read_body(
    mut response: reqwest::Response,
    limit: usize,
) -> Result<Vec<u8>, ReadBodyError> {
    let interrupted = |error: reqwest::Error| ReadBodyError::Interrupted(error.without_url());
    let mut bytes = vec![];
    while let Some(chunk) = response.chunk().await.map_err(interrupted)? {
        if bytes.len() + chunk.len() > limit {
            return Err(ReadBodyError::TooLong(limit));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Formats an error and its chain of causes on one line, with advice about certificates if one of them is about those.
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    let causes: Vec<String> = chain(error).map(ToString::to_string).collect();
    let text = causes.join(": ");
    match chain(error).find_map(certificate_advice) {
        Some(advice) => format!("{text}; {advice}"),
        None => text,
    }
}

/// Whether a certificate or the file of certificates is the cause, so that a retry fails too.
pub fn is_about_certificates(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|cause| certificate_advice(cause).is_some())
}

/// An error and its causes.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

/// What to do about an error of TLS, which may be in I/O errors.
fn certificate_advice(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut inner = error;
    while let Some(wrapped) = inner
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
    {
        inner = wrapped;
    }
    match inner.downcast_ref()? {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            Some("its certificate authority is not trusted: add it to the file in SSL_CERT_FILE")
        }
        rustls::Error::General(text) if text.starts_with("No CA certificates") => {
            Some("SSL_CERT_FILE must be a file of certificates in PEM format")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;

    use super::*;

    #[test]
    fn an_error_about_an_untrusted_certificate_names_the_setting() {
        let chain = |error| {
            let tls = rustls::Error::InvalidCertificate(error);
            error_chain(&io::Error::other(io::Error::other(tls)))
        };
        let text = chain(CertificateError::UnknownIssuer);
        assert!(
            text.ends_with("add it to the file in SSL_CERT_FILE"),
            "{text}"
        );
        let text = chain(CertificateError::Expired);
        assert!(!text.contains("SSL_CERT_FILE"), "{text}");
    }

    #[tokio::test]
    async fn an_endless_response_is_read_up_to_the_limit() {
        let endless = || {
            let chunks = std::iter::repeat_with(|| Ok::<_, std::io::Error>(vec![b'x'; 4096]));
            Body::from_stream(futures_util::stream::iter(chunks))
        };
        let app = Router::new()
            .route("/endless", get(async move || endless()))
            .route("/short", get(async || "short"));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let client = client().no_proxy().build().unwrap();
        let get_body = async |path: &str| {
            let response = client.get(format!("{host}{path}")).send().await.unwrap();
            read_body(response, 100_000).await
        };
        assert_eq!(get_body("/short").await.unwrap(), b"short");
        let error = get_body("/endless").await.unwrap_err();
        assert!(matches!(error, ReadBodyError::TooLong(100_000)), "{error}");
    }
}
