//! Segments the object in a box, and saves its mask as a black and white PNG:
//!
//! ```sh
//! cargo run --release --example segment -- IMAGE X0 Y0 X1 Y1 MODEL
//! cargo run --release --example segment -- kitchen.jpg 120 80 340 300 models/mobile_sam.pt
//! ```
//!
//! Coordinates are pixels. MODEL is a folder with a SAM checkpoint, or a file of weights. Without arguments, the demo model
//! segments a red circle. The example needs no feature of the crate.

use std::path::PathBuf;

use groundling::candle_core::{DType, Device};
use groundling::geometry::BoundingBox;
use groundling::models::weights::Checkpoint;
use groundling::segmenter::Segmenter;
use image::GrayImage;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let image = next("examples/images/shapes.png");
    let bounding_box = BoundingBox {
        x0: next("415").parse()?,
        y0: next("286").parse()?,
        x1: next("595").parse()?,
        y1: next("466").parse()?,
    };
    let model = PathBuf::from(next("models/demo/segmenter"));

    let checkpoint = match model.is_dir() {
        true => Checkpoint::Folder(model),
        false => Checkpoint::File(model),
    };
    let segmenter = Segmenter::load(&checkpoint, DType::F32, &Device::Cpu)?;
    let image = image::open(image)?.into_rgb8();
    let encoded = segmenter.encode(&image)?;
    for (i, found) in segmenter
        .segment_boxes(&encoded, &[bounding_box])?
        .iter()
        .enumerate()
    {
        let pixels = found
            .mask
            .pixels()
            .map(|is_set| if is_set { 255 } else { 0 });
        let picture = GrayImage::from_raw(image.width(), image.height(), pixels.collect());
        let path = std::env::temp_dir().join(format!("mask-{i}.png"));
        picture
            .ok_or("the mask has another size than the image")?
            .save(&path)?;
        println!(
            "{} pixels, estimated quality {:.2}, saved as {}",
            found.mask.area(),
            found.score,
            path.display()
        );
    }
    Ok(())
}
