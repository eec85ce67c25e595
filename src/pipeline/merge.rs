//! Merges the detections of overlapping windows, so that an object on a seam is one detection.

use crate::geometry::{BoundingBox, Detection, Window};

/// A detection in the coordinates of the image, and the window that found it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PlacedDetection {
    pub(super) detection: Detection,
    pub(super) window: Window,
}

/// The detections of one window, in the coordinates of the image.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct WindowDetections {
    pub(super) window: Window,
    /// The searched area that the window belongs to.
    pub(super) area: Window,
    /// Sorted by score, best first.
    pub(super) detections: Vec<Detection>,
}

/// Boxes of one phrase from different windows that overlap more than this (IoU) are one object. It is lower than the limit
/// within a window, because the boxes of two windows differ more than two boxes of one window.
const SAME_OBJECT_IOU: f32 = 0.5;
/// A box that ends at a seam is a part of another box of its phrase if this share of it is inside.
const PART_SHARE: f32 = 0.5;
/// A box from a tile is a part of a box of its phrase that a larger window found, with a better score, if this share of it is
/// inside: in a tile, a part of a large object can look like a whole one.
const INSIDE_SHARE: f32 = 0.85;
/// Two boxes that end at the same seam are fused if their extents along the seam overlap more than this (IoU).
const ALONG_SEAM_IOU: f32 = 0.5;
/// A box that ends closer than this to the edge of its window is cut by it, as a share of the window's side. A detector
/// often places the edge of a cut object a little before the end of its image. A whole object so close to a seam is found
/// again by the next window.
const CUT_SHARE: f32 = 0.05;
/// The most candidates that are compared with each other; the best ones are kept.
const MAX_CANDIDATES: usize = 4000;

/// A detection while it is merged.
#[derive(Debug, Clone)]
struct Candidate {
    found: PlacedDetection,
    area: Window,
    /// Whether it was fused from parts of several windows.
    is_fused: bool,
    /// Whether the edge of the window cuts its left, top, right and bottom side. The edges of the searched area do not
    /// count: no other window sees more there.
    cut: [bool; 4],
}

impl Candidate {
    fn new(detection: Detection, window: Window, area: Window) -> Self {
        let (b, own, all) = (
            detection.bounding_box,
            window.bounding_box(),
            area.bounding_box(),
        );
        let (dx, dy) = (
            CUT_SHARE * window.width as f32,
            CUT_SHARE * window.height as f32,
        );
        let cut = [
            own.x0 > all.x0 && b.x0 <= own.x0 + dx,
            own.y0 > all.y0 && b.y0 <= own.y0 + dy,
            own.x1 < all.x1 && b.x1 >= own.x1 - dx,
            own.y1 < all.y1 && b.y1 >= own.y1 - dy,
        ];
        Self {
            found: PlacedDetection { detection, window },
            area,
            is_fused: false,
            cut,
        }
    }

    fn is_cut(&self) -> bool {
        self.cut.contains(&true)
    }

    fn bounding_box(&self) -> BoundingBox {
        self.found.detection.bounding_box
    }

    fn score(&self) -> f32 {
        self.found.detection.score
    }

    fn has_phrase_of(&self, other: &Self) -> bool {
        self.found.detection.phrase == other.found.detection.phrase
    }

    /// Fuses two parts of an object that lies across the seam between their windows; `None` if they are not such parts.
    /// Both windows together then segment the object, because neither of them sees all of it.
    fn fused_with(&self, other: &Self) -> Option<Self> {
        let (a, b) = (self.bounding_box(), other.bounding_box());
        let is_pair = self.found.window != other.found.window
            && self.area == other.area
            && self.has_phrase_of(other)
            && a.intersection(b).area() > 0.0;
        let horizontal = iou_1d((a.y0, a.y1), (b.y0, b.y1)) > ALONG_SEAM_IOU
            && (self.cut[2] && other.cut[0] || self.cut[0] && other.cut[2]);
        let vertical = iou_1d((a.x0, a.x1), (b.x0, b.x1)) > ALONG_SEAM_IOU
            && (self.cut[3] && other.cut[1] || self.cut[1] && other.cut[3]);
        if !is_pair || !(horizontal || vertical) {
            return None;
        }
        let bounding_box = a.union(b);
        // a side is still cut if the part that reaches farthest is cut there
        let side = |i: usize| {
            let (edge_a, edge_b) = (a.corners()[i], b.corners()[i]);
            let self_is_outer = if i < 2 {
                edge_a <= edge_b
            } else {
                edge_a >= edge_b
            };
            if self_is_outer {
                self.cut[i]
            } else {
                other.cut[i]
            }
        };
        Some(Self {
            found: PlacedDetection {
                detection: Detection {
                    phrase: self.found.detection.phrase.clone(),
                    score: self.score().max(other.score()),
                    bounding_box,
                },
                window: self.found.window.union(other.found.window),
            },
            area: self.area,
            is_fused: true,
            cut: [0, 1, 2, 3].map(side),
        })
    }

