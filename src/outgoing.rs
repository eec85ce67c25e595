//! HTTP clients for what groundling asks of others.

use reqwest::redirect::Policy;
use rustls::crypto::ring;

/// A client that names itself and follows no redirect: whoever uses it looks at each hop.
pub fn client() -> reqwest::ClientBuilder {
    // an error means that there is a provider already
    let _ = ring::default_provider().install_default();
    reqwest::Client::builder()
        .redirect(Policy::none())
        .user_agent(concat!("groundling/", env!("CARGO_PKG_VERSION")))
}

/// An error and what caused it, in one line.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
