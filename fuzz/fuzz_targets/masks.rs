//! Any mask is unchanged after encoding and decoding as brush RLE (with an independent decoder) and as COCO RLE. Any text
//! as COCO RLE is rejected, or gives a mask that is unchanged after encoding and decoding.

#![no_main]

#[path = "../../tests/integration/brush_rle_decoder.rs"]
mod brush_rle_decoder;

use groundling::geometry::{ImageSize, Mask};
use groundling::regions::brush_rle;
use groundling::report::coco_rle::CocoRle;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (height, width, bytes) = input;
    let size = ImageSize {
        height: usize::from(height),
        width: usize::from(width),
    };
    let bits = bytes
        .iter()
        .flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
    let mask = Mask::from_pixels(size, bits);
    assert_eq!(mask.pixels().count(), size.area());

    let values = brush_rle_decoder::decode(&brush_rle::encode(&mask));
    let expected = mask
        .pixels()
        .flat_map(|is_set| [if is_set { 255 } else { 0 }; 4]);
    assert!(values.into_iter().eq(expected));

    assert_eq!(CocoRle::new(&mask).mask().as_ref(), Some(&mask));
    let Ok(counts) = std::str::from_utf8(bytes) else {
        return;
    };
    for size in [
        [size.height, size.width],
        [usize::MAX, size.width],
        [1 << 40, 1],
    ] {
        let rle = CocoRle {
            size,
            counts: counts.to_owned(),
        };
        if let Some(mask) = rle.mask() {
            assert_eq!(CocoRle::new(&mask).mask().as_ref(), Some(&mask));
        }
    }
});
