//! Which model a file holds, told by its tensors: file names and folders say nothing reliable.

use super::names::{Renamed, Rule, apply};
use super::{grounding_dino_names, sam_names};

/// A kind of model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// A detector.
    GroundingDino,
    /// A segmenter: SAM with a plain vision transformer or with TinyViT.
    Sam,
}

impl Architecture {
    /// What to call it in messages.
    pub fn describe(self) -> &'static str {
        match self {
            Self::GroundingDino => "a detector (Grounding DINO)",
            Self::Sam => "a segmenter (SAM)",
        }
    }
}

/// A naming of one kind of model's tensors.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// What to call it in messages.
    pub name: &'static str,
    /// The kind of model.
    pub architecture: Architecture,
    /// A tensor that no other layout has.
    signature: &'static str,
    /// To transformers' names; `None` where these are they.
    rules: Option<&'static [Rule]>,
}

/// Every naming that is known.
static LAYOUTS: [Layout; 5] = [
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

/// Models that are asked for and not supported, by a tensor of theirs.
const STRANGERS: [(&str, &str); 3] = [
    ("mask_decoder.hf_token.weight", "SAM-HQ"),
    ("image_encoder.trunk.patch_embed.proj.weight", "SAM 2"),
    (
        "vision_encoder.backbone.patch_embed.projection.weight",
        "SAM 2",
    ),
];

impl Layout {
    /// The layout of a file with these tensors, and what its names begin with before the model's own
    /// (`module.` of a model that was trained in parallel).
    ///
    /// # Errors
    /// What the file seems to hold, if it is no known layout.
    pub fn of<'a>(
        names: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<(&'static Self, String), String> {
        let prefix = |signature: &str| {
            names.clone().find_map(|name| {
                let prefix = name.strip_suffix(signature)?;
                (prefix.is_empty() || prefix.ends_with('.')).then(|| prefix.to_owned())
            })
        };
        for (signature, model) in STRANGERS {
            if prefix(signature).is_some() {
                return Err(format!(
                    "it holds {model}, which groundling cannot run; Grounding DINO, SAM, MobileSAM and SlimSAM it can"
                ));
            }
        }
        for layout in &LAYOUTS {
            if let Some(prefix) = prefix(layout.signature) {
                return Ok((layout, prefix));
            }
        }
        let mut some: Vec<&str> = names.clone().take(3).collect();
        some.sort_unstable();
        Err(format!(
            "it holds {} tensors ({}, ...) of no model that groundling knows: Grounding DINO, SAM, MobileSAM, SlimSAM",
            names.count(),
            some.join(", ")
        ))
    }

    /// What a tensor is called in transformers; nothing where the model does not need it, `None` where
    /// the layout does not know the name.
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
