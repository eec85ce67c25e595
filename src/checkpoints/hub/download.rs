//! Downloads one file into the cache: resumes a partial download, retries, and verifies the checksum.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::HeaderMap;

use super::cache::{BlobLock, CachedRepo, Mismatch};
use super::client::{AttemptError, FileClient, Metadata, READ_TIMEOUT, header_text};
use super::error::HubError;
use super::observer::ProgressObserver;

/// Limit of consecutive attempts that receive no byte.
const MAX_ATTEMPTS: u32 = 4;

/// The download of one file.
pub(super) struct Download<'a> {
    pub(super) client: FileClient<'a>,
    pub(super) cache: &'a CachedRepo,
    pub(super) observer: &'a Arc<dyn ProgressObserver>,
}

impl Download<'_> {
    /// Downloads the file into the cache and returns its path there. Waits for another process that downloads the
    /// same file.
    ///
    /// # Errors
    /// See [`HubError`].
    pub(super) async fn run(&self) -> Result<PathBuf, HubError> {
        let metadata = self.client.metadata().await?;
        let file = self.client.file();
        let blob = self
            .cache
            .lock(&metadata.etag, || {
                self.observer
                    .waiting(&format!("another process is downloading {file}"));
            })
            .map_err(|error| self.store_error(error))?;
        if !self.is_complete(&blob)? {
            self.download(&metadata, &blob).await?;
        }
        self.cache
            .publish(&blob, self.client.repo(), &metadata.commit, file)
            .map_err(|error| self.store_error(error))
    }

    fn is_complete(&self, blob: &BlobLock) -> Result<bool, HubError> {
        if !blob.blob().is_file() {
            return Ok(false);
        }
        let mismatch = blob.checksum_mismatch(blob.blob());
        Ok(mismatch.map_err(|error| self.store_error(error))?.is_none())
    }

    /// Downloads into the blob's partial file, and retries as long as attempts make progress.
    async fn download(&self, metadata: &Metadata, blob: &BlobLock) -> Result<(), HubError> {
        let partial = blob.partial();
        let store_error = |error| self.store_error(error);
        let mut attempts = 0;
        loop {
            let before = file_size(&partial);
            match self.attempt(metadata, &partial).await {
                Ok(()) => break,
                Err(AttemptError::Fatal(error)) => return Err(error),
                Err(AttemptError::Retry(error)) => {
                    let made_progress = file_size(&partial) > before;
                    attempts = if made_progress { 0 } else { attempts + 1 };
                    if attempts >= MAX_ATTEMPTS {
                        return Err(error);
                    }
                    tracing::debug!(%error, "a download failed and is retried");
                    tokio::time::sleep(Duration::from_millis(200 << attempts)).await;
                }
            }
        }
        let mismatch = blob.checksum_mismatch(&partial).map_err(store_error)?;
        if let Some(Mismatch { found, expected }) = mismatch {
            // if it cannot be removed, the next run detects it again
            let _ = fs::remove_file(&partial);
            return Err(HubError::Checksum {
                file: self.client.file().to_owned(),
                id: self.client.repo().id.clone(),
                host: self.client.host(),
                found,
                expected,
            });
        }
        fs::rename(&partial, blob.blob()).map_err(store_error)
    }

    /// Downloads the missing part of the file. `Ok` means that the file is complete.
    async fn attempt(&self, metadata: &Metadata, partial: &Path) -> Result<(), AttemptError> {
        let store_error = |error| AttemptError::Fatal(self.store_error(error));
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(partial)
            .map_err(store_error)?;
        let mut bytes = file_size(partial);
        if metadata.size.is_some_and(|size| bytes > size) {
            restart(&file, &mut bytes).map_err(store_error)?;
        }
        if metadata.size == Some(bytes) && bytes > 0 {
            return Ok(());
        }
        let mut response = self.client.open(bytes).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(response.headers(), bytes) => {}
            // the download starts from the beginning
            StatusCode::OK | StatusCode::PARTIAL_CONTENT if bytes == 0 => {}
            StatusCode::OK => restart(&file, &mut bytes).map_err(store_error)?,
            // the bytes on disk do not belong to this file
            _ => {
                restart(&file, &mut bytes).map_err(store_error)?;
                let reason = "it resumes the download at another byte than requested";
                let error = self.client.unexpected(reason.to_owned());
                return Err(AttemptError::Retry(error));
            }
        }
        let total = metadata
            .size
            .or_else(|| response.content_length().map(|left| bytes + left));
        loop {
            let chunk = match tokio::time::timeout(READ_TIMEOUT, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => {
                    let reason = crate::outgoing::error_chain(&error.without_url());
                    return Err(AttemptError::Retry(self.client.unreachable(reason)));
                }
                Err(_) => return Err(AttemptError::Fatal(self.client.timed_out())),
            };
            file.write_all(&chunk).map_err(store_error)?;
            bytes += chunk.len() as u64;
            self.observer
                .progress(self.client.file(), bytes, total.unwrap_or(bytes));
        }
        file.sync_all().map_err(store_error)?;
        match total {
            Some(total) if bytes != total => {
                let reason = format!("the download ended after {bytes} of {total} bytes");
                Err(AttemptError::Retry(self.client.unreachable(reason)))
            }
            _ => Ok(()),
        }
    }

    fn store_error(&self, reason: io::Error) -> HubError {
        HubError::Store {
            file: self.client.file().to_owned(),
            id: self.client.repo().id.clone(),
            cache: self.cache.cache_folder().display().to_string(),
            reason,
        }
    }
}

/// Empties the partial file.
fn restart(file: &File, bytes: &mut u64) -> io::Result<()> {
    *bytes = 0;
    file.set_len(0)
}

/// The size of a file in bytes; 0 if it does not exist.
fn file_size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

/// Whether a partial response starts at the requested byte.
fn starts_at(headers: &HeaderMap, start: u64) -> bool {
    let range = header_text(headers, "content-range");
    let first = range.as_deref().and_then(|range| {
        let (first, _) = range.strip_prefix("bytes ")?.split_once('-')?;
        first.parse::<u64>().ok()
    });
    first == Some(start)
}
