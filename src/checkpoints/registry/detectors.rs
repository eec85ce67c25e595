//! The detectors that groundling knows by name.

use super::{
    Benchmark, DEFAULT_BOX_THRESHOLD, Entry, RemoteFile, measured, published, safetensors,
};
use crate::models::weights::Architecture;

/// The files beside the weights of the second family of detectors, for which BERT's tokenizer is compiled in.
const CONFIGURATION: &[&str] = &["config.json", "preprocessor_config.json"];
const WITH_TOKENIZER: &[&str] = &["config.json", "preprocessor_config.json", "tokenizer.json"];

/// MM-Grounding-DINO's table, which also has Grounding DINO with the same evaluation.
const MMDETECTION: &str =
    "https://github.com/open-mmlab/mmdetection/blob/main/configs/mm_grounding_dino/README.md";
/// Grounding DINO's table.
const GROUNDING_DINO: &str = "https://github.com/IDEA-Research/GroundingDINO";
/// LLMDet's tables. LVIS: with fixed AP. Its training data has images of COCO.
const LLMDET: &str = "https://github.com/iSEE-Laboratory/LLMDet";

/// `--pred-score-thr` of the commands in LLMDet's README.
const LLMDET_BOX_THRESHOLD: f32 = 0.4;

/// What most detectors have in common.
const DETECTOR: Entry = Entry {
    name: "",
    architecture: Architecture::GroundingDino,
    hub_id: "",
    revision: "main",
    weights: RemoteFile {
        name: "",
        bytes: None,
        sha256: None,
    },
    others: CONFIGURATION,
    original: None,
    licence: "Apache-2.0",
    parameters: 0.0,
    input: "800x1333",
    about: "",
    box_threshold: DEFAULT_BOX_THRESHOLD,
    accuracy: &[],
    cost: None,
};

