//! Files that `torch.save` wrote (`.pth`, `.pt`, `pytorch_model.bin`): a zip archive of a pickled tree and
//! one member per storage.
//!
//! A pickle is a program, and unpickling runs what it names. Nothing is run here: candle's reader makes a
//! tree of it, in which only what a file of weights may hold is accepted. The format is described in torch's
//! `torch/serialization.py` and `torch/_weights_only_unpickler.py`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use candle_core::pickle::{Object, Stack};
use candle_core::{DType, Device, Tensor};
use zip::ZipArchive;

/// Where the tensors may be, from the outside in, if not at the top.
const LEVELS: [&str; 4] = ["model", "state_dict", "model_state_dict", "module"];

/// What a tree of weights may name besides torch's storages: what training scripts keep beside the
/// tensors. None of it is made or called.
const HARMLESS: [(&str, &str); 12] = [
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch.nn.parameter", "Parameter"),
    ("torch", "Tensor"),
    ("torch", "Size"),
    ("torch", "device"),
    ("argparse", "Namespace"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
];

/// An open file.
#[derive(Debug)]
pub(super) struct TorchFile {
    archive: Mutex<ZipArchive<BufReader<File>>>,
    tensors: BTreeMap<String, StoredTensor>,
}

/// Where a tensor's numbers are.
#[derive(Debug, Clone)]
pub(super) struct StoredTensor {
    /// Its sizes.
    pub(super) shape: Vec<usize>,
    /// In elements.
    stride: Vec<usize>,
    /// In elements.
    offset: usize,
    dtype: DType,
    /// The member of the archive.
    member: String,
}

impl TorchFile {
    /// Reads what the file holds, but no tensor yet.
    ///
    /// # Errors
    /// If it is no such file, is damaged, or holds more than weights; a sentence.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| {
            format!(
                "it is no complete archive of torch ({error}): it may be truncated, fetch it again"
            )
        })?;
        let pickle = archive
            .file_names()
            .filter_map(Result::ok)
            .find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"))
            .map(|name| name.into_owned())
            .ok_or("it is a zip archive, but not one that torch.save wrote: data.pkl is missing")?;
        let folder = pickle
            .strip_suffix("data.pkl")
            .unwrap_or_default()
            .to_owned();
        let mut stack = Stack::empty();
        let tree = archive
            .by_name(&pickle)
            .map_err(candle_core::Error::wrap)
            .and_then(|member| stack.read_loop(&mut BufReader::new(member)))
            .and_then(|()| stack.finalize())
            .map_err(|error| format!("{pickle} cannot be read: {error}"))?;
        refuse_code(&tree)?;
        let tensors = tensors(tree, &folder)?;
        Ok(Self {
            archive: Mutex::new(archive),
            tensors,
        })
    }

    pub(super) fn tensors(&self) -> &BTreeMap<String, StoredTensor> {
        &self.tensors
    }

    /// A tensor on the CPU; the archive's own checksum of it is compared.
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
        let needed = tensor.reach().saturating_mul(width);
        if needed > bytes.len() {
            candle_core::bail!(
                "{name} needs {needed} bytes of {}, which has {}",
                tensor.member,
                bytes.len()
            )
        }
        let bytes = tensor.contiguous(bytes, width);
        Tensor::from_raw_buffer(&bytes, tensor.dtype, &tensor.shape, &Device::Cpu).map(Some)
    }
}

impl StoredTensor {
    /// One more than the last element of the storage that it uses.
    fn reach(&self) -> usize {
        if self.shape.contains(&0) {
            return 0;
        }
        let last = self.shape.iter().zip(&self.stride);
        last.fold(self.offset, |last, (size, stride)| {
            last.saturating_add((size - 1).saturating_mul(*stride))
        })
        .saturating_add(1)
    }

    /// Its own bytes, row by row; the storage may be larger or lie otherwise.
    fn contiguous(&self, storage: Vec<u8>, width: usize) -> Vec<u8> {
        let count: usize = self.shape.iter().product();
        let mut expected = 1;
        let is_contiguous = self
            .shape
            .iter()
            .zip(&self.stride)
            .rev()
            .all(|(size, stride)| {
                let fits = *size == 1 || *stride == expected;
                expected *= size;
                fits
            });
        if is_contiguous && self.offset == 0 && storage.len() == count * width {
            return storage;
        }
        let mut bytes = Vec::with_capacity(count * width);
        for i in 0..count {
            let (mut left, mut at) = (i, self.offset);
            for (size, stride) in self.shape.iter().zip(&self.stride).rev() {
                at += left % size * stride;
                left /= size;
            }
            bytes.extend_from_slice(&storage[at * width..(at + 1) * width]);
        }
        bytes
    }
}

