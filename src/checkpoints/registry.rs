//! The published checkpoints that groundling knows by name. A new one needs only an entry here.
//!
//! Sizes and checksums are from the hub's file lists, where they could be confirmed. If one is unknown, the hub's
//! answer is used.

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
    /// A short recommendation.
    pub about: &'static str,
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

/// The companion files of the second family of detectors, for which BERT's tokenizer is compiled in, and of the
/// segmenters.
const CONFIGURATION: &[&str] = &["config.json", "preprocessor_config.json"];
const DETECTOR_FILES: &[&str] = &["config.json", "preprocessor_config.json", "tokenizer.json"];

const fn safetensors(bytes: Option<u64>, sha256: Option<&'static str>) -> RemoteFile {
    RemoteFile {
        name: "model.safetensors",
        bytes,
        sha256,
    }
}

/// All entries: detectors first, and the defaults before others.
pub static REGISTRY: [Entry; 12] = [
    Entry {
        name: "grounding-dino-tiny",
        architecture: Architecture::GroundingDino,
        hub_id: "IDEA-Research/grounding-dino-tiny",
        revision: "a2bb814dd30d776dcf7e30523b00659f4f141c71",
        weights: safetensors(
            Some(689_359_096),
            Some("1a2412ef99bd74bcd3c2a246fa1e48581f8889a1300c9051974741314fc042f3"),
        ),
        others: DETECTOR_FILES,
        original: Some("groundingdino_swint_ogc.pth"),
        licence: "Apache-2.0",
        parameters: 172.3,
        input: "800x1333",
        about: "Swin-T; the default detector",
    },
    Entry {
        name: "grounding-dino-base",
        architecture: Architecture::GroundingDino,
        hub_id: "IDEA-Research/grounding-dino-base",
        revision: "12bdfa3120f3e7ec7b434d90674b3396eccf88eb",
        weights: safetensors(
            Some(933_400_872),
            Some("5548f844c928c4b6f411fa8cbcc2bfa8dbbba437cb1d513975519f93c2a9ed21"),
        ),
        others: DETECTOR_FILES,
        original: Some("groundingdino_swinb_cogcoor.pth"),
        licence: "Apache-2.0",
        parameters: 233.3,
        input: "800x1333",
        about: "Swin-B; finds more, takes about twice the time",
    },
    Entry {
        name: "mm-grounding-dino-tiny",
        architecture: Architecture::GroundingDino,
        hub_id: "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg",
        revision: "main",
        weights: safetensors(
            Some(692_015_412),
            Some("2d9bdfd0247f167a00e00fffa1dec1ee5d5861fdfb4e27fd8cc2279af6820688"),
        ),
        others: CONFIGURATION,
        original: None,
        licence: "Apache-2.0",
        parameters: 173.0,
        input: "800x1333",
        about: "MM-Grounding-DINO, Swin-T; trained in the open",
    },
    Entry {
        name: "llmdet-tiny",
        architecture: Architecture::GroundingDino,
        hub_id: "iSEE-Laboratory/llmdet_tiny",
        revision: "d05199165a19320a9236396e20fca0a5e065189c",
        weights: safetensors(None, None),
        others: CONFIGURATION,
        original: None,
        licence: "Apache-2.0",
        parameters: 173.0,
        input: "800x1333",
        about: "LLMDet, Swin-T: MM-Grounding-DINO trained with long captions",
    },
    Entry {
        name: "llmdet-base",
        architecture: Architecture::GroundingDino,
        hub_id: "iSEE-Laboratory/llmdet_base",
        revision: "main",
        weights: safetensors(None, None),
        others: CONFIGURATION,
        original: None,
        licence: "Apache-2.0",
        parameters: 233.0,
        input: "800x1333",
        about: "LLMDet, Swin-B",
    },
    Entry {
        name: "llmdet-large",
        architecture: Architecture::GroundingDino,
        hub_id: "iSEE-Laboratory/llmdet_large",
        revision: "bec37f296f05b22f6c6b39bc05a6c611239f4e31",
        weights: safetensors(None, None),
        others: CONFIGURATION,
        original: None,
        licence: "Apache-2.0",
        parameters: 344.0,
        input: "800x1333",
        about: "LLMDet, Swin-L",
    },
    Entry {
        name: "mobile-sam",
        architecture: Architecture::Sam,
        hub_id: "lmz/candle-sam",
        revision: "main",
        weights: RemoteFile {
            name: "mobile_sam-tiny-vitt.safetensors",
            bytes: None,
            sha256: Some("5ad43a841b57cc798e2837e251c15aa9f602868a1780d195459383d117784cf7"),
        },
        others: &[],
        original: Some("mobile_sam.pt"),
        licence: "Apache-2.0",
        parameters: 10.1,
        input: "1024x1024",
        about: "TinyViT; the default segmenter on a CPU",
    },
    Entry {
        name: "sam-vit-base",
        architecture: Architecture::Sam,
        hub_id: "facebook/sam-vit-base",
        revision: "70c1a07f894ebb5b307fd9eaaee97b9dfc16068f",
        weights: safetensors(
            Some(374_979_480),
            Some("892c410e496344e527255ccdcb2cb7244a609acb5389c7c4fdba1288f861c579"),
        ),
        others: CONFIGURATION,
        original: Some("sam_vit_b_01ec64.pth"),
        licence: "Apache-2.0",
        parameters: 93.7,
        input: "1024x1024",
        about: "the default segmenter on a GPU",
    },
    Entry {
        name: "sam-vit-large",
        architecture: Architecture::Sam,
        hub_id: "facebook/sam-vit-large",
        revision: "6851e0441005b0fb96f2cc4dfac472f3d1b14af1",
        weights: safetensors(
            None,
            Some("a57e1b13cd1545938dfcbc9fb26df7f60de6650237a9383382a874a623564b81"),
        ),
        others: CONFIGURATION,
        original: Some("sam_vit_l_0b3195.pth"),
        licence: "Apache-2.0",
        parameters: 312.3,
        input: "1024x1024",
        about: "finer edges, three times the work of base",
    },
    Entry {
        name: "sam-vit-huge",
        architecture: Architecture::Sam,
        hub_id: "facebook/sam-vit-huge",
        revision: "87aecf0df4ce6b30cd7de76e87673c49644bdf67",
        weights: safetensors(
            None,
            Some("edfb0462392541fca9af44ff039bfb32dbd0c939997f3abb77a26e23af7afd7c"),
        ),
        others: CONFIGURATION,
        original: Some("sam_vit_h_4b8939.pth"),
        licence: "Apache-2.0",
        parameters: 641.1,
        input: "1024x1024",
        about: "the finest edges, six times the work of base",
    },
    Entry {
        name: "slim-sam-50",
        architecture: Architecture::Sam,
        hub_id: "Zigeng/SlimSAM-uniform-50",
        revision: "main",
        weights: safetensors(None, None),
        others: CONFIGURATION,
        original: None,
        licence: "Apache-2.0",
        parameters: 28.0,
        input: "1024x1024",
        about: "base, half of it pruned away",
    },
    Entry {
        name: "slim-sam-77",
        architecture: Architecture::Sam,
        hub_id: "Zigeng/SlimSAM-uniform-77",
        revision: "06892690452cd98a45dc633d3e8068e8b79bd8bb",
        weights: safetensors(
            None,
            Some("b0ee221e3d33935807a820c157fec81a537b3b9979edc88b148a8dae8bbdd5d2"),
        ),
        others: CONFIGURATION,
        original: None,
        licence: "Apache-2.0",
        parameters: 9.7,
        input: "1024x1024",
        about: "base, three quarters of it pruned away",
    },
];

