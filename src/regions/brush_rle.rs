//! The run-length encoding of Label Studio's brush, a stream of bits.
//!
//! The header: 32 bits for the number of values (four per pixel: the mask's value as red, green, blue and alpha), 5
//! bits for the word size minus one, and four times 4 bits for the sizes of run lengths minus one (3, 4, 8, 16). Then
//! the runs: one bit "all values are equal", two bits that select the size of the length, the length minus one, and
//! the value.

use crate::geometry::Mask;

const WORD_BITS: u32 = 8;
const RUN_BITS: [u32; 4] = [3, 4, 8, 16];
const VALUES_PER_PIXEL: u64 = 4;
/// The value of a set pixel; the editor uses it as opacity.
const SET_VALUE: u32 = 255;

/// Encodes a mask to the same bytes as `mask2rle` of `label_studio_sdk`.
pub fn encode(mask: &Mask) -> Vec<u8> {
    let mut writer = BitWriter::default();
    writer.push(mask.size().area() as u32 * VALUES_PER_PIXEL as u32, 32);
    writer.push(WORD_BITS - 1, 5);
    for size in RUN_BITS {
        writer.push(size - 1, 4);
    }
    for (i, run) in mask.runs().iter().enumerate() {
        let value = if i % 2 == 1 { SET_VALUE } else { 0 };
        let mut length = u64::from(*run) * VALUES_PER_PIXEL;
        while length > 0 {
            let part = length.min(1 << RUN_BITS[3]);
            // the smallest size that holds the length
            let index = RUN_BITS
                .iter()
                .position(|size| part <= 1 << size)
                .unwrap_or(3);
            writer.push(1, 1);
            writer.push(index as u32, 2);
            writer.push(part as u32 - 1, RUN_BITS[index]);
            writer.push(value, WORD_BITS);
            length -= part;
        }
    }
    writer.finish()
}

/// A bit writer; the highest bit comes first.
#[derive(Debug, Default)]
struct BitWriter {
    bytes: Vec<u8>,
    pending: u64,
    pending_bits: u32,
}

impl BitWriter {
    fn push(&mut self, value: u32, count: u32) {
        self.pending = self.pending << count | u64::from(value);
        self.pending_bits += count;
        while self.pending_bits >= 8 {
            self.pending_bits -= 8;
            self.bytes.push((self.pending >> self.pending_bits) as u8);
        }
        self.pending &= (1 << self.pending_bits) - 1;
    }

    /// Pads with one to eight zero bits, as the SDK does.
    fn finish(mut self) -> Vec<u8> {
        self.push(0, 8 - self.pending_bits);
        self.bytes
    }
}