/// Every class or function that the tree names must be known to be harmless.
fn refuse_code(tree: &Object) -> Result<(), String> {
    let mut left = vec![tree];
    while let Some(object) = left.pop() {
        match object {
            Object::Class {
                module_name,
                class_name,
            } => {
                let is_storage = module_name == "torch" && class_name.ends_with("Storage");
                let name = (module_name.as_str(), class_name.as_str());
                if !is_storage && !HARMLESS.contains(&name) {
                    return Err(format!(
                        "it names {module_name}.{class_name}, which is code and not weights; nothing was run. \
                         Use a file of weights only (torch.save(model.state_dict(), ...)), from a place you trust"
                    ));
                }
            }
            Object::Tuple(items) | Object::List(items) => left.extend(items),
            Object::Dict(items) => left.extend(items.iter().flat_map(|(key, value)| [key, value])),
            Object::Reduce { callable, args } | Object::Build { callable, args } => {
                left.push(callable);
                left.push(args);
            }
            Object::PersistentLoad(id) => left.push(id),
            _ => {}
        }
    }
    Ok(())
}

/// The tensors of the tree, on whatever level they are.
fn tensors(tree: Object, folder: &str) -> Result<BTreeMap<String, StoredTensor>, String> {
    let mut tree = without_attributes(tree);
    loop {
        let Object::Dict(items) = tree else {
            return Err("it holds no dictionary of tensors".to_owned());
        };
        let level = LEVELS.iter().find_map(|level| {
            items.iter().position(|(key, value)| {
                matches!(key, Object::Unicode(key) if key == level)
                    && matches!(value, Object::Dict(_) | Object::Build { .. })
            })
        });
        match level {
            Some(level) => {
                let mut items = items;
                tree = without_attributes(items.swap_remove(level).1);
            }
            None => return stored_tensors(items, folder),
        }
    }
}

/// An `OrderedDict` that was given attributes (`_metadata`) is a dictionary all the same.
fn without_attributes(object: Object) -> Object {
    match object {
        Object::Build { callable, .. } => *callable,
        object => object,
    }
}

fn stored_tensors(
    items: Vec<(Object, Object)>,
    folder: &str,
) -> Result<BTreeMap<String, StoredTensor>, String> {
    let mut tensors = BTreeMap::new();
    for (key, value) in items {
        let Object::Unicode(name) = key else {
            continue;
        };
        // a counter, a list of settings: no tensor
        let Object::Reduce { .. } = &value else {
            continue;
        };
        if let Some(tensor) = stored_tensor(value, folder)
            .ok_or_else(|| format!("the tensor {name} is described in a way that is not known"))?
        {
            tensors.insert(name, tensor);
        }
    }
    if tensors.is_empty() {
        return Err("it holds no tensors".to_owned());
    }
    Ok(tensors)
}

/// `Some(None)` is no tensor, `None` a tensor that makes no sense.
fn stored_tensor(value: Object, folder: &str) -> Option<Option<StoredTensor>> {
    let (callable, args) = value.reduce().ok()?;
    let (_, function) = callable.class().ok()?;
    let mut args = args.tuple().ok()?.into_iter();
    match function.as_str() {
        // (data, requires_grad, hooks)
        "_rebuild_parameter" => stored_tensor(args.next()?, folder),
        // (function, type, args, state)
        "_rebuild_from_type_v2" => {
            let (function, _, args) = (args.next()?, args.next()?, args.next()?);
            let inner = Object::Reduce {
                callable: Box::new(function),
                args: Box::new(args),
            };
            stored_tensor(inner, folder)
        }
        // (storage, offset, size, stride, requires_grad, hooks)
        "_rebuild_tensor_v2" => {
            let storage = args.next()?.persistent_load().ok()?.tuple().ok()?;
            let number = |object: Object| usize::try_from(object.int_or_long().ok()?).ok();
            let numbers = |object: Object| -> Option<Vec<usize>> {
                object.tuple().ok()?.into_iter().map(number).collect()
            };
            let offset = number(args.next()?)?;
            let shape = numbers(args.next()?)?;
            let stride = numbers(args.next()?)?;
            // ("storage", class, key, device, count)
            let mut storage = storage.into_iter().skip(1);
            let (_, class) = storage.next()?.class().ok()?;
            let key = storage.next()?.unicode().ok()?;
            let dtype = dtype(class.strip_suffix("Storage")?);
            (shape.len() == stride.len()).then_some(())?;
            // flags and small integers: no weights
            Some(dtype.map(|dtype| StoredTensor {
                shape,
                stride,
                offset,
                dtype,
                member: format!("{folder}data/{key}"),
            }))
        }
        _ => Some(None),
    }
}

/// The kind of number of a storage class, `Float` of `FloatStorage`.
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
