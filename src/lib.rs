//! groundling: words in, boxes and masks out. A Label Studio ML backend.
//!
//! The path of a request, module by module:
//!
//! 1. [`http`]: the API that Label Studio calls
//! 2. [`preannotation`]: takes a task through all following steps; remembers project settings
//! 3. [`labeling`]: the labeling config: images, controls and labels
//! 4. [`media`]: the image, identified by a digest of its bytes; fetched and decoded if its pixels are needed
//! 5. [`prompt`]: the annotator's prompt as phrases
//! 6. [`pipeline`]: detection, then segmentation, in scheduled stages whose results are cached
//! 7. [`detector`]: image and prompt to boxes with phrases (Grounding DINO)
//! 8. [`segmenter`]: boxes and points to masks (SAM)
//! 9. [`regions`]: detections and masks to Label Studio regions
//!
//! The other modules: [`models`], the model definitions in candle, which depend on neither images nor HTTP;
//! [`checkpoints`], from the name of a model to its files, local or on the hub; [`pixels`] and [`geometry`], which
//! the detector and the segmenter share; [`report`], the output formats of the command line; [`label_studio`], its
//! address, token and API; [`config`], [`commands`], [`metrics`], [`store`], [`outgoing`], [`memory`], [`threads`]
//! and [`telemetry`].
//!
//! ```no_run
//! use candle_core::{DType, Device};
//! use groundling::detector::{DetectionOptions, Detector};
//! use groundling::models::weights::Checkpoint;
//! use groundling::prompt::Prompt;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::Folder("models/grounding-dino-tiny".into());
//! let detector = Detector::load(&checkpoint, DType::F32, &Device::Cpu)?;
//! let image = image::open("kitchen.jpg")?.into_rgb8();
//! let prompt = Prompt::parse("bok choi. pot.")?;
//! for detection in detector.detect(&image, &prompt, &DetectionOptions::default())? {
//!     println!("{:?} {:.2}", detection.phrase, detection.score);
//! }
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "server")]
pub mod budget;
#[cfg(feature = "hub")]
pub mod checkpoints;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod commands;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod config;
pub mod detector;
pub mod geometry;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod label_studio;
#[cfg(feature = "server")]
pub mod labeling;
#[cfg(feature = "server")]
pub mod media;
pub mod memory;
#[cfg(feature = "cli")]
mod memory_limit;
#[cfg(feature = "server")]
pub mod metrics;
pub mod models;
#[cfg(feature = "hub")]
#[doc(hidden)]
pub mod outgoing;
#[cfg(feature = "server")]
pub mod pipeline;
pub mod pixels;
#[cfg(feature = "server")]
pub mod preannotation;
pub mod prompt;
#[cfg(feature = "server")]
pub mod regions;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod report;
pub mod segmenter;
#[cfg(feature = "server")]
pub mod store;
#[cfg(feature = "cli")]
mod telemetry;
#[cfg(feature = "cli")]
mod threads;
