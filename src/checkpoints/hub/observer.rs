//! How callers follow a download.

/// Observes the progress of a download.
pub trait ProgressObserver: Send + Sync {
    /// `bytes` of the file's `total` bytes have been downloaded.
    fn progress(&self, file: &str, bytes: u64, total: u64);
    /// Describes what the download waits for.
    fn waiting(&self, reason: &str);
    /// All files are on this machine; describes the next step.
    fn loading(&self, step: &str) {
        self.waiting(step);
    }
}

/// Ignores all progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl ProgressObserver for Silent {
    fn progress(&self, _file: &str, _bytes: u64, _total: u64) {}

    fn waiting(&self, _reason: &str) {}
}
