//! Writes spans to a file in the format of Chrome's trace viewer and Perfetto, with one row per thread.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::json;
use tracing::span::Id;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Writes the spans of this program to a file when they end. The file is a JSON array that is never closed, which the
/// viewers accept, so it can be read while the program runs and after it was killed.
pub(super) struct TraceFile {
    origin: Instant,
    file: Mutex<BufWriter<File>>,
}

/// When a span was entered.
struct Entered(Instant);

/// The row number of the current thread.
fn thread_row() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    thread_local! {
        static ROW: u32 = COUNT.fetch_add(1, Ordering::Relaxed);
    }
    ROW.with(|row| *row)
}

impl TraceFile {
    /// Creates the file; an existing one is overwritten.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn create(file: &Path) -> std::io::Result<Self> {
        let mut file = BufWriter::new(File::create(file)?);
        file.write_all(b"[\n")?;
        file.flush()?;
        Ok(Self {
            origin: Instant::now(),
            file: Mutex::new(file),
        })
    }

    /// The subscriber layer that writes to the file.
    pub(super) fn layer<S>(self) -> impl Layer<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        // the spans of requests and tasks mostly wait, on many threads; only the spans of the computation are useful
        // here
        let is_ours = |metadata: &Metadata<'_>| {
            metadata.is_span()
                && metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
                && !["request", "task"].contains(&metadata.name())
        };
        self.with_filter(FilterFn::new(is_ours))
    }
}

impl<S> Layer<S> for TraceFile
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            span.extensions_mut().replace(Entered(Instant::now()));
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let now = Instant::now();
        let Some(span) = context.span(id) else {
            return;
        };
        let Some(Entered(start)) = span.extensions_mut().remove() else {
            return;
        };
        let microseconds = |from: Instant, to: Instant| (to - from).as_nanos() as f64 / 1000.0;
        let thread = std::thread::current();
        let event = json!({
            "name": span.name(), "cat": "groundling", "ph": "X", "pid": 1, "tid": thread_row(),
            "ts": microseconds(self.origin, start), "dur": microseconds(start, now),
            "args": {"thread": thread.name()},
        });
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // a write error, such as a full disk, must not stop the server
        let _ = writeln!(file, "{event},").and_then(|()| file.flush());
    }
}
