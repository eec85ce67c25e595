//! What was computed, kept in memory: the results of one stage have a share of the bytes; what was not used for longest
//! goes first. Whoever asks for what is being computed already waits for that.

use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use moka::future::Cache;
use moka::policy::EvictionPolicy;

/// The results of one stage; clones share them.
pub struct Kept<K, V> {
    cache: Cache<K, V>,
    weigh: Weigh<V>,
    counts: Arc<Counts>,
}

/// Tells the bytes of a result.
type Weigh<V> = Arc<dyn Fn(&V) -> u32 + Send + Sync>;

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

/// A result, and where it came from.
#[derive(Debug, Clone)]
pub struct Had<V> {
    /// The result.
    pub value: V,
    /// Where it came from.
    pub source: Source,
}

/// Where a result came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It was in memory, or somebody else was at it.
    Kept,
    /// It was on disk.
    Warm,
    /// It was computed just now.
    Computed,
}

impl<K, V> Clone for Kept<K, V> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            weigh: self.weigh.clone(),
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
        let weigh: Weigh<V> =
            Arc::new(move |value| u32::try_from(weigh(value)).unwrap_or(u32::MAX));
        let weigher = weigh.clone();
        let cache = Cache::builder()
            .max_capacity(capacity)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(unused)
            .weigher(move |_, value| weigher(value))
            .build();
        Self {
            cache,
            weigh,
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
        let make = async { Ok((make.await?, Source::Computed)) };
        self.get_or_find(key, make).await
    }

    /// The same where `make` may find the result elsewhere, which it tells; that counts neither as a hit nor as a miss.
    ///
    /// # Errors
    /// What `make` fails with.
    pub async fn get_or_find<E: Send + Sync + 'static>(
        &self,
        key: K,
        make: impl Future<Output = Result<(V, Source), E>>,
    ) -> Result<Had<V>, Arc<E>> {
        let found = OnceLock::new();
        let make = async {
            let (value, source) = make.await?;
            // the only one to set it
            let _ = found.set(source);
            Ok(value)
        };
        let entry = self.cache.entry(key).or_try_insert_with(make).await?;
        let source = match entry.is_fresh() {
            true => found.get().copied().unwrap_or(Source::Computed),
            false => Source::Kept,
        };
        match source {
            Source::Kept => self.counts.hits.fetch_add(1, Ordering::Relaxed),
            Source::Computed => self.counts.misses.fetch_add(1, Ordering::Relaxed),
            Source::Warm => 0,
        };
        Ok(Had {
            value: entry.into_value(),
            source,
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
        let capacity = self.cache.policy().max_capacity();
        // the cache would hold it until its next tidying
        if capacity.is_none_or(|capacity| u64::from((self.weigh)(&value)) <= capacity) {
            self.cache.insert(key, value).await;
        }
    }

    /// Lets go of what is not to be kept: the cache does so while it is used, and not when nobody asks.
    pub async fn tidy(&self) {
        self.cache.run_pending_tasks().await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_too_large_is_not_held() {
        let kept = Kept::new(100, Duration::from_secs(60), |bytes: &Arc<[u8]>| {
            bytes.len()
        });
        let (large, other): (Arc<[u8]>, Arc<[u8]>) = ([0; 101].into(), [0; 101].into());
        kept.keep("large", large.clone()).await;
        assert_eq!(Arc::strong_count(&large), 1);
        let made = kept.get_or_make("other", async { Ok::<_, ()>(other.clone()) });
        drop(made.await.unwrap());
        let start = std::time::Instant::now();
        while Arc::strong_count(&other) > 1 {
            assert!(start.elapsed() < Duration::from_secs(20));
            kept.tidy().await;
        }
        let small: Arc<[u8]> = [0; 100].into();
        kept.keep("small", small.clone()).await;
        assert!(kept.get(&"small").await.is_some());
    }
}
