//! The outputs of `selftest`: a table for people, a JSON document for scripts, and the verdict.

use std::fmt::Write as _;
use std::fs;

use anyhow::bail;
use candle_core::Device;
use serde::{Serialize, Serializer};

use crate::models::ops::InstructionSet;
use crate::pipeline::device;

/// The JSON of `--json`. Fields may be added, but not renamed or removed.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) version: &'static str,
    /// `cpu`, or `cuda:N`.
    pub(super) device: String,
    pub(super) machine: Machine,
    /// Number of compute threads on the CPU.
    pub(super) threads: usize,
    /// Default instruction set of the CPU kernels: `portable`, `avx2`, `avx512` or `neon`.
    pub(super) instruction_set: &'static str,
    pub(super) quick: bool,
    /// Duration of the whole test.
    pub(super) seconds: f64,
    /// Whether every check passed.
    pub(super) ok: bool,
    pub(super) checks: Vec<Row>,
}

/// What a developer asks first about a result that differs.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    /// Such as `linux x86_64`.
    system: String,
    /// The name of the processor; `null` if the system does not tell.
    processor: Option<String>,
    /// `null` on a CPU.
    gpu: Option<GpuReport>,
}

/// A GPU.
#[derive(Debug, Serialize)]
struct GpuReport {
    name: String,
    /// Such as `9.0`.
    compute_capability: String,
    /// In bytes.
    memory: u64,
    /// The driver with its version; `null` if the system does not tell.
    driver: Option<String>,
}

impl Machine {
    /// The machine that this process runs on.
    pub(super) fn new(device: &Device) -> Self {
        Self {
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            processor: processor(),
            gpu: device::gpu_properties(device).map(|gpu| GpuReport {
                name: gpu.name,
                compute_capability: gpu.compute_capability,
                memory: gpu.memory,
                driver: gpu.driver,
            }),
        }
    }

    #[cfg(test)]
    fn unknown() -> Self {
        Self {
            system: "linux x86_64".to_owned(),
            processor: None,
            gpu: None,
        }
    }
}

/// The name of the processor on Linux.
fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    let (_, name) = line.split_once(':')?;
    Some(name.trim().to_owned())
}

/// One check on one instruction set or device.
#[derive(Debug, Clone, Serialize)]
#[serde(into = "JsonRow")]
pub(super) struct Row {
    /// The operation, or the compared part of the demo models' answers.
    pub(super) check: &'static str,
    /// The model, and its part that uses this shape.
    pub(super) used_by: String,
    pub(super) shape: String,
    /// An instruction set or a device.
    pub(super) on: String,
    pub(super) found: Found,
    /// The tolerance.
    pub(super) allowed: f64,
    /// The unit of the difference and the tolerance.
    pub(super) unit: &'static str,
    /// The duration of a stage of a model.
    pub(super) seconds: Option<f64>,
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    /// The largest difference from the expected result.
    Difference(f64),
    /// The results cannot be compared, with the reason.
    Wrong(String),
}

/// The JSON form of a row.
#[derive(Debug, Serialize)]
struct JsonRow {
    check: &'static str,
    used_by: String,
    shape: String,
    on: String,
    /// `null` if the results cannot be compared.
    largest_difference: Option<f64>,
    allowed: f64,
    unit: &'static str,
    /// `null` for checks that are not timed.
    seconds: Option<f64>,
    #[serde(serialize_with = "result")]
    result: bool,
    /// Why the results cannot be compared.
    reason: Option<String>,
}

fn result<S: Serializer>(is_ok: &bool, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(if *is_ok { "ok" } else { "differs" })
}

impl From<Row> for JsonRow {
    fn from(row: Row) -> Self {
        let result = row.is_ok();
        let (largest_difference, reason) = match row.found {
            Found::Difference(difference) => (Some(difference), None),
            Found::Wrong(reason) => (None, Some(reason)),
        };
        Self {
            check: row.check,
            used_by: row.used_by,
            shape: row.shape,
            on: row.on,
            largest_difference,
            allowed: row.allowed,
            unit: row.unit,
            seconds: row.seconds,
            result,
            reason,
        }
    }
}

impl Row {
    /// Whether the difference is within the tolerance.
    pub(super) fn is_ok(&self) -> bool {
        matches!(self.found, Found::Difference(difference) if difference <= self.allowed)
    }

    /// The cells of the table.
    fn cells(&self) -> [String; 8] {
        let (difference, result) = match &self.found {
            Found::Difference(difference) => (
                scientific(*difference, 1),
                if self.is_ok() { "ok" } else { "DIFFERS" }.to_owned(),
            ),
            Found::Wrong(reason) => ("-".to_owned(), format!("DIFFERS: {reason}")),
        };
        [
            self.check.to_owned(),
            self.used_by.clone(),
            self.shape.clone(),
            self.on.clone(),
            self.seconds
                .map_or(String::new(), |seconds| format!("{:.1} ms", seconds * 1e3)),
            difference,
            match self.unit {
                RELATIVE => scientific(self.allowed, 0),
                unit => format!("{} {unit}", scientific(self.allowed, 0)),
            },
            result,
        ]
    }
}

/// `0`, or scientific notation such as `5e-6`.
fn scientific(number: f64, digits: usize) -> String {
    match number {
        0.0 => "0".to_owned(),
        number => format!("{number:.digits$e}"),
    }
}

