//! The segmenters that groundling knows by name.

use super::{
    Benchmark, DEFAULT_BOX_THRESHOLD, Entry, RemoteFile, measured, published, safetensors,
    torch_file,
};
use crate::models::weights::Architecture;

/// The files beside the weights in transformers' form. The authors' files need none.
const CONFIGURATION: &[&str] = &["config.json", "preprocessor_config.json"];

/// SAM in TinySAM's table, one mask for each box.
const TINY_SAM: &str = "https://github.com/xinghaochen/TinySAM";
/// MobileSAM in EdgeSAM's table.
const EDGE_SAM: &str = "https://github.com/chongzhou96/EdgeSAM";
/// HQ-SAM's tables, one mask for each box.
const SAM_HQ: &str = "https://github.com/SysCV/sam-hq";
/// EfficientViT-SAM's table.
const EFFICIENT_VIT: &str = "https://github.com/mit-han-lab/efficientvit/blob/master/applications/efficientvit_sam/README.md";

/// What most segmenters have in common.
const SEGMENTER: Entry = Entry {
    name: "",
    architecture: Architecture::Sam,
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
    input: "1024x1024",
    about: "",
    box_threshold: DEFAULT_BOX_THRESHOLD,
    accuracy: &[],
    cost: None,
};

/// The default on a CPU first.
pub(super) const SEGMENTERS: &[Entry] = &[
    Entry {
        name: "mobile-sam",
        hub_id: "lmz/candle-sam",
        weights: RemoteFile {
            name: "mobile_sam-tiny-vitt.safetensors",
            bytes: None,
            sha256: Some("5ad43a841b57cc798e2837e251c15aa9f602868a1780d195459383d117784cf7"),
        },
        others: &[],
        original: Some("mobile_sam.pt"),
        parameters: 10.1,
        about: "TinyViT; the default segmenter on a CPU",
        accuracy: &[
            published(Benchmark::CocoMasksOfVitDet, 39.4, EDGE_SAM),
            published(Benchmark::CocoMasksOfFocalNet, 44.3, SAM_HQ),
        ],
        cost: measured(0.57, 363),
        ..SEGMENTER
    },
    Entry {
        name: "sam-vit-base",
        hub_id: "facebook/sam-vit-base",
        revision: "70c1a07f894ebb5b307fd9eaaee97b9dfc16068f",
        weights: safetensors(
            Some(374_979_480),
            Some("892c410e496344e527255ccdcb2cb7244a609acb5389c7c4fdba1288f861c579"),
        ),
        original: Some("sam_vit_b_01ec64.pth"),
        parameters: 93.7,
        about: "the default segmenter on a GPU",
        accuracy: &[
            published(Benchmark::CocoMasksOfVitDet, 41.0, TINY_SAM),
            published(Benchmark::CocoMasksOfFocalNet, 44.4, SAM_HQ),
        ],
        cost: measured(4.25, 604),
        ..SEGMENTER
    },
    Entry {
        name: "sam-vit-large",
        hub_id: "facebook/sam-vit-large",
        revision: "6851e0441005b0fb96f2cc4dfac472f3d1b14af1",
        weights: safetensors(
            None,
            Some("a57e1b13cd1545938dfcbc9fb26df7f60de6650237a9383382a874a623564b81"),
        ),
        original: Some("sam_vit_l_0b3195.pth"),
        parameters: 312.3,
        about: "finer edges, three times the work of base",
        accuracy: &[
            published(Benchmark::CocoMasksOfVitDet, 45.5, TINY_SAM),
            published(Benchmark::CocoMasksOfFocalNet, 48.5, SAM_HQ),
        ],
        cost: measured(14.0, 1477),
        ..SEGMENTER
    },
    Entry {
        name: "sam-vit-huge",
        hub_id: "facebook/sam-vit-huge",
        revision: "87aecf0df4ce6b30cd7de76e87673c49644bdf67",
        weights: safetensors(
            None,
            Some("edfb0462392541fca9af44ff039bfb32dbd0c939997f3abb77a26e23af7afd7c"),
        ),
        original: Some("sam_vit_h_4b8939.pth"),
        parameters: 641.1,
        about: "the finest edges, six times the work of base",
        accuracy: &[
            published(Benchmark::CocoMasksOfVitDet, 46.5, TINY_SAM),
            published(Benchmark::CocoMasksOfFocalNet, 48.9, SAM_HQ),
        ],
        cost: measured(26.3, 2909),
        ..SEGMENTER
    },
    Entry {
        name: "slim-sam-50",
        hub_id: "Zigeng/SlimSAM-uniform-50",
        weights: safetensors(None, None),
        parameters: 28.0,
        about: "base, half of it pruned away",
        cost: measured(1.67, 284),
        ..SEGMENTER
    },
    Entry {
        name: "slim-sam-77",
        hub_id: "Zigeng/SlimSAM-uniform-77",
        revision: "06892690452cd98a45dc633d3e8068e8b79bd8bb",
        weights: safetensors(
            None,
            Some("b0ee221e3d33935807a820c157fec81a537b3b9979edc88b148a8dae8bbdd5d2"),
        ),
        parameters: 9.7,
        about: "base, three quarters of it pruned away",
        cost: measured(0.95, 168),
        ..SEGMENTER
    },
    Entry {
        name: "sam2.1-hiera-tiny",
        hub_id: "facebook/sam2.1-hiera-tiny",
        revision: "de431c4043854a71d8101e17995dfe596bf101a5",
        weights: safetensors(
            Some(155_908_064),
            Some("48c14467e5cf9e51870511feb72c89688e82dd74523142c0538b663e193ac2a7"),
        ),
        original: Some("sam2.1_hiera_tiny.pt"),
        parameters: 38.9,
        about: "SAM 2.1 on images, Hiera-T",
        cost: measured(1.43, 909),
        ..SEGMENTER
    },
    Entry {
        name: "sam2.1-hiera-small",
        hub_id: "facebook/sam2.1-hiera-small",
        revision: "ee5bba1d82bb8749febdf90f45e84b687142ba03",
        weights: safetensors(
            Some(184_305_280),
            Some("0a4067b11ce1e23d5229203f11c718a823060d15a4b23fa2372a7d4b77cbbc60"),
        ),
        original: Some("sam2.1_hiera_small.pt"),
        parameters: 46.0,
        about: "SAM 2.1 on images, Hiera-S",
        cost: measured(1.90, 936),
        ..SEGMENTER
    },
    Entry {
        name: "sam2.1-hiera-base-plus",
        hub_id: "facebook/sam2.1-hiera-base-plus",
        revision: "b7320756a13354e7530a63935656d35b2f91a290",
        weights: safetensors(
            Some(323_476_296),
            Some("2012733a0de5d03efd1bba550a2847c4551be9ef2e0d497c83074df66189f780"),
        ),
        original: Some("sam2.1_hiera_base_plus.pt"),
        parameters: 80.8,
        about: "SAM 2.1 on images, Hiera-B+",
        cost: measured(2.95, 1196),
        ..SEGMENTER
    },
    Entry {
        name: "sam2.1-hiera-large",
        hub_id: "facebook/sam2.1-hiera-large",
        revision: "665f8e2ad61cf5f53d65644ff27c8ee525124610",
        weights: safetensors(
            Some(897_897_416),
            Some("dc407dce21301fd94abb395c5099b4f2c455fdc8a8f261ac3d0ea6d4cd197230"),
        ),
        original: Some("sam2.1_hiera_large.pt"),
        parameters: 224.4,
        about: "SAM 2.1 on images, Hiera-L",
        accuracy: &[published(Benchmark::CocoMasksOfFocalNet, 50.0, SAM_HQ)],
        cost: measured(9.3, 1974),
        ..SEGMENTER
    },
    Entry {
        name: "sam-hq-vit-base",
        hub_id: "lkeab/hq-sam",
        revision: "a3a77cd0a2e5e50eaa76faccf61b964732d9b35f",
        weights: torch_file(
            "sam_hq_vit_b.pth",
            Some(379_335_069),
            "14a9d662cd6f5a9c2dba6d40ab0058d88d287e4a18fd6fdc6ad5fb1a3fdeaa57",
        ),
        others: &[],
        original: Some("sam_hq_vit_b.pth"),
        parameters: 94.9,
        about: "SAM-HQ, ViT-B: finer edges than sam-vit-base at the same cost",
        accuracy: &[published(Benchmark::CocoMasksOfFocalNet, 46.7, SAM_HQ)],
        cost: measured(4.39, 670),
        ..SEGMENTER
    },
    Entry {
        name: "sam-hq-vit-large",
        hub_id: "lkeab/hq-sam",
        revision: "a3a77cd0a2e5e50eaa76faccf61b964732d9b35f",
        weights: torch_file(
            "sam_hq_vit_l.pth",
            Some(1_254_865_805),
            "e1a6c385d62bf005ded91a54d5ec55c985cfc4103ef89c08d90f39f04934c343",
        ),
        others: &[],
        original: Some("sam_hq_vit_l.pth"),
        parameters: 313.5,
        about: "SAM-HQ, ViT-L",
        accuracy: &[published(Benchmark::CocoMasksOfFocalNet, 49.5, SAM_HQ)],
        cost: measured(14.2, 1506),
        ..SEGMENTER
    },
    Entry {
        name: "sam-hq-vit-huge",
        hub_id: "lkeab/hq-sam",
        revision: "a3a77cd0a2e5e50eaa76faccf61b964732d9b35f",
        weights: torch_file(
            "sam_hq_vit_h.pth",
            Some(2_570_940_653),
            "a7ac14a085326d9fa6199c8c698c4f0e7280afdbb974d2c4660ec60877b45e35",
        ),
        others: &[],
        original: Some("sam_hq_vit_h.pth"),
        parameters: 642.5,
        about: "SAM-HQ, ViT-H",
        accuracy: &[published(Benchmark::CocoMasksOfFocalNet, 49.9, SAM_HQ)],
        cost: measured(26.5, 2981),
        ..SEGMENTER
    },
    Entry {
        name: "light-hq-sam",
        hub_id: "lkeab/hq-sam",
        revision: "a3a77cd0a2e5e50eaa76faccf61b964732d9b35f",
        weights: torch_file(
            "sam_hq_vit_tiny.pth",
            Some(42_526_881),
            "0f32c075ccdd870ae54db2f7630e7a0878ede5a2b06d05d6fe02c65a82fb7196",
        ),
        others: &[],
        original: Some("sam_hq_vit_tiny.pth"),
        parameters: 10.5,
        about: "SAM-HQ with the TinyViT of MobileSAM",
        accuracy: &[published(Benchmark::CocoMasksOfFocalNet, 45.0, SAM_HQ)],
        cost: measured(0.60, 365),
        ..SEGMENTER
    },
    Entry {
        name: "efficientvit-sam-l0",
        hub_id: "mit-han-lab/efficientvit-sam",
        revision: "6a80311888e8c2e2e92f22f554564c0be1f018ae",
        weights: torch_file(
            "efficientvit_sam_l0.pt",
            None,
            "c4f994b01a16d48bcf2fbbb089448cfbf58fae5811edfa8113c953b8b8cc64b8",
        ),
        others: &[],
        original: Some("efficientvit_sam_l0.pt"),
        parameters: 34.8,
        about: "EfficientViT-SAM L0",
        input: "512x512",
        accuracy: &[published(Benchmark::CocoMasksOfVitDet, 45.7, EFFICIENT_VIT)],
        cost: measured(0.44, 347),
        ..SEGMENTER
    },
    Entry {
        name: "efficientvit-sam-l1",
        hub_id: "mit-han-lab/efficientvit-sam",
        revision: "6a80311888e8c2e2e92f22f554564c0be1f018ae",
        weights: torch_file(
            "efficientvit_sam_l1.pt",
            None,
            "fa151df2b9b96896accd505470755cdd293a4c50cdabac95478f3fbd86d9152b",
        ),
        others: &[],
        original: Some("efficientvit_sam_l1.pt"),
        parameters: 47.7,
        about: "EfficientViT-SAM L1",
        input: "512x512",
        accuracy: &[published(Benchmark::CocoMasksOfVitDet, 46.2, EFFICIENT_VIT)],
        cost: measured(0.56, 396),
        ..SEGMENTER
    },
    Entry {
        name: "efficientvit-sam-l2",
        hub_id: "mit-han-lab/efficientvit-sam",
        revision: "6a80311888e8c2e2e92f22f554564c0be1f018ae",
        weights: torch_file(
            "efficientvit_sam_l2.pt",
            None,
            "d4bfd842224cbb99de09acc3325e81ac5b7e8725c8fbdab152305e5d934bfe4a",
        ),
        others: &[],
        original: Some("efficientvit_sam_l2.pt"),
        parameters: 61.3,
        about: "EfficientViT-SAM L2",
        input: "512x512",
        accuracy: &[published(Benchmark::CocoMasksOfVitDet, 46.6, EFFICIENT_VIT)],
        cost: measured(0.75, 450),
        ..SEGMENTER
    },
    Entry {
        name: "efficientvit-sam-xl0",
        hub_id: "mit-han-lab/efficientvit-sam",
        revision: "6a80311888e8c2e2e92f22f554564c0be1f018ae",
        weights: torch_file(
            "efficientvit_sam_xl0.pt",
            None,
            "9bc2f87bd23d6e6d1f7b5beff910f98835c7c333fac73e695bac0bec685968f8",
        ),
        others: &[],
        original: Some("efficientvit_sam_xl0.pt"),
        parameters: 117.0,
        about: "EfficientViT-SAM XL0",
        accuracy: &[published(Benchmark::CocoMasksOfVitDet, 47.5, EFFICIENT_VIT)],
        cost: measured(1.75, 857),
        ..SEGMENTER
    },
    Entry {
        name: "efficientvit-sam-xl1",
        hub_id: "mit-han-lab/efficientvit-sam",
        revision: "6a80311888e8c2e2e92f22f554564c0be1f018ae",
        weights: torch_file(
            "efficientvit_sam_xl1.pt",
            None,
            "10f42277679427c1183dcff19758e536aa86bcc4304e4b387ff48865784be05c",
        ),
        others: &[],
        original: Some("efficientvit_sam_xl1.pt"),
        parameters: 203.3,
        about: "EfficientViT-SAM XL1",
        accuracy: &[published(Benchmark::CocoMasksOfVitDet, 47.8, EFFICIENT_VIT)],
        cost: measured(3.25, 1250),
        ..SEGMENTER
    },
];
