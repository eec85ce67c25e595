//! Memory and disk for requests and cached results.

use std::path::{Path, PathBuf};

use clap::Args;
use secrecy::SecretString;

use super::values::Switch;
use crate::memory_limit;

/// Memory and disk for requests and cached results.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Memory and disk")]
pub struct StoreArgs {
    /// Memory for all requests together, in bytes: their bodies, image files, decoded pixels and results. A request
    /// that does not fit waits until others have ended, and is refused after a timeout.
    #[arg(long, env = "REQUEST_BYTES", default_value_t = 1 << 30, value_name = "BYTES")]
    pub request_bytes: usize,
    /// Memory for cached results of the models, in bytes: another click or another threshold on the same image then does
    /// not run all of them again. [default: an eighth of the memory that the process may use, at least 256 MiB and at
    /// most 4 GiB; on a GPU at most an eighth of its memory]
    #[arg(long, env = "CACHE_BYTES", value_name = "BYTES")]
    pub cache_bytes: Option<u64>,
    /// The folder for results that are kept across restarts. [default: cache in MODEL_DIR]
    #[arg(long, env = "CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Disk space for the segmenter's image embeddings, in bytes; an image takes 2 MiB. The least recently used
    /// embeddings are deleted first. 0 disables the store. The default is enough for ten thousand images.
    #[arg(long, env = "WARM_BYTES", default_value_t = 20 << 30, value_name = "BYTES")]
    pub warm_bytes: u64,
    /// Also store the image embeddings that the server computes for requests, not only those of `groundling warm`.
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
    /// A PostgreSQL database for the prompts and settings of projects, which all servers with this address share, such as
    /// <postgres://user:password@host/database>. [default: a SQLite file in MODEL_DIR, for one server]
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<SecretString>,
}

const MIN_CACHE_BYTES: u64 = 256 << 20;
const MAX_CACHE_BYTES: u64 = 4 << 30;
/// The default if the system does not report its memory.
const FALLBACK_CACHE_BYTES: u64 = 1 << 30;

impl StoreArgs {
    /// Memory for cached results, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.cache_bytes
            .unwrap_or_else(|| default_cache_bytes(memory_limit::bytes()))
    }

    /// The folder of image embeddings.
    pub fn embeddings(&self, model_dir: &Path) -> PathBuf {
        let folder = self.cache_dir.clone();
        let folder = folder.unwrap_or_else(|| model_dir.join("cache"));
        folder.join("embeddings")
    }
}

/// The default cache size, given the memory that the process may use, both in bytes.
fn default_cache_bytes(limit: Option<u64>) -> u64 {
    limit.map_or(FALLBACK_CACHE_BYTES, |limit| {
        (limit / 8).clamp(MIN_CACHE_BYTES, MAX_CACHE_BYTES)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_cache_is_an_eighth_of_the_memory_within_bounds() {
        for (gibibytes, mebibytes) in [(1, 256), (2, 256), (8, 1024), (16, 2048), (256, 4096)] {
            assert_eq!(default_cache_bytes(Some(gibibytes << 30)), mebibytes << 20);
        }
        assert_eq!(default_cache_bytes(None), 1 << 30);
    }
}
