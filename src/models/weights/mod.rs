//! Checkpoint files to tensors: every format and naming that users have, one set of names for the models.

mod grounding_dino_names;
mod layout;
mod names;
mod pickle;
mod sam_names;
mod tensor_file;
mod torch_file;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

pub use self::layout::{Architecture, LAYOUTS, Layout};
use self::names::Renamed;
use self::tensor_file::TensorFile;

/// Where a checkpoint's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checkpoint {
    /// A folder as published: weights and, where it has them, `config.json`, `preprocessor_config.json`
    /// and `tokenizer.json`.
    Folder(PathBuf),
    /// A file of weights alone; what the others would say is told by its tensors.
    File(PathBuf),
    /// Files compiled into the program.
    Embedded {
        /// What to call it in messages.
        name: &'static str,
        /// File names and contents.
        files: &'static [(&'static str, &'static [u8])],
    },
}

/// Why a checkpoint could not be loaded; every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file is missing or unreadable.
    #[error("cannot read {file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A folder without weights, or with several.
    #[error("{folder} {reason}")]
    Folder {
        /// The folder.
        folder: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A JSON file is not what it should be.
    #[error("{file} is not a usable configuration: {reason}")]
    Config {
        /// The file.
        file: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The tokenizer cannot be read.
    #[error("{file} is not a usable tokenizer: {reason}")]
    Tokenizer {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The file of weights is damaged, or of no known model.
    #[error("{file} is not a usable checkpoint: {reason}")]
    Unusable {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor is missing, or the weights are of another size.
    #[error("{file} does not hold the model that {described_by} describes: {reason}")]
    Weights {
        /// The file.
        file: String,
        /// `config.json`, or the tensors themselves.
        described_by: String,
        /// The cause; names the tensor.
        reason: String,
    },
}

/// The configuration of a model that checkpoints hold.
pub trait ModelConfig: serde::de::DeserializeOwned {
    /// What the weights must be.
    const ARCHITECTURE: Architecture;
    /// What `model_type` in `config.json` may be.
    const MODEL_TYPES: &'static [&'static str];

    /// The configuration of weights that come without one, told by their tensors.
    ///
    /// # Errors
    /// The tensor that is missing.
    fn of_weights(weights: &Weights) -> Result<Self, String>;

    /// Whether the model can be built from these fields.
    ///
    /// # Errors
    /// A sentence that names the field, its value and what is supported.
    fn validate(&self) -> Result<(), String>;
}

/// The files that weights are published in, the first that is there counts.
const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// How other files of weights end.
pub const WEIGHT_ENDINGS: [&str; 5] = ["safetensors", "pth", "pt", "bin", "ckpt"];

impl Checkpoint {
    /// The file as it is called in messages.
    pub fn describe(&self, file: &str) -> String {
        match self {
            Self::Folder(folder) => folder.join(file).display().to_string(),
            Self::File(path) => path.display().to_string(),
            Self::Embedded { name, .. } => format!("built-in {name}/{file}"),
        }
    }

    /// The bytes of a small file beside the weights; `None` if it is not there.
    ///
    /// # Errors
    /// [`CheckpointError::Read`] if it is there and cannot be read.
    pub fn read(&self, file: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        match self {
            Self::Folder(folder) => match std::fs::read(folder.join(file)) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(CheckpointError::Read {
                    file: self.describe(file),
                    source,
                }),
            },
            Self::File(_) => Ok(None),
            Self::Embedded { .. } => Ok(self.embedded(file).map(<[u8]>::to_vec)),
        }
    }

    /// A JSON file beside the weights, if `validate` finds nothing wrong with it. Weights may come alone: then
    /// the defaults count; but where their `config.json` is, the others must be too.
    ///
    /// # Errors
    /// If it is missing where it belongs, or see [`Checkpoint::config`]; what `validate` says names the file.
    pub fn companion<T: serde::de::DeserializeOwned + Default>(
        &self,
        file: &str,
        validate: impl FnOnce(&T) -> Result<(), String>,
    ) -> Result<T, CheckpointError> {
        let value = match self.config(file, &[])? {
            Some(value) => value,
            None if self.read("config.json")?.is_none() => T::default(),
            None => return Err(self.lacks(file)),
        };
        validate(&value).map_err(|reason| CheckpointError::Config {
            file: self.describe(file),
            reason,
        })?;
        Ok(value)
    }

    /// That a file is missing.
    pub fn lacks(&self, file: &str) -> CheckpointError {
        CheckpointError::Read {
            file: self.describe(file),
            source: std::io::ErrorKind::NotFound.into(),
        }
    }

    /// A JSON file, after a look at its `model_type`, where `expected` names some; `None` if it is not
    /// there.
    ///
    /// # Errors
    /// If it is not JSON, of another model type, or a field does not fit.
    pub fn config<T: serde::de::DeserializeOwned>(
        &self,
        file: &str,
        expected: &[&str],
    ) -> Result<Option<T>, CheckpointError> {
        let Some(bytes) = self.read(file)? else {
            return Ok(None);
        };
        let error = |reason: String| CheckpointError::Config {
            file: self.describe(file),
            reason,
        };
        let mut value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|e| error(e.to_string()))?;
        // in the reference null is as good as nothing
        drop_nulls(&mut value);
        let found = value.get("model_type").and_then(|v| v.as_str());
        let is_expected =
            expected.is_empty() || found.is_some_and(|found| expected.contains(&found));
        if !is_expected {
            let expected: Vec<String> = expected.iter().map(|e| format!("{e:?}")).collect();
            return Err(error(format!(
                "its model_type is {}, and {} is needed here",
                found.map_or("missing".to_owned(), |found| format!("{found:?}")),
                expected.join(" or ")
            )));
        }
        let value = serde_json::from_value(value).map_err(|e| error(e.to_string()))?;
        Ok(Some(value))
    }

    /// Opens the weights of a model and its configuration: `config.json` where there is one, else what the
    /// tensors tell.
    ///
    /// # Errors
    /// If a file is missing, damaged, or of another model.
    pub fn open_model<C: ModelConfig>(&self) -> Result<(Weights, C), CheckpointError> {
        const FILE: &str = "config.json";
        let unusable = |file: &str, reason| CheckpointError::Unusable {
            file: file.to_owned(),
            reason,
        };
        if let Some(config) = self.config::<C>(FILE, C::MODEL_TYPES)? {
            config
                .validate()
                .map_err(|reason| CheckpointError::Config {
                    file: self.describe(FILE),
                    reason,
                })?;
            let mut weights = self.open()?;
            weights.expect(C::ARCHITECTURE)?;
            weights.described_by = FILE.to_owned();
            return Ok((weights, config));
        }
        let weights = self.open()?;
        weights.expect(C::ARCHITECTURE)?;
        let config = C::of_weights(&weights)
            .and_then(|config| config.validate().map(|()| config))
            .map_err(|reason| unusable(&weights.file, reason))?;
        Ok((weights, config))
    }

    /// Opens the weights and tells what they are; no tensor is read yet.
    ///
    /// # Errors
    /// If there are none, they are damaged or of a model that is not known.
    pub fn open(&self) -> Result<Weights, CheckpointError> {
        let (file, opened) = match self {
            Self::Embedded { .. } => {
                let bytes = self.embedded(WEIGHTS[0]).unwrap_or_default();
                (self.describe(WEIGHTS[0]), TensorFile::of_slice(bytes))
            }
            Self::File(path) => (path.display().to_string(), open_file(path)?),
            Self::Folder(folder) => {
                let path = weights_in(folder)?;
                (path.display().to_string(), open_file(&path)?)
            }
        };
        opened
            .and_then(|tensors| Weights::new(file.clone(), tensors))
            .map_err(|reason| CheckpointError::Unusable { file, reason })
    }

    fn embedded(&self, file: &str) -> Option<&'static [u8]> {
        match self {
            Self::Folder(_) | Self::File(_) => None,
            Self::Embedded { files, .. } => files
                .iter()
                .find(|(name, _)| *name == file)
                .map(|(_, bytes)| *bytes),
        }
    }
}

