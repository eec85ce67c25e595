//! Files of `torch.save` (`.pth`, `.pt`, `pytorch_model.bin`): a zip archive of a pickled tree and one member per
//! storage.
//!
//! The format is described in torch's `torch/serialization.py` and `torch/_weights_only_unpickler.py`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use zip::ZipArchive;

use super::pickle::{self, Tree, Value, ValueId};

/// Keys under which the tensors may be nested, from the outside in, if they are not at the top level.
const NESTING_KEYS: [&str; 4] = ["model", "state_dict", "model_state_dict", "module"];

/// Whether a file of weights may contain this name: the parts of tensors, and objects that training scripts store
/// with them. None of them is created or called.
fn is_allowed_global(module: &str, name: &str) -> bool {
    match module {
        "torch" => name.ends_with("Storage") || ["Size", "device", "Tensor"].contains(&name),
        "torch._utils" => ["_rebuild_tensor_v2", "_rebuild_parameter"].contains(&name),
        "torch._tensor" => name == "_rebuild_from_type_v2",
        "torch.nn.parameter" => name == "Parameter",
        "collections" => ["OrderedDict", "defaultdict"].contains(&name),
        "argparse" => name == "Namespace",
        // numpy scalars, such as the best score so far
        "numpy" => name == "dtype",
        "numpy.core.multiarray" | "numpy._core.multiarray" => name == "scalar",
        "_codecs" => name == "encode",
        _ => false,
    }
}

/// Limit of the pickle, in bytes; this is more than fifty thousand tensors. A compressed pickle in the archive can be
/// much smaller.
const MAX_PICKLE_BYTES: u64 = 16 << 20;
/// Limit of a tensor's dimensions.
const MAX_RANK: usize = 8;
/// Limit of a storage's name in the archive, in bytes.
const MAX_MEMBER_NAME_BYTES: usize = 1024;

/// An open file.
#[derive(Debug)]
pub(super) struct TorchFile {
    archive: Mutex<ZipArchive<BufReader<File>>>,
    tensors: BTreeMap<String, StoredTensor>,
}

/// The location of a tensor's data.
#[derive(Debug, Clone)]
pub(super) struct StoredTensor {
    /// Its sizes.
    pub(super) shape: Vec<usize>,
    /// The stride of each dimension, in elements.
    stride: Vec<usize>,
    /// The offset in the storage, in elements.
    offset: usize,
    dtype: DType,
    /// The name of the archive member.
    member: String,
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

impl StoredTensor {
    /// The length of storage that the tensor needs: its last element's index plus one.
    fn storage_length(&self) -> usize {
        if self.shape.contains(&0) {
            return 0;
        }
        let last = self.shape.iter().zip(&self.stride);
        last.fold(self.offset, |last, (size, stride)| {
            last.saturating_add((size - 1).saturating_mul(*stride))
        })
        .saturating_add(1)
    }

