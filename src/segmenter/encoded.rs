//! The segmenter's image embedding, and its format on disk.

use candle_core::{DType, Tensor};
use half::f16;

use super::Segmenter;
use super::image_processor::Frame;
use crate::geometry::ImageSize;
use crate::models::sam::ImageEmbeddings;

/// The embedding of an image; any number of prompts can use it.
#[derive(Debug, Clone)]
pub struct EncodedImage {
    pub(super) embeddings: ImageEmbeddings,
    pub(super) frame: Frame,
}

/// Why an image embedding cannot be serialized or deserialized.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddingFormatError {
    /// A value is not finite in half precision.
    #[error("the image embedding has a number that is not finite in half precision")]
    NotFinite,
    /// The number of bytes is wrong.
    #[error("the image embedding has {found} bytes, and {expected} are expected")]
    Length {
        /// The number of bytes.
        found: usize,
        /// The number of bytes for this segmenter.
        expected: usize,
    },
    /// The embedding belongs to a segmenter of another size.
    #[error("the image embedding has the shape {found:?}, and the segmenter needs {expected:?}")]
    Shape {
        /// The shape in the header.
        found: [usize; 4],
        /// The segmenter's shape, `[1, C, G, G]`.
        expected: [usize; 4],
    },
    /// The image's height or width is 0.
    #[error("the image embedding belongs to an image without pixels")]
    Empty,
    /// The tensor cannot be copied to or from the device.
    #[error("the image embedding cannot be copied to or from the device: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// The format of [`EncodedImage::to_bytes`]. It changes whenever the bytes or the preprocessing of images change.
pub const EMBEDDING_FORMAT: &str = "groundling image embeddings, format 1: f16";

/// The header: the image's height and width, and the shape of the coarse map, each a u32.
const HEADER_BYTES: usize = 6 * 4;

impl EncodedImage {
    /// The size of the original image.
    pub fn size(&self) -> ImageSize {
        self.frame.original
    }

    /// Size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        let bytes = |map: &Tensor| map.elem_count() * map.dtype().size_in_bytes();
        self.embeddings.maps().map(bytes).sum()
    }

    /// Length of [`Self::to_bytes`], the same for every image of a segmenter.
    pub fn bytes_on_disk(segmenter: &Segmenter) -> usize {
        HEADER_BYTES + 2 * values(&segmenter.config().embedding_shapes())
    }

    /// Serializes the embedding, little-endian: the image's height and width in pixels and the four sizes of the coarse
    /// map as u32, then all maps in half precision. At SAM's size this is 2 MiB, at SAM 2's 8 MiB.
    ///
    /// # Errors
    /// If a value is not finite in half precision.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EmbeddingFormatError> {
        let shape: [usize; 4] = self.embeddings.coarse.dims4()?.into();
        let size = self.size();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.bytes());
        for number in [size.height, size.width].into_iter().chain(shape) {
            // an image's sides and a tensor's sizes are far below 2^32
            bytes.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
        }
        for map in self.embeddings.maps() {
            let values: Vec<f16> = map.flatten_all()?.to_dtype(DType::F16)?.to_vec1()?;
            for value in values {
                if !value.is_finite() {
                    return Err(EmbeddingFormatError::NotFinite);
                }
                bytes.extend(value.to_le_bytes());
            }
        }
        Ok(bytes)
    }

    /// Deserializes the output of [`Self::to_bytes`] to the device and the dtype of `segmenter`.
    ///
    /// # Errors
    /// If the length is wrong, or the embedding belongs to a segmenter of another size.
    pub fn from_bytes(bytes: &[u8], segmenter: &Segmenter) -> Result<Self, EmbeddingFormatError> {
        let shapes = segmenter.config().embedding_shapes();
        let expected_length = Self::bytes_on_disk(segmenter);
        let length = || EmbeddingFormatError::Length {
            found: bytes.len(),
            expected: expected_length,
        };
        let (header, mut rest) = bytes.split_at_checked(HEADER_BYTES).ok_or_else(length)?;
        let mut numbers = header.chunks_exact(4).map(|number| match *number {
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]) as usize,
            _ => 0,
        });
        let mut next = || numbers.next().unwrap_or(0);
        let (height, width) = (next(), next());
        let found = std::array::from_fn(|_| next());
        let expected = match shapes.first() {
            Some([channels, rows, columns]) => [1, *channels, *rows, *columns],
            None => [0; 4],
        };
        if found != expected {
            return Err(EmbeddingFormatError::Shape { found, expected });
        }
        if bytes.len() != expected_length {
            return Err(length());
        }
        if height == 0 || width == 0 {
            return Err(EmbeddingFormatError::Empty);
        }
        let mut maps = vec![];
        for [a, b, c] in shapes {
            let (of_map, others) = rest.split_at_checked(2 * a * b * c).ok_or_else(length)?;
            rest = others;
            let pairs = of_map.chunks_exact(2).map(|pair| match *pair {
                [a, b] => f16::from_le_bytes([a, b]),
                _ => f16::ZERO,
            });
            let values: Vec<f16> = pairs.collect();
            let map = Tensor::from_vec(values, (1, a, b, c), &segmenter.device)?;
            maps.push(map.to_dtype(segmenter.dtype)?);
        }
        Ok(Self {
            embeddings: ImageEmbeddings {
                coarse: maps.remove(0),
                fine: maps,
            },
            frame: segmenter.frame(ImageSize { height, width }),
        })
    }
}

