//! The model definitions: tensors in, tensors out.
//!
//! They do not depend on images, text, thresholds or HTTP. Every block has `load(vb, &config)`, whose `vb.pp("...")`
//! names are the tensor names of the published checkpoint, and `forward`, whose doc comment gives the shapes. The
//! reference is transformers 4.44.2; its class is named above each block.
//!
//! `load` fails if a tensor is missing or has another shape; the message names the tensor. `forward` fails if the shapes
//! of the arguments do not fit each other, or the device fails.

pub mod bert;
mod device_failure;
pub mod grounding_dino;
pub mod layers;
pub mod ops;
pub mod sam;
pub mod swin;
pub mod weights;
pub mod windows;

pub use self::device_failure::DeviceFailure;
