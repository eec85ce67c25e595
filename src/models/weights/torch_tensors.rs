//! The tensors that the pickle of a torch file describes.

use std::collections::BTreeMap;

use candle_core::DType;

use super::pickle::{Tree, Value, ValueId};

/// Keys under which the tensors may be nested, from the outside in, if they are not at the top level.
const NESTING_KEYS: [&str; 4] = ["model", "state_dict", "model_state_dict", "module"];

/// Limit of a tensor's dimensions.
const MAX_RANK: usize = 8;
/// Limit of a storage's name in the archive, in bytes.
const MAX_MEMBER_NAME_BYTES: usize = 1024;

/// Whether a file of weights may contain this name: the parts of tensors, and objects that training scripts store
/// with them. None of them is created or called.
pub(super) fn is_allowed_global(module: &str, name: &str) -> bool {
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

/// The location of a tensor's data.
#[derive(Debug, Clone)]
pub(super) struct StoredTensor {
    /// Its sizes.
    pub(super) shape: Vec<usize>,
    /// The stride of each dimension, in elements.
    stride: Vec<usize>,
    /// The offset in the storage, in elements.
    offset: usize,
    pub(super) dtype: DType,
    /// The name of the archive member.
    pub(super) member: String,
}

impl StoredTensor {
    /// The length of storage that the tensor needs: its last element's index plus one.
    pub(super) fn storage_length(&self) -> usize {
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
    pub(super) fn contiguous(&self, storage: Vec<u8>, width: usize) -> Vec<u8> {
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
pub(super) fn find_tensors(
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
    use super::super::pickle;
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
