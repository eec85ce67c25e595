//! In-memory cache of computed results. The results of each stage have their own byte limit; the least recently used
//! ones are evicted first. A request for a result that is being computed waits for that computation.

use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use moka::future::Cache;
use moka::policy::EvictionPolicy;

/// The cached results of one stage. Clones share them.
pub struct MemoryCache<K, V> {
    cache: Cache<K, V>,
    weigh: Weigh<V>,
    counts: Arc<Counts>,
}

/// Returns the size of a result in bytes.
type Weigh<V> = Arc<dyn Fn(&V) -> u32 + Send + Sync>;

#[derive(Debug, Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
}

/// Usage and hit counts of the cache of one stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Results that were cached, or were being computed for another request.
    pub hits: u64,
    /// Results that were computed.
    pub misses: u64,
    /// Number of cached results.
    pub entries: u64,
    /// Size of the cached results in bytes.
    pub bytes: u64,
    /// Maximum size in bytes.
    pub capacity: u64,
}

/// A result, and where it came from.
#[derive(Debug, Clone)]
pub struct CacheResult<V> {
    /// The result.
    pub value: V,
    /// Where it came from.
    pub source: Source,
}

/// Where a result came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It was in memory, or was being computed for another request.
    Memory,
    /// It was read from disk.
    Disk,
    /// It was computed for this request.
    Computed,
}

impl<K, V> Clone for MemoryCache<K, V> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            weigh: self.weigh.clone(),
            counts: self.counts.clone(),
        }
    }
}

impl<K, V> fmt::Debug for MemoryCache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCache")
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl<K, V> MemoryCache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Creates a cache of up to `capacity` bytes. `weigh` returns the size of a result in bytes. A result is evicted
    /// when it was not used for `time_to_idle`.
    pub fn new(
        capacity: u64,
        time_to_idle: Duration,
        weigh: impl Fn(&V) -> usize + Send + Sync + 'static,
    ) -> Self {
        let weigh: Weigh<V> =
            Arc::new(move |value| u32::try_from(weigh(value)).unwrap_or(u32::MAX));
        let weigher = weigh.clone();
        let cache = Cache::builder()
            .max_capacity(capacity)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(time_to_idle)
            .weigher(move |_, value| weigher(value))
            .build();
        Self {
            cache,
            weigh,
            counts: Arc::default(),
        }
    }

    /// Returns the result of a key: cached, computed for another request, or computed with `compute`. An error is
    /// returned to all requests that wait for the result, and is not cached. If the request that computes the result is
    /// cancelled, the next one that waits starts the computation again.
    ///
    /// # Errors
    /// The error of `compute`.
    pub async fn get_or_compute<E: Send + Sync + 'static>(
        &self,
        key: K,
        compute: impl Future<Output = Result<V, E>>,
    ) -> Result<CacheResult<V>, Arc<E>> {
        let load = async { Ok((compute.await?, Source::Computed)) };
        self.get_or_load(key, load).await
    }

    /// Like [`Self::get_or_compute`], but `load` may also find the result elsewhere, and returns its source. A result
    /// from disk ([`Source::Disk`]) counts neither as a hit nor as a miss.
    ///
    /// # Errors
    /// The error of `load`.
    pub async fn get_or_load<E: Send + Sync + 'static>(
        &self,
        key: K,
        load: impl Future<Output = Result<(V, Source), E>>,
    ) -> Result<CacheResult<V>, Arc<E>> {
        let source = OnceLock::new();
        let load = async {
            let (value, loaded_from) = load.await?;
            // this is the only place that sets it, so it cannot fail
            let _ = source.set(loaded_from);
            Ok(value)
        };
        let entry = self.cache.entry(key).or_try_insert_with(load).await?;
        let source = match entry.is_fresh() {
            true => source.get().copied().unwrap_or(Source::Computed),
            false => Source::Memory,
        };
        match source {
            Source::Memory => self.counts.hits.fetch_add(1, Ordering::Relaxed),
            Source::Computed => self.counts.misses.fetch_add(1, Ordering::Relaxed),
            Source::Disk => 0,
        };
        Ok(CacheResult {
            value: entry.into_value(),
            source,
        })
    }

    /// Returns the result of a key if it is cached, which counts as a hit.
    pub async fn get(&self, key: &K) -> Option<V> {
        let value = self.cache.get(key).await;
        if value.is_some() {
            self.counts.hits.fetch_add(1, Ordering::Relaxed);
        }
        value
    }

    /// Adds a result that was computed elsewhere, which counts as a miss.
    pub async fn insert(&self, key: K, value: V) {
        self.counts.misses.fetch_add(1, Ordering::Relaxed);
        let capacity = self.cache.policy().max_capacity();
        // the cache would hold a value that is too large until its next maintenance
        if capacity.is_none_or(|capacity| u64::from((self.weigh)(&value)) <= capacity) {
            self.cache.insert(key, value).await;
        }
    }

    /// Evicts expired and excess results. The cache does this by itself only while it is used.
    pub async fn run_maintenance(&self) {
        self.cache.run_pending_tasks().await;
    }

    /// The current usage.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_value_larger_than_the_capacity_is_not_cached() {
        let cache = MemoryCache::new(100, Duration::from_secs(60), |bytes: &Arc<[u8]>| {
            bytes.len()
        });
        let (large, other): (Arc<[u8]>, Arc<[u8]>) = ([0; 101].into(), [0; 101].into());
        cache.insert("large", large.clone()).await;
        assert_eq!(Arc::strong_count(&large), 1);
        let computed = cache.get_or_compute("other", async { Ok::<_, ()>(other.clone()) });
        drop(computed.await.unwrap());
        let start = std::time::Instant::now();
        while Arc::strong_count(&other) > 1 {
            assert!(start.elapsed() < Duration::from_secs(20));
            cache.run_maintenance().await;
        }
        let small: Arc<[u8]> = [0; 100].into();
        cache.insert("small", small.clone()).await;
        assert!(cache.get(&"small").await.is_some());
    }
}
