//! Shows the progress of downloads.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::checkpoints::hub::Watcher;
use crate::pipeline::loading::Reporter;

/// Progress bars on a terminal, else one line per file.
pub(super) fn shown() -> Arc<dyn Watcher> {
    Arc::new(Shown::default())
}

/// Log lines, and the state that `/ready` reports.
pub(super) fn logged(reporter: Reporter) -> Arc<dyn Watcher> {
    Arc::new(Logged {
        reporter,
        told: Mutex::default(),
    })
}

#[derive(Debug, Default)]
struct Shown(Mutex<Option<(String, ProgressBar)>>);

impl Watcher for Shown {
    fn progress(&self, file: &str, bytes: u64, total: u64) {
        let mut bar = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bar.as_ref().is_none_or(|(name, _)| name != file) {
            if !std::io::stderr().is_terminal() {
                super::tell(format_args!("fetching {file} ({})", mebibytes(total)));
            }
            *bar = Some((file.to_owned(), file_bar(file, total)));
        }
        if let Some((_, bar)) = bar.as_ref() {
            bar.set_length(total);
            bar.set_position(bytes);
            if bytes >= total {
                bar.finish();
            }
        }
    }

    fn waiting(&self, what: &str) {
        tracing::info!("{what}");
    }
}

/// A progress bar over `count` things that are processed one by one, with the name of the current one. Hidden without
/// a terminal, or if there is only one thing.
pub(super) fn counted(count: usize, things: &str) -> ProgressBar {
    if count < 2 || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(count as u64);
    let template =
        format!("{{bar:30}} {{pos}}/{{len}} {things}, {{per_sec}}, {{eta}} left  {{wide_msg}}");
    match ProgressStyle::with_template(&template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn file_bar(file: &str, total: u64) -> ProgressBar {
    let style = "{msg:28!} {wide_bar} {bytes:>11} of {total_bytes}, {bytes_per_sec}, {eta} left";
    // the template is a valid constant, and the default bar is good enough otherwise
    let style = ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar());
    let bar = ProgressBar::new(total).with_style(style);
    bar.with_message(file.to_owned())
}

/// Interval of log lines, and interval of updates for `/ready`.
const LOG_EVERY: Duration = Duration::from_secs(10);
const STEP_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct Logged {
    reporter: Reporter,
    told: Mutex<Told>,
}

/// The current file, and when its progress was last reported.
#[derive(Debug, Default)]
struct Told {
    file: String,
    log: Option<Instant>,
    step: Option<Instant>,
}

impl Watcher for Logged {
    fn progress(&self, file: &str, bytes: u64, total: u64) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.file != file {
            *told = Told {
                file: file.to_owned(),
                ..Told::default()
            };
        }
        let is_due = |last: Option<Instant>, pause| {
            bytes >= total || last.is_none_or(|last| last.elapsed() >= pause)
        };
        if !is_due(told.step, STEP_EVERY) {
            return;
        }
        let percent = 100 * bytes / total.max(1);
        let step = format!("fetching {file}: {percent} % of {}", mebibytes(total));
        if is_due(told.log, LOG_EVERY) {
            tracing::info!("{step}");
            told.log = Some(Instant::now());
        }
        told.step = Some(Instant::now());
        self.reporter.fetching(step);
    }

    fn waiting(&self, what: &str) {
        tracing::info!("{what}");
        self.reporter.fetching(what);
    }

    fn loading(&self, what: &str) {
        tracing::info!("{what}");
        self.reporter.loading(what);
    }
}

/// A size as text for people, in KiB or MiB.
pub(super) fn mebibytes(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes.div_ceil(1 << 10)),
        _ => format!("{} MiB", bytes >> 20),
    }
}