/// A missing file is told apart from a damaged one.
fn open_file(path: &Path) -> Result<Result<TensorFile, String>, CheckpointError> {
    std::fs::File::open(path).map_err(|source| CheckpointError::Read {
        file: path.display().to_string(),
        source,
    })?;
    Ok(TensorFile::open(path))
}

/// The file of weights of a folder.
///
/// # Errors
/// If there is none, or several and none is named as published.
pub fn weights_in(folder: &Path) -> Result<PathBuf, CheckpointError> {
    let published = WEIGHTS.iter().map(|file| folder.join(file));
    if let Some(path) = published.into_iter().find(|path| path.is_file()) {
        return Ok(path);
    }
    let error = |reason: String| CheckpointError::Folder {
        folder: folder.display().to_string(),
        reason,
    };
    let entries = std::fs::read_dir(folder).map_err(|source| CheckpointError::Read {
        file: folder.display().to_string(),
        source,
    })?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let ending = path.extension().and_then(|ending| ending.to_str());
            ending.is_some_and(|ending| WEIGHT_ENDINGS.contains(&ending)) && path.is_file()
        })
        .collect();
    found.sort();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(error(format!(
            "holds no weights: {} or another file that ends with .{} is missing",
            WEIGHTS[0],
            WEIGHT_ENDINGS.join(", .")
        ))),
        several => {
            let name = |path: &PathBuf| path.file_name().map(|n| n.display().to_string());
            let names: Vec<_> = several.iter().filter_map(name).collect();
            Err(error(format!(
                "holds several files of weights ({}): give the path of one",
                names.join(", ")
            )))
        }
    }
}

