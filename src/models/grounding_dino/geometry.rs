//! Tensors that depend only on the sizes of a batch. They are computed once and cached for later batches of the same
//! sizes.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, Tensor};

use super::pyramid::Pyramid;

/// Number of cached sizes: portrait and landscape images of one camera. Each takes 20 MB at 800 x 1066 pixels.
const MAX_CACHED: usize = 2;

/// Tensors that depend only on the sizes of a batch.
#[derive(Debug, Clone)]
pub(super) struct Geometry {
    pub(super) pyramid: Pyramid,
    /// `[B, N, d]`: sine positions plus the level embedding.
    pub(super) positions: Tensor,
    /// `[B, N]`: 1 for image, 0 for padding; `None` if there is no padding.
    pub(super) token_mask: Option<Tensor>,
}

/// The sizes of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BatchSizes {
    /// `(height, width)` of the padded images.
    pub(super) padded: (usize, usize),
    /// `(height, width)` of each image inside the padded images.
    pub(super) valid: Vec<(usize, usize)>,
    /// `(height, width)` of each level's map.
    pub(super) maps: Vec<(usize, usize)>,
}

/// A cache of the geometries that were used last.
#[derive(Debug, Clone, Default)]
pub(super) struct GeometryCache(Arc<Mutex<Vec<(BatchSizes, Geometry)>>>);

impl GeometryCache {
    /// The geometry of these sizes, from the cache or from `compute`.
    pub(super) fn get(
        &self,
        sizes: BatchSizes,
        compute: impl FnOnce(&BatchSizes) -> Result<Geometry>,
    ) -> Result<Geometry> {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = cache.iter().position(|(known, _)| *known == sizes);
        let entry = match known {
            Some(index) => cache.remove(index),
            None => {
                let geometry = compute(&sizes)?;
                (sizes, geometry)
            }
        };
        let geometry = entry.1.clone();
        // ordered by last use
        cache.push(entry);
        if cache.len() > MAX_CACHED {
            cache.remove(0);
        }
        Ok(geometry)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn the_geometry_of_recent_sizes_is_computed_once() -> Result<()> {
        let cache = GeometryCache::default();
        let mut computed = vec![];
        for side in [8, 9, 8, 10, 8, 9] {
            let sizes = BatchSizes {
                padded: (side, side),
                valid: vec![(side, side)],
                maps: vec![(1, 1)],
            };
            cache.get(sizes, |sizes| {
                computed.push(side);
                Ok(Geometry {
                    pyramid: Pyramid::new(sizes.padded, &sizes.valid, &sizes.maps),
                    positions: Tensor::zeros(1, DType::F32, &Device::Cpu)?,
                    token_mask: None,
                })
            })?;
        }
        assert_eq!(computed, [8, 9, 10, 9]);
        Ok(())
    }
}
