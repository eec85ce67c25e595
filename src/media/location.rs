//! Finds out where the image of a task is.

use std::path::{Component, Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD as UNPADDED, URL_SAFE};
use reqwest::Url;

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
        otherwise: Option<Url>,
    },
}

/// Why a value does not name an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// A path on Label Studio, whose address is not known.
    #[error("{0} lies on Label Studio, whose address is not known: set LABEL_STUDIO_HOST")]
    NoHost(String),
    /// A cloud storage URI in a task without an id, which Label Studio needs to resolve it.
    #[error("{0} is resolved by Label Studio for a task, and this task has no number")]
    NoTask(String),
    /// An unsupported scheme.
    #[error(
        "{0} is not an image URL groundling can fetch: http(s)://, data:image/..., s3://, gs://, azure-blob://, /data/upload/... and /data/local-files/... work"
    )]
    Unsupported(String),
    /// A data URI that cannot be decoded.
    #[error("the task's data URI is broken: {0}")]
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
pub struct Surroundings<'a> {
    /// The Label Studio that relative URLs refer to.
    pub label_studio: &'a LabelStudio,
    /// Label Studio's id of the task.
    pub task: Option<u64>,
    /// The folder from which Label Studio serves local files, if it exists on this machine too.
    pub local_files: Option<&'a Path>,
}

/// Schemes of cloud storage that Label Studio resolves.
const CLOUD: [&str; 3] = ["s3://", "gs://", "azure-blob://"];

