//! Converts queries to detections: thresholds, phrases, suppression of duplicates.

use std::collections::HashMap;

use super::{CaptionPass, DetectionOptions};
use crate::geometry::{BoundingBox, Detection, ImageSize};

/// The model's output for one image and one caption.
#[derive(Debug, Clone, PartialEq)]
pub struct Queries {
    /// One logit per text token for each query, query by query.
    pub logits: Vec<f32>,
    /// Number of text tokens.
    pub tokens: usize,
    /// One box per query: cxcywh, 0..1 of the image.
    pub boxes: Vec<[f32; 4]>,
}

impl Queries {
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.logits.as_slice()) + size_of_val(self.boxes.as_slice())
    }
}

/// Box thresholds of single phrases; all others have the threshold of the options.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PhraseThresholds(HashMap<String, f32>);

impl PhraseThresholds {
    /// Sets the threshold of a phrase, 0..1.
    pub fn set(&mut self, phrase: &str, threshold: f32) {
        self.0.insert(phrase.to_owned(), threshold);
    }

    /// Whether no phrase has a threshold of its own.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(&self, phrase: Option<&str>, options: &DetectionOptions) -> f32 {
        let own = phrase.and_then(|phrase| self.0.get(phrase));
        own.copied().unwrap_or(options.box_threshold)
    }

    fn lowest(&self, options: &DetectionOptions) -> f32 {
        self.0
            .values()
            .copied()
            .fold(options.box_threshold, f32::min)
    }
}

/// The detections of all passes of one image, sorted by score, best first, without what fits a negative phrase better.
pub fn detections<'a>(
    passes: impl IntoIterator<Item = (&'a CaptionPass, &'a Queries)>,
    size: ImageSize,
    options: &DetectionOptions,
) -> Vec<Detection> {
    let passes: Vec<_> = passes.into_iter().collect();
    let thresholds = PhraseThresholds::default();
    let found = all_detections(passes.iter().copied(), size, options, &thresholds);
    let is_negative = |phrase: &str| {
        passes
            .iter()
            .any(|(pass, _)| pass.prompt.is_negative(phrase))
    };
    keep_wanted(found, is_negative, options, |detection| detection)
}

/// The detections of all passes of one image, sorted by score, best first. They include those of negative phrases, and
/// their number is not limited; see [`keep_wanted`].
pub fn all_detections<'a>(
    passes: impl IntoIterator<Item = (&'a CaptionPass, &'a Queries)>,
    size: ImageSize,
    options: &DetectionOptions,
    thresholds: &PhraseThresholds,
) -> Vec<Detection> {
    let mut all: Vec<Detection> = passes
        .into_iter()
        .flat_map(|(pass, queries)| detections_of_pass(queries, pass, size, options, thresholds))
        .collect();
    sort_by_score(&mut all);
    all
}

/// Every query with every phrase, as papers rate detectors: the score is the mean probability of the phrase's tokens, and
/// there are neither thresholds nor suppression of duplicates. The best `most` are returned, best first.
///
/// Source: `PostProcessCocoGrounding` in `demo/test_ap_on_coco.py` of the Grounding DINO repository, which keeps 300.
pub fn rated_by_phrase<'a>(
    passes: impl IntoIterator<Item = (&'a CaptionPass, &'a Queries)>,
    size: ImageSize,
    most: usize,
) -> Vec<Detection> {
    let mut all = vec![];
    for (CaptionPass { prompt, caption }, queries) in passes {
        let rows = queries.logits.chunks_exact(queries.tokens.max(1));
        for (logits, cxcywh) in rows.zip(&queries.boxes) {
            for (phrase, span) in prompt.phrases().iter().zip(&caption.spans) {
                let sum: f32 = span.iter().map(|token| sigmoid(logits[*token])).sum();
                all.push((sum / span.len().max(1) as f32, phrase, cxcywh));
            }
        }
    }
    all.sort_by(|(a, ..), (b, ..)| b.total_cmp(a));
    all.truncate(most);
    let detections = all.into_iter().map(|(score, phrase, cxcywh)| Detection {
        phrase: Some(phrase.clone()),
        score,
        bounding_box: BoundingBox::from_cxcywh(*cxcywh, size),
    });
    detections.collect()
}

/// A negative phrase drops a box of another phrase that overlaps its own box at least this much (IoU), if its own score
/// is better.
const NEGATIVE_IOU: f32 = 0.7;

