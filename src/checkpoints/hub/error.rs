//! Why a model cannot be downloaded from the hub.

use std::io;

/// Why a file cannot be downloaded or used; every message names the file or the host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum HubError {
    /// Downloads are disabled.
    #[error(
        "{name} is neither in MODEL_DIR nor in the hub's cache ({cache}), and HF_HUB_OFFLINE forbids downloads: run `groundling download {name}` with a network connection"
    )]
    Offline { name: String, cache: String },
    /// The setting is not a valid URL.
    #[error("HF_ENDPOINT must be a URL such as https://huggingface.co, not {0:?}")]
    Endpoint(String),
    /// The async runtime cannot be created.
    #[error("the system refuses the resources for a network connection: {0}")]
    Runtime(io::Error),
    /// The host does not answer, or the connection was lost.
    #[error(
        "cannot download {file} of {id} from {host}: {reason}; the part that was downloaded is kept"
    )]
    Unreachable {
        file: String,
        id: String,
        host: String,
        reason: String,
    },
    /// The hub rejects the request.
    #[error("{host} rejects the request for {file} of {id} with status {status}: {hint}")]
    Rejected {
        file: String,
        id: String,
        host: String,
        status: u16,
        hint: &'static str,
    },
    /// The repository has no such file.
    #[error(
        "{host} has no file {file} in the repository {id}, or no such repository; there is no local file or folder of that name either"
    )]
    NotFound {
        file: String,
        id: String,
        host: String,
    },
    /// The answer does not follow the hub's protocol.
    #[error(
        "the answer of {host} to the request for {file} of {id} does not follow the hub's protocol: {reason} (HF_ENDPOINT)"
    )]
    UnexpectedResponse {
        file: String,
        id: String,
        host: String,
        reason: String,
    },
    /// The disk is full, or the cache is not writable.
    #[error("cannot store {file} of {id} in {cache}: {reason}; set HF_HOME to use another folder")]
    Store {
        file: String,
        id: String,
        cache: String,
        reason: io::Error,
    },
    /// The checksum of the downloaded file is wrong.
    #[error(
        "{file} of {id} was damaged on the way from {host}: its checksum is {found} instead of {expected}; the file was deleted, download it again"
    )]
    Checksum {
        file: String,
        id: String,
        host: String,
        found: String,
        expected: String,
    },
    /// The checksum of the local file is wrong, and downloads are disabled.
    #[error(
        "{path} is damaged: its checksum differs from the published one; download it again with `groundling download`"
    )]
    Damaged { path: String },
    /// The repository has no usable weights, or several files of weights.
    #[error(
        "the repository {id} has {found}; it must have exactly one file of weights, or a model.safetensors"
    )]
    NoWeights { id: String, found: String },
}
