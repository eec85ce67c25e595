//! The report rows of the checks of single operations.

use candle_core::{DType, Device};

use super::report::{Found, RELATIVE, Row};
use crate::models::ops::InstructionSet;
use crate::models::ops::checks::{Check, Comparison, Target};
use crate::pipeline::device;

/// Runs a check. On a CPU, it checks the kernels of every permitted instruction set; on another device, every dtype.
pub(super) fn rows(check: &Check, device: &Device) -> Vec<Row> {
    let targets = targets(check, device);
    check
        .run(&targets)
        .into_iter()
        .zip(&targets)
        .map(|(outcome, target)| Row {
            check: check.op(),
            used_by: check.used_by().to_owned(),
            shape: outcome.shape,
            on: name(check, target),
            found: match outcome.comparison {
                Comparison::Difference(difference) => Found::Difference(difference),
                other => Found::Wrong(other.to_string()),
            },
            allowed: check.tolerance_for(target),
            unit: RELATIVE,
            seconds: None,
        })
        .collect()
}

fn targets(check: &Check, device: &Device) -> Vec<Target> {
    if !device.is_cpu() {
        let dtypes = [DType::F32, DType::F16, DType::BF16];
        return dtypes
            .map(|dtype| Target::Device(device.clone(), dtype))
            .to_vec();
    }
    let sets = match check.is_per_instruction_set() {
        true => InstructionSet::permitted(),
        false => vec![InstructionSet::current()],
    };
    sets.into_iter().map(Target::Kernel).collect()
}

fn name(check: &Check, target: &Target) -> String {
    match target {
        Target::Kernel(_) if !check.is_per_instruction_set() => "any".to_owned(),
        Target::Kernel(set) => set.name().to_owned(),
        Target::Device(device, dtype) => format!("{}, {}", device::name(device), dtype.as_str()),
    }
}
