//! The outputs of `bench`: a JSON document for scripts, and a table for people.

use std::fmt::Write as _;
use std::fs;

use serde::Serialize;

use super::stages::{Stage, Times};
use crate::pipeline::settings::Precision;

/// The JSON of `--json`. Fields may be added, but not renamed or removed.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) version: &'static str,
    /// `cpu`, or `cuda:N`.
    pub(super) device: String,
    #[serde(serialize_with = "precision")]
    pub(super) precision: Precision,
    /// Number of compute threads on the CPU.
    pub(super) threads: usize,
    /// Instruction set of the CPU kernels: `portable`, `avx2`, `avx512` or `neon`.
    pub(super) instruction_set: &'static str,
    pub(super) image: ImageReport,
    /// `null` if the detector was not measured.
    pub(super) detector: Option<DetectorReport>,
    /// `null` if the segmenter was not measured.
    pub(super) segmenter: Option<SegmenterReport>,
    /// Number of timed repetitions.
    pub(super) repeat: u32,
    /// Number of repetitions before the timed ones.
    pub(super) warm_up: u32,
    /// Seconds to load the models.
    pub(super) load_s: f64,
    /// The CPU's measured peak rate, all threads together; `null` on a GPU.
    pub(super) peak_f32_gflops: Option<f64>,
    /// Peak resident memory of the process in MiB; `null` if the system does not report it.
    pub(super) peak_memory_mib: Option<f64>,
    /// The whole prediction, from the image to the masks.
    pub(super) total: Times,
    pub(super) stages: Vec<Stage>,
}

/// The input image.
#[derive(Debug, Serialize)]
pub(super) struct ImageReport {
    /// The file's name, or `noise`.
    pub(super) source: String,
    pub(super) height: usize,
    pub(super) width: usize,
}

/// The detector and its inputs.
#[derive(Debug, Serialize)]
pub(super) struct DetectorReport {
    pub(super) name: String,
    /// The size that the image is resized to.
    pub(super) input_height: usize,
    pub(super) input_width: usize,
    pub(super) prompt: String,
    /// Number of tokens of each pass over the prompt.
    pub(super) tokens: Vec<usize>,
}

/// The segmenter and its inputs.
#[derive(Debug, Serialize)]
pub(super) struct SegmenterReport {
    pub(super) name: String,
    /// Number of segmented boxes.
    pub(super) boxes: usize,
}

fn precision<S: serde::Serializer>(precision: &Precision, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(precision_name(*precision))
}

fn precision_name(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::F16 => "f16",
        Precision::Bf16 => "bf16",
    }
}

/// Peak resident memory of this process in MiB, from Linux's `/proc`.
pub(super) fn peak_memory_mib() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kibibytes: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes / 1024.0)
}

impl Report {
    /// A header with the settings, then an aligned table.
    pub(super) fn table(&self) -> String {
        let mut text = self.head();
        let mut rows = vec![];
        for stage in &self.stages {
            collect(stage, 0, &mut rows);
        }
        let names = rows.iter().map(|(name, _)| name.len());
        let width = names.max().unwrap_or(0).max("STAGE".len());
        // writing to a String cannot fail
        let _ = writeln!(
            text,
            "{:<width$} {:>10} {:>22} {:>8} {:>8} {:>8}",
            "STAGE", "MEDIAN ms", "MIN to MAX ms", "GFLOP", "GFLOP/s", "OF PEAK"
        );
        let mut line = |name: &str, times: &Times, stage: Option<&Stage>| {
            let number = |value: Option<f64>, digits: usize| {
                value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
            };
            let gflop = number(stage.and_then(|stage| stage.gflop), 1);
            let gflops = number(stage.and_then(|stage| stage.gflops), 0);
            let share = stage.and_then(|stage| stage.share_of_peak);
            let share = share.map_or("-".to_owned(), |share| format!("{:.0} %", 100.0 * share));
            let spread = format!(
                "{} to {}",
                milliseconds(times.min_s),
                milliseconds(times.max_s)
            );
            let median = milliseconds(times.median_s);
            let _ = writeln!(
                text,
                "{name:<width$} {median:>10} {spread:>22} {gflop:>8} {gflops:>8} {share:>8}"
            );
        };
        for (name, stage) in &rows {
            line(name, &stage.times, Some(stage));
        }
        line("total", &self.total, None);
        text.truncate(text.trim_end().len());
        text
    }

    fn head(&self) -> String {
        let mut what = vec![format!(
            "{} of {}x{}",
            self.image.source, self.image.height, self.image.width
        )];
        if let Some(detector) = &self.detector {
            let tokens: Vec<_> = detector.tokens.iter().map(usize::to_string).collect();
            what.push(format!(
                "{} at {}x{} with {} tokens",
                detector.name,
                detector.input_height,
                detector.input_width,
                tokens.join(" + ")
            ));
        }
        if let Some(segmenter) = &self.segmenter {
            what.push(format!("{}, {} boxes", segmenter.name, segmenter.boxes));
        }
        let peak = self.peak_f32_gflops.map_or(String::new(), |peak| {
            format!(", f32 peak {peak:.0} GFLOP/s")
        });
        let memory = self.peak_memory_mib.map_or(String::new(), |mib| {
            format!(", at most {mib:.0} MiB of memory")
        });
        format!(
            "groundling {} on {}, {}, {} threads, {}{peak}\n{}\nloaded in {:.2} s{memory}; {} repetitions after {}\n\n",
            self.version,
            self.device,
            precision_name(self.precision),
            self.threads,
            self.instruction_set,
            what.join("; "),
            self.load_s,
            self.repeat,
            self.warm_up,
        )
    }
}

/// Collects a stage and its parts as indented rows.
fn collect<'a>(stage: &'a Stage, depth: usize, rows: &mut Vec<(String, &'a Stage)>) {
    let name = match depth {
        0 => stage.name.as_str(),
        _ => stage.name.rsplit('.').next().unwrap_or_default(),
    };
    rows.push((format!("{}{name}", "  ".repeat(depth)), stage));
    for part in &stage.parts {
        collect(part, depth + 1, rows);
    }
}

fn milliseconds(seconds: f64) -> String {
    let milliseconds = 1000.0 * seconds;
    match milliseconds < 10.0 {
        true => format!("{milliseconds:.2}"),
        false => format!("{milliseconds:.0}"),
    }
}
