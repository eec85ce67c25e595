//! Draws a prediction on its image: masks, boxes, phrases and scores.

mod canvas;
mod placement;
mod text;

use ab_glyph::FontRef;
use image::{Rgb, RgbImage};

use self::canvas::Rect;
use self::placement::{WantedLabel, place};
use self::text::Line;
use crate::geometry::ImageSize;
use crate::palette;
use crate::pipeline::{DetectedObject, Prediction};
use crate::prompt::Prompt;

/// Draws every object. A phrase of the prompt has the same colour in all images. Labels do not overlap each other, and
/// none is cut by the edge of the image. If there are too many for the image, their letters become smaller, and then the
/// labels of the objects with the lowest scores are left out.
pub fn draw(image: &RgbImage, prediction: &Prediction, prompt: &Prompt) -> RgbImage {
    let mut canvas = image.clone();
    let sizes = DrawingSizes::for_size(prediction.size);
    let drawn: Vec<DrawnObject> = prediction
        .objects
        .iter()
        .map(|object| DrawnObject {
            object,
            rect: Rect::of_box(object.detection.bounding_box.clamped(prediction.size)),
            color: color_of(object, prompt),
        })
        .collect();
    // the best object is drawn last, on top
    for DrawnObject { object, color, .. } in drawn.iter().rev() {
        if let Some(scored) = &object.mask {
            canvas::mask(&mut canvas, &scored.mask, *color, sizes.outline());
        }
    }
    for DrawnObject { rect, color, .. } in drawn.iter().rev() {
        canvas::frame(&mut canvas, *rect, *color, sizes.line);
    }
    // without a font, the boxes are still drawn
    if let Some(font) = text::font() {
        draw_labels(&mut canvas, &drawn, &font, sizes);
    }
    canvas
}

/// An object with its colour, and its box in pixels of the image.
struct DrawnObject<'a> {
    object: &'a DetectedObject,
    rect: Rect,
    color: Rgb<u8>,
}

fn color_of(object: &DetectedObject, prompt: &Prompt) -> Rgb<u8> {
    let of_object = object.detection.phrase.as_deref();
    let index = prompt.wanted().position(|phrase| Some(phrase) == of_object);
    index.map_or(palette::UNNAMED, palette::color)
}

/// Line width and letter size, in pixels, for an image's size.
#[derive(Debug, Clone, Copy)]
struct DrawingSizes {
    line: i64,
    letter_height: f32,
}

/// The height of the smallest letters that can be read, in pixels.
const MIN_LETTER_HEIGHT: f32 = 11.0;
/// The sizes of letters that are tried, as shares of the usual one.
const LETTER_SCALES: [f32; 3] = [1.0, 0.8, 0.6];

impl DrawingSizes {
    fn for_size(size: ImageSize) -> Self {
        let side = size.height.min(size.width);
        Self {
            line: (side as i64 / 250).max(2),
            letter_height: (side as f32 / 30.0).clamp(14.0, 64.0),
        }
    }

    /// The width of a mask's outline: less than that of a box in large images.
    fn outline(self) -> i64 {
        (self.line * 2 / 3).max(2)
    }
}

/// Draws the labels with the largest letters for which all of them have a place, else as many as possible with the
/// smallest letters.
fn draw_labels(
    canvas: &mut RgbImage,
    drawn: &[DrawnObject],
    font: &FontRef<'_>,
    sizes: DrawingSizes,
) {
    let picture = Rect::of_image(canvas);
    let heights = LETTER_SCALES.map(|scale| (sizes.letter_height * scale).max(MIN_LETTER_HEIGHT));
    let mut labels = vec![];
    for height in heights {
        labels = lay_out(drawn, font, height, picture);
        if labels.len() == drawn.len() {
            break;
        }
    }
    // a line to the box of a label that is not beside it; below all labels, so that it crosses no text
    for Label { object, place, .. } in &labels {
        if !place.grown(1).overlaps(object.rect) {
            let end = object.rect.nearest_to(place.centre());
            let start = place.nearest_to(end);
            canvas::straight(canvas, start, end, object.color, sizes.outline());
        }
    }
    for Label {
        object,
        line,
        place,
    } in labels
    {
        canvas::fill(canvas, place, object.color);
        let color = palette::text_color(object.color);
        line.draw(canvas, font, place, color);
    }
}

