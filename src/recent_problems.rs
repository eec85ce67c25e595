//! The last warnings and errors of the process, for people who look at the status page. They are the lines of the log,
//! which contain no secrets.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Number of problems that are kept.
const KEPT: usize = 50;
/// Limit of a text, in characters.
const MAX_TEXT: usize = 1000;

static RECENT: Mutex<VecDeque<Problem>> = Mutex::new(VecDeque::new());

/// A warning or an error of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Whether it is an error, and not a warning.
    pub is_error: bool,
    /// The message.
    pub text: String,
    /// How often it occurred in a row.
    pub count: u32,
    /// When it last occurred.
    last: Instant,
}

impl Problem {
    /// The time since it last occurred.
    pub fn age(&self) -> Duration {
        self.last.elapsed()
    }
}

/// Adds a problem. One that repeats the last one is only counted.
pub fn add(is_error: bool, text: &str) {
    let text: String = text.chars().take(MAX_TEXT).collect();
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(last) = recent.back_mut()
        && last.text == text
        && last.is_error == is_error
    {
        last.count += 1;
        last.last = Instant::now();
        return;
    }
    if recent.len() == KEPT {
        recent.pop_front();
    }
    recent.push_back(Problem {
        is_error,
        text,
        count: 1,
        last: Instant::now(),
    });
}

/// The problems, the last one first.
pub fn list() -> Vec<Problem> {
    let recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    recent.iter().rev().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_problems_are_counted_and_old_ones_are_dropped() {
        for number in 0..KEPT + 5 {
            add(false, &format!("problem {number}"));
        }
        add(true, &"é".repeat(MAX_TEXT + 1));
        add(true, &"é".repeat(MAX_TEXT + 1));
        let problems = list();
        assert_eq!(problems.len(), KEPT);
        assert_eq!((problems[0].count, problems[0].is_error), (2, true));
        assert_eq!(problems[0].text, "é".repeat(MAX_TEXT));
        assert_eq!(problems[1].text, format!("problem {}", KEPT + 4));
    }
}
