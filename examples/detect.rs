//! Finds the objects that a prompt names in an image, and prints their boxes:
//!
//! ```sh
//! cargo run --release --example detect -- IMAGE PROMPT MODEL
//! cargo run --release --example detect -- kitchen.jpg "bok choi. pot." models/grounding-dino-tiny
//! ```
//!
//! MODEL is a folder with a Grounding DINO checkpoint, or a file of weights. Without arguments, the demo model searches
//! a picture of shapes. The example needs no feature of the crate.

use std::path::PathBuf;

use groundling::candle_core::{DType, Device};
use groundling::detector::{DetectionOptions, Detector};
use groundling::models::weights::Checkpoint;
use groundling::prompt::Prompt;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let image = next("examples/images/shapes.png");
    let prompt = next("red circle. blue star.");
    let model = PathBuf::from(next("models/demo/detector"));

    let checkpoint = match model.is_dir() {
        true => Checkpoint::Folder(model),
        false => Checkpoint::File(model),
    };
    let detector = Detector::load(&checkpoint, DType::F32, &Device::Cpu)?;
    let image = image::open(image)?.into_rgb8();
    let prompt = Prompt::parse(&prompt)?;
    let options = DetectionOptions {
        box_threshold: 0.35,
        ..DetectionOptions::default()
    };
    for detection in detector.detect(&image, &prompt, &options)? {
        let [x0, y0, x1, y1] = detection.bounding_box.corners();
        println!(
            "{:<20} {:.2}  x {x0:.0} to {x1:.0}, y {y0:.0} to {y1:.0}",
            detection.phrase.as_deref().unwrap_or("(no phrase)"),
            detection.score
        );
    }
    Ok(())
}