/// A label that has a place.
struct Label<'a> {
    object: &'a DrawnObject<'a>,
    line: Line,
    place: Rect,
}

/// The labels that have a place, with letters of this height.
fn lay_out<'a>(
    drawn: &'a [DrawnObject<'a>],
    font: &FontRef<'_>,
    letter_height: f32,
    picture: Rect,
) -> Vec<Label<'a>> {
    let largest = (picture.width(), picture.height());
    let lines = drawn.iter().filter_map(|object| {
        let text = object.object.detection.describe();
        let line = Line::new(&text, font, letter_height, largest)?;
        Some((object, line))
    });
    let lines: Vec<_> = lines.collect();
    let wanted: Vec<WantedLabel> = lines
        .iter()
        .map(|(object, line)| WantedLabel {
            target: object.rect,
            size: line.size,
        })
        .collect();
    let places = place(&wanted, picture).into_iter();
    let placed = lines.into_iter().zip(places);
    placed
        .filter_map(|((object, line), place)| {
            Some(Label {
                object,
                line,
                place: place?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::geometry::{BoundingBox, Detection, Mask};
    use crate::segmenter::ScoredMask;

    const GREY: Rgb<u8> = Rgb([90, 90, 90]);

    fn object(phrase: Option<&str>, [x0, y0, x1, y1]: [f32; 4]) -> DetectedObject {
        DetectedObject {
            detection: Detection {
                phrase: phrase.map(str::to_owned),
                score: 0.5,
                bounding_box: BoundingBox { x0, y0, x1, y1 },
            },
            mask: None,
        }
    }

    fn drawn(width: u32, height: u32, objects: Vec<DetectedObject>) -> RgbImage {
        let image = RgbImage::from_pixel(width, height, GREY);
        let prediction = Prediction {
            size: ImageSize::of(&image),
            objects,
            best_rejected: None,
        };
        let prompt = Prompt::parse("-saucer. cup. a tea pot").unwrap();
        draw(&image, &prediction, &prompt)
    }

    #[test]
    fn a_phrase_has_the_colour_of_its_place_among_the_wanted_ones() {
        let cup = object(Some("cup"), [50.0, 50.0, 90.0, 90.0]);
        let pot = object(Some("a tea pot"), [100.0, 100.0, 140.0, 140.0]);
        let unnamed = object(None, [10.0, 150.0, 50.0, 190.0]);
        let picture = drawn(200, 200, vec![cup, pot, unnamed]);
        assert_eq!(*picture.get_pixel(50, 70), palette::color(0));
        assert_eq!(*picture.get_pixel(100, 120), palette::color(1));
        assert_eq!(*picture.get_pixel(10, 170), palette::UNNAMED);
        assert_eq!(*picture.get_pixel(70, 70), GREY, "inside a box");
    }

    #[test]
    fn a_thin_mask_is_visible() {
        let size = ImageSize {
            height: 200,
            width: 200,
        };
        let wire = Mask::from_pixels(size, (0..size.area()).map(|i| i / 200 == 100));
        let mut object = object(Some("cup"), [0.0, 90.0, 200.0, 110.0]);
        object.mask = Some(Arc::new(ScoredMask {
            mask: wire,
            score: 1.0,
        }));
        let picture = drawn(200, 200, vec![object]);
        assert!((3..197).all(|x| *picture.get_pixel(x, 100) == palette::color(0)));
    }

    #[test]
    fn pictures_of_any_size_can_be_drawn() {
        for (width, height) in [(1, 1), (3, 90), (90, 3), (20, 20), (700, 30)] {
            let everywhere = [-9.0, -9.0, 2000.0, 2000.0];
            let outside = [3000.0, 3000.0, 3001.0, 3001.0];
            let objects = [everywhere, outside, [1.0, 1.0, 1.0, 1.0]];
            let objects = objects.map(|corners| object(Some("a tea pot"), corners));
            let picture = drawn(width, height, objects.to_vec());
            assert_eq!(picture.dimensions(), (width, height));
        }
    }
}
