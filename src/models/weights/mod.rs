//! Reads checkpoint files: all formats and naming schemes that users have, under one set of names for the models.
//!
//! A [`Checkpoint`] says where the files are. Opening it gives the model's configuration and its [`Weights`]: tensors
//! under the names of transformers, which are read when the model loads them.

mod checkpoint;
mod config;
mod error;
mod grounding_dino_names;
mod layout;
mod names;
mod open;
mod pickle;
mod pickle_tree;
mod safetensors_file;
mod sam2_names;
mod sam_names;
mod tensor_file;
mod tensors;
mod torch_file;
mod torch_tensors;

pub use self::checkpoint::{
    Checkpoint, PREPROCESSOR_CONFIG, WEIGHT_EXTENSIONS, weights_among, weights_in,
};
pub use self::config::{DeriveConfigError, InvalidConfig, ModelConfig};
pub(in crate::models) use self::config::{check_at_most, check_divides};
pub use self::error::{CheckpointError, ConfigFileError, UnusableWeights};
pub use self::layout::{Architecture, Layout};
pub use self::tensors::{Weights, tensor_dtype};

/// The first line of an error, without candle's backtrace.
fn first_line(error: &candle_core::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}
