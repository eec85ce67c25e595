//! Types of values that several settings share.

use std::fmt;
use std::str::FromStr;

use crate::pipeline::tiles::{DEFAULT_OVERLAP, MAX_OVERLAP};

/// A value that cannot be parsed; the message says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(pub(super) String);

/// Yes or no, in the words that Label Studio's and the hub's tools accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch(pub bool);

impl FromStr for Switch {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        match text.trim().to_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(Self(true)),
            "0" | "false" | "no" | "not" | "off" => Ok(Self(false)),
            _ => Err(InvalidValue(
                "it must be 1 or 0, true or false, yes or no, on or off".to_owned(),
            )),
        }
    }
}

/// A part of a project's tasks, for several processes that share the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// The number of this part, from 0; `None` if `JOB_COMPLETION_INDEX` gives it.
    pub index: Option<u64>,
    /// The number of parts.
    pub count: u64,
}

impl FromStr for Shard {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid = || {
            InvalidValue(
                "it must be INDEX/COUNT with an index from 0 to COUNT - 1, such as 0/8; or COUNT, and JOB_COMPLETION_INDEX gives the index"
                    .to_owned(),
            )
        };
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| invalid());
        let (index, count) = match text.split_once('/') {
            Some((index, count)) => (Some(number(index)?), number(count)?),
            None => (None, number(text)?),
        };
        let is_possible = count > 0 && index.is_none_or(|index| index < count);
        is_possible
            .then_some(Self { index, count })
            .ok_or_else(invalid)
    }
}

/// A number from 0 to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpTo<const MAX: u8>(pub f32);

/// A number from 0 to 1.
pub(super) type Fraction = UpTo<1>;
/// A number from 0 to 100.
pub(super) type Percent = UpTo<100>;

impl<const MAX: u8> FromStr for UpTo<MAX> {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        text.trim()
            .parse()
            .ok()
            .filter(|value| (0.0..=f32::from(MAX)).contains(value))
            .map(Self)
            .ok_or_else(|| {
                InvalidValue(format!("it must be a number from 0 to {MAX}, such as 0.3"))
            })
    }
}

impl<const MAX: u8> fmt::Display for UpTo<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The overlap of tiles, 0 to 0.5.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Overlap(pub f32);

impl Default for Overlap {
    fn default() -> Self {
        Self(DEFAULT_OVERLAP)
    }
}

impl FromStr for Overlap {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        text.trim()
            .parse()
            .ok()
            .filter(|value| (0.0..=MAX_OVERLAP).contains(value))
            .map(Self)
            .ok_or_else(|| {
                InvalidValue(format!(
                    "it must be a number from 0 to {MAX_OVERLAP}, such as 0.2"
                ))
            })
    }
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
