//! Runs the binary `groundling` as a user does.

use std::process::{Command, Output};

use crate::support::{repository, scratch};

/// Beginnings of the environment variables that `groundling` reads. A developer may have set some of them; tests do
/// not inherit those.
const SETTINGS: [&str; 21] = [
    "LABEL_STUDIO_",
    "DATABASE_",
    "BASIC_AUTH_",
    "MODEL_",
    "HF_",
    "GROUNDING",
    "USE_",
    "SAM_",
    "MOBILESAM_",
    "VITH_",
    "BOX_",
    "TEXT_",
    "NMS_",
    "MAX_",
    "LOG_",
    "PRECISION",
    "DEVICE",
    "DETECTOR_SIZE",
    "THREADS",
    "CACHE_",
    "WARM_",
];

/// The binary, run in the repository with the demo models, an empty cache and no hub.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_groundling"));
    for (name, _) in std::env::vars() {
        if SETTINGS.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
        .env("DETECTOR", "demo")
        .env("SEGMENTER", "demo")
        .env("HF_HOME", scratch().join("empty-hub-cache"))
        .env("HF_ENDPOINT", "http://127.0.0.1:1")
        .args(arguments)
        .current_dir(repository(""));
    command
}

/// Runs the command and returns its output and exit code.
pub fn groundling(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// Runs a command that must end with exit code 1 and returns its standard error.
pub fn failure(arguments: &[&str]) -> String {
    let output = groundling(arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    text(&output.stderr)
}

/// Bytes of an output as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
