//! The model definitions: tensors in, tensors out.
//!
//! They do not depend on images, text, thresholds or HTTP. Every block has `load(vb, &config)`, whose `vb.pp("...")`
//! names are the tensor names of the published checkpoint, and `forward`, whose doc comment gives the shapes. The
//! reference is transformers 4.44.2; its class is named above each block.

pub mod bert;
pub mod grounding_dino;
pub mod layers;
pub mod ops;
pub mod sam;
pub mod swin;
pub mod weights;
pub mod windows;
