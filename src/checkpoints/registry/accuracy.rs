//! Published accuracies, and measured costs.

/// A published accuracy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accuracy {
    /// What was measured.
    pub benchmark: Benchmark,
    /// The average precision in percent.
    pub ap: f32,
    /// Where it was published.
    pub source: &'static str,
}

/// What an accuracy was measured with. Numbers of different benchmarks cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Benchmark {
    /// Boxes for the 1,203 categories of LVIS on its minival images, without training on LVIS.
    LvisMinival,
    /// Boxes for the 80 categories of COCO on its validation images, without training on COCO.
    CocoZeroShot,
    /// The same after training with COCO.
    CocoTrained,
    /// Masks on COCO's validation images for the boxes that ViTDet-H detects, without training on COCO.
    CocoMasksOfVitDet,
    /// Masks on COCO's validation images for the boxes that FocalNet-L DINO detects, without training on COCO.
    CocoMasksOfFocalNet,
}

impl Benchmark {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::LvisMinival => "LVIS minival box AP",
            Self::CocoZeroShot => "COCO box AP",
            Self::CocoTrained => "COCO box AP (trained on COCO)",
            Self::CocoMasksOfVitDet => "COCO mask AP (boxes of ViTDet-H)",
            Self::CocoMasksOfFocalNet => "COCO mask AP (boxes of FocalNet-L DINO)",
        }
    }
}

/// What one image costs on the machine of [`MEASURED_ON`], with two threads and in f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Seconds: for a detector, an input of 800x1066 pixels and three phrases; for a segmenter, its image encoder and one
    /// box.
    pub seconds: f32,
    /// The peak memory of a process that runs only this model, in MiB.
    pub memory_mib: u32,
}

/// The machine on which [`Cost`] was measured, in words.
pub const MEASURED_ON: &str = "2 cores of an Intel Xeon with AVX-512";
/// The f32 rate of its matrix products with two threads, as `groundling models --recommend` measures it.
pub const MEASURED_PRODUCT_GFLOPS: f64 = 280.0;
