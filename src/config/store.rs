//! What is kept of what was computed, and where.

use std::path::{Path, PathBuf};

use clap::Args;

use super::Switch;
use crate::memory_limit;

/// What is kept of what was computed, and where; and the memory for what is under way.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Store")]
pub struct StoreArgs {
    /// Bytes of memory for all requests together: their bodies, the files of their images, decoded pixels, and results.
    /// What does not fit waits for other requests to end, and is refused after a while.
    #[arg(long, env = "REQUEST_BYTES", default_value_t = 1 << 30, value_name = "BYTES")]
    pub request_bytes: usize,
    /// Bytes of memory for results that are kept for the next request: what the models saw in an image, so that another
    /// click or threshold does not run all of them again. [default: an eighth of the memory that the process may use, at
    /// least 256 MiB and at most 4 GiB]
    #[arg(long, env = "CACHE_BYTES", value_name = "BYTES")]
    pub cache_bytes: Option<u64>,
    /// The folder for results that outlive the process. [default: cache in MODEL_DIR]
    #[arg(long, env = "CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Bytes of disk for the segmenter's image embeddings, 2 MiB for each image: what was not used for longest goes
    /// first. 0 keeps none. The default is enough for ten thousand images.
    #[arg(long, env = "WARM_BYTES", default_value_t = 20 << 30, value_name = "BYTES")]
    pub warm_bytes: u64,
    /// Also keep the image embeddings on disk that are computed for requests, not only those of `groundling warm`.
    #[arg(
        long,
        env = "WARM_ON_SERVE",
        value_name = "0|1",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        default_value = "0"
    )]
    pub warm_on_serve: Switch,
}

const LEAST: u64 = 256 << 20;
const MOST: u64 = 4 << 30;
/// Where the system does not say how much memory there is.
const UNKNOWN: u64 = 1 << 30;

impl StoreArgs {
    /// Bytes of memory for results.
    pub fn memory_bytes(&self) -> u64 {
        self.cache_bytes
            .unwrap_or_else(|| default_bytes(memory_limit::bytes()))
    }

    /// The folder of image embeddings.
    pub fn embeddings(&self, model_dir: &Path) -> PathBuf {
        let folder = self.cache_dir.clone();
        let folder = folder.unwrap_or_else(|| model_dir.join("cache"));
        folder.join("embeddings")
    }
}

/// The bytes for results on a machine that lets the process use so many.
fn default_bytes(limit: Option<u64>) -> u64 {
    limit.map_or(UNKNOWN, |limit| (limit / 8).clamp(LEAST, MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eighth_of_the_memory_within_bounds() {
        for (gibibytes, mebibytes) in [(1, 256), (2, 256), (8, 1024), (16, 2048), (256, 4096)] {
            assert_eq!(default_bytes(Some(gibibytes << 30)), mebibytes << 20);
        }
        assert_eq!(default_bytes(None), 1 << 30);
    }
}
