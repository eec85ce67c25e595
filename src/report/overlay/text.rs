//! Lines of text in the compiled-in font.

use ab_glyph::{Font, FontRef, Glyph, PxScaleFont, ScaleFont, point};
use epaint_default_fonts::HACK_REGULAR;
use image::{Rgb, RgbImage};

use super::canvas::{Rect, blend};

/// The end of a text that was shortened.
const ELLIPSIS: char = '…';

/// The font; `None` if the compiled-in file cannot be read.
pub(super) fn font() -> Option<FontRef<'static>> {
    FontRef::try_from_slice(HACK_REGULAR).ok()
}

/// A line of text that is laid out, with a margin on both sides.
#[derive(Debug, Clone)]
pub(super) struct Line {
    glyphs: Vec<Glyph>,
    /// Width and height in pixels, with the margins.
    pub(super) size: (i64, i64),
}

impl Line {
    /// Lays out a text with letters of this height in pixels. A text that is wider than `largest` (width and height) is
    /// shortened; `None` if it does not fit even then.
    pub(super) fn new(
        text: &str,
        font: &FontRef<'_>,
        letter_height: f32,
        largest: (i64, i64),
    ) -> Option<Self> {
        let scaled = font.as_scaled(letter_height);
        let fits = |line: &Self| -> bool { line.size.0 <= largest.0 && line.size.1 <= largest.1 };
        let whole = Self::lay_out(text.chars(), &scaled);
        if fits(&whole) {
            return Some(whole);
        }
        let characters: Vec<char> = text.chars().collect();
        // the longest beginning that fits; each further character makes the line wider
        let (mut fitting, mut too_long) = (0, characters.len());
        while fitting + 1 < too_long {
            let middle = (fitting + too_long) / 2;
            match fits(&Self::shortened(&characters[..middle], &scaled)) {
                true => fitting = middle,
                false => too_long = middle,
            }
        }
        (fitting > 0).then(|| Self::shortened(&characters[..fitting], &scaled))
    }

    fn shortened(beginning: &[char], font: &PxScaleFont<&FontRef<'_>>) -> Self {
        Self::lay_out(beginning.iter().copied().chain([ELLIPSIS]), font)
    }

    fn lay_out(characters: impl Iterator<Item = char>, font: &PxScaleFont<&FontRef<'_>>) -> Self {
        let margin = (font.scale().y / 5.0).ceil();
        let mut end = margin;
        let glyphs = characters.map(|character| {
            let mut glyph = font.scaled_glyph(character);
            glyph.position = point(end, font.ascent());
            end += font.h_advance(glyph.id);
            glyph
        });
        let glyphs = glyphs.collect();
        Self {
            glyphs,
            size: ((end + margin).ceil() as i64, font.height().ceil() as i64),
        }
    }

    /// Draws the text into a rectangle of its size. No pixel outside the rectangle changes.
    pub(super) fn draw(
        self,
        canvas: &mut RgbImage,
        font: &FontRef<'_>,
        rect: Rect,
        color: Rgb<u8>,
    ) {
        let glyphs = self.glyphs.into_iter();
        for outline in glyphs.filter_map(|glyph| font.outline_glyph(glyph)) {
            let corner = outline.px_bounds().min;
            let (left, top) = (rect.left + corner.x as i64, rect.top + corner.y as i64);
            outline.draw(|x, y, coverage| {
                let pixel = Rect::new(left + i64::from(x), top + i64::from(y), (1, 1));
                // a glyph may extend a little beyond its advance
                if rect.contains(pixel) {
                    let opacity = (coverage.clamp(0.0, 1.0) * 255.0) as u32;
                    blend(canvas, (pixel.left, pixel.top), color, opacity);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_too_wide_is_shortened() {
        let font = font().unwrap();
        let line = |text: &str, largest| Line::new(text, &font, 16.0, largest);
        let whole = line("red circle 0.97", (1000, 100)).unwrap();
        assert_eq!(whole.glyphs.len(), 15);
        let (width, height) = whole.size;
        assert_eq!(
            line("red circle 0.97", (width, height)).unwrap().size,
            whole.size
        );
        let shortened = line("red circle 0.97", (width - 1, height)).unwrap();
        assert_eq!(shortened.glyphs.len(), 14);
        let narrow = line("red circle 0.97", (width / 2, height)).unwrap();
        assert!(narrow.size.0 <= width / 2 && narrow.glyphs.len() > 4);
        for largest in [(width, height - 1), (5, height), (0, 0)] {
            assert!(line("red circle 0.97", largest).is_none(), "{largest:?}");
        }
        assert!(line("", (100, 100)).is_some());
        assert!(line("", (1, 1)).is_none());
    }

    #[test]
    fn text_is_drawn_inside_its_rectangle() {
        let font = font().unwrap();
        for text in ["jÅ|gy__/\\", "ffff", "WWW"] {
            let line = Line::new(text, &font, 20.0, (1000, 100)).unwrap();
            let rect = Rect::new(30, 20, line.size);
            let mut canvas = RgbImage::new(400, 100);
            line.draw(&mut canvas, &font, rect, Rgb([255; 3]));
            let pixels = canvas.enumerate_pixels();
            let drawn: Vec<Rect> = pixels
                .filter(|(_, _, pixel)| pixel.0[0] > 0)
                .map(|(x, y, _)| Rect::new(x.into(), y.into(), (1, 1)))
                .collect();
            assert!(drawn.len() > 20, "{text}");
            assert!(drawn.iter().all(|pixel| rect.contains(*pixel)), "{text}");
        }
    }
}
