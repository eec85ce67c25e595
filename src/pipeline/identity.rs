//! A digest that identifies the model that computed an image embedding.

use candle_core::DType;
use ring::digest::{Context, SHA256};

use crate::models::weights::{Checkpoint, CheckpointError};
use crate::segmenter::EMBEDDING_FORMAT;

/// How half precision is computed. It changes when other embeddings result from the same weights, which in f32 does not happen.
const HALF_PRECISION: &str = "folded norms and attention sums in f32";

/// A digest that distinguishes the image embeddings of a segmenter from all others'. It covers the format, the
/// precision, the weights and the configuration files. Reads the whole file of weights, about one second per gigabyte.
///
/// # Errors
/// If a file cannot be read.
pub(super) fn embeddings_identity(
    checkpoint: &Checkpoint,
    dtype: DType,
) -> Result<[u8; 32], CheckpointError> {
    let mut sum = Context::new(&SHA256);
    let mut add = |part: &[u8]| {
        // the length separates the parts
        sum.update(&(part.len() as u64).to_le_bytes());
        sum.update(part);
    };
    add(EMBEDDING_FORMAT.as_bytes());
    add(dtype.as_str().as_bytes());
    if dtype != DType::F32 {
        add(HALF_PRECISION.as_bytes());
    }
    for file in ["config.json", "preprocessor_config.json"] {
        add(&checkpoint.read(file)?.unwrap_or_default());
    }
    add(&weights_digest(checkpoint)?);
    Ok(finish(sum))
}

/// The SHA-256 of the file of weights.
fn weights_digest(checkpoint: &Checkpoint) -> Result<[u8; 32], CheckpointError> {
    let mut sum = Context::new(&SHA256);
    checkpoint.read_weights(|block| sum.update(block))?;
    Ok(finish(sum))
}

fn finish(sum: Context) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(sum.finish().as_ref());
    digest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoints::{Role, demo};

    #[test]
    fn the_identity_changes_with_weights_and_precision() {
        let of = |role, dtype| embeddings_identity(&demo(role).unwrap(), dtype).unwrap();
        let segmenter = of(Role::Segmenter, DType::F32);
        assert_eq!(segmenter, of(Role::Segmenter, DType::F32));
        assert_ne!(segmenter, of(Role::Segmenter, DType::BF16));
        assert_ne!(segmenter, of(Role::Detector, DType::F32));
        // the same files in a folder are the same model
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo/segmenter");
        let on_disk = Checkpoint::Folder(folder.into());
        assert_eq!(
            segmenter,
            embeddings_identity(&on_disk, DType::F32).unwrap()
        );
        let missing = Checkpoint::File("no-such-file.pth".into());
        let error = embeddings_identity(&missing, DType::F32).unwrap_err();
        assert!(error.to_string().contains("no-such-file.pth"), "{error}");
    }
}
