//! What to search for in an image, and where.

use std::sync::Arc;

use super::merge::{PlacedDetection, WindowDetections, merge};
use super::tiles::Tiling;
use crate::detector::{
    CaptionPass, DetectionOptions, Detector, PhraseThresholds, Queries, all_detections,
    best_candidate, keep_wanted, rated_by_phrase,
};
use crate::geometry::{Detection, ImageSize, Window};
use crate::prompt::Prompt;

/// How boxes get their phrases and scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rating {
    /// Each box is named by its best phrase; thresholds and the suppression of duplicates decide which ones count.
    BestPhrase,
    /// Each box is rated for every phrase, as papers rate detectors: see [`rated_by_phrase`].
    EveryPhrase {
        /// The number of detections in each window; the best ones are kept.
        most: usize,
    },
}

/// What to search for in an image, and where.
#[derive(Debug, Clone)]
pub struct Query {
    /// The phrases to detect.
    pub prompt: Prompt,
    /// Thresholds and limits of the detector.
    pub options: DetectionOptions,
    /// How boxes get their phrases and scores.
    pub rating: Rating,
    /// Box thresholds of single phrases.
    pub thresholds: PhraseThresholds,
    /// The parts of the image that are searched; the whole image if there are none.
    pub areas: Vec<Window>,
    /// How each area is divided into tiles.
    pub tiling: Tiling,
    /// Whether objects are segmented.
    pub with_masks: bool,
    /// Whether a phrase that the model cannot encode is skipped instead of failing the request. Used if the prompt is
    /// made of labels.
    pub skips_unencodable: bool,
}

/// The output of the detector for one window.
#[derive(Debug)]
pub(super) struct WindowQueries {
    pub(super) searched: SearchedWindow,
    /// One entry per pass.
    pub(super) queries: Vec<Arc<Queries>>,
}

/// A window that is searched, and the area that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SearchedWindow {
    pub(super) window: Window,
    pub(super) area: Window,
}

impl Query {
    /// Searches the whole image, without tiles, and segments what is found.
    pub fn new(prompt: Prompt, options: DetectionOptions) -> Self {
        Self {
            prompt,
            options,
            rating: Rating::BestPhrase,
            thresholds: PhraseThresholds::default(),
            areas: vec![],
            tiling: Tiling::default(),
            with_masks: true,
            skips_unencodable: false,
        }
    }

    /// The windows to search in an image of this size.
    pub(super) fn windows(&self, size: ImageSize, detector: &Detector) -> Vec<SearchedWindow> {
        let whole = [Window::whole(size)];
        let areas = match self.areas.as_slice() {
            [] => &whole,
            areas => areas,
        };
        let mut windows: Vec<SearchedWindow> = vec![];
        for area in areas {
            let of_area = self.tiling.windows(*area, |size| detector.input_size(size));
            for window in of_area {
                if !windows.iter().any(|other| other.window == window) {
                    windows.push(SearchedWindow {
                        window,
                        area: *area,
                    });
                }
            }
        }
        windows
    }

    /// The objects of all windows, best first. The second value is the best candidate, if nothing was found.
    pub(super) fn objects(
        &self,
        passes: &[CaptionPass],
        windows: &[WindowQueries],
    ) -> (Vec<PlacedDetection>, Option<Detection>) {
        let of_window = |of_window: &WindowQueries| {
            let SearchedWindow { window, area } = of_window.searched;
            let queries = of_window.queries.iter().map(Arc::as_ref);
            let (passes, size) = (passes.iter().zip(queries), window.size());
            let mut found = match self.rating {
                Rating::BestPhrase => all_detections(passes, size, &self.options, &self.thresholds),
                Rating::EveryPhrase { most } => rated_by_phrase(passes, size, most),
            };
            for detection in &mut found {
                detection.bounding_box = window.to_image(detection.bounding_box);
            }
            WindowDetections {
                window,
                area,
                detections: found,
            }
        };
        let found = merge(windows.iter().map(of_window).collect());
        let is_negative = |phrase: &str| self.prompt.is_negative(phrase);
        let found = keep_wanted(found, is_negative, &self.options, |found| &found.detection);
        let best = match found.is_empty() {
            true => self.best_rejected(passes, windows),
            false => None,
        };
        (found, best)
    }

    fn best_rejected(
        &self,
        passes: &[CaptionPass],
        windows: &[WindowQueries],
    ) -> Option<Detection> {
        let best_of_window = |of_window: &WindowQueries| {
            let window = of_window.searched.window;
            let queries = of_window.queries.iter().map(Arc::as_ref);
            let mut best = best_candidate(passes.iter().zip(queries), window.size())?;
            best.bounding_box = window.to_image(best.bounding_box);
            Some(best)
        };
        let of_windows = windows.iter().filter_map(best_of_window);
        of_windows.max_by(|a, b| a.score.total_cmp(&b.score))
    }
}