/// Resolves the image value of a task (contract, section 7).
///
/// # Errors
/// If the value is not a URL, has an unsupported scheme, is relative while Label Studio's address is unknown, or is a
/// local file outside of the configured folder.
pub fn locate(value: &str, around: Surroundings) -> Result<Location, LocationError> {
    let value = value.trim();
    let studio = around.label_studio;
    let scheme = |scheme: &str| {
        let start = value.get(..scheme.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    if scheme("data:") {
        return Ok(Location::Inline(value["data:".len()..].to_owned()));
    }
    if CLOUD.iter().any(|cloud| scheme(cloud)) {
        let base = studio.base();
        let base = base.ok_or_else(|| LocationError::NoHost(shorten(value)))?;
        let task = around.task;
        let task = task.ok_or_else(|| LocationError::NoTask(shorten(value)))?;
        let uri = URL_SAFE.encode(value);
        let url = parse(&format!("{base}/tasks/{task}/resolve/?fileuri={uri}"))?;
        return Ok(Location::Remote {
            url,
            otherwise: None,
        });
    }
    let url = if scheme("http://") || scheme("https://") {
        parse(value)?
    } else {
        on_label_studio(value, studio, around.local_files.is_some())?
    };
    let is_own = studio.owns(&url) || url.host_str() == Some(UNKNOWN_HOST);
    if let (true, Some(root), Some(file)) = (is_own, around.local_files, local_file(&url)) {
        return contained(root, &file);
    }
    if url.host_str() == Some(UNKNOWN_HOST) {
        return Err(LocationError::NoHost(shorten(value)));
    }
    let otherwise = is_own.then(|| other_upload(&url, studio)).flatten();
    Ok(Location::Remote { url, otherwise })
}

/// Placeholder host, used where Label Studio's address is unknown and only the path of a local file is needed.
const UNKNOWN_HOST: &str = "label-studio.invalid";

/// The URL of a path on Label Studio. `value` is a path as Label Studio stores it in task data.
fn on_label_studio(
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
        return Err(LocationError::Unsupported(shorten(value)));
    };
    match (studio.base(), studio.origin()) {
        // the path of an upload already starts with Label Studio's prefix
        (Some(_), Some(origin)) if path.starts_with(&format!("{}/", studio.prefix())) => {
            parse(&format!("{origin}{path}"))
        }
        (Some(base), _) => parse(&format!("{base}{path}")),
        (None, _) if has_local_files => parse(&format!("http://{UNKNOWN_HOST}{path}")),
        (None, _) => Err(LocationError::NoHost(shorten(value))),
    }
}

/// The decoded file path in a `/data/local-files/?d=...` URL.
fn local_file(url: &Url) -> Option<String> {
    let path = url.path().trim_end_matches('/');
    let mut query = url.query_pairs();
    let (_, file) = query.find(|(key, _)| key == "d")?;
    path.ends_with("/data/local-files")
        .then(|| file.into_owned())
}

/// Resolves a file below `root`. Symbolic links are followed, and the result must still be inside of `root`.
fn contained(root: &Path, file: &str) -> Result<Location, LocationError> {
    let relative = Path::new(file.trim_start_matches('/'));
    let outside = || LocationError::Outside(shorten(file));
    let is_plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if !relative.components().all(is_plain) {
        return Err(outside());
    }
    let (path, name) = (root.join(relative), shorten(file));
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
fn other_upload(url: &Url, studio: &LabelStudio) -> Option<Url> {
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
            Self::Inline(uri) => format!("the task's data URI of {} characters", uri.len()),
            Self::File { name, .. } => format!("the local file {name}"),
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
    if !studio.owns(&url) && url.query().is_some() {
        url.set_query(Some("..."));
    }
    url.set_fragment(None);
    url.to_string()
}

/// Decodes a data URI, given without the `data:` prefix; `None` if it has more than `limit` bytes. The declared media
/// type is ignored. This uses the CPU, so it must not run on the async threads.
pub(super) fn inline(uri: &str, limit: usize) -> Result<Option<Vec<u8>>, LocationError> {
    let error = |reason: &str| LocationError::DataUri(reason.to_owned());
    let (header, payload) = uri
        .split_once(',')
        .ok_or_else(|| error("it has no comma before its data"))?;
    if !header.to_ascii_lowercase().ends_with(";base64") {
        return Err(error("it is not base64, as images need"));
    }
    // one pass and one copy: removes white space, and decodes `+`, `/` and `=` if they are percent-encoded
    let mut kept = Vec::with_capacity(payload.len().min(limit / 3 * 4 + 8));
    let mut rest = payload.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let (byte, after) = match (first, after.get(..2)) {
            (b'%', Some(code)) => match code.to_ascii_uppercase().as_slice() {
                b"2B" => (b'+', &after[2..]),
                b"2F" => (b'/', &after[2..]),
                b"3D" => (b'=', &after[2..]),
                _ => (b'%', after),
            },
            _ => (*first, after),
        };
        rest = after;
        if !byte.is_ascii_whitespace() {
            kept.push(byte);
        }
        if kept.len() / 4 * 3 > limit.saturating_add(3) {
            return Ok(None);
        }
    }
    while kept.last() == Some(&b'=') {
        kept.pop();
    }
    let bytes = UNPADDED
        .decode(&kept)
        .map_err(|e| error(&format!("it is not base64: {e}")))?;
    Ok((bytes.len() <= limit).then_some(bytes))
}

fn parse(url: &str) -> Result<Url, LocationError> {
    Url::parse(url).map_err(|e| LocationError::Malformed {
        url: shorten(url),
        reason: e.to_string(),
    })
}

/// Shortens a value for a message: at most 120 characters, no query, no credentials, and no control characters, which
/// could forge a line in a log.
fn shorten(value: &str) -> String {
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

    fn located(value: &str, around: Surroundings) -> Result<String, String> {
        match locate(value, around).map_err(|e| e.to_string())? {
            Location::Inline(uri) => {
                let bytes = inline(&uri, 100).map_err(|e| e.to_string())?;
                Ok(format!("{:?}", bytes.ok_or("too large")?))
            }
            Location::File { path, .. } => Ok(path.display().to_string()),
            Location::Remote { url, .. } => Ok(url.to_string()),
        }
    }

    fn remote(value: &str) -> Result<String, String> {
        let label_studio = LabelStudio::new(Some("http://ls:8080/studio/"), None).unwrap();
        let around = Surroundings {
            label_studio: &label_studio,
            task: Some(7),
            local_files: None,
        };
        located(value, around)
    }

    #[test]
    fn every_form_is_resolved() {
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
    fn uploads_have_a_second_place() {
        let studio = LabelStudio::new(Some("http://ls:8080/studio/"), None).unwrap();
        let other = |url: &str| {
            let url = Url::parse(url).unwrap();
            other_upload(&url, &studio).map(|url| url.to_string())
        };
        let stored = "http://ls:8080/studio/storage-data/uploaded/?filepath=upload/3/a%20b.png";
        let uploaded = "http://ls:8080/studio/data/upload/3/a%20b.png";
        assert_eq!(other(uploaded).unwrap(), stored);
        assert_eq!(other(stored).unwrap(), uploaded);
        assert_eq!(other("http://ls:8080/studio/data/local-files/?d=x"), None);
    }

    #[test]
    fn what_leads_nowhere_is_named() {
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
        let nowhere = Surroundings {
            label_studio: &LabelStudio::default(),
            task: None,
            local_files: None,
        };
        for value in ["/data/upload/1/a.png", "s3://bucket/a.png"] {
            let error = located(value, nowhere).unwrap_err();
            assert!(error.contains("LABEL_STUDIO_HOST"), "{error}");
        }
    }

    #[test]
    fn local_files_stay_in_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("sub/a b.png"), "a").unwrap();
        std::fs::write(folder.path().join("secret.png"), "s").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(folder.path(), root.join("link")).unwrap();
        let studio = LabelStudio::new(Some("http://ls:8080"), None).unwrap();
        for studio in [&studio, &LabelStudio::default()] {
            let around = Surroundings {
                label_studio: studio,
                task: None,
                local_files: Some(&root),
            };
            for file in ["sub/a%20b.png", "./sub/a%20b.png"] {
                let found = located(&format!("/data/local-files/?d={file}"), around).unwrap();
                assert!(found.ends_with("root/sub/a b.png"), "{found}");
            }
            for file in [
                "../secret.png",
                "sub/../../secret.png",
                "%2e%2e/secret.png",
                "link/secret.png",
            ] {
                let error = located(&format!("/data/local-files/?d={file}"), around);
                assert!(error.unwrap_err().contains("LOCAL_FILES_DOCUMENT_ROOT"));
            }
            // a URL of another host with the same path is not a local file
            let other = "http://elsewhere/data/local-files/?d=sub/a%20b.png";
            assert_eq!(located(other, around).unwrap(), other);
        }
    }

    #[test]
    fn secrets_stay_out_of_messages() {
        let studio = LabelStudio::default();
        let around = Surroundings {
            label_studio: &studio,
            task: None,
            local_files: None,
        };
        let location = locate("https://me:word@host/a.png?Signature=secret", around);
        assert_eq!(
            location.unwrap().describe(&studio),
            "https://host/a.png?..."
        );
        for value in [
            "ftp://me:word@host/a.png\nERROR forged",
            "http://me:word@ho st:99999/a",
        ] {
            let error = locate(value, around).unwrap_err().to_string();
            assert!(!error.contains("word") && !error.contains('\n'), "{error}");
        }
    }
}
