//! What an export has, and what it leaves out.

use std::fmt;
use std::path::PathBuf;

/// Objects that an export leaves out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Objects without a class.
    pub without_class: usize,
    /// Objects whose box has no area inside the image.
    pub without_area: usize,
    /// Objects without a mask. Formats for boxes have them.
    pub without_mask: usize,
}

impl LeftOut {
    pub(super) fn add(&mut self, other: Self) {
        self.without_class += other.without_class;
        self.without_area += other.without_area;
        self.without_mask += other.without_mask;
    }

    /// What is left out and why, for people: `2 objects without a class, 1 without a mask`. `None` if nothing is.
    pub fn describe(self) -> Option<String> {
        let counts = [
            (self.without_class, "without a class"),
            (self.without_area, "without an area inside the image"),
            (self.without_mask, "without a mask"),
        ];
        let counts = counts.into_iter().filter(|(count, _)| *count > 0);
        let texts: Vec<String> = counts
            .map(|(count, why)| format!("{count} {why}"))
            .collect();
        (!texts.is_empty()).then(|| format!("left out of the export: {}", texts.join(", ")))
    }
}

/// What an export has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportSummary {
    /// The folder.
    pub folder: PathBuf,
    /// Number of images.
    pub images: usize,
    /// Number of objects; formats that need masks have only those with one.
    pub objects: usize,
    /// What is not in it.
    pub left_out: LeftOut,
}

impl fmt::Display for ExportSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folder = self.folder.display();
        write!(
            f,
            "{folder} has {} images with {} objects",
            self.images, self.objects
        )?;
        match self.left_out.describe() {
            Some(left_out) => write!(f, "; {left_out}"),
            None => Ok(()),
        }
    }
}
