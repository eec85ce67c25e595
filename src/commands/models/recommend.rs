//! `groundling models --recommend`: a detector and a segmenter, chosen by published accuracies and measured times.

use std::time::Instant;

use anyhow::{Context, bail};
use candle_core::{Device, Tensor};
use serde::Serialize;

use super::super::print_result;
use super::AccuracyLine;
use crate::checkpoints::Role;
use crate::checkpoints::recommend::{self, ranking_benchmark};
use crate::checkpoints::registry::{Entry, MEASURED_ON, MEASURED_PRODUCT_GFLOPS};
use crate::config::ModelsArgs;
use crate::models::ops::{self, Activation, Matrix};
use crate::pipeline::ModelLoader;

/// The suggestion for scripts.
#[derive(Debug, Serialize)]
struct Report {
    detector: Choice,
    segmenter: Choice,
    /// The estimated seconds of the first prompt on an image; `null` on a GPU.
    estimated_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Choice {
    name: &'static str,
    accuracy: Vec<AccuracyLine>,
    estimated_seconds: Option<f64>,
    measured_memory_mib: Option<u32>,
    parameters_millions: f32,
    licence: &'static str,
    about: &'static str,
}

/// Prints the suggestion.
///
/// # Errors
/// If no pair of models is fast enough, or the device has no measured times but a time limit was given.
pub(super) fn run(args: &ModelsArgs) -> anyhow::Result<()> {
    let settings = args.models.settings();
    let loader = ModelLoader::new(settings);
    let on_gpu = !loader.device()?.is_cpu();
    if on_gpu && args.seconds.is_some() {
        bail!(
            "the times of the models are measured on CPUs only: leave --seconds out on a GPU, or add --device cpu"
        );
    }
    let rate = match on_gpu {
        true => None,
        false => Some(product_gflops()?),
    };
    // how much slower than the machine of the measurements this one is
    let slowdown = rate.map(|rate| MEASURED_PRODUCT_GFLOPS / rate);
    let limit = args
        .seconds
        .zip(slowdown)
        .map(|(limit, slowdown)| limit / slowdown);
    let pair = match recommend::recommend(limit) {
        Some(pair) => pair,
        None => {
            let fastest = recommend::fastest().context("no model has a measured time")?;
            let seconds = fastest.seconds() * slowdown.unwrap_or(1.0);
            bail!(
                "no pair of models needs at most {} s on this CPU; the fastest, {} and {}, needs about {seconds:.1} s",
                args.seconds.unwrap_or_default(),
                fastest.detector.name,
                fastest.segmenter.name,
            );
        }
    };
    let report = Report {
        detector: choice(pair.detector, slowdown),
        segmenter: choice(pair.segmenter, slowdown),
        estimated_seconds: slowdown.map(|slowdown| pair.seconds() * slowdown),
    };
    if args.json {
        print_result(serde_json::to_string_pretty(&report)?);
    } else {
        print(&report, rate);
    }
    Ok(())
}

/// The rate of matrix products on all threads in GFLOP/s, in a typical shape of the models. The best of several is used,
/// because other processes may be running.
fn product_gflops() -> candle_core::Result<f64> {
    const SHAPE: [usize; 3] = [4096, 768, 1536];
    const RUNS: usize = 8;
    let [rows, input, output] = SHAPE;
    let device = &Device::Cpu;
    let xs = Tensor::rand(-1f32, 1.0, (rows, input), device)?;
    let weight = Matrix::new(Tensor::rand(-1f32, 1.0, (output, input), device)?)?;
    let mut best = 0f64;
    for _ in 0..RUNS {
        let start = Instant::now();
        ops::linear(&xs, &weight, None, Activation::None, None)?;
        let flops = 2 * rows * input * output;
        best = best.max(flops as f64 / start.elapsed().as_nanos().max(1) as f64);
    }
    Ok(best)
}

fn choice(entry: &'static Entry, slowdown: Option<f64>) -> Choice {
    let seconds = |slowdown: f64| entry.cost.map(|cost| f64::from(cost.seconds) * slowdown);
    Choice {
        name: entry.name,
        accuracy: super::accuracies(entry),
        estimated_seconds: slowdown.and_then(seconds),
        measured_memory_mib: entry.cost.map(|cost| cost.memory_mib),
        parameters_millions: entry.parameters,
        licence: entry.licence,
        about: entry.about,
    }
}

fn print(report: &Report, rate: Option<f64>) {
    for (role, choice) in [
        (Role::Detector, &report.detector),
        (Role::Segmenter, &report.segmenter),
    ] {
        print_result(format_args!(
            "{:<10} {:<22} {}",
            role.describe(),
            choice.name,
            choice.about
        ));
        for accuracy in &choice.accuracy {
            print_result(format_args!(
                "{:<10} {} {:.1} ({})",
                "", accuracy.benchmark, accuracy.ap, accuracy.source
            ));
        }
        let seconds = choice.estimated_seconds;
        let seconds = seconds.map_or(String::new(), |seconds| format!("about {seconds:.2} s, "));
        let memory = choice.measured_memory_mib;
        let memory = memory.map_or(String::new(), |mib| format!("{mib} MiB, "));
        print_result(format_args!(
            "{:<10} {seconds}{memory}{:.0} M parameters, {}\n",
            "", choice.parameters_millions, choice.licence
        ));
    }
    match (report.estimated_seconds, rate) {
        (Some(seconds), Some(rate)) => print_result(format_args!(
            "The first prompt on an image needs about {seconds:.1} s on this CPU ({rate:.0} GFLOP/s in matrix products), estimated from times on {MEASURED_ON}; further prompts need less."
        )),
        _ => print_result(
            "The most accurate pair: there are no measured times of all models on GPUs.",
        ),
    }
    print_result(format_args!(
        "Chosen by {} and {}; both are averages over many kinds of objects, so try them on your own images.\n\nDETECTOR={} SEGMENTER={} groundling serve",
        ranking_benchmark(Role::Detector).name(),
        ranking_benchmark(Role::Segmenter).name(),
        report.detector.name,
        report.segmenter.name
    ));
}
