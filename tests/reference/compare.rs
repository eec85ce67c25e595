//! Fixtures and the comparison with them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, IndexOp, Tensor};
use groundling::models::ops::MASKED;
use groundling::models::weights::Checkpoint;

/// Largest allowed difference, relative to the largest number of the stage.
const TOLERANCE: f32 = 1e-4;

/// A path beside this file.
pub fn path(relative: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/reference")
        .join(relative)
}

/// A checkpoint folder beside this file.
pub fn checkpoint(relative: &str) -> Checkpoint {
    Checkpoint::Folder(path(relative))
}

/// A folder with a model's configuration and its file with the authors' names, without the other files beside this one.
pub fn original_checkpoint(relative: &str) -> (tempfile::TempDir, Checkpoint) {
    let published = path(relative);
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "original.pth", "original.pt"] {
        if published.join(file).exists() {
            std::fs::copy(published.join(file), folder.path().join(file)).unwrap();
        }
    }
    let checkpoint = Checkpoint::Folder(folder.path().to_owned());
    (folder, checkpoint)
}

/// The tensors of one file.
pub struct Fixture {
    name: String,
    tensors: HashMap<String, Tensor>,
}

impl Fixture {
    /// Reads `relative` + `.safetensors`.
    pub fn load(relative: &str) -> Self {
        Self {
            name: relative.to_owned(),
            ..Self::read(&path(&format!("{relative}.safetensors")))
        }
    }

    /// Reads a file.
    pub fn read(file: &Path) -> Self {
        let tensors = candle_core::safetensors::load(file, &Device::Cpu)
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        Self {
            name: file.display().to_string(),
            tensors,
        }
    }

    /// The names of its tensors.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    /// Whether it has this tensor.
    pub fn has(&self, key: &str) -> bool {
        self.tensors.contains_key(key)
    }

    /// A tensor as it is stored.
    pub fn raw(&self, key: &str) -> &Tensor {
        self.tensors
            .get(key)
            .unwrap_or_else(|| panic!("{}: the tensor {key} is missing", self.name))
    }

    /// A tensor as f32.
    pub fn get(&self, key: &str) -> Tensor {
        self.raw(key).to_dtype(DType::F32).unwrap()
    }

    /// A tensor's numbers as integers.
    pub fn integers(&self, key: &str) -> Vec<i64> {
        let tensor = self.raw(key).to_dtype(DType::I64).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// A pair such as (height, width).
    pub fn pair(&self, key: &str) -> (usize, usize) {
        let numbers = self.integers(key);
        (numbers[0] as usize, numbers[1] as usize)
    }

    /// Each image's own (height, width) in the padded batch of `pixel_mask`.
    pub fn valid_sizes(&self) -> Vec<(usize, usize)> {
        let mask = self.get("pixel_mask");
        let sum = |line: Tensor| line.sum_all().unwrap().to_scalar::<f32>().unwrap() as usize;
        let size = |image: usize| {
            let rows = mask.i((image, .., 0)).unwrap();
            let columns = mask.i((image, 0, ..)).unwrap();
            (sum(rows), sum(columns))
        };
        (0..mask.dim(0).unwrap()).map(size).collect()
    }

    /// The ids of each caption without its padding.
    pub fn captions(&self) -> Vec<Vec<u32>> {
        let length = self.raw("input_ids").dim(1).unwrap();
        let mask = self.integers("attention_mask");
        let ids = self.integers("input_ids");
        let captions = ids.chunks(length).zip(mask.chunks(length));
        captions
            .map(|(ids, mask)| {
                let count = mask.iter().sum::<i64>() as usize;
                ids[..count].iter().map(|id| *id as u32).collect()
            })
            .collect()
    }

    /// Compares `ours` with the stored `key` and prints the largest difference.
    pub fn compare(&self, key: &str, ours: &Tensor) {
        let theirs = self.get(key);
        assert_eq!(ours.dims(), theirs.dims(), "{} {key}: shape", self.name);
        let relative = relative_difference(ours, &theirs);
        println!("{:<28} {key:<34} relative {relative:.1e}", self.name);
        assert!(
            relative <= TOLERANCE,
            "{} {key}: {relative:e} of the scale, more than {TOLERANCE:e}",
            self.name
        );
    }
}

/// The largest difference of two tensors, relative to the largest finite number of the second; infinite if only one of
/// two numbers is finite.
pub fn relative_difference(ours: &Tensor, theirs: &Tensor) -> f32 {
    assert_eq!(ours.dims(), theirs.dims(), "shape");
    let (ours, theirs) = (numbers(ours), numbers(theirs));
    let finite = theirs.iter().filter(|v| v.is_finite());
    let scale = finite.fold(f32::MIN_POSITIVE, |scale, v| scale.max(v.abs()));
    let difference = |(a, b): (&f32, &f32)| {
        // a mask of minus infinity is a finite number here
        let is_masked = *b == f32::NEG_INFINITY && *a <= MASKED / 2.0;
        if a == b || is_masked {
            return 0.0;
        }
        let difference = (a - b).abs();
        // not a number on either side
        if difference.is_nan() {
            f32::INFINITY
        } else {
            difference
        }
    };
    let pairs = ours.iter().zip(&theirs);
    pairs.map(difference).fold(0f32, f32::max) / scale
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor.to_dtype(DType::F32).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}
