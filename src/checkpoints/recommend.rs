//! Suggests a detector and a segmenter by their published accuracies and their measured times.

use super::Role;
use super::registry::{self, Benchmark, Entry};

/// A detector and a segmenter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recommendation {
    /// The detector.
    pub detector: &'static Entry,
    /// The segmenter.
    pub segmenter: &'static Entry,
}

impl Recommendation {
    /// The measured seconds of both models for one image and one box.
    pub fn seconds(&self) -> f64 {
        seconds(self.detector) + seconds(self.segmenter)
    }

    /// The sum of both accuracies, by which pairs are ranked.
    fn score(&self) -> f32 {
        let accuracy = |entry| ranking_accuracy(entry).unwrap_or_default();
        accuracy(self.detector) + accuracy(self.segmenter)
    }
}

/// The benchmark by which the models of a role are ranked. The other benchmarks are not published for all of them, or are
/// no zero-shot numbers.
pub fn ranking_benchmark(role: Role) -> Benchmark {
    match role {
        Role::Detector => Benchmark::LvisMinival,
        Role::Segmenter => Benchmark::CocoMasksOfVitDet,
    }
}

/// The best pair whose measured time is at most `limit` seconds, if there is a limit. The best pair has the largest sum of
/// the detector's box AP on LVIS minival and the segmenter's mask AP on COCO. `None` if no pair is fast enough.
pub fn recommend(limit: Option<f64>) -> Option<Recommendation> {
    pairs()
        .filter(|pair| limit.is_none_or(|limit| pair.seconds() <= limit))
        .max_by(|a, b| a.score().total_cmp(&b.score()))
}

/// The fastest pair.
pub fn fastest() -> Option<Recommendation> {
    pairs().min_by(|a, b| a.seconds().total_cmp(&b.seconds()))
}

/// All pairs of models with a published accuracy and a measured time.
fn pairs() -> impl Iterator<Item = Recommendation> {
    let of_role = |role| {
        registry::entries().filter(move |entry| {
            Role::of(entry.architecture) == role
                && ranking_accuracy(entry).is_some()
                && entry.cost.is_some()
        })
    };
    of_role(Role::Detector).flat_map(move |detector| {
        of_role(Role::Segmenter).map(move |segmenter| Recommendation {
            detector,
            segmenter,
        })
    })
}

fn ranking_accuracy(entry: &Entry) -> Option<f32> {
    entry.accuracy_of(ranking_benchmark(Role::of(entry.architecture)))
}

fn seconds(entry: &Entry) -> f64 {
    entry.cost.map_or(0.0, |cost| f64::from(cost.seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_time_never_gives_a_worse_pair() {
        let fastest = fastest().unwrap().seconds();
        assert_eq!(recommend(Some(fastest * 0.99)), None);
        let mut last = 0.0;
        for step in 0..200 {
            let limit = fastest * (1.0 + 0.1 * f64::from(step));
            let pair = recommend(Some(limit)).unwrap();
            assert!(pair.seconds() <= limit);
            assert!(pair.score() >= last);
            last = pair.score();
        }
        assert!(recommend(None).unwrap().score() >= last);
    }
}
