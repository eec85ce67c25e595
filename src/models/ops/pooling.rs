//! Max pooling of channels-last maps.

use std::ops::Deref;

use candle_core::{Layout, Result, Storage, Tensor};

use super::convolution::map_sizes;
use super::kernels::pooling;
use super::kernels::simd::InstructionSet;
use super::{cpu_tensor, f32_slice, has_kernel};

/// The largest of every 2x2 block of pixels, channel by channel: `[B, H, W, C]` to `[B, H / 2, W / 2, C]`. The map may
/// be some of the channels of a wider one; they are not copied.
///
/// # Errors
/// If the map has an odd number of rows or columns.
pub fn max_pool2x2(xs: &Tensor) -> Result<Tensor> {
    match has_kernel(xs) {
        true => max_pool_with_kernel(InstructionSet::current(), xs),
        false => max_pool2x2_plain(xs),
    }
}

pub(super) fn max_pool_with_kernel(set: InstructionSet, xs: &Tensor) -> Result<Tensor> {
    check(xs)?;
    let map = map_sizes(xs)?;
    let result = match part_of_channels(&xs.storage_and_layout()) {
        Some((pixels, stride)) => pooling::max_pool2x2(set, pixels, map, stride),
        None => {
            let xs = xs.contiguous()?;
            let view = xs.storage_and_layout();
            pooling::max_pool2x2(set, f32_slice(&view)?, map, map.channels)
        }
    };
    cpu_tensor(
        result,
        (map.batch, map.height / 2, map.width / 2, map.channels),
    )
}

/// The pixels of a map `[B, H, W, C]` from the first one on, and the numbers from one pixel to the next, if the map is
/// contiguous or the result of narrowing the channels of a contiguous map.
fn part_of_channels<'a, G>((storage, layout): &'a (G, &Layout)) -> Option<(&'a [f32], usize)>
where
    G: Deref<Target = Storage>,
{
    let ([batch, height, width, channels], [images, lines, pixels, 1]) =
        (layout.dims(), layout.stride())
    else {
        return None;
    };
    let is_evenly_spaced = *lines == width * pixels && *images == height * lines;
    let Storage::Cpu(storage) = &**storage else {
        return None;
    };
    let length = (batch * height * width).checked_sub(1)? * pixels + channels;
    let numbers = storage.as_slice::<f32>().ok()?;
    let numbers = numbers.get(layout.start_offset()..)?.get(..length)?;
    is_evenly_spaced.then_some((numbers, *pixels))
}

/// The same as [`max_pool2x2`], in plain tensor operations.
///
/// # Errors
/// If the map has an odd number of rows or columns.
pub fn max_pool2x2_plain(xs: &Tensor) -> Result<Tensor> {
    check(xs)?;
    let (batch, height, width, channels) = xs.dims4()?;
    let lines = xs.reshape((batch, height / 2, 2, width * channels))?;
    let columns = lines
        .narrow(2, 0, 1)?
        .maximum(&lines.narrow(2, 1, 1)?)?
        .reshape((batch, height / 2, width / 2, 2, channels))?;
    columns
        .narrow(3, 0, 1)?
        .maximum(&columns.narrow(3, 1, 1)?)?
        .squeeze(3)
}

fn check(xs: &Tensor) -> Result<()> {
    let (_, height, width, _) = xs.dims4()?;
    if !height.is_multiple_of(2) || !width.is_multiple_of(2) {
        candle_core::bail!("max pooling: the map {:?} has an odd size", xs.dims())
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn a_part_of_the_channels_is_pooled_in_place() -> Result<()> {
        let xs = Tensor::randn(0f32, 1.0, (2, 4, 6, 9), &Device::Cpu)?;
        let part = xs.narrow(3, 3, 5)?;
        let view = part.storage_and_layout();
        let (pixels, stride) = part_of_channels(&view).expect("a narrowed map");
        let from = |pixel: usize| {
            xs.flatten_all()?
                .narrow(0, pixel * 9 + 3, 5)?
                .to_vec1::<f32>()
        };
        assert_eq!((stride, pixels.len()), (9, 47 * 9 + 5));
        assert_eq!(pixels[..5], from(0)?);
        assert_eq!(pixels[47 * 9..], from(47)?);
        // other views have no constant distance of pixels
        for other in [
            xs.narrow(2, 1, 4)?,
            xs.transpose(1, 2)?,
            xs.permute((0, 3, 1, 2))?,
        ] {
            assert!(part_of_channels(&other.storage_and_layout()).is_none());
        }
        Ok(())
    }

    #[test]
    fn an_error_names_the_odd_size() -> Result<()> {
        let error = max_pool2x2(&Tensor::zeros((1, 4, 5, 2), DType::F32, &Device::Cpu)?);
        assert!(error.is_err_and(|e| e.to_string().contains("[1, 4, 5, 2]")));
        Ok(())
    }
}
