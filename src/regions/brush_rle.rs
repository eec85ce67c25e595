//! The run-length encoding of Label Studio's brush, a stream of bits.
//!
//! The header: 32 bits for the number of values (four per pixel: the mask's value as red, green, blue and alpha), 5
//! bits for the word size minus one, and four times 4 bits for the sizes of run lengths minus one (3, 4, 8, 16). Then
//! the runs: one bit "all values are equal", two bits that select the size of the length, the length minus one, and
//! the value.

use crate::geometry::{ImageSize, Mask, Runs};

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

/// Decodes the bytes of a brush region; a pixel is set if its opacity is not 0. `None` if they are damaged, or not those of
/// an image of this size.
pub fn decode(bytes: &[u8], size: ImageSize) -> Option<Mask> {
    let mut reader = BitReader { bytes, at: 0 };
    let values = u64::from(reader.take(32)?);
    let word_bits = reader.take(5)? + 1;
    let mut run_bits = [0; 4];
    for bits in &mut run_bits {
        *bits = reader.take(4)? + 1;
    }
    if values != size.area() as u64 * VALUES_PER_PIXEL {
        return None;
    }
    let (mut runs, mut at) = (Runs::default(), 0);
    while at < values {
        let is_repeated = reader.take(1)? == 1;
        let index = reader.take(2)? as usize;
        let length = u64::from(reader.take(run_bits[index])?) + 1;
        let end = (at + length).min(values);
        // the last of a pixel's four values is its opacity
        let opacities =
            |from: u64, to: u64| (to / VALUES_PER_PIXEL - from / VALUES_PER_PIXEL) as u32;
        if is_repeated {
            let is_set = reader.take(word_bits)? != 0;
            runs.push(is_set, opacities(at, end));
        } else {
            for value in at..at + length {
                let is_set = reader.take(word_bits)? != 0;
                if value < values {
                    runs.push(is_set, opacities(value, value + 1));
                }
            }
        }
        at = end;
    }
    Some(Mask::from_runs(size, runs))
}

/// A bit reader; the highest bit comes first.
struct BitReader<'a> {
    bytes: &'a [u8],
    /// The number of bits that were read.
    at: usize,
}

impl BitReader<'_> {
    /// The next bits, at most 32, as a number; `None` after the end.
    fn take(&mut self, count: u32) -> Option<u32> {
        let mut value = 0u64;
        for _ in 0..count {
            let byte = self.bytes.get(self.at / 8)?;
            value = value << 1 | u64::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Some(value as u32)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_decoded_as_they_were_encoded() {
        let size = ImageSize {
            height: 37,
            width: 91,
        };
        for modulus in [1, 2, 7, 50, 4000] {
            let pixels = (0..size.area()).map(|i| i % modulus == modulus / 2 || i % 97 < 30);
            let mask = Mask::from_pixels(size, pixels);
            let bytes = encode(&mask);
            assert_eq!(decode(&bytes, size).as_ref(), Some(&mask));
            for damaged in [&bytes[..bytes.len() - 2], &bytes[..3], &[]] {
                assert_eq!(decode(damaged, size), None);
            }
            let other = ImageSize {
                height: 38,
                width: 91,
            };
            assert_eq!(decode(&bytes, other), None);
        }
    }

    #[test]
    fn a_run_of_different_values_is_decoded() {
        // two pixels: the first has four values of their own, the second one run of 255
        let mut writer = BitWriter::default();
        writer.push(8, 32);
        writer.push(WORD_BITS - 1, 5);
        for size in RUN_BITS {
            writer.push(size - 1, 4);
        }
        writer.push(0, 1);
        writer.push(0, 2);
        writer.push(3, 3);
        for value in [1, 2, 3, 0] {
            writer.push(value, 8);
        }
        writer.push(1, 1);
        writer.push(0, 2);
        writer.push(3, 3);
        writer.push(255, 8);
        let size = ImageSize {
            height: 1,
            width: 2,
        };
        let mask = decode(&writer.finish(), size).unwrap();
        assert_eq!(mask.pixels().collect::<Vec<_>>(), [false, true]);
    }
}
