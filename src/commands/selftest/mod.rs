//! `groundling selftest`: checks that this machine computes correct results.
//!
//! There are four kinds of checks: the demo models against the answers of the reference implementation ([`scenes`]), their
//! memory, the stages of whole models with random weights against the CPU in f32, and every operation against its plain
//! implementation ([`crate::models::ops::checks`]).

pub mod demo;
mod memory;
mod ops;
mod random_weights;
mod report;
pub mod scenes;
mod stages;

use std::fs;
use std::time::Instant;

use anyhow::Context;
use candle_core::Device;

use self::report::{Machine, Report, Row};
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
        machine: Machine::new(&device),
        threads: rayon::current_num_threads(),
        instruction_set: InstructionSet::current().name(),
        quick: args.quick,
        seconds: start.elapsed().as_secs_f64(),
        ok: rows.iter().all(Row::is_ok),
        checks: rows,
    };
    if let Some(file) = &args.report {
        let json = serde_json::to_string_pretty(&report)?;
        fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
        super::print_status(format_args!("the report is in {}", file.display()));
    }
    super::print_result(match args.json {
        true => serde_json::to_string_pretty(&report)?,
        false => report.table(),
    });
    report.verdict()
}

/// Runs the demo models first, because they take only seconds and exercise everything.
fn rows(device: &Device, extent: Extent) -> Vec<Row> {
    let checks = checks::all(extent);
    let models = stages::models(extent);
    let progress = progress::bar(checks.len() + models.len() + 2, "checks");
    progress.set_message("demo models");
    let mut rows = demo::rows(device, extent);
    progress.inc(1);
    progress.set_message("memory");
    rows.extend(memory::row(device, extent));
    progress.inc(1);
    for model in models {
        progress.set_message(model.name());
        rows.extend(model.rows(device));
        progress.inc(1);
    }
    for check in checks {
        progress.set_message(format!("{}: {}", check.op(), check.used_by()));
        rows.extend(ops::rows(&check, device));
        progress.inc(1);
    }
    progress.finish_and_clear();
    rows
}
