//! The time of each stage of one request, for the log.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// For each stage: the computed steps and their time, the results from memory, and the results from disk.
#[derive(Debug, Default)]
pub struct Timings(Mutex<Vec<Entry>>);

#[derive(Debug)]
struct Entry {
    stage: &'static str,
    computed: u32,
    time: Duration,
    kept: u32,
    warm: u32,
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
    pub fn kept(&self, stage: &'static str) {
        self.change(stage, |entry| entry.kept += 1);
    }

    /// Adds a result from disk.
    pub fn warm(&self, stage: &'static str) {
        self.change(stage, |entry| entry.warm += 1);
    }

    /// The total compute time of a stage.
    pub fn of(&self, stage: &str) -> Duration {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = entries.iter().find(|entry| entry.stage == stage);
        found.map_or(Duration::ZERO, |entry| entry.time)
    }

    fn change(&self, stage: &'static str, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.iter_mut().find(|entry| entry.stage == stage) {
            return change(entry);
        }
        let mut entry = Entry {
            stage,
            computed: 0,
            time: Duration::ZERO,
            kept: 0,
            warm: 0,
        };
        change(&mut entry);
        entries.push(entry);
    }
}

/// For example `image_features kept, queries 1210 ms, masks 2 in 40 ms`.
impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (i, entry) in entries.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            f.write_str(entry.stage)?;
            let milliseconds = entry.time.as_millis();
            match (entry.computed, entry.kept) {
                (0, _) if entry.warm > 0 => f.write_str(" warm")?,
                (0, _) => f.write_str(" kept")?,
                (1, _) => write!(f, " {milliseconds} ms")?,
                (steps, _) => write!(f, " {steps} in {milliseconds} ms")?,
            }
            if entry.computed > 0 && entry.kept > 0 {
                f.write_str(" beside kept ones")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_told_in_the_order_they_came() {
        let timings = Timings::default();
        timings.kept("image_features");
        timings.computed("queries", Duration::from_millis(1200));
        timings.computed("masks", Duration::from_millis(20));
        timings.computed("masks", Duration::from_millis(21));
        timings.kept("masks");
        timings.warm("image_embeddings");
        assert_eq!(
            timings.to_string(),
            "image_features kept, queries 1200 ms, masks 2 in 41 ms beside kept ones, image_embeddings warm"
        );
        assert_eq!(timings.of("masks"), Duration::from_millis(41));
        assert_eq!(timings.of("text_features"), Duration::ZERO);
    }
}