/// Removes what fits a negative phrase better, and keeps at most [`DetectionOptions::max_detections`] of
/// the rest. `found` is sorted by score, best first; `detection` returns the detection of an entry.
pub fn keep_wanted<T>(
    found: Vec<T>,
    is_negative: impl Fn(&str) -> bool,
    options: &DetectionOptions,
    detection: impl Fn(&T) -> &Detection,
) -> Vec<T> {
    let is_unwanted = |detection: &Detection| {
        let phrase = detection.phrase.as_deref();
        phrase.is_some_and(&is_negative)
    };
    let mut negative: Vec<BoundingBox> = vec![];
    let mut kept = vec![];
    // best first, so every negative box that was seen before has a better score
    for entry in found {
        let own = detection(&entry);
        if is_unwanted(own) {
            negative.push(own.bounding_box);
        } else if negative
            .iter()
            .all(|other| other.iou(own.bounding_box) < NEGATIVE_IOU)
        {
            kept.push(entry);
        }
    }
    kept.truncate(options.max_detections.unwrap_or(usize::MAX));
    kept
}

/// The best query whose phrase is not negative, whatever its score is: it tells how far a prompt without detections was
/// from one.
pub fn best_candidate<'a>(
    passes: impl IntoIterator<Item = (&'a CaptionPass, &'a Queries)>,
    size: ImageSize,
) -> Option<Detection> {
    let everything = DetectionOptions {
        box_threshold: 0.0,
        text_threshold: 0.0,
        nms_iou_threshold: 1.0,
        max_detections: None,
    };
    let thresholds = PhraseThresholds::default();
    let of_pass = passes.into_iter().filter_map(|(pass, queries)| {
        let found = detections_of_pass(queries, pass, size, &everything, &thresholds);
        found.into_iter().find(|detection| {
            let phrase = detection.phrase.as_deref();
            phrase.is_some_and(|phrase| !pass.prompt.is_negative(phrase))
        })
    });
    of_pass.max_by(|a, b| a.score.total_cmp(&b.score))
}

fn sort_by_score(detections: &mut [Detection]) {
    // stable, so the order of the passes decides between equal scores
    detections.sort_by(|a, b| b.score.total_cmp(&a.score));
}

/// Names each query by the best phrase, filters by the threshold of the phrase, removes duplicates of the same phrase,
/// and sorts by score.
///
/// The score is the reference's (`post_process_grounded_object_detection`). The phrase is not: the reference joins
/// single tokens, which can merge two phrases, truncate one, or give an empty text. Here a phrase is scored as a
/// whole, by the mean probability of its tokens. Candidates are the phrases with at least one token above the text
/// threshold. If the only token above it belongs to no phrase (a dot), all phrases are candidates. If no token is
/// above it, the detection has no phrase.
fn detections_of_pass(
    queries: &Queries,
    CaptionPass { prompt, caption }: &CaptionPass,
    size: ImageSize,
    options: &DetectionOptions,
    thresholds: &PhraseThresholds,
) -> Vec<Detection> {
    let lowest = thresholds.lowest(options);
    // with a threshold of 0 every query passes, even if its probability underflowed to 0
    let passes = |score: f32, threshold: f32| score > threshold || threshold <= 0.0;
    let rows = queries.logits.chunks_exact(queries.tokens.max(1));
    let mut detections: Vec<(Option<usize>, Detection)> = rows
        .zip(&queries.boxes)
        .filter_map(|(logits, cxcywh)| {
            let probabilities: Vec<f32> = logits.iter().map(|x| sigmoid(*x)).collect();
            let score = probabilities.iter().fold(0f32, |a, b| a.max(*b));
            if !passes(score, lowest) {
                return None;
            }
            let index = match score > options.text_threshold {
                true => best_phrase(&probabilities, &caption.spans, options.text_threshold),
                false => None,
            };
            let phrase = index.and_then(|index| prompt.phrases().get(index).cloned());
            if !passes(score, thresholds.of(phrase.as_deref(), options)) {
                return None;
            }
            let detection = Detection {
                phrase,
                score,
                bounding_box: BoundingBox::from_cxcywh(*cxcywh, size),
            };
            Some((index, detection))
        })
        .collect();
    detections.sort_by(|(_, a), (_, b)| b.score.total_cmp(&a.score));
    suppress_duplicates(detections, options.nms_iou_threshold)
}

/// The index of the phrase that names a query.
fn best_phrase(probabilities: &[f32], spans: &[Vec<usize>], text_threshold: f32) -> Option<usize> {
    let best_of = |only_above_threshold: bool| {
        spans
            .iter()
            .enumerate()
            .filter(|(_, span)| {
                !only_above_threshold || span.iter().any(|i| probabilities[*i] > text_threshold)
            })
            .map(|(phrase, span)| {
                let sum: f32 = span.iter().map(|i| probabilities[*i]).sum();
                (phrase, sum / span.len() as f32)
            })
            // ties go to the first one
            .reduce(|best, other| if other.1 > best.1 { other } else { best })
            .map(|(phrase, _)| phrase)
    };
    best_of(true).or_else(|| best_of(false))
}

