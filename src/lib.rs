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

pub mod budget;
pub mod checkpoints;
pub mod commands;
pub mod config;
pub mod detector;
pub mod geometry;
pub mod http;
pub mod label_studio;
pub mod labeling;
pub mod media;
pub mod memory;
pub mod memory_limit;
pub mod metrics;
pub mod models;
pub mod outgoing;
pub mod pipeline;
pub mod pixels;
pub mod preannotation;
pub mod prompt;
pub mod regions;
pub mod report;
pub mod segmenter;
pub mod store;
pub mod telemetry;
pub mod threads;
