//! Runs the expensive part of each model once per image, and then asks many cheap questions about it:
//!
//! ```sh
//! cargo run --release --example embed_once_prompt_many
//! ```
//!
//! The detector's image features do not depend on the prompt, and the segmenter's image embedding does not depend on
//! boxes and points. An editor keeps both, so that another prompt or another click takes a fraction of the first one's
//! time. The example uses the demo models and needs no feature of the crate.

use std::time::Instant;

use groundling::candle_core::{DType, Device};
use groundling::detector::{DetectionOptions, Detector, detections};
use groundling::geometry::{ImageSize, Point, SegmentPrompt};
use groundling::models::weights::Checkpoint;
use groundling::prompt::Prompt;
use groundling::segmenter::Segmenter;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = |name: &str| Checkpoint::Folder(format!("models/demo/{name}").into());
    let detector = Detector::load(&folder("detector"), DType::F32, &Device::Cpu)?;
    let segmenter = Segmenter::load(&folder("segmenter"), DType::F32, &Device::Cpu)?;
    let image = image::open("examples/images/shapes.png")?.into_rgb8();

    let start = Instant::now();
    let features = detector.encode_image(&image)?;
    println!("image features: {:?}", start.elapsed());
    let options = DetectionOptions::default();
    for text in ["red circle", "blue star", "circle. star."] {
        let start = Instant::now();
        let prompt = Prompt::parse(text)?;
        // a prompt with more tokens than the model accepts takes several passes
        let passes = detector.passes(&prompt)?;
        let mut queries = vec![];
        for pass in &passes {
            let text = detector.encode_text(&pass.caption)?;
            queries.push(detector.run_pass(&features, &text)?);
        }
        let found = detections(passes.iter().zip(&queries), ImageSize::of(&image), &options);
        println!("{text:?}: {} objects, {:?}", found.len(), start.elapsed());
    }

    let start = Instant::now();
    let embedding = segmenter.encode(&image)?;
    println!("image embedding: {:?}", start.elapsed());
    for (x, y) in [(505.0, 375.0), (152.0, 396.0)] {
        let start = Instant::now();
        let click = SegmentPrompt {
            bounding_box: None,
            points: vec![Point {
                x,
                y,
                is_foreground: true,
            }],
        };
        let mask = segmenter
            .segment_prompt(&embedding, &click)?
            .to_image_size();
        println!(
            "click at {x}, {y}: {} pixels, {:?}",
            mask.mask.area(),
            start.elapsed()
        );
    }
    Ok(())
}
