//! Records the start and the duration of this crate's tracing spans.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use candle_core::Device;
use tracing::span::Id;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// One span, from entering to leaving it.
#[derive(Debug, Clone)]
pub(super) struct Interval {
    /// The names of the enclosing spans, outermost first, and of the span itself.
    pub(super) path: Vec<&'static str>,
    /// Time since the recorder was created.
    pub(super) start: Duration,
    /// How long it took.
    pub(super) duration: Duration,
}

/// Gives access to the recorded spans.
#[derive(Debug)]
pub(super) struct Recorder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    origin: Instant,
    device: Device,
    intervals: Mutex<Vec<Interval>>,
}

impl Recorder {
    /// Records spans of work on `device`.
    pub(super) fn new(device: &Device) -> Self {
        Self(Arc::new(Shared {
            origin: Instant::now(),
            device: device.clone(),
            intervals: Mutex::default(),
        }))
    }

    /// The layer for the tracing subscriber.
    pub(super) fn layer<S>(&self) -> impl Layer<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let is_ours = |metadata: &Metadata<'_>| {
            metadata.is_span() && metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
        };
        Recording(self.0.clone()).with_filter(FilterFn::new(is_ours))
    }

    /// Removes and returns the spans that were recorded since the last call, sorted by start.
    pub(super) fn take(&self) -> Vec<Interval> {
        let intervals = self.0.intervals.lock();
        let mut intervals = std::mem::take(&mut *intervals.unwrap_or_else(PoisonError::into_inner));
        intervals.sort_by_key(|interval| interval.start);
        intervals
    }
}

struct Recording(Arc<Shared>);

/// The time at which a span was entered.
struct Entered(Instant);

impl Recording {
    /// Waits for the GPU's queued work, so that its time counts for the span that queued it. An error is reported by
    /// the next operation.
    fn synchronize(&self) {
        if !self.0.device.is_cpu() {
            let _ = self.0.device.synchronize();
        }
    }
}

impl<S> Layer<S> for Recording
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            self.synchronize();
            span.extensions_mut().replace(Entered(Instant::now()));
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        self.synchronize();
        let now = Instant::now();
        let Some(span) = context.span(id) else {
            return;
        };
        let Some(Entered(start)) = span.extensions_mut().remove() else {
            return;
        };
        let path = span.scope().from_root().map(|span| span.name()).collect();
        let interval = Interval {
            path,
            start: start.duration_since(self.0.origin),
            duration: now.duration_since(start),
        };
        let intervals = self.0.intervals.lock();
        let mut intervals = intervals.unwrap_or_else(PoisonError::into_inner);
        intervals.push(interval);
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn spans_are_recorded_with_the_names_of_their_parents() {
        let recorder = Recorder::new(&Device::Cpu);
        let subscriber = tracing_subscriber::registry().with(recorder.layer());
        tracing::subscriber::with_default(subscriber, || {
            let _outer = tracing::debug_span!("outer").entered();
            tracing::debug_span!("inner").in_scope(|| ());
            tracing::debug_span!(target: "another_crate", "foreign").in_scope(|| ());
        });
        let intervals = recorder.take();
        let paths: Vec<_> = intervals.iter().map(|i| i.path.join("/")).collect();
        assert_eq!(paths, ["outer", "outer/inner"]);
        assert!(intervals[0].duration >= intervals[1].duration);
        assert!(recorder.take().is_empty());
    }
}
