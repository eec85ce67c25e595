//! Files in the safetensors format, read tensor by tensor.
//!
//! They are not memory-mapped. If a mapped file is truncated during reading, the process is killed; with plain reads
//! it is an ordinary error.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorInfo, TensorView};

/// Limit of the header, in bytes; this is more than fifty thousand tensors.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Size of the field with the header's length, in bytes.
const LENGTH_BYTES: u64 = 8;

/// An open file.
#[derive(Debug)]
pub(super) struct SafetensorsFile {
    file: Mutex<File>,
    metadata: Metadata,
    /// The offset of the tensor data in the file, in bytes.
    data_start: u64,
}

impl SafetensorsFile {
    /// Opens a file and reads its header, but no tensors.
    ///
    /// # Errors
    /// A short description, if the file is damaged or its length is wrong.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| error.to_string();
        let mut file = File::open(path).map_err(failed)?;
        let file_bytes = file.metadata().map_err(failed)?.len();
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_exact(&mut length).map_err(failed)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES || length > file_bytes {
            return Err(format!(
                "its header has {length} bytes, more than the file or the limit of {MAX_HEADER_BYTES}"
            ));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(failed)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| error.to_string())?;
        let data_start = LENGTH_BYTES + length;
        let expected = data_start.saturating_add(metadata.data_len() as u64);
        if expected != file_bytes {
            return Err(format!(
                "it has {file_bytes} bytes, and {expected} are expected"
            ));
        }
        Ok(Self {
            file: Mutex::new(file),
            metadata,
            data_start,
        })
    }

    /// The tensors' names and their metadata.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (String, &TensorInfo)> {
        self.metadata.tensors().into_iter()
    }

    /// Reads a tensor.
    pub(super) fn read(&self, name: &str, device: &Device) -> candle_core::Result<Tensor> {
        let Some(info) = self.metadata.info(name) else {
            return Err(candle_core::Error::CannotFindTensor {
                path: name.to_owned(),
            });
        };
        let (start, end) = info.data_offsets;
        let start = self.data_start + start as u64;
        if info.dtype == Dtype::F32 {
            // nearly all checkpoints are f32: read directly into the final buffer
            let mut numbers = vec![0f32; (end - info.data_offsets.0) / size_of::<f32>()];
            self.read_at(name, start, bytemuck::cast_slice_mut(&mut numbers))?;
            return Tensor::from_vec(numbers, info.shape.as_slice(), device);
        }
        let mut bytes = vec![0; end - info.data_offsets.0];
        self.read_at(name, start, &mut bytes)?;
        let view = TensorView::new(info.dtype, info.shape.clone(), &bytes);
        view.map_err(candle_core::Error::wrap)?.load(device)
    }

    fn read_at(&self, name: &str, start: u64, bytes: &mut [u8]) -> candle_core::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file
            .seek(SeekFrom::Start(start))
            .and_then(|_| file.read_exact(bytes));
        read.map_err(|error| {
            candle_core::Error::Msg(format!(
                "the tensor {name} cannot be read: {error}. The file may have changed after it was opened"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn tensors_of_all_types_are_read_and_a_truncated_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let cpu = &Device::Cpu;
        let numbers = Tensor::arange(0f32, 24., cpu).unwrap();
        let numbers = numbers.reshape((2, 3, 4)).unwrap();
        let types = [
            DType::F32,
            DType::F16,
            DType::BF16,
            DType::F64,
            DType::I64,
            DType::U8,
        ];
        let tensors = types.map(|kind| (format!("{kind:?}"), numbers.to_dtype(kind).unwrap()));
        candle_core::safetensors::save(&tensors.into_iter().collect(), &path).unwrap();
        let file = SafetensorsFile::open(&path).unwrap();
        assert_eq!(file.tensors().count(), types.len());
        for kind in types {
            let read = file.read(&format!("{kind:?}"), cpu).unwrap();
            assert_eq!((read.dtype(), read.dims()), (kind, &[2, 3, 4][..]));
            let difference = (read.to_dtype(DType::F32).unwrap() - &numbers).unwrap();
            let difference: f32 = difference
                .abs()
                .unwrap()
                .max_all()
                .unwrap()
                .to_scalar()
                .unwrap();
            assert_eq!(difference, 0., "{kind:?}");
        }
        assert!(file.read("none", cpu).is_err());

        let complete = std::fs::read(&path).unwrap();
        let truncated = std::fs::File::options().write(true).open(&path).unwrap();
        truncated.set_len(complete.len() as u64 / 2).unwrap();
        let errors = types
            .iter()
            .filter_map(|kind| file.read(&format!("{kind:?}"), cpu).err());
        let errors: Vec<String> = errors.map(|error| error.to_string()).collect();
        assert!(!errors.is_empty());
        assert!(errors[0].contains("may have changed"), "{errors:?}");
        assert!(
            SafetensorsFile::open(&path)
                .unwrap_err()
                .contains("are expected")
        );
        for damaged in [&complete[..5], &[255; 20][..], b"\x02\0\0\0\0\0\0\0{]"] {
            std::fs::write(&path, damaged).unwrap();
            assert!(SafetensorsFile::open(&path).is_err());
        }
    }
}