    /// Whether `kept`, from another window, is the same object, or has this one as a part.
    fn is_duplicate_of(&self, kept: &Self) -> bool {
        let is_from_another = self.is_fused || self.found.window != kept.found.window;
        if !is_from_another || !self.has_phrase_of(kept) {
            return false;
        }
        let (own, other) = (self.bounding_box(), kept.bounding_box());
        let inside = own.intersection(other).area() / own.area().max(f32::EPSILON);
        let is_seen_in_larger = kept.found.window.size().area() > self.found.window.size().area();
        own.iou(other) > SAME_OBJECT_IOU
            || self.is_cut() && inside > PART_SHARE
            || is_seen_in_larger && inside > INSIDE_SHARE && self.score() <= kept.score()
    }
}

/// The detections of all windows, best first. Within a window nothing is removed: the detector has done that already.
pub(super) fn merge(windows: Vec<WindowDetections>) -> Vec<PlacedDetection> {
    let mut candidates: Vec<Candidate> = windows
        .into_iter()
        .flat_map(|of_window| {
            let WindowDetections { window, area, .. } = of_window;
            let detections = of_window.detections.into_iter();
            detections.map(move |detection| Candidate::new(detection, window, area))
        })
        .collect();
    sort_by_score(&mut candidates);
    if candidates.len() > MAX_CANDIDATES {
        tracing::warn!(
            candidates = candidates.len(),
            kept = MAX_CANDIDATES,
            "the tiles have too many detections, so only the best ones are kept; a higher box threshold gives fewer"
        );
        candidates.truncate(MAX_CANDIDATES);
    }
    let (cut, mut kept): (Vec<_>, Vec<_>) = candidates.into_iter().partition(Candidate::is_cut);
    kept = without_duplicates(vec![], kept);
    // whole objects come first: a part never replaces one, whatever their scores are
    let parts = fuse(
        cut.into_iter()
            .filter(|part| !kept.iter().any(|whole| part.is_duplicate_of(whole))),
    );
    kept = without_duplicates(kept, parts);
    sort_by_score(&mut kept);
    kept.into_iter().map(|candidate| candidate.found).collect()
}

/// Adds those of `candidates`, best first, that duplicate nothing that is kept already.
fn without_duplicates(mut kept: Vec<Candidate>, candidates: Vec<Candidate>) -> Vec<Candidate> {
    for candidate in candidates {
        if !kept.iter().any(|better| candidate.is_duplicate_of(better)) {
            kept.push(candidate);
        }
    }
    kept
}

/// Fuses parts until no two parts belong together; the result has the best first.
fn fuse(parts: impl Iterator<Item = Candidate>) -> Vec<Candidate> {
    let mut fused: Vec<Candidate> = vec![];
    for mut part in parts {
        // each fusion may make another one possible, for an object across several seams
        while let Some((i, union)) = fused
            .iter()
            .enumerate()
            .find_map(|(i, other)| Some((i, part.fused_with(other)?)))
        {
            fused.swap_remove(i);
            part = union;
        }
        fused.push(part);
    }
    sort_by_score(&mut fused);
    // an object that was fused is whole, so it comes before the parts that it contains
    fused.sort_by_key(Candidate::is_cut);
    fused
}

fn sort_by_score(candidates: &mut [Candidate]) {
    candidates.sort_by(|a, b| b.score().total_cmp(&a.score()));
}

