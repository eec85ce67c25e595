//! Where a task's image is.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;

/// The Label Studio that sends tasks: its address, under which relative URLs lie.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelStudio {
    /// Without a slash at the end; may have a path.
    base: Option<Url>,
}

/// An image to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In the task itself.
    Inline(Vec<u8>),
    /// To be fetched.
    Remote {
        /// Where from.
        url: Url,
        /// Whether it is Label Studio itself, which gets the token.
        is_label_studio: bool,
    },
}

/// A value that leads to no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// A path on Label Studio, of which only the path is known.
    #[error("{0} lies on Label Studio, whose address is not known: set LABEL_STUDIO_HOST")]
    NoHost(String),
    /// A scheme nobody resolves here.
    #[error(
        "{0} is not an image URL groundling can fetch: http(s)://, data:image/..., /data/upload/... and /data/local-files/... work"
    )]
    Unsupported(String),
    /// A data URI that cannot be decoded.
    #[error("the task's data URI is broken: {0}")]
    DataUri(String),
    /// An address that is not a URL.
    #[error("{url:?} is not a URL: {reason}")]
    #[allow(missing_docs)]
    Malformed { url: String, reason: String },
}

impl LabelStudio {
    /// From `LABEL_STUDIO_HOST`, `http(s)://host[:port][/prefix]`.
    ///
    /// # Errors
    /// If it is not such a URL.
    pub fn new(host: &str) -> Result<Self, LocationError> {
        let malformed = |reason: String| LocationError::Malformed {
            url: host.to_owned(),
            reason,
        };
        let base = Url::parse(host.trim()).map_err(|e| malformed(e.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") || base.host().is_none() {
            return Err(malformed(
                "it must be like http://localhost:8080".to_owned(),
            ));
        }
        Ok(Self { base: Some(base) })
    }

    /// What a task's value means (contract, section 7).
    ///
    /// # Errors
    /// If it is no URL, of a scheme that is not fetched, or relative to an unknown Label Studio.
    pub fn locate(&self, value: &str) -> Result<Location, LocationError> {
        let value = value.trim();
        if let Some(rest) = value.strip_prefix("data:") {
            return inline(rest).map(Location::Inline);
        }
        if value.starts_with("http://") || value.starts_with("https://") {
            let url = parse(value)?;
            let is_label_studio = self.owns(&url);
            return Ok(Location::Remote {
                url,
                is_label_studio,
            });
        }
        let path = if value.starts_with("upload/") {
            format!("/data/{value}")
        } else if value.starts_with("/upload/") {
            format!("/data{value}")
        } else if value.starts_with("/data/") {
            value.to_owned()
        } else {
            return Err(LocationError::Unsupported(shorten(value)));
        };
        let Some(base) = &self.base else {
            return Err(LocationError::NoHost(shorten(value)));
        };
        Ok(Location::Remote {
            url: parse(&format!("{}{path}", base.as_str().trim_end_matches('/')))?,
            is_label_studio: true,
        })
    }

    /// Whether a URL is of Label Studio's own scheme, host and port.
    fn owns(&self, url: &Url) -> bool {
        self.base
            .as_ref()
            .is_some_and(|base| base.origin() == url.origin())
    }
}

impl fmt::Display for Location {
    /// The URL without what may be secret: no password, and a query only on Label Studio, where it
    /// names the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(bytes) => write!(f, "the task's data URI of {} bytes", bytes.len()),
            Self::Remote {
                url,
                is_label_studio,
            } => {
                let mut url = url.clone();
                // these fail only for URLs without a host, which locate() does not make
                let _ = url.set_username("");
                let _ = url.set_password(None);
                if !is_label_studio && url.query().is_some() {
                    url.set_query(Some("..."));
                }
                url.set_fragment(None);
                write!(f, "{url}")
            }
        }
    }
}

/// The bytes of a data URI, given without `data:`; the declared type is not looked at.
fn inline(rest: &str) -> Result<Vec<u8>, LocationError> {
    let error = |reason: &str| LocationError::DataUri(reason.to_owned());
    let (header, payload) = rest
        .split_once(',')
        .ok_or_else(|| error("it has no comma before its data"))?;
    if !header.ends_with(";base64") {
        return Err(error("it is not base64, as images need"));
    }
    let payload: String = payload.chars().filter(|c| !c.is_whitespace()).collect();
    STANDARD
        .decode(payload)
        .map_err(|e| error(&format!("it is not base64: {e}")))
}

fn parse(url: &str) -> Result<Url, LocationError> {
    Url::parse(url).map_err(|e| LocationError::Malformed {
        url: shorten(url),
        reason: e.to_string(),
    })
}

/// A value for a message: not a megabyte of it, and nothing after a question mark.
fn shorten(value: &str) -> String {
    let value = value.split('?').next().unwrap_or_default();
    match value.char_indices().nth(120) {
        Some((end, _)) => format!("{}...", &value[..end]),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locate(value: &str) -> Result<(String, bool), String> {
        let label_studio = LabelStudio::new("http://ls:8080/studio/").unwrap();
        match label_studio.locate(value).map_err(|e| e.to_string())? {
            Location::Remote {
                url,
                is_label_studio,
            } => Ok((url.to_string(), is_label_studio)),
            Location::Inline(bytes) => Ok((format!("{bytes:?}"), false)),
        }
    }

    #[test]
    fn every_form_is_resolved() {
        let remote = |url: &str, own: bool| Ok((url.to_owned(), own));
        assert_eq!(
            locate("/data/upload/3/a%20b.png"),
            remote("http://ls:8080/studio/data/upload/3/a%20b.png", true)
        );
        assert_eq!(
            locate("/data/local-files/?d=x/y.png"),
            remote("http://ls:8080/studio/data/local-files/?d=x/y.png", true)
        );
        assert_eq!(
            locate("upload/3/a.png"),
            remote("http://ls:8080/studio/data/upload/3/a.png", true)
        );
        assert_eq!(locate("http://ls:8080/x"), remote("http://ls:8080/x", true));
        assert_eq!(locate("http://ls/x y"), remote("http://ls/x%20y", false));
        assert_eq!(
            locate("https://ls:8080/x"),
            remote("https://ls:8080/x", false)
        );
        assert_eq!(
            locate("data:image/png;base64,AQI="),
            remote("[1, 2]", false)
        );
    }

    #[test]
    fn what_leads_nowhere_is_named() {
        assert!(
            locate("s3://bucket/x.png")
                .unwrap_err()
                .contains("s3://bucket/x.png")
        );
        assert!(
            locate("data:image/png;base64,*")
                .unwrap_err()
                .contains("not base64")
        );
        let unknown = LabelStudio::default().locate("/data/upload/1/a.png");
        assert!(
            unknown
                .unwrap_err()
                .to_string()
                .contains("LABEL_STUDIO_HOST")
        );
        let error = LabelStudio::new("localhost:8080").unwrap_err().to_string();
        assert!(error.contains("http://localhost:8080"), "{error}");
    }

    #[test]
    fn secrets_stay_out_of_messages() {
        let label_studio = LabelStudio::default();
        let location = label_studio.locate("https://me:word@host/a.png?Signature=secret");
        assert_eq!(location.unwrap().to_string(), "https://host/a.png?...");
    }
}
