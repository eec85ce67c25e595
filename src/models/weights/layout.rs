//! Detects the model of a file from its tensor names, because file and folder names are not reliable.

use super::names::{Renamed, Rule, apply};
use super::{grounding_dino_names, sam_names, sam2_names};

/// A model architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// A detector.
    GroundingDino,
    /// A segmenter: SAM or one of the models with its prompt encoder and mask decoder.
    Sam,
}

impl Architecture {
    /// The name in messages.
    pub fn describe(self) -> &'static str {
        match self {
            Self::GroundingDino => "a detector (Grounding DINO)",
            Self::Sam => "a segmenter (SAM)",
        }
    }
}

/// A naming scheme for the tensors of an architecture.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// The name in messages.
    pub name: &'static str,
    /// The architecture.
    pub architecture: Architecture,
    /// A tensor name that no other layout has.
    signature: &'static str,
    /// The rules that map to transformers' names; `None` if the names are already those.
    rules: Option<&'static [Rule]>,
}

/// All known naming schemes.
static LAYOUTS: [Layout; 10] = [
    Layout {
        name: "Grounding DINO in transformers' names",
        architecture: Architecture::GroundingDino,
        signature: "model.backbone.conv_encoder.model.embeddings.patch_embeddings.projection.weight",
        rules: None,
    },
    Layout {
        name: "Grounding DINO in its authors' names",
        architecture: Architecture::GroundingDino,
        signature: "transformer.encoder.fusion_layers.0.gamma_v",
        rules: Some(&grounding_dino_names::ORIGINAL),
    },
    Layout {
        name: "SAM 2 in transformers' names",
        architecture: Architecture::Sam,
        signature: "vision_encoder.backbone.patch_embed.projection.weight",
        rules: Some(&sam2_names::TRANSFORMERS),
    },
    Layout {
        name: "SAM 2 in its authors' names",
        architecture: Architecture::Sam,
        signature: "image_encoder.trunk.patch_embed.proj.weight",
        rules: Some(&sam2_names::ORIGINAL),
    },
    // before SAM, whose tensors are in their files too
    Layout {
        name: "SAM-HQ in transformers' names",
        architecture: Architecture::Sam,
        signature: "mask_decoder.hq_token.weight",
        rules: None,
    },
    Layout {
        name: "SAM-HQ in its authors' names",
        architecture: Architecture::Sam,
        signature: "mask_decoder.hf_token.weight",
        rules: Some(&sam_names::ORIGINAL),
    },
    Layout {
        name: "EfficientViT-SAM in its authors' names",
        architecture: Architecture::Sam,
        signature: "image_encoder.backbone.stages.0.op_list.0.conv.weight",
        rules: Some(&sam_names::ORIGINAL),
    },
    Layout {
        name: "SAM in transformers' names",
        architecture: Architecture::Sam,
        signature: "vision_encoder.patch_embed.projection.weight",
        rules: None,
    },
    Layout {
        name: "SAM in its authors' names",
        architecture: Architecture::Sam,
        signature: "image_encoder.patch_embed.proj.weight",
        rules: Some(&sam_names::ORIGINAL),
    },
    Layout {
        name: "MobileSAM in its authors' names",
        architecture: Architecture::Sam,
        signature: "image_encoder.patch_embed.seq.0.c.weight",
        rules: Some(&sam_names::ORIGINAL),
    },
];

/// Models that users ask for but that are not supported, each with one of its tensor names.
const UNSUPPORTED_MODELS: [(&str, &str); 3] = [
    ("detr_decoder.presence_token.weight", "SAM 3"),
    ("transformer.decoder.presence_token.weight", "SAM 3"),
    ("sam_mask_decoder.hf_token.weight", "HQ-SAM 2"),
];

/// The supported models, in messages.
const SUPPORTED_MODELS: &str = "Grounding DINO, MM-Grounding-DINO, LLMDet, SAM, SAM-HQ, SAM 2, MobileSAM, SlimSAM and EfficientViT-SAM";

impl Layout {
    /// The layout of a file with these tensor names, and the prefix before the model's own names (for example
    /// `module.` after data-parallel training).
    ///
    /// # Errors
    /// A sentence, if the layout is unknown or its model is not supported.
    pub(super) fn detect<'a>(
        names: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<(&'static Self, String), String> {
        let prefix = |signature: &str| {
            names.clone().find_map(|name| {
                let prefix = name.strip_suffix(signature)?;
                (prefix.is_empty() || prefix.ends_with('.')).then(|| prefix.to_owned())
            })
        };
        for (signature, model) in UNSUPPORTED_MODELS {
            if prefix(signature).is_some() {
                return Err(format!(
                    "it contains {model}, which is not supported; {SUPPORTED_MODELS} are"
                ));
            }
        }
        for layout in &LAYOUTS {
            if let Some(prefix) = prefix(layout.signature) {
                return Ok((layout, prefix));
            }
        }
        let mut examples: Vec<&str> = names.clone().take(3).collect();
        examples.sort_unstable();
        Err(format!(
            "it contains {} tensors ({}, ...) of an unknown model; {SUPPORTED_MODELS} are supported",
            names.count(),
            examples.join(", ")
        ))
    }

    /// A tensor's name in transformers. Empty if the model does not need it; `None` if the layout does not know the
    /// name.
    pub(super) fn rename(&self, name: &str) -> Option<Vec<Renamed>> {
        match self.rules {
            Some(rules) => apply(rules, name),
            None => Some(vec![Renamed {
                name: name.to_owned(),
                third: None,
            }]),
        }
    }
}
