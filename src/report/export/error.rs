//! Why an export cannot be written.

use std::io;
use std::path::{Path, PathBuf};

use super::masks;

/// Why an export cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The folder has files.
    #[error(
        "the folder {} for the export has files already: name a new or empty folder, or delete this one if it is an earlier export", .0.display()
    )]
    NotEmpty(PathBuf),
    /// A file or folder cannot be read or written.
    #[error("cannot write the export: {}: {source}", path.display())]
    #[allow(missing_docs)]
    Io { path: PathBuf, source: io::Error },
    /// The pixels of a mask image cannot name so many classes.
    #[error(
        "the export format `masks` has room for {} classes, and the class {name:?} is one more: use fewer classes, or another format",
        masks::MAX_CLASSES
    )]
    #[allow(missing_docs)]
    TooManyClasses { name: String },
    /// The pixels of an instance image cannot number so many objects.
    #[error(
        "the export format `masks` has room for {} objects in an image, and there are {count}: set MAX_DETECTIONS, or use another format",
        masks::MAX_INSTANCES
    )]
    #[allow(missing_docs)]
    TooManyObjects { count: usize },
    /// An earlier image could not be written.
    #[error("the export is incomplete, because an earlier image could not be written to it")]
    Incomplete,
}

impl ExportError {
    /// Wraps an error of a file or folder.
    pub(super) fn of<'a>(path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}
