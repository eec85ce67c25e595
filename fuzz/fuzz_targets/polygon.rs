//! Outlines without tolerance cover exactly the mask, unless a part is small enough to be removed. With any tolerance
//! they have at least three corners, all inside the image.

#![no_main]

use groundling::geometry::{ImageSize, Mask};
use groundling::regions::polygon::outlines;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, u8, u16, &[u8])| {
    let (height, width, tolerance, bytes) = input;
    let bits = || {
        bytes
            .iter()
            .flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1))
    };
    // in at most 49 pixels, a single pixel is not small enough to be removed
    let small = ImageSize {
        height: usize::from(height % 8),
        width: usize::from(width % 8),
    };
    let mask = Mask::from_pixels(small, bits());
    assert_eq!(filled(&outlines(&mask, 0.0), small), mask);

    let size = ImageSize {
        height: usize::from(height),
        width: usize::from(width),
    };
    let mask = Mask::from_pixels(size, bits());
    let rings = outlines(&mask, f32::from(tolerance) / 64.0);
    assert_eq!(rings.is_empty(), mask.area() == 0);
    for ring in rings {
        assert!(ring.len() >= 3);
        for [x, y] in ring {
            assert!((0.0..=size.width as f32).contains(&x));
            assert!((0.0..=size.height as f32).contains(&y));
        }
    }
});

/// The pixels whose centre is inside an odd number of rings.
fn filled(rings: &[Vec<[f32; 2]>], size: ImageSize) -> Mask {
    let is_inside = |x: f32, y: f32| {
        let crossings = rings.iter().flat_map(|ring| {
            let next = ring.iter().cycle().skip(1);
            ring.iter().zip(next).filter(move |(a, b)| {
                let along = (y - a[1]) / (b[1] - a[1]);
                (a[1] > y) != (b[1] > y) && x < (b[0] - a[0]) * along + a[0]
            })
        });
        crossings.count() % 2 == 1
    };
    let pixels = (0..size.height).flat_map(|y| (0..size.width).map(move |x| (x, y)));
    let pixels = pixels.map(|(x, y)| is_inside(x as f32 + 0.5, y as f32 + 0.5));
    Mask::from_pixels(size, pixels)
}