/// The unit of most differences; the table mentions it once.
pub(super) const RELATIVE: &str = "of the largest expected number";

const HEADS: [&str; 8] = [
    "CHECK",
    "USED BY",
    "SHAPE",
    "ON",
    "TIME",
    "DIFFERENCE",
    "ALLOWED",
    "RESULT",
];

impl Report {
    /// A line about the machine, an aligned table, and a summary line.
    pub(super) fn table(&self) -> String {
        let mut rows = vec![HEADS.map(str::to_owned)];
        rows.extend(self.checks.iter().map(Row::cells));
        let widths: Vec<usize> = (0..HEADS.len())
            .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
            .collect();
        let mut text = format!(
            "groundling {} on {}, {} threads, {}{}\nDIFFERENCE and ALLOWED without a unit: {RELATIVE}\n\n",
            self.version,
            self.device,
            self.threads,
            self.instruction_set,
            if self.quick { ", quick" } else { "" }
        );
        for row in rows {
            let cells = row.iter().zip(&widths);
            let line: Vec<String> = cells
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            // writing to a String cannot fail
            let _ = writeln!(text, "{}", line.join("  ").trim_end());
        }
        let failing = self.failing().len();
        let verdict = match failing {
            0 => "all within tolerance".to_owned(),
            _ => format!("{failing} of them exceed the tolerance"),
        };
        let _ = write!(
            text,
            "\n{} checks, {verdict}, {:.1} s",
            self.checks.len(),
            self.seconds
        );
        text
    }

    fn failing(&self) -> Vec<&Row> {
        self.checks.iter().filter(|row| !row.is_ok()).collect()
    }

    /// An error that names the failing checks and the remedy.
    pub(super) fn verdict(&self) -> anyhow::Result<()> {
        let failing = self.failing();
        if failing.is_empty() {
            return Ok(());
        }
        let mut names: Vec<String> = vec![];
        for row in &failing {
            let name = format!("{} on {}", row.check, row.on);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        bail!(
            "{} of {} checks failed: {}. {} Please report this with the table above and the name of the processor.",
            failing.len(),
            self.checks.len(),
            names.join(", "),
            self.advice()
        )
    }

    fn advice(&self) -> &'static str {
        if self.device != "cpu" {
            return "Do not trust results of this device. Use the CPU instead (DEVICE=cpu), and check it with `groundling selftest --device cpu`.";
        }
        if self.instruction_set == InstructionSet::Portable.name() {
            return "Do not trust results of this build on this machine.";
        }
        "Do not trust results of these instruction sets on this machine. Run `groundling selftest --instruction-set portable`: if it passes, GROUNDLING_INSTRUCTION_SET=portable gives correct results and is only slower."
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(found: Found) -> Report {
        let row = |check, on: &str, found| Row {
            check,
            used_by: "BERT".to_owned(),
            shape: "256x768 to 768".to_owned(),
            on: on.to_owned(),
            found,
            allowed: 5e-6,
            unit: RELATIVE,
            seconds: None,
        };
        let checks = vec![
            row("linear", "portable", Found::Difference(1e-7)),
            row("linear", "avx2", found),
        ];
        Report {
            version: "1.2.3",
            device: "cpu".to_owned(),
            machine: Machine::unknown(),
            threads: 2,
            instruction_set: "avx2",
            quick: true,
            seconds: 1.25,
            ok: checks.iter().all(Row::is_ok),
            checks,
        }
    }

    #[test]
    fn a_difference_equal_to_the_tolerance_passes() {
        let report = report(Found::Difference(5e-6));
        assert!(report.ok && report.verdict().is_ok());
        let table = report.table();
        assert!(
            table.starts_with("groundling 1.2.3 on cpu, 2 threads, avx2, quick\n"),
            "{table}"
        );
        assert!(
            table.ends_with("2 checks, all within tolerance, 1.2 s"),
            "{table}"
        );
        assert!(!table.contains("DIFFERS"), "{table}");
    }

    #[test]
    fn a_failing_check_is_named_with_its_reason() {
        for (found, difference, reason) in [
            (Found::Difference(6e-6), "6.0e-6", None),
            (
                Found::Wrong("a number is infinite or NaN".to_owned()),
                "-",
                Some("a number is infinite or NaN"),
            ),
            // NaN must not pass a comparison
            (Found::Difference(f64::NAN), "NaN", None),
        ] {
            let report = report(found);
            assert!(!report.ok);
            let table = report.table();
            let line = table.lines().find(|line| line.contains("DIFFERS"));
            let line = line.unwrap_or_else(|| panic!("no check failed in\n{table}"));
            assert!(line.contains("avx2") && line.contains(difference), "{line}");
            assert!(reason.is_none_or(|reason| line.ends_with(reason)), "{line}");
            assert!(table.contains("1 of them exceed the tolerance"), "{table}");
            let error = report.verdict().unwrap_err().to_string();
            assert!(
                error.starts_with("1 of 2 checks failed: linear on avx2."),
                "{error}"
            );
            assert!(error.contains("--instruction-set portable"), "{error}");
            let json = serde_json::to_value(&report).unwrap();
            assert_eq!(json["ok"], false);
            assert_eq!(json["checks"][0]["result"], "ok");
            assert_eq!(json["checks"][1]["result"], "differs");
            assert_eq!(json["checks"][1]["reason"].as_str(), reason);
        }
    }
}
