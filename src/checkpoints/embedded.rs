//! The demo models, which are compiled into builds of the repository.
//!
//! The package of the crate registry does not contain them (they exceed its size limit); `build.rs` sets
//! `cfg(demo_models)` where their folder exists.

use super::Role;
use crate::models::weights::Checkpoint;

#[cfg(demo_models)]
macro_rules! embedded {
    ($name:literal, [$($file:literal),+]) => {
        Checkpoint::Embedded {
            name: $name,
            files: &[$((
                $file,
                include_bytes!(concat!("../../models/", $name, "/", $file)),
            )),+],
        }
    };
}

/// The compiled-in model of a role; `None` if this build has no demo models.
#[cfg(demo_models)]
pub fn demo(role: Role) -> Option<Checkpoint> {
    Some(match role {
        Role::Detector => embedded!(
            "demo/detector",
            [
                "config.json",
                "preprocessor_config.json",
                "tokenizer.json",
                "model.safetensors"
            ]
        ),
        Role::Segmenter => embedded!(
            "demo/segmenter",
            [
                "config.json",
                "preprocessor_config.json",
                "model.safetensors"
            ]
        ),
    })
}

/// The compiled-in model of a role; `None`, because this build has no demo models.
#[cfg(not(demo_models))]
pub fn demo(_: Role) -> Option<Checkpoint> {
    None
}
