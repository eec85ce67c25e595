//! Where images come from, and how large they may be.

use std::path::PathBuf;

use clap::Args;

use super::LabelStudioArgs;

/// Where images come from.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Images")]
pub struct MediaArgs {
    #[allow(missing_docs)]
    #[command(flatten)]
    pub label_studio: LabelStudioArgs,
    /// The folder that Label Studio serves local files from, if this machine has it too. Local files are then read from
    /// disk and not requested from Label Studio.
    #[arg(long, env = "LOCAL_FILES_DOCUMENT_ROOT", value_name = "DIR")]
    pub local_files_document_root: Option<PathBuf>,
    /// Another name of the same setting.
    #[arg(
        long,
        env = "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT",
        value_name = "DIR",
        hide = true
    )]
    pub label_studio_local_files_document_root: Option<PathBuf>,
    /// Hosts with private addresses from which images may be fetched, besides Label Studio's, such as "minio:9000,
    /// nas"; "*" allows all.
    #[arg(
        long,
        env = "ALLOWED_IMAGE_HOSTS",
        default_value = "",
        value_name = "HOST[:PORT],...",
        hide_default_value = true
    )]
    pub allowed_image_hosts: String,
    /// Time limit for fetching one image, in seconds.
    #[arg(long, env = "IMAGE_TIMEOUT_S", default_value_t = 30)]
    pub image_timeout_s: u64,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub limits: ImageLimitArgs,
}

impl MediaArgs {
    /// The folder of local files under either name; an empty one counts as unset.
    pub fn local_files(&self) -> Option<&PathBuf> {
        [
            &self.local_files_document_root,
            &self.label_studio_local_files_document_root,
        ]
        .into_iter()
        .flatten()
        .find(|folder| !folder.as_os_str().is_empty())
    }
}

/// Limits of images.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Images")]
pub struct ImageLimitArgs {
    /// Maximum size of an image file, in bytes.
    #[arg(long, env = "MAX_IMAGE_BYTES", default_value_t = 100 << 20)]
    pub max_image_bytes: usize,
    /// Maximum number of pixels of an image, checked before it is decoded.
    #[arg(long, env = "MAX_IMAGE_PIXELS", default_value_t = 120_000_000)]
    pub max_image_pixels: usize,
}
