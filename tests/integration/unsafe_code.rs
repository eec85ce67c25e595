//! The inventory of `unsafe`: which files may contain it, and why.

use std::fs;

use crate::support::{files_below, repository};

/// Files in `src/` and the reason for their `unsafe`. The lint `unsafe_code` is denied in both packages, and only these
/// files allow it.
const INVENTORY: [(&str, &str); 29] = [
    (
        "commands/mod.rs",
        "starts the compute threads while no other thread exists, which `threads::start` requires",
    ),
    (
        "memory.rs",
        "the global allocator: caches large blocks for the next request, and asks the kernel for huge pages",
    ),
    (
        "models/ops/gpu/convolution.rs",
        "starts a kernel on a GPU: pointers into tensors whose shapes are checked before",
    ),
    (
        "models/ops/gpu/launch.rs",
        "uninitialized tensors that a kernel writes, and the call that starts kernels",
    ),
    (
        "models/ops/gpu/linear.rs",
        "starts a kernel on a GPU: pointers into tensors whose shapes are checked before",
    ),
    (
        "models/ops/gpu/norm.rs",
        "starts a kernel on a GPU: pointers into tensors whose shapes are checked before",
    ),
    (
        "models/ops/gpu/sampling.rs",
        "starts a kernel on a GPU: pointers into tensors whose shapes are checked before",
    ),
    (
        "models/ops/gpu/softmax.rs",
        "starts a kernel on a GPU: pointers into tensors whose shapes are checked before",
    ),
    (
        "models/ops/gpu/sums.rs",
        "starts kernels on a GPU: pointers into tensors whose shapes are checked before; the first kernel fills one of them",
    ),
    (
        "models/ops/gpu/windows.rs",
        "starts a kernel on a GPU: pointers into tensors whose shapes are checked before",
    ),
    (
        "models/ops/kernels/attention.rs",
        "tiles read and write rows through pointers, which threads share",
    ),
    (
        "models/ops/kernels/convolution.rs",
        "tiles write disjoint rows of one output from several threads",
    ),
    (
        "models/ops/kernels/depthwise.rs",
        "loads and stores vectors of channels through pointers into slices whose lengths are checked before",
    ),
    (
        "models/ops/kernels/feed_forward.rs",
        "tiles write disjoint rows of one output from several threads",
    ),
    (
        "models/ops/kernels/fused_convolution.rs",
        "tiles gather patches and write disjoint rows of one output from several threads",
    ),
    (
        "models/ops/kernels/fusion_attention.rs",
        "tiles read and write rows through pointers, which threads share",
    ),
    (
        "models/ops/kernels/gemm.rs",
        "tiles write disjoint parts of one output from several threads",
    ),
    (
        "models/ops/kernels/inverted_bottleneck.rs",
        "tiles read pixels and write rows for the next stage through pointers",
    ),
    (
        "models/ops/kernels/norm.rs",
        "threads write disjoint rows of an uninitialized output",
    ),
    (
        "models/ops/kernels/pooled_attention.rs",
        "tiles read and write rows through pointers, which threads share",
    ),
    (
        "models/ops/kernels/pooling.rs",
        "threads write disjoint rows of an uninitialized output",
    ),
    (
        "models/ops/kernels/sampling.rs",
        "loads the channels of sampled cells through pointers; threads write the rows of their queries",
    ),
    (
        "models/ops/kernels/scratch.rs",
        "uninitialized buffers, and pointers that threads share",
    ),
    (
        "models/ops/kernels/simd.rs",
        "loads of vectors from pointers",
    ),
    (
        "models/ops/kernels/tile.rs",
        "the inner loop of matrix products: pointers into packed operands and the output",
    ),
    (
        "models/ops/kernels/window_attention.rs",
        "threads write disjoint windows of one output",
    ),
    (
        "models/ops/kernels/words.rs",
        "the same inner loop per number format, with instructions that were detected at run time",
    ),
    (
        "pipeline/device.rs",
        "tells the GPU driver to keep freed memory, and candle that a single stream does all work; reads how much memory is in use",
    ),
    (
        "threads.rs",
        "sets an environment variable for a library before other threads exist",
    ),
];

/// Lines above an `unsafe` block in which its `SAFETY:` comment may stand.
const COMMENT_REACH: usize = 8;

/// Whether the code of a line, without its comment, has the keyword `unsafe`.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let mut words = code.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    words.any(|word| word == "unsafe")
}

/// Whether a line starts an unsafe block or implementation. Functions and traits document their contract instead.
fn needs_comment(line: &str) -> bool {
    let is_declaration = ["unsafe fn ", "unsafe trait ", "unsafe extern "];
    is_unsafe(line) && !is_declaration.iter().any(|start| line.contains(start))
}

/// Whether one of the lines above has a `SAFETY:` comment that belongs to this line: it is not separated from it by a
/// blank line or by another use of `unsafe`.
fn is_explained(lines: &[&str], number: usize) -> bool {
    if lines[number].contains("SAFETY:") {
        return true;
    }
    let above = lines[..number].iter().rev().take(COMMENT_REACH);
    let mut belonging = above.take_while(|line| !line.trim().is_empty() && !is_unsafe(line));
    belonging.any(|line| line.contains("SAFETY:"))
}

#[test]
fn every_file_with_unsafe_code_is_listed_and_every_block_has_a_safety_comment() {
    let root = repository("src");
    let (mut found, mut problems) = (vec![], vec![]);
    for file in files_below(&root) {
        if file.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        if !lines.iter().any(|line| is_unsafe(line)) {
            continue;
        }
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap();
        let name = name.replace('\\', "/");
        if !INVENTORY.iter().any(|(listed, _)| *listed == name) {
            problems.push(format!(
                "src/{name} has unsafe code but is not in INVENTORY"
            ));
        }
        for (number, line) in lines.iter().enumerate() {
            if needs_comment(line) && !is_explained(&lines, number) {
                let line_number = number + 1;
                problems.push(format!("src/{name}:{line_number} has no SAFETY: comment"));
            }
        }
        found.push(name);
    }
    for (listed, _) in INVENTORY {
        if !found.iter().any(|name| name == listed) {
            problems.push(format!(
                "src/{listed} is in INVENTORY but has no unsafe code"
            ));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn a_block_without_its_own_safety_comment_is_found() {
    let with_comment = ["// SAFETY: in bounds", "let a = unsafe { *p };"];
    assert!(is_explained(&with_comment, 1));
    let second_block = [
        "// SAFETY: in bounds",
        "let a = unsafe { *p };",
        "let b = unsafe { *q };",
    ];
    assert!(needs_comment(second_block[2]) && !is_explained(&second_block, 2));
    let separated = ["// SAFETY: in bounds", "", "let a = unsafe { *p };"];
    assert!(!is_explained(&separated, 2));
    assert!(!is_unsafe("#[allow(unsafe_code)]") && !is_unsafe("// unsafe { }"));
    assert!(needs_comment("unsafe impl Send for BlockCache {}"));
    assert!(!needs_comment("pub unsafe fn load(from: *const f32) {"));
}