    /// The tensor's own bytes in row-major order; the storage may be larger or have another layout.
    fn contiguous(&self, storage: Vec<u8>, width: usize) -> Vec<u8> {
        let count: usize = self.shape.iter().product();
        let mut expected = 1usize;
        let is_contiguous = self
            .shape
            .iter()
            .zip(&self.stride)
            .rev()
            .all(|(size, stride)| {
                let fits = *size == 1 || *stride == expected;
                expected = expected.saturating_mul(*size);
                fits
            });
        if is_contiguous && self.offset == 0 && storage.len() == count * width {
            return storage;
        }
        let mut bytes = Vec::with_capacity(count * width);
        for i in 0..count {
            let (mut remaining, mut at) = (i, self.offset);
            for (size, stride) in self.shape.iter().zip(&self.stride).rev() {
                at += remaining % size * stride;
                remaining /= size;
            }
            bytes.extend_from_slice(&storage[at * width..(at + 1) * width]);
        }
        bytes
    }
}

/// The tensors of the tree, at whichever level they are.
fn find_tensors(
    tree: &Tree,
    mut level: ValueId,
    folder: &str,
) -> Result<BTreeMap<String, StoredTensor>, String> {
    // the tree may contain cycles
    for _ in 0..8 {
        let items = tree.dict(level).ok_or("it has no dictionary of tensors")?;
        let next = NESTING_KEYS.iter().find_map(|name| {
            let is_level = |(key, value): &&(ValueId, ValueId)| {
                tree.text(*key) == Some(name) && tree.dict(*value).is_some()
            };
            items.iter().find(is_level).map(|(_, value)| *value)
        });
        match next {
            Some(next) => level = next,
            None => return parse_tensors(tree, items, folder),
        }
    }
    Err("its dictionaries contain each other".to_owned())
}

fn parse_tensors(
    tree: &Tree,
    items: &[(ValueId, ValueId)],
    folder: &str,
) -> Result<BTreeMap<String, StoredTensor>, String> {
    let mut tensors = BTreeMap::new();
    for (key, value) in items {
        // a counter or a list of settings, not a tensor
        let (Some(name), Value::Call(..)) = (tree.text(*key), tree.get(*value)) else {
            continue;
        };
        let tensor = parse_tensor(tree, *value, folder, 4)
            .ok_or_else(|| format!("the description of the tensor {name} is not supported"))?;
        tensors.extend(tensor.map(|tensor| (name.to_owned(), tensor)));
    }
    if tensors.is_empty() {
        return Err("it contains no tensors".to_owned());
    }
    Ok(tensors)
}

/// Parses a tensor. `Some(None)` if the value is not a tensor; `None` if it is an invalid tensor, or is wrapped more
/// than `depth` times.
fn parse_tensor(
    tree: &Tree,
    value: ValueId,
    folder: &str,
    depth: usize,
) -> Option<Option<StoredTensor>> {
    let Value::Call(function, args) = tree.get(value) else {
        return None;
    };
    let (_, function) = tree.global(*function)?;
    let args = tree.tuple(*args)?;
    let depth = depth.checked_sub(1)?;
    match function {
        // (data, requires_grad, hooks)
        "_rebuild_parameter" => parse_tensor(tree, *args.first()?, folder, depth),
        // (function, type, args, state)
        "_rebuild_from_type_v2" => {
            let (_, function) = tree.global(*args.first()?)?;
            (function == "_rebuild_tensor_v2").then_some(())?;
            parse_rebuild_args(tree, tree.tuple(*args.get(2)?)?, folder)
        }
        "_rebuild_tensor_v2" => parse_rebuild_args(tree, args, folder),
        _ => Some(None),
    }
}

/// `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`.
fn parse_rebuild_args(tree: &Tree, args: &[ValueId], folder: &str) -> Option<Option<StoredTensor>> {
    let &[storage, offset, shape, stride, ..] = args else {
        return None;
    };
    let numbers = |id: ValueId| -> Option<Vec<usize>> {
        // a pickle can share one tuple among all tensors, but here each tensor has its own copy
        let items = tree.tuple(id).filter(|items| items.len() <= MAX_RANK)?;
        items.iter().map(|id| tree.size(*id)).collect()
    };
    let (shape, stride) = (numbers(shape)?, numbers(stride)?);
    (shape.len() == stride.len()).then_some(())?;
    let Value::Persistent(storage) = tree.get(storage) else {
        return None;
    };
    // ("storage", class, key, device, count)
    let &[_, class, key, ..] = tree.tuple(*storage)? else {
        return None;
    };
    let (_, class) = tree.global(class)?;
    let offset = tree.size(offset)?;
    let key = tree.text(key)?;
    // limited like the sizes, because all tensors can share one key
    (folder.len() + key.len() <= MAX_MEMBER_NAME_BYTES).then_some(())?;
    let member = format!("{folder}data/{key}");
    // boolean and small integer storages are not weights
    Some(
        dtype(class.strip_suffix("Storage")?).map(|dtype| StoredTensor {
            shape,
            stride,
            offset,
            dtype,
            member,
        }),
    )
}

/// The dtype of a storage class, for example `Float` for `FloatStorage`.
fn dtype(name: &str) -> Option<DType> {
    Some(match name {
        "Float" => DType::F32,
        "Double" => DType::F64,
        "Half" => DType::F16,
        "BFloat16" => DType::BF16,
        "Byte" => DType::U8,
        "Int" => DType::I32,
        "Long" => DType::I64,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pickle of one tensor with this storage key and `rank` sizes of 1.
    fn tensor(key: &str, rank: usize) -> Vec<u8> {
        let text = |text: &str| {
            [
                b"X",
                &(text.len() as u32).to_le_bytes()[..],
                text.as_bytes(),
            ]
            .concat()
        };
        let sizes = [b"(", "K\u{1}".repeat(rank).as_bytes(), b"t"].concat();
        [
            b"\x80\x02}".to_vec(),
            text("weight"),
            b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
            text("storage"),
            b"ctorch\nFloatStorage\n".to_vec(),
            text(key),
            b"NK\x01tQK\x00".to_vec(),
            sizes.clone(),
            sizes,
            b"\x89}tRs.".to_vec(),
        ]
        .concat()
    }

    #[test]
    fn storage_keys_and_dimensions_are_limited() {
        let read = |pickle: &[u8], folder: &str| {
            let (tree, root) = pickle::read(pickle, is_allowed_global)?;
            find_tensors(&tree, root, folder)
        };
        let tensors = read(&tensor("0", 4), "archive/").unwrap();
        assert_eq!(tensors["weight"].member, "archive/data/0");
        let long = "x".repeat(70_000);
        for (pickle, folder) in [
            (tensor("0", 1000), "archive/"),
            (tensor(&long, 4), "archive/"),
            (tensor("0", 4), long.as_str()),
        ] {
            let error = read(&pickle, folder).unwrap_err();
            assert!(error.contains("weight"), "{error}");
        }
    }
}
