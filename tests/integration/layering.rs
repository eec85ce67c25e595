//! The layers of the code: which modules must not use which others. The models know neither images nor HTTP, and the
//! server knows no tensors.

use std::fs;

use crate::support::{files_below, repository};

/// Folders or files in `src/`, and the modules and crates that they must not name.
const FORBIDDEN: [(&str, &[&str]); 13] = [
    (
        "models",
        &[
            "axum",
            "reqwest",
            "tokio",
            "image::",
            "crate::http",
            "crate::media",
            "crate::geometry",
            "crate::prompt",
            "crate::detector",
            "crate::segmenter",
            "crate::config",
            "crate::checkpoints",
            "crate::pipeline",
        ],
    ),
    (
        "checkpoints",
        &[
            "candle_core",
            "candle_nn",
            "axum",
            "crate::http",
            "crate::media",
            "crate::detector",
            "crate::segmenter",
            "crate::pipeline",
            "crate::preannotation",
            "crate::config",
        ],
    ),
    (
        "detector",
        &[
            "axum",
            "reqwest",
            "tokio::",
            "crate::http",
            "crate::media",
            "crate::segmenter",
            "crate::labeling",
            "crate::regions",
        ],
    ),
    (
        "segmenter",
        &[
            "axum",
            "reqwest",
            "tokio::",
            "crate::http",
            "crate::media",
            "crate::detector",
            "crate::labeling",
            "crate::prompt",
            "crate::regions",
        ],
    ),
    (
        "http",
        &[
            "candle",
            "crate::models",
            "crate::segmenter",
            "crate::config",
        ],
    ),
    (
        "preannotation",
        &[
            "candle",
            "axum",
            "crate::models",
            "crate::http",
            "crate::commands",
            "crate::config",
        ],
    ),
    (
        "labeling",
        &[
            "candle",
            "axum",
            "reqwest",
            "crate::config",
            "crate::detector",
            "crate::geometry",
            "crate::http",
            "crate::label_studio",
            "crate::media",
            "crate::pipeline",
            "crate::preannotation",
            "crate::regions",
        ],
    ),
    (
        "label_studio",
        &[
            "candle",
            "axum",
            "crate::http",
            "crate::media",
            "crate::pipeline",
            "crate::preannotation",
            "crate::labeling",
            "crate::config",
        ],
    ),
    (
        "media",
        &[
            "candle",
            "axum",
            "crate::models",
            "crate::detector",
            "crate::pipeline",
            "crate::http",
            "crate::config",
        ],
    ),
    (
        "pipeline",
        &[
            "axum",
            "crate::config",
            "crate::http",
            "crate::labeling",
            "crate::regions",
            "crate::preannotation",
        ],
    ),
    (
        "evaluation",
        &[
            "candle",
            "axum",
            "reqwest",
            "tokio",
            "crate::commands",
            "crate::config",
            "crate::detector",
            "crate::http",
            "crate::label_studio",
            "crate::labeling",
            "crate::media",
            "crate::models",
            "crate::pipeline",
            "crate::preannotation",
            "crate::segmenter",
        ],
    ),
    ("prompt.rs", &["candle", "axum", "crate::"]),
    (
        "regions",
        &[
            "candle",
            "axum",
            "crate::models",
            "crate::http",
            "crate::media",
        ],
    ),
];

#[test]
fn modules_use_only_the_layers_below_them() {
    for (module, forbidden) in FORBIDDEN {
        let files = files_below(&repository("src").join(module));
        assert!(!files.is_empty());
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for (number, line) in code.lines().enumerate() {
                let line = line.split("//").next().unwrap();
                for name in forbidden {
                    assert!(
                        !line.contains(name),
                        "{}:{}: {module} must not use {name}",
                        file.display(),
                        number + 1
                    );
                }
            }
        }
    }
}
