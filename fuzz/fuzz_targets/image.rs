//! Any bytes as an image file are an error, or an image with at most the allowed number of pixels. Such an image is
//! resized to any size with levels between its own lowest and highest level, and can be prepared for both models.

#![no_main]

use candle_core::{DType, Device};
use groundling::detector::image_processor::ImageProcessor as DetectorImages;
use groundling::geometry::ImageSize;
use groundling::media::decode;
use groundling::pixels::resize;
use groundling::segmenter::image_processor::ImageProcessor as SegmenterImages;
use libfuzzer_sys::fuzz_target;

const MAX_PIXELS: usize = 1 << 20;

fuzz_target!(
    init: {
        // a panic of a decoder is an error of the image; only panics in groundling are printed
        std::panic::set_hook(Box::new(|info| {
            let is_ours = |location: &std::panic::Location| !location.file().contains("registry");
            if info.location().is_some_and(is_ours) {
                eprintln!("{info}");
            }
        }));
    },
    |input: (u8, u8, &[u8])| {
    let (height, width, bytes) = input;
    let Ok(image) = decode(bytes, MAX_PIXELS) else {
        return;
    };
    let original = ImageSize::of(&image);
    assert!(original.area() <= MAX_PIXELS);
    let size = ImageSize {
        height: height.into(),
        width: width.into(),
    };
    match resize(&image, size) {
        Ok(resized) => {
            assert_eq!(ImageSize::of(&resized), size);
            let range =
                |levels: &[u8]| (levels.iter().min().copied(), levels.iter().max().copied());
            let (low, high) = range(&image);
            let (resized_low, resized_high) = range(&resized);
            // weights are rounded to 22 bits; over thousands of pixels the errors can add up to one level
            if original.height.max(original.width) <= 4096 {
                assert!(low <= resized_low && resized_high <= high);
            }
        }
        Err(_) => assert!(original.area() == 0 || size.area() == 0),
    }
    if original.area() == 0 {
        return;
    }
    let mut detector = DetectorImages::default();
    let published = detector.target_size(original);
    assert!((1..=1333).contains(&published.height) && (1..=1333).contains(&published.width));
    detector.resize_to(usize::from(height).max(1));
    let batch = detector.process(&[&image], DType::F32, &Device::Cpu);
    let batch = batch.expect("an image with pixels can be processed");
    let target = detector.target_size(original);
    assert_eq!(batch.valid_sizes, [(target.height, target.width)]);
    let side = usize::from(width).max(1);
    let (pixels, frame) = SegmenterImages::default()
        .process(&image, side, DType::F32, &Device::Cpu)
        .expect("an image with pixels can be processed");
    assert_eq!(pixels.dims(), [1, 3, side, side]);
    assert_eq!(frame.resized.height.max(frame.resized.width), side);
}
);
