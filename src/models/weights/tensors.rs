//! The tensors of an open file of weights under transformers' names, as a backend of candle's loaders.

use std::collections::{BTreeSet, HashMap};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

use super::super::ops::{Format, with_weight_format};
use super::layout::{Architecture, Layout};
use super::names::Renamed;
use super::tensor_file::TensorFile;
use super::{CheckpointError, DeriveConfigError, UnusableWeights, first_line};

/// Limit of a tensor's size, far beyond every model. Products of two sizes then fit into 64 bits.
const MAX_SIZE: usize = u32::MAX as usize;

/// Open weights under the names of transformers 4.44.2, independent of the names in the file.
pub struct Weights {
    /// The file's name in messages.
    pub(super) file: String,
    tensors: TensorFile,
    layout: &'static Layout,
    /// The source of the expected shapes, for messages.
    pub(super) config_source: String,
    /// The location of each tensor, by its name in transformers.
    locations: HashMap<String, TensorLocation>,
}

/// The location of a tensor in the file.
#[derive(Debug)]
struct TensorLocation {
    /// Its name in the file.
    name: String,
    /// 0, 1 or 2 for a third of that tensor's rows; `None` for all rows.
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
    /// Detects the layout, and maps the names of the tensors.
    ///
    /// # Errors
    /// A sentence, if the model is unknown or a tensor has an impossible size.
    pub(super) fn new(file: String, tensors: TensorFile) -> Result<Self, String> {
        let is_possible = |shape: &[usize]| shape.iter().all(|size| *size <= MAX_SIZE);
        let mut shapes = tensors.shapes().iter();
        if let Some((name, shape)) = shapes.find(|(_, shape)| !is_possible(shape)) {
            return Err(format!(
                "its tensor {name} has the impossible shape {shape:?}"
            ));
        }
        let names = tensors.shapes().keys().map(String::as_str);
        let (layout, prefix) = Layout::detect(names)?;
        let mut locations = HashMap::new();
        let mut unknown = BTreeSet::new();
        for name in tensors.shapes().keys() {
            let unprefixed = name.strip_prefix(&prefix).unwrap_or(name);
            let Some(renamed) = layout.rename(unprefixed) else {
                unknown.insert(unprefixed);
                continue;
            };
            for Renamed { name: new, third } in renamed {
                let name = name.clone();
                locations.insert(new, TensorLocation { name, third });
            }
        }
        if !unknown.is_empty() {
            tracing::debug!(
                file,
                ?unknown,
                "the checkpoint has tensors that the model does not use"
            );
        }
        tracing::debug!(
            file,
            layout = layout.name,
            "the checkpoint's layout was detected"
        );
        Ok(Self {
            file,
            tensors,
            layout,
            config_source: "the file itself".to_owned(),
            locations,
        })
    }

    /// The detected layout of the file.
    pub fn layout(&self) -> &'static Layout {
        self.layout
    }

    /// Checks that the weights have this architecture.
    ///
    /// # Errors
    /// The architecture that they have instead.
    pub fn require(&self, architecture: Architecture) -> Result<(), CheckpointError> {
        if self.layout.architecture == architecture {
            return Ok(());
        }
        Err(CheckpointError::Unusable {
            file: self.file.clone(),
            reason: UnusableWeights::Architecture {
                found: self.layout.architecture,
                expected: architecture,
            },
        })
    }

    /// The sizes of a tensor from which a configuration is derived.
    ///
    /// # Errors
    /// If it is missing, or does not have `N` dimensions.
    pub fn sizes<const N: usize>(&self, name: &str) -> Result<[usize; N], DeriveConfigError> {
        let shape = self
            .shape(name)
            .ok_or_else(|| DeriveConfigError::MissingTensor(name.to_owned()))?;
        <[usize; N]>::try_from(shape).map_err(|shape| DeriveConfigError::Dimensions {
            name: name.to_owned(),
            shape,
            expected: N,
        })
    }

    /// The sizes of a tensor; `None` if it is missing.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let location = self.locations.get(name)?;
        let mut shape = self.tensors.shapes().get(&location.name)?.clone();
        if location.third.is_some() {
            let rows = shape.first_mut()?;
            *rows /= 3;
        }
        Some(shape)
    }

    /// Number of consecutively numbered groups under a prefix: 12 if there are `layers.0.` to `layers.11.`.
    pub fn count(&self, prefix: &str) -> usize {
        let number = |name: &String| {
            let rest = name.strip_prefix(prefix)?.strip_prefix('.')?;
            rest.split('.').next()?.parse::<usize>().ok()
        };
        let numbers: BTreeSet<usize> = self.locations.keys().filter_map(number).collect();
        let is_consecutive = |(index, number): &(usize, &usize)| index == *number;
        numbers
            .iter()
            .enumerate()
            .take_while(is_consecutive)
            .count()
    }

    /// Checks that a tensor has the width of the published models. The number of attention heads is not visible in
    /// any shape; it is known only for these models.
    ///
    /// # Errors
    /// If the tensor has another width.
    pub fn check_published_width(&self, name: &str, width: usize) -> Result<(), DeriveConfigError> {
        let shape = self.shape(name).unwrap_or_default();
        match shape.last().copied().unwrap_or(0) {
            found if found == width => Ok(()),
            found => Err(DeriveConfigError::Width {
                name: name.to_owned(),
                found,
                published: width,
            }),
        }
    }

    /// Loads a model with `load`, and converts its tensors to `dtype` one by one. For bf16 on a CPU see
    /// [`tensor_dtype`].
    ///
    /// # Errors
    /// If a tensor is missing or has another shape; the message names it.
    pub fn load<M>(
        self,
        dtype: DType,
        device: &Device,
        load: impl FnOnce(VarBuilder) -> candle_core::Result<M>,
    ) -> Result<M, CheckpointError> {
        let (file, config_source) = (self.file.clone(), self.config_source.clone());
        let stored = tensor_dtype(dtype, device);
        let format = match (stored, dtype) {
            (DType::F32, DType::BF16) => Format::Bf16,
            _ => Format::F32,
        };
        let vb = VarBuilder::from_backend(Box::new(self), stored, device.clone());
        with_weight_format(format, || load(vb)).map_err(|error| CheckpointError::Weights {
            file,
            config_source,
            reason: first_line(&error),
        })
    }
}

/// The dtype of a model's tensors. For bf16 on a CPU it is f32: only the weights of layers and the inputs that are
/// multiplied with them are rounded to bf16, and these weights are stored in bf16. Sums, norms, softmax and attention
/// are f32.
pub fn tensor_dtype(dtype: DType, device: &Device) -> DType {
    match (dtype, device) {
        (DType::BF16, Device::Cpu) => DType::F32,
        _ => dtype,
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
                "the tensor {name} has the shape {found:?}, but the model needs {:?}",
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
        let Some(location) = self.locations.get(name) else {
            candle_core::bail!("the tensor {name} is missing")
        };
        let tensor = self.tensors.read(&location.name, device)?;
        let tensor = match location.third {
            None => tensor,
            Some(third) => {
                let rows = tensor.dim(0)? / 3;
                // copied, so that the whole tensor is not kept in memory for one part
                tensor.narrow(0, third * rows, rows)?.force_contiguous()?
            }
        };
        tensor.to_dtype(dtype)?.to_device(device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.locations.contains_key(name)
    }
}
