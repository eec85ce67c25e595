//! What `groundling doctor` found when it last ran, for the status page of a server that has the same `MODEL_DIR`.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fs, io};

use serde::{Deserialize, Serialize};

/// The file in `MODEL_DIR`.
const FILE: &str = "doctor.json";
/// Limit of its size in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Everything is right.
    Ok,
    /// Something may cause problems.
    Note,
    /// Something must be fixed.
    Fail,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How serious it is.
    pub severity: Severity,
    /// The finding, and its remedy.
    pub text: String,
}

/// All findings of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// The project that was checked.
    pub project: Option<u64>,
    /// Seconds since 1970.
    time: u64,
    /// The findings, in the order of the checks.
    pub findings: Vec<Finding>,
}

impl Findings {
    /// Findings of now.
    pub fn new(project: Option<u64>, findings: Vec<Finding>) -> Self {
        Self {
            project,
            time: now(),
            findings,
        }
    }

    /// Time since the checks.
    pub fn age(&self) -> Duration {
        Duration::from_secs(now().saturating_sub(self.time))
    }

    /// Stores them in place of those of an earlier run. Without a `MODEL_DIR` nothing is stored, because then no server uses it.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn store(&self, model_dir: &Path) -> io::Result<()> {
        if !model_dir.is_dir() {
            return Ok(());
        }
        let path = model_dir.join(FILE);
        // readers never see half a file
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(&new, &path)
    }

    /// The findings of the last run; `None` if there was none, or if its file cannot be read.
    pub fn last(model_dir: &Path) -> Option<Self> {
        let path = model_dir.join(FILE);
        let is_small = fs::metadata(&path).ok()?.len() <= MAX_BYTES;
        let bytes = is_small.then(|| fs::read(&path).ok()).flatten()?;
        serde_json::from_slice(&bytes).ok()
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_findings_of_the_last_run_are_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let model_dir = folder.path().join("models");
        Findings::new(None, vec![]).store(&model_dir).unwrap();
        assert_eq!(Findings::last(&model_dir), None);
        fs::create_dir(&model_dir).unwrap();
        for text in ["first", "second"] {
            let finding = Finding {
                severity: Severity::Fail,
                text: text.to_owned(),
            };
            let findings = Findings::new(Some(7), vec![finding]);
            findings.store(&model_dir).unwrap();
            assert_eq!(Findings::last(&model_dir), Some(findings));
        }
        fs::write(model_dir.join(FILE), "{").unwrap();
        assert_eq!(Findings::last(&model_dir), None);
    }
}
