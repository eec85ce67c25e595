//! Bicubic scaling.

use candle_core::{Result, Tensor};

/// Scales maps to another size, as `torch.nn.functional.interpolate` with `mode="bicubic"` and `align_corners=False`. A
/// scaled map is the product of the map with one matrix for its rows and one for its columns.
#[derive(Debug, Clone)]
pub struct BicubicResize {
    /// `[H, h]`
    rows: Tensor,
    /// `[W, w]`
    columns: Tensor,
}

impl BicubicResize {
    /// From maps of `(h, w)` to maps of `(H, W)`, on the device and with the dtype of `like`.
    pub fn new(from: (usize, usize), to: (usize, usize), like: &Tensor) -> Result<Self> {
        let matrix = |from: usize, to: usize| {
            Tensor::from_vec(weights(from, to), (to, from), like.device())?.to_dtype(like.dtype())
        };
        Ok(Self {
            rows: matrix(from.0, to.0)?,
            columns: matrix(from.1, to.1)?,
        })
    }

    /// `[B, h, w, C]` to `[B, H, W, C]`.
    pub fn forward(&self, map: &Tensor) -> Result<Tensor> {
        let (batch, height, width, channels) = map.dims4()?;
        let scaled =
            self.rows
                .broadcast_matmul(&map.reshape((batch, height, width * channels))?)?;
        let rows = self.rows.dim(0)?;
        self.columns
            .broadcast_matmul(&scaled.reshape((batch * rows, width, channels))?)?
            .reshape((batch, rows, (), channels))
    }
}

/// The coefficient of the cubic convolution in torch.
const A: f64 = -0.75;

/// `[to, from]`, row by row: the weight of each sample in each scaled sample.
fn weights(from: usize, to: usize) -> Vec<f32> {
    let mut matrix = vec![0f32; to * from];
    let scale = from as f64 / to as f64;
    for (i, row) in matrix.chunks_exact_mut(from.max(1)).enumerate() {
        let position = scale * (i as f64 + 0.5) - 0.5;
        let first = position.floor();
        for neighbour in -1..=2 {
            let at = first + f64::from(neighbour);
            // samples beyond the edge are those at the edge
            let index = at.clamp(0.0, from as f64 - 1.0) as usize;
            row[index] += cubic((position - at).abs()) as f32;
        }
    }
    matrix
}

/// The cubic convolution kernel (Keys 1981) at a distance of 0..=2.
fn cubic(x: f64) -> f64 {
    if x <= 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else {
        ((x - 5.0) * x + 8.0) * x * A - 4.0 * A
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_map_is_scaled_as_by_torch() -> Result<()> {
        // x = torch.tensor([[1., 2, 4], [0, 3, -1]])[None, None]
        // torch.nn.functional.interpolate(x, size=(4, 5), mode="bicubic", align_corners=False)
        let expected = [
            1.029_719f32,
            1.222_063,
            1.894_531,
            3.562_625,
            4.780_094,
            0.633_938,
            1.291_126,
            2.226_562,
            2.723_25,
            2.928_688,
            -0.017_937,
            1.404_875,
            2.773_438,
            1.340_75,
            -0.120_687,
            -0.413_719,
            1.473_937,
            3.105_469,
            0.501_374,
            -1.972_094,
        ];
        let map =
            Tensor::new(&[1f32, 2.0, 4.0, 0.0, 3.0, -1.0], &Device::Cpu)?.reshape((1, 2, 3, 1))?;
        let resize = BicubicResize::new((2, 3), (4, 5), &map)?;
        let scaled: Vec<f32> = resize.forward(&map)?.flatten_all()?.to_vec1()?;
        assert_eq!(scaled.len(), expected.len());
        for (found, expected) in scaled.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{scaled:?}");
        }
        Ok(())
    }

    #[test]
    fn the_same_size_changes_nothing() -> Result<()> {
        let map = Tensor::randn(0f32, 1.0, (2, 3, 4, 5), &Device::Cpu)?;
        let resize = BicubicResize::new((3, 4), (3, 4), &map)?;
        let difference = (resize.forward(&map)? - map)?.abs()?.max_all()?;
        assert_eq!(difference.to_scalar::<f32>()?, 0.0);
        Ok(())
    }
}
