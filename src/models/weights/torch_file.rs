//! Files of `torch.save` (`.pth`, `.pt`, `pytorch_model.bin`): a zip archive of a pickled tree and one member per
//! storage.
//!
//! The format is described in torch's `torch/serialization.py` and `torch/_weights_only_unpickler.py`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};
use zip::ZipArchive;

use super::pickle;
use super::torch_tensors::{StoredTensor, find_tensors, is_allowed_global};

/// Limit of the pickle, in bytes; this is more than fifty thousand tensors. A compressed pickle in the archive can be
/// much smaller.
const MAX_PICKLE_BYTES: u64 = 16 << 20;

/// An open file.
#[derive(Debug)]
pub(super) struct TorchFile {
    archive: Mutex<ZipArchive<BufReader<File>>>,
    tensors: BTreeMap<String, StoredTensor>,
}

impl TorchFile {
    /// Opens a file and reads its tree, but no tensors.
    ///
    /// # Errors
    /// A sentence, if the file is not such an archive, is damaged, or contains more than weights.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| {
            format!(
                "it is not a complete zip archive ({error}): it may be truncated; download it again"
            )
        })?;
        let pickle = archive
            .file_names()
            .filter_map(Result::ok)
            .find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"))
            .map(|name| name.into_owned())
            .ok_or("it is a zip archive that torch.save did not write: data.pkl is missing")?;
        let folder = pickle
            .strip_suffix("data.pkl")
            .unwrap_or_default()
            .to_owned();
        let member = archive
            .by_name(&pickle)
            .map_err(|error| format!("{pickle} cannot be read: {error}"))?;
        let mut bytes = vec![];
        member
            .take(MAX_PICKLE_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|error| format!("{pickle} cannot be read: {error}"))?;
        let (tree, root) = pickle::read(&bytes, is_allowed_global)
            .map_err(|reason| format!("{pickle} is not a pickle of tensors: {reason}"))?;
        let tensors = find_tensors(&tree, root, &folder)?;
        Ok(Self {
            archive: Mutex::new(archive),
            tensors,
        })
    }

    /// The tensors by name.
    pub(super) fn tensors(&self) -> &BTreeMap<String, StoredTensor> {
        &self.tensors
    }

    /// Reads a tensor to the CPU, and verifies the archive's checksum.
    pub(super) fn read(&self, name: &str) -> candle_core::Result<Option<Tensor>> {
        let Some(tensor) = self.tensors.get(name) else {
            return Ok(None);
        };
        let mut archive = self.archive.lock().unwrap_or_else(PoisonError::into_inner);
        let mut member = archive
            .by_name(&tensor.member)
            .map_err(candle_core::Error::wrap)?;
        let mut bytes = vec![];
        member
            .read_to_end(&mut bytes)
            .map_err(|error| candle_core::Error::Msg(format!("{}: {error}", tensor.member)))?;
        let width = tensor.dtype.size_in_bytes();
        let needed = tensor.storage_length().saturating_mul(width);
        if needed > bytes.len() {
            candle_core::bail!(
                "the tensor {name} needs {needed} bytes of {}, which has {}",
                tensor.member,
                bytes.len()
            )
        }
        let count = tensor
            .shape
            .iter()
            .try_fold(1usize, |n, size| n.checked_mul(*size));
        if count.is_none_or(|count| count > bytes.len() / width) {
            candle_core::bail!("the tensor {name} has more elements than {}", tensor.member)
        }
        let bytes = tensor.contiguous(bytes, width);
        Tensor::from_raw_buffer(&bytes, tensor.dtype, &tensor.shape, &Device::Cpu).map(Some)
    }
}
