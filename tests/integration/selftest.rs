//! `groundling selftest`: compares every operation on every instruction set, and the demo models, with known results.

use std::collections::BTreeSet;

use groundling::models::ops::InstructionSet;
use serde_json::Value;

use crate::command::{command, failure};

const OPS: [&str; 26] = [
    "attention",
    "conv3x3",
    "conv3x3, bf16",
    "conv7x7",
    "conv7x7, bf16",
    "deformable_sampling",
    "depthwise_conv3x3",
    "depthwise_conv5x5",
    "feed_forward",
    "feed_forward, bf16",
    "fused_mb_conv",
    "fused_mb_conv, bf16",
    "fusion_attention",
    "group_norm",
    "inverted_bottleneck",
    "inverted_bottleneck, bf16",
    "layer_norm",
    "linear",
    "linear, bf16",
    "linear_by_heads",
    "linear_by_heads, bf16",
    "max_pool2x2",
    "pooled_window_attention",
    "upscale2x",
    "upscale2x, bf16",
    "window_attention",
];
const DEMO: [&str; 5] = [
    "demo boxes",
    "demo mask scores",
    "demo masks",
    "demo phrases",
    "demo scores",
];

/// The stages of whole models, and their memory.
const MODELS: [&str; 11] = [
    "boxes",
    "enhanced image",
    "enhanced text",
    "image embedding",
    "image features",
    "logits",
    "mask scores",
    "masks of a click",
    "masks of boxes",
    "query scores",
    "text features",
];

/// The values of a field of all checks.
fn values<'a>(report: &'a Value, field: &str) -> BTreeSet<&'a str> {
    let checks = report["checks"].as_array().unwrap();
    checks
        .iter()
        .map(|check| check[field].as_str().unwrap())
        .collect()
}

#[test]
fn all_checks_pass_on_every_instruction_set_of_this_cpu() {
    let output = command(&["selftest", "--quick", "--json", "--device", "cpu"])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for check in report["checks"].as_array().unwrap() {
        assert_eq!(check["result"], "ok", "{check}");
        assert!(check["largest_difference"].as_f64() <= check["allowed"].as_f64());
        assert_eq!(check["reason"], Value::Null);
    }
    assert!(output.status.success(), "{output:?}");
    assert_eq!(report["ok"], true);
    assert_eq!(report["quick"], true);
    assert_eq!(report["device"], "cpu");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert!(report["threads"].as_u64().unwrap() >= 1);
    assert!(report["seconds"].as_f64().unwrap() > 0.0);

    let mut expected: BTreeSet<&str> = OPS.into_iter().chain(DEMO).chain(MODELS).collect();
    // a system may not report its memory
    if cfg!(target_os = "linux") {
        expected.insert("memory that is not released");
    }
    assert_eq!(values(&report, "check"), expected);
    for check in report["checks"].as_array().unwrap() {
        let is_timed = MODELS.contains(&check["check"].as_str().unwrap());
        assert_eq!(check["seconds"].is_f64(), is_timed, "{check}");
    }
    let sets = InstructionSet::available().into_iter();
    let mut expected: BTreeSet<&str> = sets.map(InstructionSet::name).collect();
    assert!(expected.contains(report["instruction_set"].as_str().unwrap()));
    // operations without kernels, models in f32, and models in the other dtype that runs on a CPU
    expected.extend(["any", "cpu", "cpu, bf16"]);
    assert_eq!(values(&report, "on"), expected);
}

#[test]
fn the_checks_can_be_limited_to_one_instruction_set() {
    let output = command(&["selftest", "--quick", "--instruction-set", "portable"])
        .env("DEVICE", "cpu")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let first = format!("groundling {} on cpu, ", env!("CARGO_PKG_VERSION"));
    assert!(
        text.starts_with(&first) && text.contains(" threads, portable, quick\n"),
        "{text}"
    );
    for op in OPS.iter().chain(&DEMO) {
        let is_of_op = |line: &&str| line.starts_with(&format!("{op} "));
        let lines: Vec<&str> = text.lines().filter(is_of_op).collect();
        assert!(!lines.is_empty(), "the table has no {op}:\n{text}");
        assert!(lines.iter().all(|line| line.ends_with("  ok")), "{text}");
    }
    for other in ["avx2", "avx512", "neon"] {
        assert!(!text.contains(other), "{text}");
    }
    let last = text.lines().last().unwrap();
    assert!(last.contains(" checks, all within tolerance, "), "{last}");
}

#[test]
fn a_missing_device_is_an_error() {
    let error = failure(&["selftest", "--quick", "--device", "cuda:99"]);
    assert!(error.contains("the device cannot be used"), "{error}");
}
