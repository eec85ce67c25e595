//! The colours of phrases, labels and classes, in pictures and on the page of the playground.

use image::Rgb;

/// Colours that differ in hue and lightness: in OKLab (Ottosson 2020), any two of them are at least 0.2 apart, about ten
/// times the smallest difference that a person sees. They were found by maximising the smallest distance. The first ones are
/// those that are rare in photographs.
pub const PALETTE: [[u8; 3]; 12] = [
    [213, 84, 249],
    [27, 230, 235],
    [245, 175, 32],
    [106, 238, 34],
    [85, 152, 249],
    [245, 90, 121],
    [166, 15, 101],
    [39, 168, 51],
    [8, 98, 156],
    [159, 103, 0],
    [235, 177, 253],
    [120, 13, 209],
];

/// The colour of an object without a phrase: a grey, so that it has the colour of no phrase.
pub const UNNAMED: Rgb<u8> = Rgb([140, 140, 140]);

/// The colour of the phrase or class with this number, from 0. The thirteenth has the first colour again.
pub fn color(index: usize) -> Rgb<u8> {
    Rgb(PALETTE[index % PALETTE.len()])
}

/// A colour in the notation of HTML, such as `#d554f9`.
pub fn html(color: Rgb<u8>) -> String {
    let [red, green, blue] = color.0;
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// Black or white: the colour of text that has the higher contrast on a background.
pub fn text_color(background: Rgb<u8>) -> Rgb<u8> {
    let luminance = luminance(background);
    // the contrast of two colours is the quotient of their luminances plus 0.05 (WCAG 2.1)
    let (on_white, on_black) = (1.05 / (luminance + 0.05), (luminance + 0.05) / 0.05);
    match on_black > on_white {
        true => Rgb([0; 3]),
        false => Rgb([255; 3]),
    }
}

/// The relative luminance of an sRGB colour, 0..1 (WCAG 2.1).
fn luminance(color: Rgb<u8>) -> f32 {
    let [red, green, blue] = color.0.map(linear);
    0.2126 * red + 0.7152 * green + 0.0722 * blue
}

/// The linear value, 0..1, of an sRGB level.
fn linear(level: u8) -> f32 {
    let level = f32::from(level) / 255.0;
    match level <= 0.04045 {
        true => level / 12.92,
        false => ((level + 0.055) / 1.055).powf(2.4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_has_two_digits_per_channel() {
        assert_eq!(html(Rgb([0, 10, 255])), "#000aff");
    }

    /// The coordinates of a colour in OKLab (<https://bottosson.github.io/posts/oklab/>).
    fn oklab(color: [u8; 3]) -> [f32; 3] {
        let [r, g, b] = color.map(linear);
        let l = (0.412_221_46 * r + 0.536_332_55 * g + 0.051_445_995 * b).cbrt();
        let m = (0.211_903_5 * r + 0.680_699_5 * g + 0.107_396_96 * b).cbrt();
        let s = (0.088_302_46 * r + 0.281_718_85 * g + 0.629_978_7 * b).cbrt();
        [
            0.210_454_26 * l + 0.793_617_8 * m - 0.004_072_047 * s,
            1.977_998_5 * l - 2.428_592_2 * m + 0.450_593_7 * s,
            0.025_904_037 * l + 0.782_771_77 * m - 0.808_675_77 * s,
        ]
    }

    #[test]
    fn the_colours_of_phrases_differ_pairwise() {
        let grey = [UNNAMED.0];
        let colors: Vec<[u8; 3]> = PALETTE.iter().chain(&grey).copied().collect();
        for (i, a) in colors.iter().enumerate() {
            for b in &colors[i + 1..] {
                let squares = oklab(*a).into_iter().zip(oklab(*b));
                let squares = squares.map(|(a, b)| (a - b).powi(2));
                let distance = squares.sum::<f32>().sqrt();
                let smallest = if *b == UNNAMED.0 { 0.1 } else { 0.2 };
                assert!(distance > smallest, "{a:?} and {b:?}: {distance}");
            }
        }
        assert_eq!(color(0), color(PALETTE.len()));
    }

    #[test]
    fn text_has_a_contrast_of_at_least_4_5_on_every_colour() {
        for background in PALETTE.into_iter().map(Rgb).chain([UNNAMED]) {
            let (text, background) = (luminance(text_color(background)), luminance(background));
            let contrast = (text.max(background) + 0.05) / (text.min(background) + 0.05);
            // WCAG 2.1, level AA
            assert!(contrast >= 4.5, "{contrast}");
        }
        assert_eq!(text_color(Rgb([255, 255, 0])), Rgb([0; 3]));
        assert_eq!(text_color(Rgb([0, 0, 160])), Rgb([255; 3]));
    }
}
