//! COCO's compressed run-length masks, as `pycocotools` reads and writes them.

use serde::Serialize;

use crate::geometry::Mask;

/// A mask as COCO files hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CocoRle {
    /// Height and width.
    pub size: [usize; 2],
    /// Run lengths, column by column, in six-bit characters.
    pub counts: String,
}

impl CocoRle {
    /// Encodes a mask.
    pub fn new(mask: &Mask) -> Self {
        let size = mask.size();
        let pixels: Vec<bool> = mask.pixels().collect();
        let columns = (0..size.width).flat_map(|x| (0..size.height).map(move |y| (y, x)));
        let mut runs = vec![0i64];
        let mut is_set = false;
        for (y, x) in columns {
            if pixels[y * size.width + x] != is_set {
                is_set = !is_set;
                runs.push(0);
            }
            if let Some(run) = runs.last_mut() {
                *run += 1;
            }
        }
        Self {
            size: [size.height, size.width],
            counts: compress(&runs),
        }
    }
}

/// From the fourth on, a run is told as the difference to the one two before; five bits to a
/// character, the lowest first, the sixth bit says that more follow (`rleToString` of pycocotools).
fn compress(runs: &[i64]) -> String {
    let mut text = String::new();
    for (i, run) in runs.iter().enumerate() {
        let mut rest = if i > 2 { run - runs[i - 2] } else { *run };
        loop {
            let five = (rest & 0x1f) as u8;
            rest >>= 5;
            // the sign is the highest of the last five bits
            let more = if five & 0x10 == 0 {
                rest != 0
            } else {
                rest != -1
            };
            text.push(char::from(48 + five + if more { 0x20 } else { 0 }));
            if !more {
                break;
            }
        }
    }
    text
}
