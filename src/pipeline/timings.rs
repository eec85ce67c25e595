//! The time of each stage of one request, for the log.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// For each stage: the computed steps and their time, the results from memory, and the results from disk.
#[derive(Debug, Default)]
pub struct Timings(Mutex<Vec<StageTime>>);

/// What one stage did for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageTime {
    /// The name of the stage.
    pub stage: &'static str,
    /// Number of computed steps.
    pub computed: u32,
    /// The time of the computed steps. It includes pauses for more urgent steps.
    pub time: Duration,
    /// Number of results from memory.
    pub from_memory: u32,
    /// Number of results from disk.
    pub from_disk: u32,
}

impl Timings {
    /// Adds one computed step of a stage. `time` includes pauses for more urgent steps.
    pub fn computed(&self, stage: &'static str, time: Duration) {
        self.change(stage, |entry| {
            entry.computed += 1;
            entry.time += time;
        });
    }

    /// Adds a result from memory.
    pub fn from_memory(&self, stage: &'static str) {
        self.change(stage, |entry| entry.from_memory += 1);
    }

    /// Adds a result from disk.
    pub fn from_disk(&self, stage: &'static str) {
        self.change(stage, |entry| entry.from_disk += 1);
    }

    /// All stages, in the order of their first use.
    pub fn stages(&self) -> Vec<StageTime> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.clone()
    }

    /// The total compute time of a stage.
    pub fn of(&self, stage: &str) -> Duration {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = entries.iter().find(|entry| entry.stage == stage);
        found.map_or(Duration::ZERO, |entry| entry.time)
    }

    fn change(&self, stage: &'static str, change: impl FnOnce(&mut StageTime)) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.iter_mut().find(|entry| entry.stage == stage) {
            return change(entry);
        }
        let mut entry = StageTime {
            stage,
            computed: 0,
            time: Duration::ZERO,
            from_memory: 0,
            from_disk: 0,
        };
        change(&mut entry);
        entries.push(entry);
    }
}

/// For example `image_features cached, queries 1210 ms, masks 2 in 40 ms`.
impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (i, entry) in entries.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            f.write_str(entry.stage)?;
            let milliseconds = entry.time.as_millis();
            match entry.computed {
                0 if entry.from_disk > 0 => f.write_str(" from disk")?,
                0 => f.write_str(" cached")?,
                1 => write!(f, " {milliseconds} ms")?,
                steps => write!(f, " {steps} in {milliseconds} ms")?,
            }
            if entry.computed > 0 && entry.from_memory > 0 {
                write!(f, " ({} cached)", entry.from_memory)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_listed_in_the_order_of_their_first_use() {
        let timings = Timings::default();
        timings.from_memory("image_features");
        timings.computed("queries", Duration::from_millis(1200));
        timings.computed("masks", Duration::from_millis(20));
        timings.computed("masks", Duration::from_millis(21));
        timings.from_memory("masks");
        timings.from_disk("image_embeddings");
        assert_eq!(
            timings.to_string(),
            "image_features cached, queries 1200 ms, masks 2 in 41 ms (1 cached), image_embeddings from disk"
        );
        assert_eq!(timings.of("masks"), Duration::from_millis(41));
        assert_eq!(timings.of("text_features"), Duration::ZERO);
    }
}
