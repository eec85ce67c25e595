//! Who may use whom: the models know neither images nor HTTP, the server no tensors.

use std::fs;

use crate::support::{repository, sources};

/// Folder or file below `src/`, and names that must not follow `use crate::`, `crate::` or stand as a
/// crate in it.
const FORBIDDEN: [(&str, &[&str]); 11] = [
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
    ("http", &["candle", "crate::models", "crate::segmenter"]),
    (
        "preannotation",
        &[
            "candle",
            "axum",
            "crate::models",
            "crate::http",
            "crate::commands",
        ],
    ),
    ("labeling", &["candle", "axum", "crate::"]),
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
fn modules_keep_to_their_layer() {
    for (place, forbidden) in FORBIDDEN {
        let files = sources(&repository("src").join(place));
        assert!(!files.is_empty());
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for (number, line) in code.lines().enumerate() {
                let line = line.split("//").next().unwrap();
                for name in forbidden {
                    assert!(
                        !line.contains(name),
                        "{}:{}: {place} must not use {name}",
                        file.display(),
                        number + 1
                    );
                }
            }
        }
    }
}
