//! Finds out where the image of a task is.

use std::path::{Component, Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use reqwest::Url;

use super::data_uri::describe_data_uri;
use super::local;
use crate::label_studio::LabelStudio;

/// The location of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In the task itself: a data URI, without the `data:` prefix.
    Inline(String),
    /// A file on this machine.
    File {
        /// Path of the file.
        path: PathBuf,
        /// The folder that the file must be inside of.
        root: PathBuf,
        /// Its path relative to the folder of local files, shortened for messages.
        name: String,
    },
    /// A file to fetch over HTTP.
    Remote {
        /// The URL to try first.
        url: Url,
        /// A second URL on Label Studio, for an upload that is not found at the first one.
        fallback: Option<Url>,
    },
}

/// Why a value does not name an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LocationError {
    /// A path on Label Studio, whose address is not known.
    #[error("{0} is on Label Studio, whose address is not configured: set LABEL_STUDIO_HOST")]
    NoHost(String),
    /// A cloud storage URI in a task without an id, which Label Studio needs to resolve it.
    #[error("Label Studio needs the id of the task to resolve {0}, and this task has no id")]
    NoTask(String),
    /// An unsupported scheme.
    #[error(
        "{0} is not an image URL: it must start with http(s)://, data:image/, s3://, gs://, azure-blob://, /data/upload/ or /data/local-files/"
    )]
    Unsupported(String),
    /// A data URI that cannot be decoded.
    #[error("the task's data URI is invalid: {0}")]
    DataUri(String),
    /// A local file outside of the configured folder.
    #[error("{0} is outside LOCAL_FILES_DOCUMENT_ROOT")]
    Outside(String),
    /// A value that cannot be parsed as a URL.
    #[error("{url:?} is not a URL: {reason}")]
    #[allow(missing_docs)]
    Malformed { url: String, reason: String },
}

/// The context in which a value is resolved.
#[derive(Debug, Clone, Copy)]
pub struct ResolveContext<'a> {
    /// The Label Studio that relative URLs refer to.
    pub label_studio: &'a LabelStudio,
    /// Label Studio's id of the task.
    pub task: Option<u64>,
    /// The folder from which Label Studio serves local files, if it exists on this machine too.
    pub local_files: Option<&'a Path>,
}

/// Schemes of cloud storage that Label Studio resolves.
const CLOUD_SCHEMES: [&str; 3] = ["s3://", "gs://", "azure-blob://"];

