//! `groundling serve`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use secrecy::ExposeSecret;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::setup;
use super::signals::stop_signal;
use crate::config::{HttpArgs, ServeArgs};
use crate::http::{
    self, AllowedOrigins, AppState, BasicAuth, BodyLimits, ConnectionLimits, PlaygroundAccess,
    router,
};
use crate::memory;
use crate::preannotation::Preannotator;

/// The default of Label Studio's `ML_TIMEOUT_PREDICT`, in seconds.
const LABEL_STUDIO_TIMEOUT_S: u64 = 100;

/// Listens, loads the models, and serves until the process is told to stop.
///
/// # Errors
/// If the port is in use or a setting is wrong. Models that cannot be loaded are no error here; `/health` reports
/// them.
pub fn run(args: ServeArgs) -> anyhow::Result<()> {
    setup::runtime()?.block_on(serve(args))
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let address = (args.http.bind_address, args.http.port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {}:{}", address.0, address.1))?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    let state = state(args)?;
    let stop = state.stop.clone();
    tokio::spawn(release_memory_when_idle(state.preannotator.clone()));
    let limits = ConnectionLimits::default();
    http::serve(listener, router(state), limits, stopping(stop)).await;
    tracing::info!("stopped");
    Ok(())
}

/// Interval of the checks for an idle server.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(20);

/// Releases memory after a time without requests, so that the buffers of a busy time are not kept. Health checks do
/// not count as requests.
async fn release_memory_when_idle(preannotator: Arc<Preannotator>) {
    let (mut before, mut was_busy) = (0, false);
    loop {
        tokio::time::sleep(IDLE_CHECK_INTERVAL).await;
        preannotator.tidy().await;
        let now = preannotator.metrics().work_requests();
        if now != before {
            (before, was_busy) = (now, true);
        } else if std::mem::take(&mut was_busy) {
            // it takes locks and unmaps memory, so it must not run on an async thread
            let _ = tokio::task::spawn_blocking(memory::release_cached).await;
        }
    }
}

/// Builds the state that the handlers share, and starts the thread that loads the models.
///
/// # Errors
/// If a setting is wrong.
pub fn state(args: ServeArgs) -> anyhow::Result<AppState> {
    let basic_auth = basic_auth(&args.http)?;
    let media = &args.setup.media;
    match (media.label_studio.host(), media.label_studio.token()) {
        (None, None) => tracing::warn!(
            "LABEL_STUDIO_HOST is not set: uploads and local files are fetched from the address in the last /setup request, if this machine can reach it"
        ),
        (None, Some(_)) => tracing::warn!(
            "LABEL_STUDIO_ACCESS_TOKEN is not used, because LABEL_STUDIO_HOST is not set"
        ),
        (Some(_), None) => tracing::warn!(
            "LABEL_STUDIO_ACCESS_TOKEN is not set: the legacy token of the /setup request is used, which works only if legacy tokens are enabled in Label Studio"
        ),
        (Some(host), Some(_)) => tracing::info!(host, "the Label Studio server is configured"),
    }
    if args.http.predict_deadline_s >= LABEL_STUDIO_TIMEOUT_S {
        tracing::warn!(
            seconds = args.http.predict_deadline_s,
            "PREDICT_DEADLINE_S should be less than the {LABEL_STUDIO_TIMEOUT_S} s that Label Studio waits for a batch"
        );
    }
    let projects = setup::project_store(&args.setup.store, &args.setup.models.model_dir)?;
    let origins = AllowedOrigins::new(
        args.http.allowed_origins.as_deref().unwrap_or_default(),
        args.http.bind_address.is_loopback(),
    )
    .map_err(anyhow::Error::msg)?;
    let model_dir = args.setup.models.model_dir.as_path().into();
    let compared = setup::compared_models(&args.setup, &args.http)?;
    let preannotator = setup::preannotator(
        args.setup,
        projects,
        args.http.typed_prompts(),
        args.http.max_queue,
    )?;
    let preannotator = preannotator.with_compared_models(compared);
    let budget = preannotator.budget().clone();
    let trusts_setup = basic_auth.is_some() || args.http.bind_address.is_loopback();
    Ok(AppState {
        playground: match (args.http.playground.0, trusts_setup) {
            (false, _) => PlaygroundAccess::Off,
            (true, true) => PlaygroundAccess::Open,
            (true, false) => PlaygroundAccess::Unprotected,
        },
        model_dir,
        trusts_setup,
        stop: watch::Sender::new(false),
        preannotator: Arc::new(preannotator),
        basic_auth,
        origins,
        bodies: BodyLimits::new(args.http.max_body_bytes, budget),
        predict_deadline: Duration::from_secs(args.http.predict_deadline_s),
    })
}

fn basic_auth(args: &HttpArgs) -> anyhow::Result<Option<BasicAuth>> {
    let user = args.basic_auth_user.as_deref().unwrap_or_default();
    let password = args.basic_auth_pass.as_ref();
    let password = password.map_or("", |password| password.expose_secret());
    match (user.is_empty(), password.is_empty()) {
        (true, true) => Ok(None),
        (false, false) => BasicAuth::new(user, password)
            .map(Some)
            .map_err(anyhow::Error::msg),
        (false, true) => {
            bail!("BASIC_AUTH_USER is set, but BASIC_AUTH_PASS is not: set both or neither")
        }
        (true, false) => {
            bail!("BASIC_AUTH_PASS is set, but BASIC_AUTH_USER is not: set both or neither")
        }
    }
}

/// Completes when the server should stop. Requests in progress are still answered; batches return the tasks that are
/// done. After a second signal, or after [`SHUTDOWN_TIMEOUT`], the process exits without waiting.
async fn stopping(stop: watch::Sender<bool>) {
    stop_signal().await;
    tracing::info!("stopping");
    stop.send_replace(true);
    tokio::spawn(async {
        tokio::select! {
            () = stop_signal() => {}
            () = tokio::time::sleep(SHUTDOWN_TIMEOUT) => {}
        }
        tracing::warn!("the server stops before all requests are answered");
        std::process::exit(0);
    });
}

/// Limit of a graceful stop. It is below the ten seconds after which Docker kills the process.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(8);
