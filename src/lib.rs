//! groundling: text prompts in, boxes and masks out. Grounding DINO finds the objects that a prompt names, SAM segments
//! them. Both are implemented in [candle](candle_core), with kernels that are chosen for the CPU at run time.
//!
//! # As a library
//!
//! Without features (`default-features = false`), the crate has the models and their pre- and postprocessing, and neither
//! a server, TLS, SQLite nor a command line:
//!
//! - [`detector`]: an image and a prompt to boxes with phrases and scores (Grounding DINO)
//! - [`segmenter`]: an image, boxes and points to masks (SAM)
//! - [`prompt`], [`geometry`]: their inputs and outputs; boxes and points are in pixels, scores in 0..1
//! - [`models`]: the model definitions and the readers of checkpoints, which depend on neither images nor HTTP
//! - [`pixels`]: images to model input; [`memory`]: an allocator that saves a third of a detection's time
//!
//! ```
//! use groundling::candle_core::{DType, Device};
//! use groundling::detector::{DetectionOptions, Detector};
//! use groundling::models::weights::Checkpoint;
//! use groundling::prompt::Prompt;
//! use groundling::segmenter::Segmenter;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // or the folder of another Grounding DINO, such as models/grounding-dino-tiny
//! let checkpoint = Checkpoint::Folder("models/demo/detector".into());
//! let detector = Detector::load(&checkpoint, DType::F32, &Device::Cpu)?;
//! let image = image::open("examples/images/shapes.png")?.into_rgb8();
//! let prompt = Prompt::parse("red circle")?;
//! let found = detector.detect(&image, &prompt, &DetectionOptions::default())?;
//! assert_eq!(found[0].phrase.as_deref(), Some("red circle"));
//!
//! let checkpoint = Checkpoint::Folder("models/demo/segmenter".into());
//! let segmenter = Segmenter::load(&checkpoint, DType::F32, &Device::Cpu)?;
//! let encoded = segmenter.encode(&image)?;
//! let boxes: Vec<_> = found.iter().map(|detection| detection.bounding_box).collect();
//! let masks = segmenter.segment_boxes(&encoded, &boxes)?;
//! assert_eq!(masks.len(), found.len());
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `hub` | [`checkpoints`]: models by name, downloaded from huggingface.co into the cache that its tools share |
//! | `server` | everything from a Label Studio request to its regions, as an axum router ([`http::router`]); implies `hub` |
//! | `sqlite` | prompts and settings of projects survive a restart of the server |
//! | `postgres` | the same in a PostgreSQL database that several servers share |
//! | `cli` | the binary with its commands and settings; implies `server` |
//! | `cuda` | inference on NVIDIA GPUs; needs the CUDA toolkit to build |
//!
//! `cli`, `postgres` and `sqlite` are on by default.
//!
//! # The path of a request
//!
//! 1. [`http`]: the API that Label Studio calls
//! 2. [`preannotation`]: takes a task through all following steps; remembers project settings
//! 3. [`labeling`]: the labeling config: images, controls and labels
//! 4. [`media`]: the image, identified by a digest of its bytes; fetched and decoded if its pixels are needed
//! 5. [`prompt`]: the annotator's prompt as phrases
//! 6. [`pipeline`]: detection, then segmentation, in scheduled stages whose results are cached
//! 7. [`detector`]: image and prompt to boxes with phrases
//! 8. [`segmenter`]: boxes and points to masks
//! 9. [`regions`]: detections and masks to Label Studio regions
//!
//! Beside it: [`label_studio`], its address, token and API; [`budget`], [`metrics`] and [`store`]; [`findings`],
//! [`recent_problems`] and [`runs`], for the status page. The commands and
//! settings of the binary are not part of the library's interface.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub use candle_core;
pub use image;

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
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod evaluation;
#[cfg(feature = "server")]
pub mod findings;
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
#[doc(hidden)]
pub mod palette;
#[cfg(feature = "server")]
pub mod pipeline;
pub mod pixels;
#[cfg(feature = "server")]
pub mod preannotation;
pub mod prompt;
#[cfg(feature = "server")]
pub mod recent_problems;
#[cfg(feature = "server")]
pub mod regions;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod report;
#[cfg(feature = "server")]
pub mod runs;
pub mod segmenter;
#[cfg(feature = "server")]
pub mod store;
#[cfg(feature = "cli")]
mod telemetry;
#[cfg(feature = "cli")]
mod threads;
