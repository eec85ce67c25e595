//! `groundling selftest`: checks that this machine computes correct results.
//!
//! There are two kinds of checks: every operation against its plain implementation ([`crate::models::ops::checks`]),
//! and the demo models against the answers of the reference implementation ([`scenes`]).

pub mod demo;
mod ops;
mod report;
pub mod scenes;

use std::time::Instant;

use candle_core::Device;

use self::report::{Report, Row};
use super::progress;
use crate::config::SelftestArgs;
use crate::models::ops::InstructionSet;
use crate::models::ops::checks::{self, Extent};
use crate::pipeline::{LoadError, device};

/// Runs all checks and prints a table of them.
///
/// # Errors
/// If the device is not available. If a check fails, the error is returned after the table is printed.
pub fn run(args: &SelftestArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let device = device::open(args.device).map_err(|error| LoadError::Device(error.to_string()))?;
    let extent = if args.quick {
        Extent::Quick
    } else {
        Extent::Full
    };
    let rows = rows(&device, extent);
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        device: device::name(&device),
        threads: rayon::current_num_threads(),
        instruction_set: InstructionSet::current().name(),
        quick: args.quick,
        seconds: start.elapsed().as_secs_f64(),
        ok: rows.iter().all(Row::is_ok),
        checks: rows,
    };
    super::print_result(match args.json {
        true => serde_json::to_string_pretty(&report)?,
        false => report.table(),
    });
    report.verdict()
}

/// Runs the demo models first, because they take only seconds and exercise everything.
fn rows(device: &Device, extent: Extent) -> Vec<Row> {
    let checks = checks::all(extent);
    let progress = progress::bar(checks.len() + 1, "checks");
    progress.set_message("demo models");
    let mut rows = demo::rows(device, extent);
    progress.inc(1);
    for check in checks {
        progress.set_message(format!("{}: {}", check.op(), check.used_by()));
        rows.extend(ops::rows(&check, device));
        progress.inc(1);
    }
    progress.finish_and_clear();
    rows
}
