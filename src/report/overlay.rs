//! Draws a prediction on its image: masks, boxes, phrases and scores.

use ab_glyph::{Font, FontRef, Glyph, ScaleFont, point};
use epaint_default_fonts::HACK_REGULAR;
use image::{Rgb, RgbImage};

use crate::geometry::{BoundingBox, ImageSize, Mask};
use crate::pipeline::{DetectedObject, Prediction};
use crate::prompt::Prompt;

/// Distinct colours of phrases, visible on light and dark images.
const PALETTE: [[u8; 3]; 8] = [
    [214, 51, 132],
    [0, 150, 170],
    [244, 140, 6],
    [155, 81, 224],
    [42, 157, 84],
    [230, 57, 70],
    [29, 120, 245],
    [128, 110, 20],
];

/// Opacity of a mask's colour, of 255.
const MASK_OPACITY: u32 = 110;

/// Draws every object. A phrase of the prompt has the same colour in all images.
pub fn draw(image: &RgbImage, prediction: &Prediction, prompt: &Prompt) -> RgbImage {
    let mut canvas = image.clone();
    let sizes = DrawingSizes::for_size(prediction.size);
    // the best object is drawn last, on top
    for object in prediction.objects.iter().rev() {
        if let Some(scored) = &object.mask {
            fill_mask(&mut canvas, &scored.mask, color_of(object, prompt));
        }
    }
    for object in prediction.objects.iter().rev() {
        let color = color_of(object, prompt);
        let corners = object.detection.bounding_box.clamped(prediction.size);
        draw_box(&mut canvas, corners, color, sizes.line);
        draw_caption(
            &mut canvas,
            &object.detection.describe(),
            corners,
            color,
            sizes,
        );
    }
    canvas
}

fn color_of(object: &DetectedObject, prompt: &Prompt) -> Rgb<u8> {
    let object_phrase = object.detection.phrase.as_ref();
    let mut phrases = prompt.phrases().iter();
    let index = phrases.position(|phrase| Some(phrase) == object_phrase);
    Rgb(PALETTE[index.unwrap_or(0) % PALETTE.len()])
}

/// Line width and letter size, in pixels, for an image's size.
#[derive(Debug, Clone, Copy)]
struct DrawingSizes {
    line: i64,
    letter_height: f32,
}

impl DrawingSizes {
    fn for_size(size: ImageSize) -> Self {
        let side = size.height.min(size.width);
        Self {
            line: (side as i64 / 250).max(2),
            letter_height: (side as f32 / 30.0).clamp(14.0, 64.0),
        }
    }
}

/// Colours the mask and darkens its outline.
fn fill_mask(canvas: &mut RgbImage, mask: &Mask, color: Rgb<u8>) {
    let size = mask.size();
    let set: Vec<bool> = mask.pixels().collect();
    let is_set = |x: usize, y: usize| x < size.width && y < size.height && set[y * size.width + x];
    for y in 0..size.height {
        for x in (0..size.width).filter(|x| set[y * size.width + x]) {
            let is_inside = is_set(x.wrapping_sub(1), y)
                && is_set(x + 1, y)
                && is_set(x, y.wrapping_sub(1))
                && is_set(x, y + 1);
            let opacity = if is_inside { MASK_OPACITY } else { 255 };
            blend(canvas, x as i64, y as i64, color, opacity);
        }
    }
}

fn draw_box(canvas: &mut RgbImage, b: BoundingBox, color: Rgb<u8>, line: i64) {
    let [x0, y0, x1, y1] = b.corners().map(|v| v.round() as i64);
    for (left, top, right, bottom) in [
        (x0, y0, x1, y0 + line),
        (x0, y1 - line, x1, y1),
        (x0, y0, x0 + line, y1),
        (x1 - line, y0, x1, y1),
    ] {
        fill(canvas, (left, top), (right, bottom), color);
    }
}

/// Draws the phrase and the score in a filled rectangle above the box, or inside the box at the image's edge.
fn draw_caption(
    canvas: &mut RgbImage,
    text: &str,
    b: BoundingBox,
    color: Rgb<u8>,
    sizes: DrawingSizes,
) {
    // without a font, the boxes are still drawn
    let Ok(font) = FontRef::try_from_slice(HACK_REGULAR) else {
        return;
    };
    let margin = sizes.letter_height / 5.0;
    let (glyphs, width, height) = lay_out(text, &font, sizes.letter_height);
    let (width, height) = ((width + 2.0 * margin).ceil() as i64, height.ceil() as i64);
    let left = (b.x0.round() as i64)
        .min(i64::from(canvas.width()) - width)
        .max(0);
    let above = b.y0.round() as i64 - height;
    let top = if above >= 0 {
        above
    } else {
        b.y0.round() as i64
    };
    fill(canvas, (left, top), (left + width, top + height), color);
    for outline in glyphs
        .into_iter()
        .filter_map(|glyph| font.outline_glyph(glyph))
    {
        let corner = outline.px_bounds().min;
        outline.draw(|x, y, coverage| {
            let x = left + (corner.x + margin) as i64 + i64::from(x);
            let y = top + corner.y as i64 + i64::from(y);
            let opacity = (coverage.clamp(0.0, 1.0) * 255.0) as u32;
            blend(canvas, x, y, Rgb([255; 3]), opacity);
        });
    }
}

/// The glyphs of a line of text, and the line's width and height in pixels.
fn lay_out(text: &str, font: &FontRef, letter_height: f32) -> (Vec<Glyph>, f32, f32) {
    let scaled = font.as_scaled(letter_height);
    let mut width = 0.0;
    let glyphs = text
        .chars()
        .map(|character| {
            let mut glyph = scaled.scaled_glyph(character);
            glyph.position = point(width, scaled.ascent());
            width += scaled.h_advance(glyph.id);
            glyph
        })
        .collect();
    (glyphs, width, scaled.height())
}

fn fill(canvas: &mut RgbImage, from: (i64, i64), to: (i64, i64), color: Rgb<u8>) {
    for y in from.1..to.1 {
        for x in from.0..to.0 {
            blend(canvas, x, y, color, 255);
        }
    }
}

/// Blends a colour over a pixel; positions outside the image are skipped.
fn blend(canvas: &mut RgbImage, x: i64, y: i64, color: Rgb<u8>, opacity: u32) {
    let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else {
        return;
    };
    if let Some(pixel) = canvas.get_pixel_mut_checked(x, y) {
        for (level, new) in pixel.0.iter_mut().zip(color.0) {
            let mixed = u32::from(*level) * (255 - opacity) + u32::from(new) * opacity;
            *level = ((mixed + 127) / 255) as u8;
        }
    }
}
