//! In-memory cache of computed results. The results of each stage have their own byte limit; the least recently used
//! ones are evicted first. A request for a result that is being computed waits for that computation.

use std::any::Any;
use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use moka::future::Cache;
use moka::policy::EvictionPolicy;

/// The cached results of one stage. Clones share them.
pub struct MemoryCache<K, V> {
    // of one type for all stages: compiled for the types of each stage, the library took a sixth of the whole compile time
    cache: Cache<Key, AnyValue>,
    weigh: Weigh,
    counts: Arc<Counts>,
    types: PhantomData<fn(K) -> V>,
}

/// A result or an error of any type.
type AnyValue = Arc<dyn Any + Send + Sync>;

/// Returns the size of a result in bytes.
type Weigh = Arc<dyn Fn(&AnyValue) -> u32 + Send + Sync>;

/// Computes or loads a result.
type Load<'a> = Pin<Box<dyn Future<Output = Result<(AnyValue, Source), AnyValue>> + Send + 'a>>;

/// A key of any type.
#[derive(Eq)]
struct Key(Arc<dyn AnyKey>);

trait AnyKey: Any + Send + Sync {
    fn add_to_hash(&self, state: &mut dyn Hasher);
    fn is_equal(&self, other: &dyn AnyKey) -> bool;
}

impl<K: Hash + Eq + Send + Sync + 'static> AnyKey for K {
    fn add_to_hash(&self, mut state: &mut dyn Hasher) {
        self.hash(&mut state);
    }

    fn is_equal(&self, other: &dyn AnyKey) -> bool {
        (other as &dyn Any).downcast_ref() == Some(self)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        // the trait's own method, not that of `Arc`, which is a key itself
        (*self.0).is_equal(&*other.0)
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (*self.0).add_to_hash(state);
    }
}

impl Hash for dyn AnyKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.add_to_hash(state);
    }
}

impl PartialEq for dyn AnyKey {
    fn eq(&self, other: &Self) -> bool {
        self.is_equal(other)
    }
}

impl Eq for dyn AnyKey {}

impl Borrow<dyn AnyKey> for Key {
    fn borrow(&self) -> &dyn AnyKey {
        &*self.0
    }
}

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
            types: PhantomData,
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
        let weigh: Weigh =
            Arc::new(move |value| u32::try_from(weigh(downcast(value))).unwrap_or(u32::MAX));
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
            types: PhantomData,
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
        compute: impl Future<Output = Result<V, E>> + Send,
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
        load: impl Future<Output = Result<(V, Source), E>> + Send,
    ) -> Result<CacheResult<V>, Arc<E>> {
        let load: Load<'_> = Box::pin(async {
            match load.await {
                Ok((value, source)) => Ok((Arc::new(value) as AnyValue, source)),
                Err(error) => Err(Arc::new(error) as AnyValue),
            }
        });
        match get_or_load(&self.cache, Key(Arc::new(key)), load).await {
            Ok((value, source)) => {
                match source {
                    Source::Memory => self.counts.hits.fetch_add(1, Ordering::Relaxed),
                    Source::Computed => self.counts.misses.fetch_add(1, Ordering::Relaxed),
                    Source::Disk => 0,
                };
                let value = downcast::<V>(&value).clone();
                Ok(CacheResult { value, source })
            }
            Err(error) => Err(error.downcast().unwrap_or_else(|_| {
                unreachable!("the error is of this or another request with the same key")
            })),
        }
    }

    /// Returns the result of a key if it is cached, which counts as a hit.
    pub async fn get(&self, key: &K) -> Option<V> {
        let value = self.cache.get(key as &dyn AnyKey).await?;
        self.counts.hits.fetch_add(1, Ordering::Relaxed);
        Some(downcast::<V>(&value).clone())
    }

    /// Adds a result that was computed elsewhere, which counts as a miss.
    pub async fn insert(&self, key: K, value: V) {
        self.counts.misses.fetch_add(1, Ordering::Relaxed);
        let capacity = self.cache.policy().max_capacity();
        let value: AnyValue = Arc::new(value);
        // the cache would hold a value that is too large until its next maintenance
        if capacity.is_none_or(|capacity| u64::from((self.weigh)(&value)) <= capacity) {
            self.cache.insert(Key(Arc::new(key)), value).await;
        }
    }

    /// Drops all results, and returns when their memory is free, unless a request still uses them.
    pub async fn clear(&self) {
        let values = self.cache.iter();
        let dropped: Vec<_> = values.map(|(_, value)| Arc::downgrade(&value)).collect();
        self.cache.invalidate_all();
        // the cache defers the drop of a value until no thread can be reading it, and does only a part of such work at a time
        for _ in 0..MAINTENANCE_OF_CLEAR {
            self.cache.run_pending_tasks().await;
            if dropped.iter().all(|value| value.strong_count() == 0) {
                break;
            }
            tokio::task::yield_now().await;
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

/// Returns a cached result, or the result of `load`, and where it came from.
async fn get_or_load(
    cache: &Cache<Key, AnyValue>,
    key: Key,
    load: Load<'_>,
) -> Result<(AnyValue, Source), AnyValue> {
    let source = OnceLock::new();
    let load = async {
        let (value, loaded_from) = load.await?;
        // this is the only place that sets it, so it cannot fail
        let _ = source.set(loaded_from);
        Ok(value)
    };
    let entry = cache.entry(key).or_try_insert_with(load).await;
    let entry = entry.map_err(|error: Arc<AnyValue>| AnyValue::clone(&error))?;
    let source = match entry.is_fresh() {
        true => source.get().copied().unwrap_or(Source::Computed),
        false => Source::Memory,
    };
    Ok((entry.into_value(), source))
}

/// The value of a cache that has only values of this type.
fn downcast<V: 'static>(value: &AnyValue) -> &V {
    let value = value.downcast_ref();
    value.unwrap_or_else(|| unreachable!("all values of a cache are of its type"))
}

/// Limit of the rounds of maintenance until cleared results are dropped; each drops some dozens.
const MAINTENANCE_OF_CLEAR: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_are_compared_by_their_values() {
        let cache = MemoryCache::new(1000, Duration::from_secs(60), |_: &u8| 1);
        let key = |text: &str| (text.to_owned(), 7);
        for (text, source) in [
            ("a", Source::Computed),
            ("a", Source::Memory),
            ("b", Source::Computed),
        ] {
            let computed = cache.get_or_compute(key(text), async { Ok::<_, ()>(1) });
            assert_eq!(computed.await.unwrap().source, source, "{text}");
        }
        assert_eq!(cache.get(&key("a")).await, Some(1));
        assert_eq!(cache.get(&key("c")).await, None);
        let failed = cache.get_or_compute(key("d"), async { Err("no result") });
        assert_eq!(*failed.await.unwrap_err(), "no result");
    }

    #[tokio::test]
    async fn cleared_results_are_dropped_at_once() {
        let caches: Vec<_> = (0..3)
            .map(|_| MemoryCache::new(1000, Duration::from_secs(60), |_: &Arc<u8>| 1))
            .collect();
        let value = Arc::new(7);
        for cache in &caches {
            for key in 0..100 {
                cache.insert(key, value.clone()).await;
            }
        }
        for (cleared, cache) in (1..).zip(&caches) {
            cache.clear().await;
            assert_eq!(Arc::strong_count(&value), 1 + 100 * (3 - cleared));
        }
    }

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
