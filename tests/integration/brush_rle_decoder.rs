//! A decoder of Label Studio's brush RLE. The fuzz target `masks` uses it too.

/// Decodes the values of a mask. It follows the description of the format and shares no code with groundling's encoder.
pub fn decode(bytes: &[u8]) -> Vec<u8> {
    let mut at = 0;
    let mut take = |count: usize| {
        let mut value = 0usize;
        for _ in 0..count {
            let bit = bytes[at / 8] >> (7 - at % 8) & 1;
            value = value << 1 | usize::from(bit);
            at += 1;
        }
        value
    };
    let count = take(32);
    let word = take(5) + 1;
    let sizes: Vec<usize> = (0..4).map(|_| take(4) + 1).collect();
    let mut values = vec![];
    while values.len() < count {
        let is_run = take(1) == 1;
        let size = sizes[take(2)];
        let length = take(size) + 1;
        if is_run {
            let value = take(word) as u8;
            values.extend(std::iter::repeat_n(value, length));
        } else {
            values.extend((0..length).map(|_| take(word) as u8));
        }
    }
    assert_eq!(values.len(), count, "the last run is longer than the mask");
    values
}
