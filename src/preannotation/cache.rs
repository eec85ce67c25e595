//! Predictions that were made already, or are being made.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use ring::digest::{SHA256, digest};
use tokio::sync::OnceCell;

use crate::pipeline::Prediction;

/// A digest of what a prediction depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// Of everything that is asked.
    pub fn of(question: &dyn fmt::Debug) -> Self {
        let digest = digest(&SHA256, format!("{question:?}").as_bytes());
        let mut key = [0; 32];
        key.copy_from_slice(digest.as_ref());
        Self(key)
    }

    /// The digest itself.
    pub fn bytes(self) -> [u8; 32] {
        self.0
    }
}

/// A prediction, once it is made; whoever comes meanwhile waits for the same one.
type Cell = Arc<OnceCell<Arc<Prediction>>>;

/// The last predictions, up to about `MAX_BYTES`, none older than `MAX_AGE`: an image may change under
/// its URL.
#[derive(Debug)]
pub struct PredictionCache(Mutex<Entries>);

#[derive(Debug)]
struct Entries {
    cells: LruCache<Key, (Instant, Cell)>,
    /// Of all that is in it.
    bytes: usize,
}

const MAX_BYTES: usize = 128 << 20;
const MAX_ENTRIES: NonZeroUsize = NonZeroUsize::new(20_000).unwrap();
const MAX_AGE: Duration = Duration::from_secs(3600);

impl Default for PredictionCache {
    fn default() -> Self {
        Self(Mutex::new(Entries {
            cells: LruCache::new(MAX_ENTRIES),
            bytes: 0,
        }))
    }
}

impl PredictionCache {
    /// The prediction of this key: remembered, being made by somebody else, or made by `make`. A failure
    /// is not remembered.
    ///
    /// # Errors
    /// What `make` fails with.
    pub async fn get_or_make<E>(
        &self,
        key: &Key,
        make: impl Future<Output = Result<Prediction, E>>,
    ) -> Result<Arc<Prediction>, E> {
        let cell = self.cell(key);
        let mut is_fresh = false;
        let made = cell
            .get_or_try_init(|| async {
                is_fresh = true;
                make.await.map(Arc::new)
            })
            .await;
        if is_fresh {
            self.settle(key, &cell);
        }
        made.cloned()
    }

    fn cell(&self, key: &Key) -> Cell {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, cell)) = entries.cells.get(key)
            && since.elapsed() < MAX_AGE
        {
            return cell.clone();
        }
        let cell = Cell::default();
        let replaced = entries.cells.push(*key, (Instant::now(), cell.clone()));
        entries.forget(replaced);
        cell
    }

    /// Weighs what was made, or forgets what failed; unless it was pushed out meanwhile.
    fn settle(&self, key: &Key, cell: &Cell) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_there = entries
            .cells
            .peek(key)
            .is_some_and(|(_, own)| Arc::ptr_eq(own, cell));
        match cell.get() {
            Some(made) if is_there => entries.bytes += weight(made),
            // others may wait to try it themselves
            None if is_there && Arc::strong_count(cell) <= 2 => {
                entries.cells.pop(key);
            }
            _ => {}
        }
        while entries.bytes > MAX_BYTES {
            let Some(oldest) = entries.cells.pop_lru() else {
                entries.bytes = 0;
                break;
            };
            entries.forget(Some(oldest));
        }
    }
}

impl Entries {
    fn forget(&mut self, entry: Option<(Key, (Instant, Cell))>) {
        let made = entry.as_ref().and_then(|(_, (_, cell))| cell.get());
        self.bytes = self
            .bytes
            .saturating_sub(made.map_or(0, |made| weight(made)));
    }
}

/// About the bytes a prediction takes.
fn weight(prediction: &Prediction) -> usize {
    let masks = prediction.objects.iter().filter_map(|o| o.mask.as_ref());
    let runs: usize = masks.map(|mask| mask.mask.runs().len()).sum();
    512 + 256 * prediction.objects.len() + 4 * runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ImageSize;

    fn prediction() -> Prediction {
        Prediction {
            size: ImageSize {
                height: 1,
                width: 1,
            },
            objects: vec![],
            detector_time: Duration::ZERO,
            segmenter_time: Duration::ZERO,
        }
    }

    fn key(image: &str, phrase: &str) -> Key {
        Key::of(&(image, phrase))
    }

    #[tokio::test]
    async fn each_question_is_answered_once() {
        let cache = PredictionCache::default();
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let ask = async |key: &Key| {
            let made = cache.get_or_make(key, async {
                asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                tokio::task::yield_now().await;
                Ok::<_, ()>(prediction())
            });
            made.await.unwrap();
        };
        let (one, two) = (key("a", "dog"), key("a", "cat"));
        tokio::join!(ask(&one), ask(&one), ask(&two));
        ask(&one).await;
        assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 2);
        // a failure is asked again
        let third = key("b", "dog");
        let failed = cache.get_or_make(&third, async { Err("no") });
        assert_eq!(failed.await.unwrap_err(), "no");
        let made = cache.get_or_make(&third, async { Ok::<_, ()>(prediction()) });
        assert!(made.await.is_ok());
        assert_eq!(cache.0.lock().unwrap().bytes, 3 * 512);
    }
}