/// The default first.
pub(super) const DETECTORS: &[Entry] = &[
    Entry {
        name: "grounding-dino-tiny",
        hub_id: "IDEA-Research/grounding-dino-tiny",
        revision: "a2bb814dd30d776dcf7e30523b00659f4f141c71",
        weights: safetensors(
            Some(689_359_096),
            Some("1a2412ef99bd74bcd3c2a246fa1e48581f8889a1300c9051974741314fc042f3"),
        ),
        others: WITH_TOKENIZER,
        original: Some("groundingdino_swint_ogc.pth"),
        parameters: 172.3,
        about: "Swin-T; the default detector",
        accuracy: &[
            published(Benchmark::LvisMinival, 28.8, MMDETECTION),
            published(Benchmark::CocoZeroShot, 48.4, GROUNDING_DINO),
        ],
        cost: measured(2.50, 1349),
        ..DETECTOR
    },
    Entry {
        name: "grounding-dino-base",
        hub_id: "IDEA-Research/grounding-dino-base",
        revision: "12bdfa3120f3e7ec7b434d90674b3396eccf88eb",
        weights: safetensors(
            Some(933_400_872),
            Some("5548f844c928c4b6f411fa8cbcc2bfa8dbbba437cb1d513975519f93c2a9ed21"),
        ),
        others: WITH_TOKENIZER,
        original: Some("groundingdino_swinb_cogcoor.pth"),
        parameters: 233.3,
        about: "Swin-B; finds more, takes about twice the time",
        accuracy: &[published(Benchmark::CocoTrained, 56.7, GROUNDING_DINO)],
        cost: measured(6.49, 1715),
        ..DETECTOR
    },
    Entry {
        name: "mm-grounding-dino-tiny",
        hub_id: "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg",
        weights: safetensors(
            Some(692_015_412),
            Some("2d9bdfd0247f167a00e00fffa1dec1ee5d5861fdfb4e27fd8cc2279af6820688"),
        ),
        parameters: 173.0,
        about: "MM-Grounding-DINO, Swin-T; trained in the open",
        accuracy: &[
            published(Benchmark::LvisMinival, 35.7, MMDETECTION),
            published(Benchmark::CocoZeroShot, 50.4, MMDETECTION),
        ],
        cost: measured(2.51, 1349),
        ..DETECTOR
    },
    Entry {
        name: "mm-grounding-dino-tiny-grit-v3det",
        hub_id: "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_grit_v3det",
        weights: safetensors(None, None),
        parameters: 173.0,
        about: "MM-Grounding-DINO, Swin-T; trained with GRIT and V3Det too",
        accuracy: &[
            published(Benchmark::LvisMinival, 41.4, MMDETECTION),
            published(Benchmark::CocoZeroShot, 50.4, MMDETECTION),
        ],
        cost: measured(2.51, 1349),
        ..DETECTOR
    },
    Entry {
        name: "mm-grounding-dino-base",
        hub_id: "openmmlab-community/mm_grounding_dino_base_o365v1_goldg_v3det",
        weights: safetensors(None, None),
        parameters: 233.0,
        about: "MM-Grounding-DINO, Swin-B; trained with V3Det too",
        accuracy: &[published(Benchmark::CocoZeroShot, 52.5, MMDETECTION)],
        cost: measured(6.45, 1714),
        ..DETECTOR
    },
    Entry {
        name: "mm-grounding-dino-base-all",
        hub_id: "openmmlab-community/mm_grounding_dino_base_all",
        weights: safetensors(None, None),
        parameters: 233.0,
        about: "MM-Grounding-DINO, Swin-B; trained with all its data, COCO and LVIS too",
        accuracy: &[published(Benchmark::CocoTrained, 59.5, MMDETECTION)],
        cost: measured(6.45, 1714),
        ..DETECTOR
    },
    Entry {
        name: "mm-grounding-dino-large",
        hub_id: "openmmlab-community/mm_grounding_dino_large_o365v2_oiv6_goldg",
        weights: safetensors(None, None),
        parameters: 344.0,
        about: "MM-Grounding-DINO, Swin-L",
        accuracy: &[published(Benchmark::CocoZeroShot, 53.0, MMDETECTION)],
        cost: measured(18.0, 2947),
        ..DETECTOR
    },
    Entry {
        name: "mm-grounding-dino-large-all",
        hub_id: "openmmlab-community/mm_grounding_dino_large_all",
        weights: safetensors(None, None),
        parameters: 344.0,
        about: "MM-Grounding-DINO, Swin-L; trained with all its data, COCO and LVIS too",
        accuracy: &[published(Benchmark::CocoTrained, 60.3, MMDETECTION)],
        cost: measured(18.0, 2947),
        ..DETECTOR
    },
    Entry {
        name: "llmdet-tiny",
        hub_id: "iSEE-Laboratory/llmdet_tiny",
        revision: "d05199165a19320a9236396e20fca0a5e065189c",
        weights: safetensors(None, None),
        parameters: 173.0,
        about: "LLMDet, Swin-T: MM-Grounding-DINO trained with long captions",
        box_threshold: LLMDET_BOX_THRESHOLD,
        accuracy: &[
            published(Benchmark::LvisMinival, 44.7, LLMDET),
            published(Benchmark::CocoTrained, 55.5, LLMDET),
        ],
        cost: measured(2.51, 1349),
        ..DETECTOR
    },
    Entry {
        name: "llmdet-base",
        hub_id: "iSEE-Laboratory/llmdet_base",
        weights: safetensors(None, None),
        parameters: 233.0,
        about: "LLMDet, Swin-B",
        box_threshold: LLMDET_BOX_THRESHOLD,
        accuracy: &[published(Benchmark::LvisMinival, 48.3, LLMDET)],
        cost: measured(6.45, 1714),
        ..DETECTOR
    },
    Entry {
        name: "llmdet-large",
        hub_id: "iSEE-Laboratory/llmdet_large",
        revision: "bec37f296f05b22f6c6b39bc05a6c611239f4e31",
        weights: safetensors(None, None),
        parameters: 344.0,
        about: "LLMDet, Swin-L",
        box_threshold: LLMDET_BOX_THRESHOLD,
        accuracy: &[published(Benchmark::LvisMinival, 51.1, LLMDET)],
        cost: measured(18.0, 2947),
        ..DETECTOR
    },
];