/// Number of values of maps of these shapes.
fn values(shapes: &[[usize; 3]]) -> usize {
    let of_map = |shape: &[usize; 3]| shape.iter().product::<usize>();
    shapes.iter().map(of_map).sum()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use image::RgbImage;

    use super::*;
    use crate::geometry::BoundingBox;
    use crate::models::weights::Checkpoint;

    fn segmenter() -> Segmenter {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo/segmenter");
        let checkpoint = Checkpoint::Folder(folder.into());
        Segmenter::load(&checkpoint, DType::F32, &Device::Cpu).unwrap()
    }

    fn image() -> RgbImage {
        RgbImage::from_fn(90, 60, |x, y| {
            let is_inside = (20..60).contains(&x) && (10..45).contains(&y);
            image::Rgb(if is_inside {
                [250, 20, 20]
            } else {
                [30, 90, 160]
            })
        })
    }

    #[test]
    fn a_serialized_embedding_gives_the_same_masks() {
        let segmenter = segmenter();
        let original = segmenter.encode(&image()).unwrap();
        let bytes = original.to_bytes().unwrap();
        assert_eq!(bytes.len(), HEADER_BYTES + original.bytes() / 2);
        assert_eq!(bytes.len(), EncodedImage::bytes_on_disk(&segmenter));
        let restored = EncodedImage::from_bytes(&bytes, &segmenter).unwrap();
        assert_eq!(
            (restored.size(), restored.bytes()),
            (original.size(), original.bytes())
        );
        assert_eq!(restored.frame, original.frame);
        assert_eq!(
            restored.embeddings.coarse.dims(),
            original.embeddings.coarse.dims()
        );
        // rounding again changes nothing
        assert_eq!(restored.to_bytes().unwrap(), bytes);
        let difference = (&restored.embeddings.coarse - &original.embeddings.coarse)
            .unwrap()
            .abs()
            .unwrap();
        let difference: f32 = difference.max_all().unwrap().to_scalar().unwrap();
        let scale: f32 = original
            .embeddings
            .coarse
            .abs()
            .unwrap()
            .max_all()
            .unwrap()
            .to_scalar()
            .unwrap();
        assert!(difference <= scale / 2048.0, "{difference} of {scale}");
        let object = BoundingBox {
            x0: 18.0,
            y0: 8.0,
            x1: 62.0,
            y1: 47.0,
        };
        let mask = |image| segmenter.segment_boxes(image, &[object]).unwrap().remove(0);
        let (restored, original) = (mask(&restored), mask(&original));
        assert!((restored.score - original.score).abs() < 1e-2);
        assert!(original.mask.iou(&restored.mask) >= 0.999);
    }

    #[test]
    fn invalid_bytes_are_an_error() {
        let segmenter = segmenter();
        let bytes = segmenter.encode(&image()).unwrap().to_bytes().unwrap();
        let read = |bytes: &[u8]| EncodedImage::from_bytes(bytes, &segmenter).map(|_| ());
        for length in [0, 1, HEADER_BYTES - 1, HEADER_BYTES, bytes.len() - 1] {
            let error = read(&bytes[..length]).unwrap_err();
            assert!(
                matches!(error, EmbeddingFormatError::Length { .. }),
                "{length}: {error}"
            );
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(
            read(&longer),
            Err(EmbeddingFormatError::Length { .. })
        ));
        let mut other = bytes.clone();
        other[12] ^= 1;
        assert!(matches!(
            read(&other),
            Err(EmbeddingFormatError::Shape { .. })
        ));
        let mut empty = bytes.clone();
        empty[..4].fill(0);
        assert!(matches!(read(&empty), Err(EmbeddingFormatError::Empty)));
        let mut large = segmenter.encode(&image()).unwrap();
        large.embeddings.coarse = (large.embeddings.coarse * 1e9).unwrap();
        assert!(matches!(
            large.to_bytes(),
            Err(EmbeddingFormatError::NotFinite)
        ));
    }
}
