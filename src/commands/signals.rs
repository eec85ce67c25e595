//! The signals that end a command.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Becomes true on Ctrl-C or SIGTERM, for work that is not async. A second signal ends the process at once.
///
/// # Errors
/// If the thread that waits for the signals cannot be started.
pub(super) fn stop_flag() -> std::io::Result<Arc<AtomicBool>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let flag = Arc::new(AtomicBool::new(false));
    let is_stopped = flag.clone();
    let wait = move || {
        runtime.block_on(async {
            stop_signal().await;
            is_stopped.store(true, Ordering::Relaxed);
            stop_signal().await;
            // the exit code of a program that Ctrl-C has ended
            std::process::exit(130);
        });
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(wait)?;
    Ok(flag)
}

/// Completes on Ctrl-C, and on SIGTERM if the system has it.
pub(super) async fn stop_signal() {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending::<()>().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}
