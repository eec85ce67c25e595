//! Writes spans in the format of Chrome's trace viewer and Perfetto.

use std::time::Duration;

use serde::Serialize;

use super::spans::Interval;

/// <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Trace<'a> {
    trace_events: Vec<Event<'a>>,
    display_time_unit: &'static str,
}

/// A complete event.
#[derive(Debug, Serialize)]
struct Event<'a> {
    name: &'a str,
    cat: &'static str,
    ph: &'static str,
    /// Start in microseconds since the recording began.
    ts: f64,
    /// Duration in microseconds.
    dur: f64,
    pid: u32,
    tid: u32,
}

/// The JSON of all repetitions, one after the other.
///
/// # Errors
/// Never in practice; serde's signature requires it.
pub(super) fn chrome(repetitions: &[Vec<Interval>]) -> serde_json::Result<String> {
    let event = |interval: &Interval| Event {
        name: interval.path.last().copied().unwrap_or_default(),
        cat: "groundling",
        ph: "X",
        ts: microseconds(interval.start),
        dur: microseconds(interval.duration),
        pid: 1,
        // one thread runs the models; the threads of the pool have no spans
        tid: 1,
    };
    let events = repetitions.iter().flatten();
    serde_json::to_string(&Trace {
        trace_events: events.map(event).collect(),
        display_time_unit: "ms",
    })
}

fn microseconds(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1000.0
}
