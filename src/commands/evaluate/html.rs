//! The report as one HTML file: tables, the curve of F1 over the threshold of each label, and pictures of the worst misses.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use image::{ImageResult, RgbImage};

use super::summary::{Summary, number};
use super::{Compared, ComparedImage};
use crate::evaluation::{CocoBox, Miss, MissKind, misses};
use crate::geometry::Mask;
use crate::labeling::escaped;
use crate::regions::polygon::outlines;

/// The longer side of a picture, in pixels.
const PICTURE_SIDE: u32 = 640;
const PICTURE_QUALITY: u8 = 80;
/// Number of images with misses that are shown.
const PICTURES: usize = 24;
/// Maximum distance of a drawn outline from its mask, in pixels of the image.
const TOLERANCE: f32 = 1.5;
/// Thresholds of the curves.
const STEPS: u16 = 100;

const STYLE: &str = "
:root { color-scheme: light dark; --line: light-dark(#d3d9df, #39424c); --quiet: light-dark(#59636e, #9aa5b1); }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; padding: 0 1rem; max-width: 90rem;
  background: light-dark(#fff, #14171b); color: light-dark(#1d2126, #e7eaee); }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
th, td { padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
.curves, .pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); }
.pictures { grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); }
figure { margin: 0; }
figcaption { font-size: .85rem; color: var(--quiet); }
svg { width: 100%; height: auto; display: block; border: 1px solid var(--line); }
.chart path { fill: none; stroke: #0b82e0; stroke-width: 2; }
.chart line { stroke: var(--line); }
.chart .now { stroke: #e58a00; } .chart .best { stroke: #00985a; }
.chart text { font-size: 11px; fill: var(--quiet); }
.missed { stroke: #ff8c00; } .wrong { stroke: #ff2d55; } .correct { stroke: #00c97b; } .crowd { stroke: #9aa5b1; }
.key b { font-weight: 600; }
";

/// A picture for the report as JPEG, with a longer side of at most [`PICTURE_SIDE`] pixels.
///
/// # Errors
/// If it cannot be encoded.
pub(super) fn thumbnail(image: &RgbImage) -> ImageResult<Vec<u8>> {
    let mut file = vec![];
    let encoder = JpegEncoder::new_with_quality(&mut file, PICTURE_QUALITY);
    if image.width().max(image.height()) <= PICTURE_SIDE {
        image.write_with_encoder(encoder)?;
        return Ok(file);
    }
    let scale = f64::from(PICTURE_SIDE) / f64::from(image.width().max(image.height()));
    let side = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
    let (width, height) = (side(image.width()), side(image.height()));
    let small = image::imageops::resize(image, width, height, FilterType::Triangle);
    small.write_with_encoder(encoder)?;
    Ok(file)
}

/// The report on all detectors.
pub(super) fn report(compared: &[Compared], summaries: &[Summary]) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>groundling evaluate</title><style>{STYLE}</style></head><body>\n<h1>Predictions compared with annotations</h1>\n"
    );
    for (compared, summary) in compared.iter().zip(summaries) {
        detector(&mut html, compared, summary);
    }
    html.push_str("</body></html>\n");
    html
}

/// Writing to a string does not fail.
macro_rules! put {
    ($html:expr, $($part:tt)*) => {{ let _ = write!($html, $($part)*); }};
}

fn detector(html: &mut String, compared: &Compared, summary: &Summary) {
    put!(
        html,
        "<h2>{}</h2>\n<p>Searched for: {}</p>\n",
        escaped(&compared.models),
        escaped(&compared.prompt)
    );
    put!(
        html,
        "<p>{} images. Precision, recall and F1 are for an overlap (IoU) of at least 0.5.</p>\n",
        compared.images.len()
    );
    if !compared.failures.is_empty() {
        html.push_str("<h3>Images that could not be predicted</h3>\n<ul>\n");
        for (name, error) in &compared.failures {
            put!(html, "<li>{}: {}</li>\n", escaped(name), escaped(error));
        }
        html.push_str("</ul>\n");
    }
    for (name, ap) in summary.average_precisions() {
        let _ = writeln!(html, "<p>{name}: AP {:.3}, AP50 {:.3}</p>", ap.ap, ap.ap50);
    }
    table(html, summary);
    html.push_str("<h3>F1 at each threshold</h3>\n<p>The orange line is the threshold of the settings, the green line the best one.</p>\n<div class=\"curves\">\n");
    for label in &summary.labels {
        if let Some(curve) = summary.curves.get(&label.label) {
            let f1 = |threshold: f32| curve.at(threshold).f1.unwrap_or(0.0);
            chart(
                html,
                &label.label,
                compared.lowest,
                f1,
                compared.threshold(&label.label),
                label.best_threshold,
            );
        }
    }
    html.push_str("</div>\n");
    pictures(html, compared);
}

fn table(html: &mut String, summary: &Summary) {
    html.push_str("<table><thead><tr>");
    for head in summary.table_heads() {
        put!(html, "<th>{head}</th>");
    }
    html.push_str("</tr></thead><tbody>\n");
    for row in summary.table_rows() {
        html.push_str("<tr>");
        for cell in row {
            put!(html, "<td>{}</td>", escaped(&cell));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table>\n");
}

/// The curve of F1 over the threshold, from the threshold of the candidates on.
fn chart(
    html: &mut String,
    label: &str,
    lowest: f32,
    f1: impl Fn(f32) -> f64,
    now: f32,
    best: Option<f32>,
) {
    let (width, height) = (300.0, 160.0);
    let x = |threshold: f32| 24.0 + f64::from(threshold) * (width - 32.0);
    let y = |value: f64| 10.0 + (1.0 - value) * (height - 30.0);
    let steps = (0..=STEPS).map(|step| f32::from(step) / f32::from(STEPS));
    let points = steps
        .filter(|threshold| *threshold >= lowest)
        .map(|threshold| format!("{:.1},{:.1}", x(threshold), y(f1(threshold))));
    let path = points.collect::<Vec<_>>().join(" L");
    put!(
        html,
        "<figure><svg class=\"chart\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"F1 of {}\">",
        escaped(label)
    );
    for value in [0.0, 0.5, 1.0] {
        put!(
            html,
            "<line x1=\"24\" x2=\"{}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/><text x=\"2\" y=\"{2:.1}\">{value}</text>",
            width - 8.0,
            y(value),
            y(value) + 4.0
        );
        put!(
            html,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{value}</text>",
            x(value as f32),
            height - 4.0
        );
    }
    let mut vertical = |class: &str, threshold: f32| {
        put!(
            html,
            "<line class=\"{class}\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1:.1}\" y2=\"{2:.1}\"/>",
            x(threshold),
            y(0.0),
            y(1.0)
        );
    };
    vertical("now", now);
    if let Some(best) = best {
        vertical("best", best);
    }
    put!(
        html,
        "<path d=\"M{path}\"/></svg><figcaption>{}</figcaption></figure>\n",
        escaped(label)
    );
}

/// The images with the most misses at the thresholds of the settings.
fn pictures(html: &mut String, compared: &Compared) {
    let (comparison, iou_type) = compared.main();
    let all = misses(&comparison.truth, &comparison.found, iou_type, |label| {
        compared.threshold(label)
    });
    let mut images: Vec<(&ComparedImage, Vec<&Miss>)> = compared
        .images
        .iter()
        .map(|image| {
            (
                image,
                all.iter().filter(|miss| miss.image == image.id).collect(),
            )
        })
        .collect();
    let wrong = |misses: &[&Miss]| misses.iter().filter(|miss| miss.kind.is_miss()).count();
    images.retain(|(image, misses)| {
        wrong(misses) > 0 && !image.thumbnail.is_empty() && image.width > 0
    });
    images.sort_by_key(|(_, misses)| std::cmp::Reverse(wrong(misses)));
    let total = images.len();
    images.truncate(PICTURES);
    put!(
        html,
        "<h3>The worst misses</h3>\n<p>{total} images have misses; these {} have the most. <span class=\"key\">Green: correct; orange: missed; red: found, but not annotated.</span></p>\n<div class=\"pictures\">\n",
        images.len()
    );
    for (image, misses) in images {
        let (missed, wrong) = (
            misses
                .iter()
                .filter(|miss| miss.kind == MissKind::Missed)
                .count(),
            misses
                .iter()
                .filter(|miss| miss.kind == MissKind::Wrong)
                .count(),
        );
        put!(
            html,
            "<figure><svg viewBox=\"0 0 {0} {1}\" role=\"img\" aria-label=\"{2}\"><image width=\"{0}\" height=\"{1}\" preserveAspectRatio=\"none\" href=\"data:image/jpeg;base64,{3}\"/>",
            image.width,
            image.height,
            escaped(&image.name),
            BASE64_STANDARD.encode(&image.thumbnail)
        );
        let line = image.width.max(image.height) as f64 / 250.0;
        for miss in misses {
            shape(html, miss, line);
        }
        put!(
            html,
            "</svg><figcaption>{}: {missed} missed, {wrong} wrong</figcaption></figure>\n",
            escaped(&image.name)
        );
    }
    html.push_str("</div>\n");
}

fn shape(html: &mut String, miss: &Miss, line: f64) {
    let (class, name) = match miss.kind {
        MissKind::Correct => ("correct", "correct"),
        MissKind::Missed => ("missed", "missed"),
        MissKind::Wrong => ("wrong", "not annotated"),
        MissKind::Crowd => ("crowd", "in a crowd"),
    };
    let score = number(miss.score.map(f64::from));
    put!(
        html,
        "<g class=\"{class}\" fill=\"none\" stroke-width=\"{line:.1}\"><title>{} ({name}, score {score})</title>",
        escaped(&miss.label)
    );
    match &miss.mask {
        Some(mask) => outline(html, mask),
        None => {
            let CocoBox([x, y, width, height]) = miss.bounding_box;
            put!(
                html,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
            );
        }
    }
    let CocoBox([x, y, ..]) = miss.bounding_box;
    let size = 6.0 * line;
    put!(
        html,
        "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"{size:.1}\" fill=\"#fff\" stroke=\"#000\" stroke-width=\"{:.1}\" paint-order=\"stroke\">{}{}</text></g>",
        x + line,
        (y - line).max(size),
        line / 2.0,
        escaped(&miss.label),
        miss.score
            .map_or(String::new(), |score| format!(" {score:.2}"))
    );
}

fn outline(html: &mut String, mask: &Mask) {
    for ring in outlines(mask, TOLERANCE) {
        let points: Vec<String> = ring.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        put!(html, "<polygon points=\"{}\"/>", points.join(" "));
    }
}
