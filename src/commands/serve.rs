//! `groundling serve`.

use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;

use crate::config::{MediaArgs, ServeArgs};
use crate::http::{AppState, model_version, router};
use crate::media::{Fetcher, FetcherConfig, LabelStudio};
use crate::pipeline::Pipeline;
use crate::pipeline::worker::Worker;

/// Listens, loads the models, and serves until the process is told to stop.
///
/// # Errors
/// If the port is taken or a setting is wrong; models that cannot be loaded are reported by `/health`.
pub fn run(args: ServeArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let address = (args.http.bind_address, args.http.port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {}:{}", address.0, address.1))?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    let state = state(args)?;
    axum::serve(listener, router(state))
        .with_graceful_shutdown(stop_signal())
        .await?;
    tracing::info!("stopped");
    Ok(())
}

/// What the handlers share; starts the thread that loads the models.
///
/// # Errors
/// If a setting is wrong.
pub fn state(args: ServeArgs) -> anyhow::Result<AppState> {
    let fetcher = fetcher(&args.media)?;
    let version = model_version(&args);
    let models = args.models;
    Ok(AppState {
        worker: Worker::start(args.http.max_queue, move || Pipeline::load(&models))?,
        fetcher,
        options: args.detection.options(),
        model_version: version.into(),
    })
}

/// The way to images, as configured.
fn fetcher(args: &MediaArgs) -> anyhow::Result<Fetcher> {
    let label_studio = match args.host() {
        Some(host) => LabelStudio::new(host).context("LABEL_STUDIO_HOST")?,
        None => {
            tracing::warn!("LABEL_STUDIO_HOST is not set: uploads and local files cannot be read");
            LabelStudio::default()
        }
    };
    let config = FetcherConfig {
        label_studio,
        access_token: args.token().cloned(),
        timeout: Duration::from_secs(args.image_timeout_s),
        max_bytes: args.limits.max_image_bytes,
        max_pixels: args.limits.max_image_pixels,
    };
    Ok(Fetcher::new(config)?)
}

/// Resolves on Ctrl-C, and on SIGTERM where there is one.
async fn stop_signal() {
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