/// Open weights under the names of transformers 4.44.2, whatever the file calls them.
pub struct Weights {
    /// What to call the file in messages.
    file: String,
    tensors: TensorFile,
    layout: &'static Layout,
    /// What says which sizes the model has.
    described_by: String,
    /// By name in transformers.
    places: HashMap<String, Place>,
}

/// Where a tensor is.
#[derive(Debug)]
struct Place {
    /// Its name in the file.
    name: String,
    /// 0, 1 or 2 for a third of that tensor's rows.
    third: Option<usize>,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights")
            .field("file", &self.file)
            .field("layout", &self.layout.name)
            .finish_non_exhaustive()
    }
}

impl Weights {
    fn new(file: String, tensors: TensorFile) -> Result<Self, String> {
        let names = tensors.shapes().keys().map(String::as_str);
        let (layout, prefix) = Layout::of(names)?;
        let mut places = HashMap::new();
        let mut unknown = BTreeSet::new();
        for name in tensors.shapes().keys() {
            let own = name.strip_prefix(&prefix).unwrap_or(name);
            let Some(renamed) = layout.rename(own) else {
                unknown.insert(own);
                continue;
            };
            for Renamed { name: new, third } in renamed {
                let name = name.clone();
                places.insert(new, Place { name, third });
            }
        }
        if !unknown.is_empty() {
            tracing::debug!(file, ?unknown, "tensors that the model does not know");
        }
        tracing::debug!(file, layout = layout.name, "checkpoint recognised");
        Ok(Self {
            file,
            tensors,
            layout,
            described_by: "the file itself".to_owned(),
            places,
        })
    }

