//! An inference service for petnet's classifiers: HTTP/1.1 and HTTP/2 on hyper.
//!
//! [`run`] owns neither socket nor signal: the caller binds the listeners and says when to reload
//! and when to stop, so that tests serve on a free port and stop when they like.

mod access;
mod app;
mod batcher;
mod drift;
mod feedback;
mod model;
mod problem;
mod registry;
mod routes;
mod server;
mod sessions;
mod settings;
mod telemetry;
mod tls;
mod upload;

use std::future::Future;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

pub use settings::{LogFormat, MetricsAddr, Settings};
pub use telemetry::start_log;

use app::{App, Phase};
use server::{Face, Server};

/// The sockets to serve on.
#[derive(Debug)]
pub struct Listeners {
    /// The whole service.
    pub api: TcpListener,
    /// `/metrics` alone.
    pub metrics: Option<TcpListener>,
}

/// Serves until `shutdown` is ready, then drains: `/readyz` says no, requests are still served for
/// [`Settings::drain_delay`], open ones may finish for [`Settings::grace`].
///
/// A message on `reload` loads the model anew; so does a change of its file.
///
/// # Errors
/// When the first model cannot be loaded, or a setting contradicts another.
pub async fn run(
    listeners: Listeners,
    settings: Settings,
    reload: mpsc::Receiver<()>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let tls = tls::acceptor(&settings)?;
    let api = listeners.api.local_addr()?;
    let shown = serde_json::to_string(&settings)?;
    tracing::info!(address = %api, settings = shown, "starting");
    let app = Arc::new(App::new(settings)?);
    let mut server = Server::new(Arc::clone(&app));
    server.listen(listeners.api, Face::Api, tls);
    if let Some(listener) = listeners.metrics {
        server.listen(listener, Face::Metrics, None);
    }
    let loading = Arc::clone(&app);
    tokio::task::spawn_blocking(move || loading.slot.reload(&loading.settings))
        .await
        .context("loading the model panicked")??;
    tracing::info!(address = %api, "ready");
    let watching = tokio::spawn(app::follow_model(Arc::clone(&app), reload));
    let housekeeping = tokio::spawn(app::keep_house(Arc::clone(&app)));
    shutdown.await;
    app.enter(Phase::Draining);
    tracing::info!(delay = ?app.settings.drain_delay, "draining");
    tokio::time::sleep(app.settings.drain_delay).await;
    app.enter(Phase::Closing);
    watching.abort();
    server.finish(app.settings.grace).await;
    housekeeping.abort();
    tokio::task::spawn_blocking(move || app.traces.finish()).await?;
    tracing::info!("stopped");
    Ok(())
}
