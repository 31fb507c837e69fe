//! An inference service for petnet's classifiers over HTTP/1.1 and HTTP/2 (hyper), with JSON and gRPC.
//!
//! [`run`] neither binds sockets nor installs signal handlers: the caller passes listeners, a channel for reloads and a
//! future for the shutdown, so that tests serve on a free port and stop at any time.

mod access;
mod allocator;
mod app;
mod authorization;
mod batcher;
mod body;
mod buffer;
mod cache;
mod decoder;
mod drift;
mod feedback;
#[cfg(fuzzing)]
pub mod fuzz;
mod health;
mod hosts;
mod memory;
mod model_source;
mod models;
mod outputs;
mod prediction;
mod problem;
mod queue;
mod registry;
mod remote;
mod routes;
mod server;
mod sessions;
mod settings;
mod shadow;
mod socket;
mod stats;
mod telemetry;
mod tls;
mod upload;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use anyhow::Result;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use hosts::AllowedHosts;
pub use model_source::{ModelAddress, ModelSource};
pub use settings::{LogFormat, MetricsAddr, Settings};
pub use telemetry::{Log, start_log};

use app::{App, Phase};
use routes::ListenerKind;
use server::Server;
use telemetry::{EXPORT_TIMEOUT, MetricsExport};
use tls::Tls;

/// The sockets to serve on.
#[derive(Debug)]
pub struct Listeners {
    /// Serves all routes.
    pub api: TcpListener,
    /// Serves `/metrics` only.
    pub metrics: Option<TcpListener>,
}

/// Serves until `shutdown` is ready, then drains: `/readyz` returns 503 while requests are still served for
/// [`Settings::drain_delay`]; open ones may then finish within [`Settings::grace`].
///
/// A message on `reload` reloads the models, keys and certificate; a changed model file is reloaded as well.
///
/// # Errors
/// When the first model cannot be loaded, or a setting contradicts another.
pub async fn run(
    listeners: Listeners,
    settings: Settings,
    reload: mpsc::Receiver<()>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let tls = Tls::of(&settings)?;
    let api = listeners.api.local_addr()?;
    let settings_json = serde_json::to_string(&settings)?;
    tracing::info!(address = %api, settings = settings_json, "starting");
    let app = Arc::new(App::new(settings)?);
    let scraped = Arc::clone(&app);
    let endpoint = app.settings.otlp_endpoint.as_deref();
    let export = MetricsExport::start(endpoint, move || scraped.scrape())?;
    let mut server = Server::new(Arc::clone(&app));
    server.listen(listeners.api, ListenerKind::Api, tls.clone());
    if let Some(listener) = listeners.metrics {
        server.listen(listener, ListenerKind::Metrics, None);
    }
    let health = tokio::spawn(routes::report_health(Arc::clone(&app)));
    let mut shutdown = pin!(shutdown);
    tokio::select! {
        loaded = app.load() => loaded?,
        () = &mut shutdown => {
            tracing::info!("stopped before a model was loaded");
            return Ok(());
        }
    }
    tracing::info!(address = %api, "ready");
    let reload_tasks = watch(&app, reload, tls);
    let maintenance = tokio::spawn(app::run_maintenance(Arc::clone(&app)));
    shutdown.await;
    app.enter(Phase::Draining);
    tracing::info!(delay = ?app.settings.drain_delay, "draining");
    tokio::time::sleep(app.settings.drain_delay).await;
    app.enter(Phase::Closing);
    drop(reload_tasks);
    let end = tokio::time::Instant::now() + app.settings.grace;
    server.finish(app.settings.grace).await;
    maintenance.abort();
    health.abort();
    // Traces and metrics that cannot be exported within the grace period are dropped.
    let traces = tokio::task::spawn_blocking(move || app.traces.finish());
    let metrics = tokio::task::spawn_blocking(move || {
        export.is_none_or(|export| export.finish(EXPORT_TIMEOUT))
    });
    let _ = tokio::time::timeout_at(end, async { tokio::join!(traces, metrics) }).await;
    tracing::info!("stopped");
    Ok(())
}

/// Starts the tasks that reload models, keys and certificate, and the shadow model's; they end when the set is dropped.
fn watch(app: &Arc<App>, mut reloads: mpsc::Receiver<()>, tls: Option<Arc<Tls>>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for served in app.models.iter() {
        let (app, served) = (Arc::clone(app), Arc::clone(served));
        let follow = async move {
            let reload = || async {
                // `ServedModel::reload` has logged and counted a failure.
                let _ = app.reload(&served).await;
            };
            models::follow(Arc::clone(&served), app.settings.clone(), reload).await;
        };
        tasks.spawn(follow);
    }
    let app = Arc::clone(app);
    if let Some(shadow) = app.shadow.clone() {
        let app = Arc::clone(&app);
        tasks.spawn(async move { shadow.run(&app.models, &app.batcher).await });
    }
    tasks.spawn(async move {
        while reloads.recv().await.is_some() {
            tls.iter().for_each(|tls| tls.reload());
            app.keys.reload();
            for served in app.models.iter() {
                // A failure is logged and counted there as well.
                let _ = app.reload(served).await;
            }
        }
    });
    tasks
}