    /// What the file holds.
    pub fn layout(&self) -> &'static Layout {
        self.layout
    }

    /// What to call the file in messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// That it is a model of this kind.
    ///
    /// # Errors
    /// What it is instead.
    pub fn expect(&self, architecture: Architecture) -> Result<(), CheckpointError> {
        if self.layout.architecture == architecture {
            return Ok(());
        }
        Err(CheckpointError::Unusable {
            file: self.file.clone(),
            reason: format!(
                "it holds {}, but {} is needed here",
                self.layout.architecture.describe(),
                architecture.describe()
            ),
        })
    }

    /// The sizes of a tensor that tells a model's configuration.
    ///
    /// # Errors
    /// If it is missing, or has not `N` sizes.
    pub fn sizes<const N: usize>(&self, name: &str) -> Result<[usize; N], String> {
        let shape = self
            .shape(name)
            .ok_or_else(|| format!("the tensor {name} is missing"))?;
        <[usize; N]>::try_from(shape)
            .map_err(|shape| format!("the tensor {name} has the shape {shape:?}, not {N} sizes"))
    }

    /// The sizes of a tensor.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let place = self.places.get(name)?;
        let mut shape = self.tensors.shapes().get(&place.name)?.clone();
        if place.third.is_some() {
            let rows = shape.first_mut()?;
            *rows /= 3;
        }
        Some(shape)
    }

    /// How many numbered groups there are, one after the other: 12, if there are `layers.0.` to
    /// `layers.11.`.
    pub fn count(&self, prefix: &str) -> usize {
        let number = |name: &String| {
            let rest = name.strip_prefix(prefix)?.strip_prefix('.')?;
            rest.split('.').next()?.parse::<usize>().ok()
        };
        let numbers: BTreeSet<usize> = self.places.keys().filter_map(number).collect();
        let in_order = |(at, number): &(usize, &usize)| at == *number;
        numbers.iter().enumerate().take_while(in_order).count()
    }

    /// That the number of attention heads, which is in no tensor's shape, is the published models': those are
    /// known by a width.
    ///
    /// # Errors
    /// If the tensor has another width.
    pub fn of_published_width(&self, name: &str, width: usize) -> Result<(), String> {
        match self.shape(name).and_then(|shape| shape.last().copied()) {
            Some(found) if found == width => Ok(()),
            found => Err(format!(
                "its tensors do not tell all of its configuration ({name} is {} wide, published models {width}): put its config.json beside it",
                found.map_or("not".to_owned(), |found| found.to_string())
            )),
        }
    }

    /// Loads a model through `load`, its tensors converted to `dtype` one by one.
    ///
    /// # Errors
    /// If `load` misses a tensor or finds one of another shape; the message names it.
    pub fn load<M>(
        self,
        dtype: DType,
        device: &Device,
        load: impl FnOnce(VarBuilder) -> candle_core::Result<M>,
    ) -> Result<M, CheckpointError> {
        let (file, described_by) = (self.file.clone(), self.described_by.clone());
        let vb = VarBuilder::from_backend(Box::new(self), dtype, device.clone());
        load(vb).map_err(|error| CheckpointError::Weights {
            file,
            described_by,
            reason: first_line(&error),
        })
    }
}

impl SimpleBackend for Weights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        match self.shape(name) {
            Some(found) if found != shape.dims() => candle_core::bail!(
                "the tensor {name} has the shape {found:?}, and the model needs {:?}: it is of another size",
                shape.dims()
            ),
            _ => self.get_unchecked(name, dtype, device),
        }
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let Some(place) = self.places.get(name) else {
            candle_core::bail!("the tensor {name} is missing")
        };
        let tensor = self.tensors.read(&place.name, device)?;
        let tensor = match place.third {
            None => tensor,
            Some(third) => {
                let rows = tensor.dim(0)? / 3;
                // a copy: the whole must not stay in memory for a part of it
                tensor.narrow(0, third * rows, rows)?.force_contiguous()?
            }
        };
        tensor.to_dtype(dtype)?.to_device(device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }
}

/// Without the backtrace that candle adds where one is wanted.
fn first_line(error: &candle_core::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

fn drop_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
