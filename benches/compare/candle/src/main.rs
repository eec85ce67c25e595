//! Times an image encoder of the published `candle_transformers::models::segment_anything` on an image of 1024x1024.
//!
//! `candle-as-it-comes sam-vit-base|mobile-sam --runs N` prints `{"seconds": [...]}`, one number for each timed run,
//! after one untimed run. `RAYON_NUM_THREADS` sets the number of threads.

use std::time::Instant;

use candle_core::{DType, Device, Error, Module, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::segment_anything::image_encoder::ImageEncoderViT;
use candle_transformers::models::segment_anything::tiny_vit::tiny_vit_5m;

const SIDE: usize = 1024;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage =
        || Error::Msg("usage: candle-as-it-comes sam-vit-base|mobile-sam --runs N".to_owned());
    let [work, flag, runs] = arguments.as_slice() else {
        return Err(usage());
    };
    if flag != "--runs" {
        return Err(usage());
    }
    let runs: usize = runs.parse().map_err(|_| usage())?;

    let device = Device::Cpu;
    // random weights from the initialisation of each layer
    let weights = VarMap::new();
    let vb = VarBuilder::from_varmap(&weights, DType::F32, &device);
    let encoder: Box<dyn Module> = match work.as_str() {
        "sam-vit-base" => Box::new(vit_b(vb)?),
        "mobile-sam" => Box::new(tiny_vit_5m(vb)?),
        _ => return Err(usage()),
    };
    let pixels = Tensor::randn(0f32, 1f32, (1, 3, SIDE, SIDE), &device)?;
    encoder.forward(&pixels)?;
    let mut seconds = vec![];
    for _ in 0..runs {
        let start = Instant::now();
        encoder.forward(&pixels)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    println!("{}", serde_json::json!({ "seconds": seconds }));
    Ok(())
}

/// SAM's ViT-B, as `Sam::new` builds it.
fn vit_b(vb: VarBuilder) -> Result<ImageEncoderViT> {
    let (patch, channels, width, depth, heads, output) = (16, 3, 768, 12, 12, 256);
    let (qkv_bias, relative_positions, absolute_positions) = (true, true, true);
    let window = 14;
    let global = [2, 5, 8, 11];
    ImageEncoderViT::new(
        SIDE,
        patch,
        channels,
        width,
        depth,
        heads,
        output,
        qkv_bias,
        relative_positions,
        absolute_positions,
        window,
        &global,
        vb,
    )
}
