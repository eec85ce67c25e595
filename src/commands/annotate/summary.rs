//! What a run of `annotate` has done, for people and as JSON.

use anyhow::bail;
use serde_json::json;

use crate::commands::print_result;
use crate::commands::project::Failures;

/// What a run has done.
#[derive(Debug, Default)]
pub(super) struct Summary {
    /// Processed tasks.
    pub(super) tasks: u64,
    pub(super) predicted: u64,
    pub(super) regions: usize,
    /// Tasks that already had a prediction of this version.
    pub(super) already_predicted: u64,
    /// Tasks that were skipped because of their annotations.
    pub(super) annotated: u64,
    /// Predictions of other versions that were deleted.
    pub(super) deleted: usize,
    pub(super) failures: Failures,
    /// The failures of tasks that have a prediction of this version, but also one that could not be deleted.
    pub(super) undeleted: usize,
}

impl Summary {
    /// Prints the numbers and the first failures.
    pub(super) fn print(&self, with_deleted: bool) {
        let deleted = match with_deleted {
            true => format!(", {} older ones deleted", self.deleted),
            false => String::new(),
        };
        print_result(format_args!(
            "{} tasks: {} predicted with {} regions, {} already had this prediction, {} skipped because they have annotations, {} failed{deleted}",
            self.tasks,
            self.predicted,
            self.regions,
            self.already_predicted,
            self.annotated,
            self.failures.count()
        ));
        self.failures.print();
    }

    /// The last line of `--json`.
    pub(super) fn print_json(&self) {
        print_result(json!({"summary": {
            "tasks": self.tasks,
            "predicted": self.predicted,
            "regions": self.regions,
            "already_predicted": self.already_predicted,
            "annotated": self.annotated,
            "deleted": self.deleted,
            "failed": self.failures.count(),
        }}));
    }

    /// An error if tasks failed.
    pub(super) fn result(&self) -> anyhow::Result<()> {
        let undeleted = self.undeleted;
        let unpredicted = self.failures.count() - undeleted;
        let mut problems = vec![];
        if unpredicted > 0 {
            problems.push(format!("{unpredicted} tasks failed and have no prediction"));
        }
        if undeleted > 0 {
            problems.push(format!(
                "older predictions of {undeleted} tasks could not be deleted"
            ));
        }
        if problems.is_empty() {
            return Ok(());
        }
        bail!(
            "{}; run the command again to retry them",
            problems.join(", and ")
        )
    }
}
