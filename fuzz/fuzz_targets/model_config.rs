//! Any JSON as `config.json` or `preprocessor_config.json` of a model is rejected, or gives a configuration whose sizes
//! can be computed.

#![no_main]

use groundling::detector::image_processor::ImageProcessor as DetectorImages;
use groundling::geometry::ImageSize;
use groundling::models::weights::ModelConfig;
use groundling::models::{grounding_dino, sam};
use groundling::segmenter::image_processor::ImageProcessor as SegmenterImages;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    if let Ok(config) = serde_json::from_slice::<grounding_dino::Config>(json)
        && config.validate().is_ok()
    {
        let stages = config
            .backbone_config
            .output_stages()
            .expect("a valid configuration has output stages");
        assert!(stages.len() <= config.num_feature_levels);
    }
    if let Ok(config) = serde_json::from_slice::<sam::Config>(json)
        && config.validate().is_ok()
    {
        assert!(config.vision_config.grid() <= 512);
    }
    if let Ok(images) = serde_json::from_slice::<DetectorImages>(json)
        && images.validate().is_ok()
    {
        for (height, width) in [(1, 1), (480, 640), (1, 20_000), (20_000, 1)] {
            let size = images.target_size(ImageSize { height, width });
            assert!(size.area() > 0);
        }
    }
    if let Ok(images) = serde_json::from_slice::<SegmenterImages>(json) {
        let _ = images.validate();
    }
});
