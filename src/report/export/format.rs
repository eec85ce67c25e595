//! The formats of datasets.

/// The format of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportFormat {
    /// COCO: `annotations.json` with boxes and masks (compressed RLE) beside `images`.
    Coco,
    /// Ultralytics YOLO for detection: `images`, `labels` with boxes, and `data.yaml`.
    Yolo,
    /// Ultralytics YOLO for segmentation: the same with the outlines of masks.
    YoloSegments,
    /// PNG files: class numbers in `masks`, instance numbers in `instances`, beside `images`, with `classes.txt`.
    Masks,
}

impl ExportFormat {
    /// The name on the command line, which is also that of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Coco => "coco",
            Self::Yolo => "yolo",
            Self::YoloSegments => "yolo-segments",
            Self::Masks => "masks",
        }
    }

    /// Whether it stores masks if there are any.
    pub fn uses_masks(self) -> bool {
        self != Self::Yolo
    }

    /// Whether it can store only objects with masks.
    pub fn needs_masks(self) -> bool {
        matches!(self, Self::YoloSegments | Self::Masks)
    }
}