/// Intersection over union of two intervals, 0..1.
fn iou_1d(a: (f32, f32), b: (f32, f32)) -> f32 {
    let intersection = a.1.min(b.1) - a.0.max(b.0);
    let union = a.1.max(b.1) - a.0.min(b.0);
    if intersection > 0.0 && union > 0.0 {
        intersection / union
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ImageSize;

    /// Two tiles of 60 columns with 20 columns in common, and the whole image of 100x50.
    fn windows() -> [Window; 3] {
        let whole = Window::whole(ImageSize {
            height: 50,
            width: 100,
        });
        let tile = |x| Window {
            x,
            width: 60,
            ..whole
        };
        [whole, tile(0), tile(40)]
    }

    fn detection(phrase: &str, score: f32, [x0, y0, x1, y1]: [f32; 4]) -> Detection {
        Detection {
            phrase: Some(phrase.to_owned()),
            score,
            bounding_box: BoundingBox { x0, y0, x1, y1 },
        }
    }

    /// The merged corners, with the detections of the whole image and of the two tiles.
    fn merged(found: [Vec<Detection>; 3]) -> Vec<([f32; 4], Window)> {
        let of_windows = windows().into_iter().zip(found);
        let merged = merge(
            of_windows
                .map(|(window, detections)| WindowDetections {
                    window,
                    area: windows()[0],
                    detections,
                })
                .collect(),
        );
        let scores: Vec<f32> = merged.iter().map(|found| found.detection.score).collect();
        assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
        let corners =
            |found: &PlacedDetection| (found.detection.bounding_box.corners(), found.window);
        merged.iter().map(corners).collect()
    }

    #[test]
    fn an_object_that_several_windows_see_is_one() {
        let [whole, left, _] = windows();
        let boxes = [
            vec![detection("cup", 0.4, [42.0, 10.0, 56.0, 30.0])],
            vec![detection("cup", 0.8, [43.0, 10.0, 55.0, 30.0])],
            vec![detection("cup", 0.6, [43.0, 10.0, 56.0, 31.0])],
        ];
        assert_eq!(merged(boxes), [([43.0, 10.0, 55.0, 30.0], left)]);
        // another phrase at the same place is another object
        let phrases = [
            vec![detection("cup", 0.4, [5.0, 10.0, 15.0, 30.0])],
            vec![detection("pot", 0.8, [5.0, 10.0, 15.0, 30.0])],
            vec![],
        ];
        assert_eq!(merged(phrases).len(), 2);
        // boxes of one window are never compared: the detector has done that
        let close = vec![
            detection("cup", 0.4, [5.0, 10.0, 15.0, 30.0]),
            detection("cup", 0.3, [5.0, 10.0, 15.0, 26.0]),
        ];
        let kept = merged([close, vec![], vec![]]);
        assert!(kept.len() == 2 && kept[0].1 == whole);
    }

    #[test]
    fn a_part_of_a_larger_object_is_dropped_even_with_a_better_score() {
        let large = [10.0, 5.0, 90.0, 45.0];
        let found = merged([
            vec![detection("table", 0.4, large)],
            vec![detection("table", 0.9, [10.0, 5.0, 60.0, 45.0])],
            vec![detection("table", 0.9, [40.0, 5.0, 90.0, 45.0])],
        ]);
        assert_eq!(found, [(large, windows()[0])]);
    }

    #[test]
    fn a_part_that_looks_whole_in_a_tile_is_dropped_if_it_is_less_certain() {
        let (large, part) = ([10.0, 5.0, 90.0, 45.0], [20.0, 10.0, 40.0, 30.0]);
        let whole = vec![detection("table", 0.6, large)];
        let found = |score| {
            let tile = vec![detection("table", score, part)];
            merged([whole.clone(), tile, vec![]]).len()
        };
        assert_eq!(found(0.5), 1);
        // one of many small objects that the whole image takes for one large
        assert_eq!(found(0.7), 2);
        // a small object in front of a large one, in the same window
        let both = vec![
            detection("table", 0.6, large),
            detection("table", 0.5, part),
        ];
        assert_eq!(merged([both, vec![], vec![]]).len(), 2);
    }

    #[test]
    fn two_parts_at_a_seam_are_fused() {
        // 30 columns, while the tiles have 20 in common, and the whole image shows nothing
        let found = merged([
            vec![],
            vec![detection("fork", 0.5, [35.0, 20.0, 60.0, 24.0])],
            vec![detection("fork", 0.7, [40.0, 20.0, 65.0, 25.0])],
        ]);
        assert_eq!(found, [([35.0, 20.0, 65.0, 25.0], windows()[0])]);
        // two objects that only touch the same seam at different heights are two
        let found = merged([
            vec![],
            vec![detection("fork", 0.5, [35.0, 10.0, 60.0, 14.0])],
            vec![detection("fork", 0.7, [40.0, 30.0, 65.0, 35.0])],
        ]);
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn the_edge_of_the_searched_area_is_no_seam() {
        // both boxes end at an edge of the image, not at a seam
        let small = detection("cup", 0.9, [0.0, 0.0, 10.0, 50.0]);
        let large = detection("cup", 0.5, [0.0, 0.0, 40.0, 50.0]);
        assert_eq!(merged([vec![large], vec![small], vec![]]).len(), 2);
    }

    #[test]
    fn an_object_across_four_tiles_is_fused_to_one() {
        let area = Window::whole(ImageSize {
            height: 100,
            width: 100,
        });
        let found = [0, 40].into_iter().flat_map(|y| [0, 40].map(|x| (x, y)));
        let of_tiles = found.map(|(x, y)| {
            let window = Window {
                x,
                y,
                width: 60,
                height: 60,
            };
            let object = BoundingBox {
                x0: 30.0,
                y0: 30.0,
                x1: 70.0,
                y1: 70.0,
            };
            let seen = object.intersection(window.bounding_box());
            WindowDetections {
                window,
                area,
                detections: vec![detection("plate", 0.6, seen.corners())],
            }
        });
        let merged = merge(of_tiles.collect());
        assert_eq!(merged.len(), 1, "{merged:?}");
        let corners = merged[0].detection.bounding_box.corners();
        assert_eq!(corners, [30.0, 30.0, 70.0, 70.0]);
    }
}
