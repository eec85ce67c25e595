//! Aggregates recorded spans to stages: their times, and their share of the processor's peak.

use serde::Serialize;

use super::flops::Flops;
use super::spans::Interval;

/// The time of a stage in seconds, over all repetitions.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub(super) struct Times {
    pub(super) median_s: f64,
    pub(super) min_s: f64,
    pub(super) max_s: f64,
    pub(super) samples_s: Vec<f64>,
}

/// A stage and its parts.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Stage {
    /// The names of the enclosing stages and of this one, separated by dots.
    pub(super) name: String,
    #[serde(flatten)]
    pub(super) times: Times,
    /// Operations of one repetition in GFLOP; `None` if they are not counted.
    pub(super) gflop: Option<f64>,
    /// GFLOP/s at the median time.
    pub(super) gflops: Option<f64>,
    /// Share of the processor's peak rate.
    pub(super) share_of_peak: Option<f64>,
    /// The parts with spans of their own; the remaining time is the part `other`.
    pub(super) parts: Vec<Stage>,
}

/// Spans whose stages have other names.
const RENAMED: [(&str, &str); 6] = [
    ("detect", "detector"),
    ("encode", "segmenter"),
    ("segment", "segmenter"),
    ("bert", "text"),
    ("image_encoder", "encode_image"),
    ("mask_decoder", "masks"),
];

/// The time of whole repetitions, and the stages in the order in which they first ran.
pub(super) fn measured(
    repetitions: &[Vec<Interval>],
    flops: &Flops,
    peak: Option<f64>,
) -> (Times, Vec<Stage>) {
    let mut root = Node::new("", repetitions.len());
    for (repetition, intervals) in repetitions.iter().enumerate() {
        for interval in intervals {
            let seconds = interval.duration.as_secs_f64();
            // the first name is the span of the repetition itself
            let path = interval.path.get(1..).unwrap_or_default();
            root.add(path, repetition, seconds);
        }
    }
    let mut stages = vec![];
    for group in &root.parts {
        let group = group.stage("", flops, peak);
        match group.parts.is_empty() {
            true => stages.push(group),
            false => stages.extend(group.parts),
        }
    }
    (Times::of(root.samples), stages)
}

/// All spans with the same path.
struct Node {
    name: &'static str,
    samples: Vec<f64>,
    parts: Vec<Node>,
}

impl Node {
    fn new(span: &'static str, repetitions: usize) -> Self {
        let renamed = RENAMED.iter().find(|(from, _)| *from == span);
        Self {
            name: renamed.map_or(span, |(_, to)| to),
            samples: vec![0.0; repetitions],
            parts: vec![],
        }
    }

    fn add(&mut self, path: &[&'static str], repetition: usize, seconds: f64) {
        let Some((first, rest)) = path.split_first() else {
            self.samples[repetition] += seconds;
            return;
        };
        let new = Self::new(first, self.samples.len());
        let known = self.parts.iter().position(|part| part.name == new.name);
        let index = known.unwrap_or_else(|| {
            self.parts.push(new);
            self.parts.len() - 1
        });
        self.parts[index].add(rest, repetition, seconds);
    }

    fn stage(&self, parent: &str, flops: &Flops, peak: Option<f64>) -> Stage {
        let name = match parent {
            "" => self.name.to_owned(),
            parent => format!("{parent}.{}", self.name),
        };
        let mut parts: Vec<Stage> = self
            .parts
            .iter()
            .map(|part| part.stage(&name, flops, peak))
            .collect();
        if !parts.is_empty() {
            let mut other = Node::new("other", 0);
            other.samples = self.samples.clone();
            for part in &self.parts {
                for (other, sample) in other.samples.iter_mut().zip(&part.samples) {
                    *other = (*other - sample).max(0.0);
                }
            }
            parts.push(other.stage(&name, flops, peak));
        }
        let times = Times::of(self.samples.clone());
        let gflop = flops.of(&name).map(|flops| flops as f64 / 1e9);
        let gflops = gflop.map(|gflop| gflop / times.median_s);
        Stage {
            gflop,
            gflops,
            share_of_peak: gflops.zip(peak).map(|(rate, peak)| rate / peak),
            name,
            times,
            parts,
        }
    }
}

impl Times {
    /// Statistics of at least one repetition.
    fn of(samples_s: Vec<f64>) -> Self {
        let mut sorted = samples_s.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        let last = sorted.len().saturating_sub(1);
        Self {
            median_s: (at(last / 2) + at(last.div_ceil(2))) / 2.0,
            min_s: at(0),
            max_s: at(last),
            samples_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn interval(path: &[&'static str], milliseconds: u64) -> Interval {
        Interval {
            path: path.to_vec(),
            start: Duration::ZERO,
            duration: Duration::from_millis(milliseconds),
        }
    }

    #[test]
    fn the_times_of_spans_with_the_same_path_are_added() {
        let repetition = |factor: u64| {
            vec![
                interval(&["run"], 100 * factor),
                interval(&["run", "decode"], 5 * factor),
                interval(&["run", "detect"], 60 * factor),
                interval(&["run", "detect", "encoder"], 50 * factor),
                interval(&["run", "detect", "encoder", "fusion"], 10 * factor),
                interval(&["run", "detect", "encoder", "fusion"], 20 * factor),
                interval(&["run", "encode"], 20 * factor),
                interval(&["run", "encode", "image_encoder"], 20 * factor),
                interval(&["run", "segment"], 10 * factor),
                interval(&["run", "segment", "mask_decoder"], 10 * factor),
            ]
        };
        let repetitions = [repetition(1), repetition(3), repetition(2)];
        let (total, stages) = measured(&repetitions, &Flops::default(), Some(100.0));
        assert_eq!(total.samples_s, [0.1, 0.3, 0.2]);
        assert_eq!((total.min_s, total.median_s, total.max_s), (0.1, 0.2, 0.3));
        let names: Vec<_> = stages.iter().map(|stage| stage.name.as_str()).collect();
        let expected = [
            "decode",
            "detector.encoder",
            "detector.other",
            "segmenter.encode_image",
            "segmenter.masks",
            "segmenter.other",
        ];
        assert_eq!(names, expected);
        let milliseconds = |stage: &Stage| (stage.times.median_s * 1e3).round();
        let medians: Vec<_> = stages.iter().map(milliseconds).collect();
        assert_eq!(medians, [10.0, 100.0, 20.0, 40.0, 20.0, 0.0]);
        let parts: Vec<_> = stages[1].parts.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(parts, ["detector.encoder.fusion", "detector.encoder.other"]);
        assert_eq!(milliseconds(&stages[1].parts[0]), 60.0);
    }

    #[test]
    fn the_median_of_two_samples_is_their_mean() {
        assert_eq!(Times::of(vec![3.0, 1.0]).median_s, 2.0);
        assert_eq!(Times::of(vec![3.0, 1.0, 2.0]).median_s, 2.0);
    }
}
