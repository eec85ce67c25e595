//! The published checkpoints that groundling knows by name. A new one needs only an entry here.
//!
//! Sizes and checksums are from the hub's file lists, where they could be confirmed. If one is unknown, the hub's
//! answer is used.

mod accuracy;
mod detectors;
mod segmenters;

use std::path::Path;

pub use self::accuracy::{Accuracy, Benchmark, Cost, MEASURED_ON, MEASURED_PRODUCT_GFLOPS};
use self::detectors::DETECTORS;
use self::segmenters::SEGMENTERS;
use crate::models::weights::Architecture;

/// A published checkpoint.
#[derive(Debug, PartialEq)]
pub struct Entry {
    /// The name in `--detector`, `--segmenter` and `download`.
    pub name: &'static str,
    /// The model's architecture, which determines its role.
    pub architecture: Architecture,
    /// The repository on the hub.
    pub hub_id: &'static str,
    /// The verified commit; `main` if none is known.
    pub revision: &'static str,
    /// The file of weights.
    pub weights: RemoteFile,
    /// The companion files.
    pub others: &'static [&'static str],
    /// The file name under which the authors published the same weights.
    pub original: Option<&'static str>,
    /// The SPDX identifier.
    pub licence: &'static str,
    /// Number of parameters, in millions.
    pub parameters: f32,
    /// The input size in pixels.
    pub input: &'static str,
    /// A short description.
    pub about: &'static str,
    /// For detectors, the minimum score of a box, 0 to 1, unless a setting gives another one: what the authors recommend,
    /// or 0.3, the default of Label Studio's Python backends.
    pub box_threshold: f32,
    /// Published accuracies.
    pub accuracy: &'static [Accuracy],
    /// The measured cost; `None` if it was not measured.
    pub cost: Option<Cost>,
}

impl Entry {
    /// The published accuracy of a benchmark, in percent.
    pub fn accuracy_of(&self, benchmark: Benchmark) -> Option<f32> {
        let mut published = self.accuracy.iter();
        let found = published.find(|accuracy| accuracy.benchmark == benchmark);
        found.map(|accuracy| accuracy.ap)
    }
}

/// A file on the hub.
#[derive(Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its name.
    pub name: &'static str,
    /// The exact size in bytes; `None` if it is unknown.
    pub bytes: Option<u64>,
    /// The SHA-256 in hexadecimal.
    pub sha256: Option<&'static str>,
}

const fn safetensors(bytes: Option<u64>, sha256: Option<&'static str>) -> RemoteFile {
    RemoteFile {
        name: "model.safetensors",
        bytes,
        sha256,
    }
}

/// A file of the authors.
const fn torch_file(name: &'static str, bytes: Option<u64>, sha256: &'static str) -> RemoteFile {
    RemoteFile {
        name,
        bytes,
        sha256: Some(sha256),
    }
}

/// A published accuracy.
const fn published(benchmark: Benchmark, ap: f32, source: &'static str) -> Accuracy {
    Accuracy {
        benchmark,
        ap,
        source,
    }
}

/// A measured cost.
const fn measured(seconds: f32, memory_mib: u32) -> Option<Cost> {
    Some(Cost {
        seconds,
        memory_mib,
    })
}

/// All entries: detectors first, and the defaults before others.
pub fn entries() -> impl Iterator<Item = &'static Entry> {
    DETECTORS.iter().chain(SEGMENTERS)
}

/// The minimum score of a box, unless a setting or the detector's authors give another one.
pub const DEFAULT_BOX_THRESHOLD: f32 = 0.3;
/// The default detector.
pub const DEFAULT_DETECTOR: &str = "grounding-dino-tiny";
/// The default segmenter on a CPU.
pub const DEFAULT_SEGMENTER_CPU: &str = "mobile-sam";
/// The default segmenter on a GPU.
pub const DEFAULT_SEGMENTER_GPU: &str = "sam-vit-base";

/// The entry with this name, or with this id on the hub if the entry is the repository's only one.
pub fn find(name: &str) -> Option<&'static Entry> {
    entries().find(|entry| {
        let is_all = !entry.others.is_empty();
        let is_id = is_all && entry.hub_id.eq_ignore_ascii_case(name);
        entry.name.eq_ignore_ascii_case(name) || is_id
    })
}

/// The minimum score of a box for a detector with this name or path, unless a setting gives another one.
pub fn box_threshold(detector: &str) -> f32 {
    let file = Path::new(detector).file_name();
    let by_file = || by_original(file?.to_str()?);
    let entry = find(detector).or_else(by_file);
    entry.map_or(DEFAULT_BOX_THRESHOLD, |entry| entry.box_threshold)
}

/// The entry whose original file has this name.
pub fn by_original(file: &str) -> Option<&'static Entry> {
    entries().find(|entry| entry.original == Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_checksums_well_formed() {
        for (i, entry) in entries().enumerate() {
            assert!(entries().take(i).all(|other| other.name != entry.name));
            assert_eq!(find(entry.name), Some(entry));
            let is_commit = entry.revision.len() == 40;
            assert!(is_commit || entry.revision == "main", "{}", entry.name);
            if let Some(sha256) = entry.weights.sha256 {
                let is_hex = sha256.bytes().all(|b| b.is_ascii_hexdigit());
                assert!(sha256.len() == 64 && is_hex, "{}", entry.name);
            }
        }
    }

    #[test]
    fn a_detector_has_the_threshold_of_its_authors() {
        assert_eq!(box_threshold(DEFAULT_DETECTOR), 0.3);
        assert_eq!(box_threshold("llmdet-tiny"), 0.4);
        assert_eq!(box_threshold("iSEE-Laboratory/llmdet_base"), 0.4);
        assert_eq!(box_threshold("models/groundingdino_swint_ogc.pth"), 0.3);
        assert_eq!(box_threshold("demo"), 0.3);
    }

    #[test]
    fn the_defaults_are_registered() {
        let architecture = |name| find(name).map(|entry| entry.architecture);
        let detector = Some(Architecture::GroundingDino);
        assert_eq!(architecture(DEFAULT_DETECTOR), detector);
        assert_eq!(architecture(DEFAULT_SEGMENTER_CPU), Some(Architecture::Sam));
        assert_eq!(architecture(DEFAULT_SEGMENTER_GPU), Some(Architecture::Sam));
    }
}
