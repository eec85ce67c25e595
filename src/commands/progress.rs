//! Shows the progress of downloads.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::checkpoints::hub::ProgressObserver;
use crate::pipeline::handle::LoadProgress;

/// Progress bars on a terminal, else one line per file.
pub(super) fn to_terminal() -> Arc<dyn ProgressObserver> {
    Arc::new(TerminalProgress::default())
}

/// Log lines, and the state that `/ready` reports.
pub(super) fn to_log(handle: LoadProgress) -> Arc<dyn ProgressObserver> {
    Arc::new(LogProgress {
        handle,
        last: Mutex::default(),
    })
}

#[derive(Debug, Default)]
struct TerminalProgress(Mutex<Option<(String, ProgressBar)>>);

impl ProgressObserver for TerminalProgress {
    fn progress(&self, file: &str, bytes: u64, total: u64) {
        let mut bar = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bar.as_ref().is_none_or(|(name, _)| name != file) {
            if !is_drawn() {
                super::print_status(format_args!("downloading {file} ({})", mebibytes(total)));
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

    fn waiting(&self, reason: &str) {
        tracing::info!("{reason}");
    }
}

/// A progress bar over `count` things that are processed one by one, with the name of the current one. Hidden without
/// a terminal, or if there is only one thing.
pub(super) fn bar(count: usize, things: &str) -> ProgressBar {
    if count < 2 || !is_drawn() {
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

/// Whether progress is drawn: on a terminal, unless `--quiet` is set.
pub(super) fn is_drawn() -> bool {
    !super::is_quiet() && std::io::stderr().is_terminal()
}

fn file_bar(file: &str, total: u64) -> ProgressBar {
    let style = "{msg:28!} {wide_bar} {bytes:>11} of {total_bytes}, {bytes_per_sec}, {eta} left";
    // the template is a valid constant, and the default bar is good enough otherwise
    let style = ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar());
    let bar = match is_drawn() {
        true => ProgressBar::new(total).with_style(style),
        false => ProgressBar::hidden(),
    };
    bar.with_message(file.to_owned())
}

/// Interval of log lines, and interval of updates for `/ready`.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
const UPDATE_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct LogProgress {
    handle: LoadProgress,
    last: Mutex<LastReport>,
}

/// The current file, and when its progress was last reported.
#[derive(Debug, Default)]
struct LastReport {
    file: String,
    logged: Option<Instant>,
    updated: Option<Instant>,
}

impl ProgressObserver for LogProgress {
    fn progress(&self, file: &str, bytes: u64, total: u64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.file != file {
            *last = LastReport {
                file: file.to_owned(),
                ..LastReport::default()
            };
        }
        let is_due = |last: Option<Instant>, interval| {
            bytes >= total || last.is_none_or(|last| last.elapsed() >= interval)
        };
        if !is_due(last.updated, UPDATE_INTERVAL) {
            return;
        }
        let percent = 100 * bytes / total.max(1);
        let step = format!("downloading {file}: {percent} % of {}", mebibytes(total));
        if is_due(last.logged, LOG_INTERVAL) {
            tracing::info!("{step}");
            last.logged = Some(Instant::now());
        }
        last.updated = Some(Instant::now());
        self.handle.downloading(step);
    }

    fn waiting(&self, reason: &str) {
        tracing::info!("{reason}");
        self.handle.downloading(reason);
    }

    fn loading(&self, reason: &str) {
        tracing::info!("{reason}");
        self.handle.loading(reason);
    }
}

/// A size as text for people, in KiB or MiB.
pub(super) fn mebibytes(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes.div_ceil(1 << 10)),
        _ => format!("{} MiB", bytes >> 20),
    }
}