/// Non-maximum suppression among detections of the same phrase; `sorted` has the best first. An IoU of 1 disables it.
fn suppress_duplicates(
    sorted: Vec<(Option<usize>, Detection)>,
    iou_threshold: f32,
) -> Vec<Detection> {
    let mut kept: Vec<(Option<usize>, Detection)> = vec![];
    for (phrase, detection) in sorted {
        let is_duplicate = iou_threshold < 1.0
            && kept.iter().any(|(other, better)| {
                *other == phrase && better.bounding_box.iou(detection.bounding_box) > iou_threshold
            });
        if !is_duplicate {
            kept.push((phrase, detection));
        }
    }
    kept.into_iter().map(|(_, detection)| detection).collect()
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::super::text_processor::Caption;
    use super::*;
    use crate::prompt::Prompt;

    const SIZE: ImageSize = ImageSize {
        height: 100,
        width: 200,
    };

    fn logit(p: f32) -> f32 {
        (p / (1.0 - p)).ln()
    }

    /// The detections of queries that are given as token probabilities; all boxes are centred at `cx`.
    fn run(rows: &[([f32; 6], f32)], options: DetectionOptions) -> Vec<(String, f32)> {
        run_prompt("car. vans.", rows, options, &PhraseThresholds::default())
    }

    fn run_prompt(
        prompt: &str,
        rows: &[([f32; 6], f32)],
        options: DetectionOptions,
        thresholds: &PhraseThresholds,
    ) -> Vec<(String, f32)> {
        // the tokens of "car. vans.": [CLS] car . van ##s [SEP]
        let prompt = Prompt::parse(prompt).unwrap();
        let caption = Caption {
            ids: vec![101, 7, 1012, 8, 9, 102],
            spans: vec![vec![1], vec![3, 4]],
        };
        let rows = rows.iter();
        let queries = Queries {
            logits: rows.clone().flat_map(|(row, _)| row.map(logit)).collect(),
            tokens: 6,
            boxes: rows.map(|(_, cx)| [*cx, 0.5, 0.2, 0.2]).collect(),
        };
        let pass = CaptionPass { prompt, caption };
        let found = all_detections([(&pass, &queries)], SIZE, &options, thresholds);
        let is_negative = |phrase: &str| pass.prompt.is_negative(phrase);
        keep_wanted(found, is_negative, &options, |detection| detection)
            .into_iter()
            .map(|d| {
                let phrase = d.phrase.unwrap_or_else(|| "no phrase".to_owned());
                (phrase, (d.score * 100.0).round() / 100.0)
            })
            .collect()
    }

    #[test]
    fn every_query_is_rated_for_every_phrase() {
        let pass = CaptionPass {
            prompt: Prompt::parse("car. vans.").unwrap(),
            caption: Caption {
                ids: vec![101, 7, 1012, 8, 9, 102],
                spans: vec![vec![1], vec![3, 4]],
            },
        };
        let rows = [
            [0.01, 0.5, 0.9, 0.4, 0.2, 0.01],
            [0.01, 0.1, 0.01, 0.8, 0.6, 0.01],
        ];
        let queries = Queries {
            logits: rows.iter().flat_map(|row| row.map(logit)).collect(),
            tokens: 6,
            boxes: vec![[0.5, 0.5, 0.2, 0.2], [0.25, 0.5, 0.2, 0.2]],
        };
        let rated = |most| {
            let found = rated_by_phrase([(&pass, &queries)], SIZE, most);
            let found = found.into_iter().map(|detection| {
                let score = (detection.score * 100.0).round() / 100.0;
                (
                    detection.phrase.unwrap(),
                    score,
                    detection.bounding_box.x0.round(),
                )
            });
            found.collect::<Vec<_>>()
        };
        let expected = [
            ("vans".to_owned(), 0.7, 30.0),
            ("car".to_owned(), 0.5, 80.0),
            ("vans".to_owned(), 0.3, 80.0),
            ("car".to_owned(), 0.1, 30.0),
        ];
        assert_eq!(rated(9), expected);
        assert_eq!(rated(3), expected[..3]);
    }

    #[test]
    fn a_detection_is_named_by_a_whole_phrase() {
        let options = DetectionOptions::default();
        // "car" and a part of "vans" pass the text threshold: the reference would answer "car van"
        let both = [0.01, 0.5, 0.01, 0.4, 0.1, 0.01];
        assert_eq!(run(&[(both, 0.5)], options), [("car".to_owned(), 0.5)]);
        // only a part of "vans" passes: the reference would answer "##s"
        let piece = [0.01, 0.1, 0.01, 0.2, 0.45, 0.01];
        assert_eq!(run(&[(piece, 0.5)], options), [("vans".to_owned(), 0.45)]);
        // only the dot passes: the reference would answer "."
        let dot = [0.01, 0.1, 0.6, 0.2, 0.2, 0.01];
        assert_eq!(run(&[(dot, 0.5)], options), [("vans".to_owned(), 0.6)]);
    }

    #[test]
    fn a_detection_below_the_text_threshold_has_no_phrase() {
        let options = DetectionOptions {
            text_threshold: 0.6,
            ..DetectionOptions::default()
        };
        let car = |p: f32| [0.01, p, 0.01, 0.1, 0.1, 0.01];
        assert_eq!(
            run(&[(car(0.7), 0.5), (car(0.5), 0.1)], options),
            [("car".to_owned(), 0.7), ("no phrase".to_owned(), 0.5)]
        );
    }

    #[test]
    fn duplicates_are_removed_only_within_a_phrase() {
        let car = [0.01, 0.8, 0.01, 0.1, 0.1, 0.01];
        let weaker = [0.01, 0.7, 0.01, 0.1, 0.1, 0.01];
        let vans = [0.01, 0.1, 0.01, 0.6, 0.6, 0.01];
        let rows = [(weaker, 0.5), (car, 0.501), (vans, 0.5), (weaker, 0.1)];
        let options = DetectionOptions::default();
        let names = |options| -> Vec<String> {
            run(&rows, options)
                .into_iter()
                .map(|(name, _)| name)
                .collect()
        };
        assert_eq!(names(options), ["car", "car", "vans"]);
        let off = DetectionOptions {
            nms_iou_threshold: 1.0,
            ..options
        };
        assert_eq!(names(off), ["car", "car", "car", "vans"]);
        let one = DetectionOptions {
            max_detections: Some(1),
            ..options
        };
        assert_eq!(names(one), ["car"]);
    }

    #[test]
    fn a_box_threshold_of_zero_keeps_every_query() {
        let improbable = [1e-38; 6];
        let options = DetectionOptions {
            box_threshold: 0.0,
            nms_iou_threshold: 1.0,
            ..DetectionOptions::default()
        };
        assert_eq!(
            run(&[(improbable, 0.5), (improbable, 0.5)], options).len(),
            2
        );
    }

    #[test]
    fn a_phrase_can_have_its_own_threshold() {
        let car = |p: f32| [0.01, p, 0.01, 0.1, 0.1, 0.01];
        let vans = |p: f32| [0.01, 0.1, 0.01, p, p, 0.01];
        let rows = [
            (car(0.5), 0.1),
            (car(0.28), 0.3),
            (vans(0.5), 0.5),
            (vans(0.9), 0.7),
        ];
        let options = DetectionOptions {
            max_detections: Some(3),
            ..DetectionOptions::default()
        };
        let mut thresholds = PhraseThresholds::default();
        thresholds.set("car", 0.2);
        thresholds.set("vans", 0.6);
        let found = run_prompt("car. vans.", &rows, options, &thresholds);
        let expected = [("vans", 0.9), ("car", 0.5), ("car", 0.28)];
        assert_eq!(
            found,
            expected.map(|(phrase, score)| (phrase.to_owned(), score))
        );
    }

    #[test]
    fn a_negative_phrase_drops_what_fits_it_better() {
        let car = |p: f32| [0.01, p, 0.01, 0.1, 0.1, 0.01];
        let vans = |p: f32| [0.01, 0.1, 0.01, p, p, 0.01];
        let rows = [
            (car(0.5), 0.1),
            // named by the negative phrase
            (vans(0.6), 0.3),
            // the same place, and the negative phrase is better
            (car(0.5), 0.301),
            // the same place, and the negative phrase is worse
            (car(0.9), 0.7),
            (vans(0.4), 0.701),
        ];
        let found = run_prompt(
            "car. -vans.",
            &rows,
            DetectionOptions::default(),
            &PhraseThresholds::default(),
        );
        let expected = [("car", 0.9), ("car", 0.5)];
        assert_eq!(
            found,
            expected.map(|(phrase, score)| (phrase.to_owned(), score))
        );
    }
}