/// The default detector.
pub const DEFAULT_DETECTOR: &str = "grounding-dino-tiny";
/// The default segmenter on a CPU.
pub const DEFAULT_SEGMENTER_CPU: &str = "mobile-sam";
/// The default segmenter on a GPU.
pub const DEFAULT_SEGMENTER_GPU: &str = "sam-vit-base";

/// The entry with this name, or with this id on the hub if the entry is the repository's only one.
pub fn find(name: &str) -> Option<&'static Entry> {
    REGISTRY.iter().find(|entry| {
        let is_all = !entry.others.is_empty();
        let is_id = is_all && entry.hub_id.eq_ignore_ascii_case(name);
        entry.name.eq_ignore_ascii_case(name) || is_id
    })
}

/// The entry whose original file has this name.
pub fn by_original(file: &str) -> Option<&'static Entry> {
    REGISTRY.iter().find(|entry| entry.original == Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_checksums_well_formed() {
        for (i, entry) in REGISTRY.iter().enumerate() {
            assert!(REGISTRY[..i].iter().all(|other| other.name != entry.name));
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
    fn the_defaults_are_registered() {
        let architecture = |name| find(name).map(|entry| entry.architecture);
        let detector = Some(Architecture::GroundingDino);
        assert_eq!(architecture(DEFAULT_DETECTOR), detector);
        assert_eq!(architecture(DEFAULT_SEGMENTER_CPU), Some(Architecture::Sam));
        assert_eq!(architecture(DEFAULT_SEGMENTER_GPU), Some(Architecture::Sam));
    }
}
