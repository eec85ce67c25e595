//! Resolves which models run on which device, before anything is downloaded or loaded.

use std::sync::Arc;

use candle_core::{DType, Device};

use super::warm::EmbeddingSource;
use super::{LoadError, Models, device};
use crate::checkpoints::choice::Choice;
use crate::checkpoints::hub::Watcher;
use crate::checkpoints::{DEMO, Locator, NONE, Role};
use crate::config::{DeviceChoice, ModelArgs, Precision};
use crate::detector::Detector;
use crate::models::ops::InstructionSet;
use crate::models::weights::Checkpoint;
use crate::segmenter::Segmenter;

/// The models and the device that the settings select.
#[derive(Debug)]
pub struct Plan {
    choice: Choice,
    precision: Precision,
    detector_size: Option<usize>,
    locator: Locator,
    /// Whether a digest of the segmenter's weights is computed while they are loaded.
    identifies: bool,
    /// An error of the device is reported when the models are loaded.
    device: Result<Device, String>,
}

impl Plan {
    /// Opens the device and selects the models for it.
    pub fn new(args: &ModelArgs) -> Self {
        let device = device::open(args.device).map_err(|error| error.to_string());
        let on_gpu = match &device {
            Ok(device) => !device.is_cpu(),
            Err(_) => matches!(args.device, DeviceChoice::Cuda(_)),
        };
        Self {
            choice: Choice::new(args, on_gpu),
            precision: args.precision,
            detector_size: args.detector_size.map(usize::from),
            locator: Locator::new(args),
            identifies: false,
            device,
        }
    }

    /// Also computes the digest of the segmenter's weights during loading. Image embeddings on disk are stored under
    /// it.
    pub fn identifying(mut self) -> Self {
        self.identifies = true;
        self
    }

    /// The selected models.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// The names of the models that would have to be downloaded.
    pub fn missing(&self) -> Vec<&str> {
        let names = [&self.choice.detector, &self.choice.segmenter];
        let is_here =
            |name: &str| name == DEMO || name == NONE || self.locator.local(name).is_some();
        let missing = names.into_iter().map(String::as_str);
        missing.filter(|name| !is_here(name)).collect()
    }

    /// The precision of the models' tensors.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The short side in pixels that images are resized to for the detector; `None` means the checkpoint's.
    pub fn detector_size(&self) -> Option<usize> {
        self.detector_size
    }

    /// The device for the models.
    ///
    /// # Errors
    /// If the device is not available.
    pub fn device(&self) -> Result<&Device, LoadError> {
        let device = self.device.as_ref();
        device.map_err(|reason| LoadError::Device(reason.clone()))
    }

    /// Loads the detector, and the segmenter unless it is `none`. Downloads missing files.
    ///
    /// # Errors
    /// If a checkpoint is unknown, cannot be downloaded, is incomplete or damaged, or has another architecture.
    pub fn load(&self, watcher: &Arc<dyn Watcher>) -> Result<Models, LoadError> {
        let (device, dtype) = self.placement()?;
        self.warn_of_demo();
        // download both before loading the first one
        let detector = self.locate_detector(watcher)?;
        let segmenter = self.locate_segmenter(watcher)?;
        watcher.loading("the models are being loaded");
        let source = |checkpoint: &Checkpoint| EmbeddingSource::new(checkpoint.clone(), dtype);
        let embedding_source = segmenter.as_ref().map(source);
        if let Some(source) = embedding_source.as_ref().filter(|_| self.identifies) {
            source.identify();
        }
        let detector = self.open_detector(&detector, dtype, device)?;
        let load = |checkpoint: &Checkpoint| Segmenter::load(checkpoint, dtype, device);
        let loaded = segmenter.as_ref().map(load).transpose()?;
        Ok(Models {
            detector,
            segmenter: loaded,
            embedding_source,
            device: device.clone(),
        })
    }

    /// Loads only the detector.
    ///
    /// # Errors
    /// See [`Self::load`].
    pub fn load_detector(&self, watcher: &Arc<dyn Watcher>) -> Result<Detector, LoadError> {
        let (device, dtype) = self.placement()?;
        let checkpoint = self.locate_detector(watcher)?;
        self.open_detector(&checkpoint, dtype, device)
    }

    /// Loads the detector and applies the configured image size.
    fn open_detector(
        &self,
        checkpoint: &Checkpoint,
        dtype: DType,
        device: &Device,
    ) -> Result<Detector, LoadError> {
        let mut detector = Detector::load(checkpoint, dtype, device)?;
        if let Some(size) = self.detector_size {
            detector.resize_images_to(size);
        }
        Ok(detector)
    }

    /// Loads only the segmenter; `None` if the choice is `none`.
    ///
    /// # Errors
    /// See [`Self::load`].
    pub fn load_segmenter(
        &self,
        watcher: &Arc<dyn Watcher>,
    ) -> Result<Option<Segmenter>, LoadError> {
        let (device, dtype) = self.placement()?;
        let checkpoint = self.locate_segmenter(watcher)?;
        let segmenter = checkpoint.map(|checkpoint| Segmenter::load(&checkpoint, dtype, device));
        Ok(segmenter.transpose()?)
    }

    /// The device and the dtype of the models on it.
    fn placement(&self) -> Result<(&Device, DType), LoadError> {
        let device = self.device()?;
        let dtype = match self.precision {
            Precision::F32 => DType::F32,
            Precision::F16 => DType::F16,
            Precision::Bf16 => DType::BF16,
        };
        if device.is_cpu() && dtype == DType::F16 {
            return Err(LoadError::Precision);
        }
        if device.is_cpu() && dtype == DType::BF16 && !InstructionSet::current().has_bf16_products()
        {
            tracing::warn!(
                "PRECISION=bf16 takes less memory here, but more time: this CPU has no instructions for it (avx512_bf16)"
            );
        }
        Ok((device, dtype))
    }

    fn warn_of_demo(&self) {
        let Choice {
            detector,
            segmenter,
        } = &self.choice;
        if self.choice.has_demo() {
            tracing::warn!(
                detector,
                segmenter,
                "the demo models know coloured shapes only"
            );
        }
    }

    fn locate_detector(&self, watcher: &Arc<dyn Watcher>) -> Result<Checkpoint, LoadError> {
        let name = &self.choice.detector;
        Ok(self.locator.locate(Role::Detector, name, watcher)?)
    }

    fn locate_segmenter(
        &self,
        watcher: &Arc<dyn Watcher>,
    ) -> Result<Option<Checkpoint>, LoadError> {
        Ok(match self.choice.segmenter.as_str() {
            NONE => None,
            name => Some(self.locator.locate(Role::Segmenter, name, watcher)?),
        })
    }
}
