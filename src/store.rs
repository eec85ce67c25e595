//! What was computed, kept by the content it was computed of.
//!
//! A stage's key is the digest of the image's bytes, and what else the result depends on. So the same picture under two
//! URLs is computed once, and a result is never of an old picture. Each stage has a share of the bytes that the store
//! may take; what was not used for longest goes first. Whoever asks for what is being computed already waits for that.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::future::Cache;
use moka::policy::EvictionPolicy;

/// The results of one stage; clones share them.
pub struct Kept<K, V> {
    cache: Cache<K, V>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
}

/// What one stage holds and how often it had what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Results that were there, or being computed for somebody else.
    pub hits: u64,
    /// Results that were computed.
    pub misses: u64,
    /// Results held.
    pub entries: u64,
    /// Bytes held.
    pub bytes: u64,
    /// Bytes it may hold.
    pub capacity: u64,
}

/// A result, and whether it was computed just now.
#[derive(Debug, Clone)]
pub struct Had<V> {
    /// The result.
    pub value: V,
    /// Whether it was there, or somebody else was at it.
    pub was_kept: bool,
}

impl<K, V> Clone for Kept<K, V> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            counts: self.counts.clone(),
        }
    }
}

impl<K, V> fmt::Debug for Kept<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept")
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl<K, V> Kept<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Holds up to `capacity` bytes, which `weigh` tells of one result, none of them longer than `unused` after it was
    /// last asked for.
    pub fn new(
        capacity: u64,
        unused: Duration,
        weigh: impl Fn(&V) -> usize + Send + Sync + 'static,
    ) -> Self {
        let cache = Cache::builder()
            .max_capacity(capacity)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(unused)
            .weigher(move |_, value| u32::try_from(weigh(value)).unwrap_or(u32::MAX))
            .build();
        Self {
            cache,
            counts: Arc::default(),
        }
    }

    /// The result of this key: kept, being computed for somebody else, or computed by `make`. A failure is told to
    /// all who wait for it, and not kept. If whoever computes it stops, the next one who waits starts again.
    ///
    /// # Errors
    /// What `make` fails with.
    pub async fn get_or_make<E: Send + Sync + 'static>(
        &self,
        key: K,
        make: impl Future<Output = Result<V, E>>,
    ) -> Result<Had<V>, Arc<E>> {
        let entry = self.cache.entry(key).or_try_insert_with(make).await?;
        let was_kept = !entry.is_fresh();
        let count = match was_kept {
            true => &self.counts.hits,
            false => &self.counts.misses,
        };
        count.fetch_add(1, Ordering::Relaxed);
        Ok(Had {
            value: entry.into_value(),
            was_kept,
        })
    }

    /// The result of this key, if it is kept; counted if it is.
    pub async fn get(&self, key: &K) -> Option<V> {
        let found = self.cache.get(key).await;
        if found.is_some() {
            self.counts.hits.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    /// Keeps a result that was computed elsewhere.
    pub async fn keep(&self, key: K, value: V) {
        self.counts.misses.fetch_add(1, Ordering::Relaxed);
        self.cache.insert(key, value).await;
    }

    /// What it holds.
    pub fn usage(&self) -> Usage {
        Usage {
            hits: self.counts.hits.load(Ordering::Relaxed),
            misses: self.counts.misses.load(Ordering::Relaxed),
            entries: self.cache.entry_count(),
            bytes: self.cache.weighted_size(),
            capacity: self.cache.policy().max_capacity().unwrap_or(0),
        }
    }
}