/// Resolves the image value of a task (contract, section 7).
///
/// # Errors
/// If the value is not a URL, has an unsupported scheme, is relative while Label Studio's address is unknown, or is a
/// local file outside of the configured folder.
pub fn locate(value: &str, context: ResolveContext) -> Result<Location, LocationError> {
    let value = value.trim();
    let studio = context.label_studio;
    let has_scheme = |scheme: &str| {
        let start = value.get(..scheme.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    if has_scheme("data:") {
        return Ok(Location::Inline(value["data:".len()..].to_owned()));
    }
    if CLOUD_SCHEMES.iter().any(|scheme| has_scheme(scheme)) {
        let base = studio.base();
        let base = base.ok_or_else(|| LocationError::NoHost(sanitize_for_message(value)))?;
        let task = context.task;
        let task = task.ok_or_else(|| LocationError::NoTask(sanitize_for_message(value)))?;
        let uri = URL_SAFE.encode(value);
        let url = parse(&format!("{base}/tasks/{task}/resolve/?fileuri={uri}"))?;
        return Ok(Location::Remote {
            url,
            fallback: None,
        });
    }
    let url = if has_scheme("http://") || has_scheme("https://") {
        parse(value)?
    } else {
        label_studio_url(value, studio, context.local_files.is_some())?
    };
    let is_label_studio = studio.is_same_origin(&url) || url.host_str() == Some(UNKNOWN_HOST);
    if let (true, Some(root), Some(file)) =
        (is_label_studio, context.local_files, local_file_path(&url))
    {
        return resolve_local_file(root, &file);
    }
    if url.host_str() == Some(UNKNOWN_HOST) {
        return Err(LocationError::NoHost(sanitize_for_message(value)));
    }
    let fallback = is_label_studio
        .then(|| alternative_upload_url(&url, studio))
        .flatten();
    Ok(Location::Remote { url, fallback })
}

/// Placeholder host, used where Label Studio's address is unknown and only the path of a local file is needed.
const UNKNOWN_HOST: &str = "label-studio.invalid";

/// The URL of a path on Label Studio. `value` is a path as Label Studio stores it in task data.
fn label_studio_url(
    value: &str,
    studio: &LabelStudio,
    has_local_files: bool,
) -> Result<Url, LocationError> {
    let path = if value.starts_with("upload/") {
        format!("/data/{value}")
    } else if value.starts_with("/upload/") {
        format!("/data{value}")
    } else if value.starts_with('/') && !value.starts_with("//") {
        value.to_owned()
    } else {
        return Err(LocationError::Unsupported(sanitize_for_message(value)));
    };
    match (studio.base(), studio.origin()) {
        // the path of an upload already starts with Label Studio's prefix
        (Some(_), Some(origin)) if path.starts_with(&format!("{}/", studio.prefix())) => {
            parse(&format!("{origin}{path}"))
        }
        (Some(base), _) => parse(&format!("{base}{path}")),
        (None, _) if has_local_files => parse(&format!("http://{UNKNOWN_HOST}{path}")),
        (None, _) => Err(LocationError::NoHost(sanitize_for_message(value))),
    }
}

/// The decoded file path in a `/data/local-files/?d=...` URL.
fn local_file_path(url: &Url) -> Option<String> {
    let path = url.path().trim_end_matches('/');
    let mut query = url.query_pairs();
    let (_, file) = query.find(|(key, _)| key == "d")?;
    path.ends_with("/data/local-files")
        .then(|| file.into_owned())
}

/// Resolves a file below `root`. Symbolic links are followed, and the result must still be inside of `root`.
fn resolve_local_file(root: &Path, file: &str) -> Result<Location, LocationError> {
    let relative = Path::new(file.trim_start_matches('/'));
    let outside = || LocationError::Outside(sanitize_for_message(file));
    let is_plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if !relative.components().all(is_plain) {
        return Err(outside());
    }
    let (path, name) = (root.join(relative), sanitize_for_message(file));
    // a missing file is reported when it is read
    let (Ok(real), Ok(real_root)) = (path.canonicalize(), root.canonicalize()) else {
        let root = root.to_owned();
        return Ok(Location::File { path, root, name });
    };
    match real.starts_with(&real_root) {
        true => Ok(Location::File {
            path: real,
            root: real_root,
            name,
        }),
        false => Err(outside()),
    }
}

/// The second URL of an upload. Uploads are on Label Studio's disk or in its cloud storage, and the URL does not tell
/// which.
fn alternative_upload_url(url: &Url, studio: &LabelStudio) -> Option<Url> {
    let base = studio.base()?;
    let path = url.path().strip_prefix(studio.prefix())?;
    if let Some(file) = path.strip_prefix("/data/upload/") {
        return parse(&format!(
            "{base}/storage-data/uploaded/?filepath=upload/{file}"
        ))
        .ok();
    }
    if path.trim_end_matches('/') == "/storage-data/uploaded" {
        let (_, file) = url.query_pairs().find(|(key, _)| key == "filepath")?;
        return parse(&format!("{base}/data/{file}")).ok();
    }
    None
}

impl Location {
    /// The host that is requested first; `None` if the image is not remote.
    pub(super) fn host(&self) -> Option<String> {
        match self {
            Self::Remote { url, .. } => url.host_str().map(str::to_owned),
            Self::Inline(_) | Self::File { .. } => None,
        }
    }

    /// The location for messages, without secrets. A URL is shown without user name and password, and its query is
    /// replaced by `...` unless it is on Label Studio, where the query names the file.
    pub fn describe(&self, studio: &LabelStudio) -> String {
        match self {
            Self::Inline(uri) => describe_data_uri(uri),
            Self::File { name, .. } => local::describe(name),
            Self::Remote { url, .. } => describe(url, studio),
        }
    }
}

/// See [`Location::describe`].
pub(super) fn describe(url: &Url, studio: &LabelStudio) -> String {
    let mut url = url.clone();
    // these fail only for URLs without a host, which are never fetched
    let _ = url.set_username("");
    let _ = url.set_password(None);
    if !studio.is_same_origin(&url) && url.query().is_some() {
        url.set_query(Some("..."));
    }
    url.set_fragment(None);
    url.to_string()
}

fn parse(url: &str) -> Result<Url, LocationError> {
    Url::parse(url).map_err(|e| LocationError::Malformed {
        url: sanitize_for_message(url),
        reason: e.to_string(),
    })
}

/// Shortens a value for a message: at most 120 characters, no query, no credentials, and no control characters, which
/// could forge a line in a log.
fn sanitize_for_message(value: &str) -> String {
    let value = value.split('?').next().unwrap_or_default();
    let value: String = value
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take(500)
        .collect();
    let value = match value.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find('/').unwrap_or(rest.len());
            let host = rest[..end].rfind('@').map_or(0, |at| at + 1);
            format!("{scheme}://{}", &rest[host..])
        }
        None => value,
    };
    match value.char_indices().nth(120) {
        Some((end, _)) => format!("{}...", &value[..end]),
        None => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::data_uri::decode_data_uri;

    fn resolve(value: &str, context: ResolveContext) -> Result<String, String> {
        match locate(value, context).map_err(|e| e.to_string())? {
            Location::Inline(uri) => {
                let bytes = decode_data_uri(&uri, 100).map_err(|e| e.to_string())?;
                Ok(format!("{:?}", bytes.ok_or("too large")?))
            }
            Location::File { path, .. } => Ok(path.display().to_string()),
            Location::Remote { url, .. } => Ok(url.to_string()),
        }
    }

    fn remote(value: &str) -> Result<String, String> {
        let label_studio = LabelStudio::new(Some("http://ls:8080/studio/"), None).unwrap();
        let context = ResolveContext {
            label_studio: &label_studio,
            task: Some(7),
            local_files: None,
        };
        resolve(value, context)
    }

    #[test]
    fn every_supported_form_is_resolved() {
        let studio = "http://ls:8080/studio";
        for (value, path) in [
            ("/data/upload/3/a%20b.png", "/data/upload/3/a%20b.png"),
            ("/studio/data/upload/3/a.png", "/data/upload/3/a.png"),
            (
                "/data/local-files/?d=x/y.png",
                "/data/local-files/?d=x/y.png",
            ),
            ("/data/local-files?d=x/y.png", "/data/local-files?d=x/y.png"),
            ("upload/3/a.png", "/data/upload/3/a.png"),
            ("/upload/3/a.png", "/data/upload/3/a.png"),
            (
                "/storage-data/uploaded/?filepath=upload/3/a.png",
                "/storage-data/uploaded/?filepath=upload/3/a.png",
            ),
            (
                "s3://bucket/a ü.png",
                "/tasks/7/resolve/?fileuri=czM6Ly9idWNrZXQvYSDDvC5wbmc=",
            ),
            ("gs://b/a", "/tasks/7/resolve/?fileuri=Z3M6Ly9iL2E="),
        ] {
            assert_eq!(remote(value).unwrap(), format!("{studio}{path}"));
        }
        assert_eq!(remote("http://ls/x y").unwrap(), "http://ls/x%20y");
        assert_eq!(remote(" https://ls:8080/x ").unwrap(), "https://ls:8080/x");
        for data in ["AQI=", "AQI", "AQI%3D", " A Q\nI="] {
            let uri = format!("data:image/png;base64,{data}");
            assert_eq!(remote(&uri).unwrap(), "[1, 2]");
        }
        assert_eq!(remote("DATA:;BASE64,%2B%2F8=").unwrap(), "[251, 255]");
        assert_eq!(remote("HTTP://host/x").unwrap(), "http://host/x");
    }

    #[test]
    fn an_upload_has_an_alternative_url() {
        let studio = LabelStudio::new(Some("http://ls:8080/studio/"), None).unwrap();
        let alternative = |url: &str| {
            let url = Url::parse(url).unwrap();
            alternative_upload_url(&url, &studio).map(|url| url.to_string())
        };
        let stored = "http://ls:8080/studio/storage-data/uploaded/?filepath=upload/3/a%20b.png";
        let uploaded = "http://ls:8080/studio/data/upload/3/a%20b.png";
        assert_eq!(alternative(uploaded).unwrap(), stored);
        assert_eq!(alternative(stored).unwrap(), uploaded);
        assert_eq!(
            alternative("http://ls:8080/studio/data/local-files/?d=x"),
            None
        );
    }

    #[test]
    fn a_value_that_cannot_be_resolved_is_an_error() {
        for (value, expected) in [
            ("ftp://host/x.png", "ftp://host/x.png is not an image URL"),
            ("//host/x.png", "is not an image URL"),
            ("photo.png", "is not an image URL"),
            ("data:image/png;base64,*", "not base64"),
            ("http://", "is not a URL"),
        ] {
            let error = remote(value).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let context = ResolveContext {
            label_studio: &LabelStudio::default(),
            task: None,
            local_files: None,
        };
        for value in ["/data/upload/1/a.png", "s3://bucket/a.png"] {
            let error = resolve(value, context).unwrap_err();
            assert!(error.contains("LABEL_STUDIO_HOST"), "{error}");
        }
    }

    #[test]
    fn local_files_outside_the_root_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("sub/a b.png"), "a").unwrap();
        std::fs::write(folder.path().join("secret.png"), "s").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(folder.path(), root.join("link")).unwrap();
        let studio = LabelStudio::new(Some("http://ls:8080"), None).unwrap();
        for studio in [&studio, &LabelStudio::default()] {
            let context = ResolveContext {
                label_studio: studio,
                task: None,
                local_files: Some(&root),
            };
            for file in ["sub/a%20b.png", "./sub/a%20b.png"] {
                let found = resolve(&format!("/data/local-files/?d={file}"), context).unwrap();
                assert!(found.ends_with("root/sub/a b.png"), "{found}");
            }
            for file in [
                "../secret.png",
                "sub/../../secret.png",
                "%2e%2e/secret.png",
                "link/secret.png",
            ] {
                let error = resolve(&format!("/data/local-files/?d={file}"), context);
                assert!(error.unwrap_err().contains("LOCAL_FILES_DOCUMENT_ROOT"));
            }
            // a URL of another host with the same path is not a local file
            let other = "http://elsewhere/data/local-files/?d=sub/a%20b.png";
            assert_eq!(resolve(other, context).unwrap(), other);
        }
    }

    #[test]
    fn messages_contain_no_credentials_and_no_line_breaks() {
        let studio = LabelStudio::default();
        let context = ResolveContext {
            label_studio: &studio,
            task: None,
            local_files: None,
        };
        let location = locate("https://me:word@host/a.png?Signature=secret", context);
        assert_eq!(
            location.unwrap().describe(&studio),
            "https://host/a.png?..."
        );
        for value in [
            "ftp://me:word@host/a.png\nERROR forged",
            "http://me:word@ho st:99999/a",
        ] {
            let error = locate(value, context).unwrap_err().to_string();
            assert!(!error.contains("word") && !error.contains('\n'), "{error}");
        }
    }
}
