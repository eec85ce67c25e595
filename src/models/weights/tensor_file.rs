//! A file of tensors in any supported format.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::safetensors::SliceSafetensors;
use candle_core::{Device, Tensor};

use super::first_line;
use super::safetensors_file::SafetensorsFile;
use super::torch_file::TorchFile;

/// An open file of tensors.
pub(super) struct TensorFile {
    reader: Reader,
    shapes: BTreeMap<String, Vec<usize>>,
}

enum Reader {
    Safetensors(SafetensorsFile),
    Slice(SliceSafetensors<'static>),
    Torch(TorchFile),
}

impl TensorFile {
    /// Opens a file, and detects its format from the first bytes. Reads no tensor yet.
    ///
    /// # Errors
    /// A sentence, if the format is unknown or the file is damaged.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let mut start = [0; 9];
        let length = File::open(path)
            .and_then(|mut file| file.read(&mut start))
            .map_err(|error| error.to_string())?;
        match &start[..length] {
            [b'P', b'K', ..] => {
                let file = TorchFile::open(path)?;
                let shapes = file.tensors().iter();
                Ok(Self {
                    shapes: shapes.map(|(n, t)| (n.clone(), t.shape.clone())).collect(),
                    reader: Reader::Torch(file),
                })
            }
            [_, _, _, _, _, _, _, _, b'{'] => {
                let file = SafetensorsFile::open(path).map_err(|reason| damaged(&reason))?;
                Ok(Self {
                    shapes: file.tensors().map(|(n, t)| (n, t.shape.clone())).collect(),
                    reader: Reader::Safetensors(file),
                })
            }
            [0x80, _, ..] => Err(
                "it is a bare pickle, the format of torch before 1.6: load it with torch and save its state_dict again"
                    .to_owned(),
            ),
            [b'v', b'e', b'r', b's', b'i', b'o', b'n', b' ', ..] => Err(
                "it is a Git LFS pointer, not the file itself: fetch the file with git lfs pull".to_owned(),
            ),
            [] => Err("it is empty".to_owned()),
            _ => Err("it is neither a safetensors file nor an archive written by torch.save".to_owned()),
        }
    }

    /// Opens compiled-in tensors.
    ///
    /// # Errors
    /// If they are not in the safetensors format.
    pub(super) fn from_slice(bytes: &'static [u8]) -> Result<Self, String> {
        let file = SliceSafetensors::new(bytes).map_err(|error| damaged(&first_line(&error)))?;
        let tensors = file.tensors().into_iter();
        Ok(Self {
            shapes: tensors.map(|(n, t)| (n, t.shape().to_vec())).collect(),
            reader: Reader::Slice(file),
        })
    }

    /// The tensors' names and sizes.
    pub(super) fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    /// Reads a tensor. It may be on the CPU if the format cannot load directly to `device`.
    pub(super) fn read(&self, name: &str, device: &Device) -> candle_core::Result<Tensor> {
        match &self.reader {
            Reader::Safetensors(file) => file.read(name, device),
            Reader::Slice(file) => file.load(name, device),
            Reader::Torch(file) => {
                file.read(name)?
                    .ok_or_else(|| candle_core::Error::CannotFindTensor {
                        path: name.to_owned(),
                    })
            }
        }
    }
}

fn damaged(reason: &str) -> String {
    format!("it is damaged or truncated ({reason}): download it again (`groundling download`)")
}
