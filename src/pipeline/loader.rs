//! Opens the device, locates the configured models and loads them.

use std::sync::Arc;

use candle_core::{DType, Device};

use super::settings::{DeviceChoice, ModelNames, ModelSettings, Precision};
use super::warm::EmbeddingSource;
use super::{LoadError, Models, device};
use crate::checkpoints::hub::ProgressObserver;
use crate::checkpoints::{DEMO, Locator, NONE, Role};
use crate::detector::Detector;
use crate::models::ops::InstructionSet;
use crate::models::weights::Checkpoint;
use crate::segmenter::Segmenter;

/// Loads the models that the settings select.
#[derive(Debug)]
pub struct ModelLoader {
    names: ModelNames,
    precision: Precision,
    detector_size: Option<usize>,
    locator: Locator,
    /// Whether a digest of the segmenter's weights is computed while they are loaded.
    computes_weights_digest: bool,
    /// An error of the device is reported when the models are loaded.
    device: Result<Device, String>,
}

impl ModelLoader {
    /// Opens the device and selects the models for it. Neither locates nor loads them.
    pub fn new(settings: ModelSettings) -> Self {
        let device = device::open(settings.device).map_err(|error| error.to_string());
        let on_gpu = match &device {
            Ok(device) => !device.is_cpu(),
            Err(_) => matches!(settings.device, DeviceChoice::Cuda(_)),
        };
        Self {
            names: ModelNames::new(&settings, on_gpu),
            precision: settings.precision,
            detector_size: settings.detector_size,
            locator: Locator::new(settings.model_dir, settings.hub),
            computes_weights_digest: false,
            device,
        }
    }

    /// Also computes the digest of the segmenter's weights during loading. Image embeddings on disk are stored under
    /// it.
    pub fn with_weights_digest(mut self) -> Self {
        self.computes_weights_digest = true;
        self
    }

    /// The names of the selected models.
    pub fn names(&self) -> &ModelNames {
        &self.names
    }

    /// The names of the models that would have to be downloaded.
    pub fn missing(&self) -> Vec<&str> {
        let names = [&self.names.detector, &self.names.segmenter];
        let is_local =
            |name: &str| name == DEMO || name == NONE || self.locator.local(name).is_some();
        let missing = names.into_iter().map(String::as_str);
        missing.filter(|name| !is_local(name)).collect()
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

    /// Loads the models that are not `none`. Downloads missing files.
    ///
    /// # Errors
    /// If both are `none`, or if a checkpoint is unknown, cannot be downloaded, is incomplete or damaged, or has another architecture.
    pub fn load(&self, observer: &Arc<dyn ProgressObserver>) -> Result<Models, LoadError> {
        if !self.names.has_detector() && !self.names.has_segmenter() {
            return Err(LoadError::NoModels);
        }
        let (device, dtype) = self.placement()?;
        self.warn_of_demo();
        // download both before loading the first one
        let detector = self.locate_detector(observer)?;
        let segmenter = self.locate_segmenter(observer)?;
        observer.loading("loading the models");
        let source = |checkpoint: &Checkpoint| EmbeddingSource::new(checkpoint.clone(), dtype);
        let embedding_source = segmenter.as_ref().map(source);
        if let Some(source) = embedding_source
            .as_ref()
            .filter(|_| self.computes_weights_digest)
        {
            source.identify();
        }
        let load_detector = |checkpoint: &Checkpoint| self.open_detector(checkpoint, dtype, device);
        let load_segmenter = |checkpoint: &Checkpoint| Segmenter::load(checkpoint, dtype, device);
        Ok(Models {
            detector: detector.as_ref().map(load_detector).transpose()?,
            segmenter: segmenter.as_ref().map(load_segmenter).transpose()?,
            embedding_source,
            device: device.clone(),
        })
    }

    /// Loads only the detector; `None` if the choice is `none`.
    ///
    /// # Errors
    /// See [`Self::load`].
    pub fn load_detector(
        &self,
        observer: &Arc<dyn ProgressObserver>,
    ) -> Result<Option<Detector>, LoadError> {
        let (device, dtype) = self.placement()?;
        let checkpoint = self.locate_detector(observer)?;
        let detector = checkpoint.map(|checkpoint| self.open_detector(&checkpoint, dtype, device));
        detector.transpose()
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
        observer: &Arc<dyn ProgressObserver>,
    ) -> Result<Option<Segmenter>, LoadError> {
        let (device, dtype) = self.placement()?;
        let checkpoint = self.locate_segmenter(observer)?;
        let segmenter = checkpoint.map(|checkpoint| Segmenter::load(&checkpoint, dtype, device));
        Ok(segmenter.transpose()?)
    }

    /// The device and the dtype of the models on it.
    fn placement(&self) -> Result<(&Device, DType), LoadError> {
        let device = self.device()?;
        let dtype = self.precision.dtype();
        if device.is_cpu() && dtype == DType::F16 {
            return Err(LoadError::Precision);
        }
        if device.is_cpu() && dtype == DType::BF16 && !InstructionSet::current().has_bf16_products()
        {
            tracing::warn!(
                "PRECISION=bf16 saves memory but is slower than f32 on this CPU, because the CPU has no bf16 instructions (avx512_bf16)"
            );
        }
        Ok((device, dtype))
    }

    fn warn_of_demo(&self) {
        let ModelNames {
            detector,
            segmenter,
        } = &self.names;
        if self.names.has_demo() {
            tracing::warn!(
                detector,
                segmenter,
                "the demo models detect only coloured shapes; set DETECTOR and SEGMENTER for real images"
            );
        }
    }

    fn locate_detector(
        &self,
        observer: &Arc<dyn ProgressObserver>,
    ) -> Result<Option<Checkpoint>, LoadError> {
        self.locate(Role::Detector, &self.names.detector, observer)
    }

    fn locate_segmenter(
        &self,
        observer: &Arc<dyn ProgressObserver>,
    ) -> Result<Option<Checkpoint>, LoadError> {
        self.locate(Role::Segmenter, &self.names.segmenter, observer)
    }

    fn locate(
        &self,
        role: Role,
        name: &str,
        observer: &Arc<dyn ProgressObserver>,
    ) -> Result<Option<Checkpoint>, LoadError> {
        Ok(match name {
            NONE => None,
            name => Some(self.locator.locate(role, name, observer)?),
        })
    }
}
