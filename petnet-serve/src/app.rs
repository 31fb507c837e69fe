//! The state that all requests share, and the phases of the service.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use metrics::{counter, gauge};
use tokio::sync::{oneshot, watch};

use crate::access::Keys;
use crate::allocator;
use crate::authorization::Priority;
use crate::batcher::Batcher;
use crate::feedback::Feedback;
use crate::health::Health;
use crate::memory::Memory;
use crate::models::{Model, Models, RequestModel, ServedModel};
use crate::problem::Problem;
use crate::remote::Fetcher;
use crate::sessions::Sessions;
use crate::settings::Settings;
use crate::shadow::Shadow;
use crate::stats::Stats;
use crate::telemetry::{Machine, Rates, Recorder, Traces, dropped_lines, names};
use crate::upload::Uploads;

/// Phase of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Ready.
    Serving,
    /// Not ready, but still serving clients that load balancers have not moved yet.
    Draining,
    /// Accepts no new connections; open requests finish.
    Closing,
}

/// The state that all requests share.
pub(crate) struct App {
    pub(crate) settings: Settings,
    pub(crate) models: Models,
    pub(crate) batcher: Batcher,
    pub(crate) uploads: Uploads,
    pub(crate) memory: Arc<Memory>,
    pub(crate) keys: Keys,
    pub(crate) recorder: Recorder,
    pub(crate) rates: Arc<Rates>,
    pub(crate) traces: Traces,
    pub(crate) sessions: Sessions,
    pub(crate) feedback: Option<Arc<Feedback>>,
    pub(crate) stats: Stats,
    pub(crate) shadow: Option<Arc<Shadow>>,
    /// gRPC's health service.
    pub(crate) health: Health,
    /// Number of open connections.
    pub(crate) connections: AtomicUsize,
    machine: Machine,
    phase: watch::Sender<Phase>,
}

impl App {
    pub(crate) fn new(settings: Settings) -> Result<Self> {
        let recorder = Recorder::get()?;
        let rates = Arc::new(Rates::default());
        let models = Models::new(&settings)?;
        let hosts = settings.image_hosts.clone();
        let remote = hosts.map(|hosts| Fetcher::new(hosts, settings.clone())).transpose()?;
        let feedback = Feedback::open(&settings)?.map(Arc::new);
        let memory = Arc::new(Memory::new(&settings));
        let (shared, needs_sha256) = (Arc::clone(&memory), feedback.is_some());
        Ok(Self {
            shadow: Shadow::new(&settings, &models, Arc::clone(&memory)).map(Arc::new),
            health: Health::new(),
            models,
            batcher: Batcher::start(&settings, shared, Arc::clone(&rates), needs_sha256)?,
            uploads: Uploads::new(settings.clone(), Arc::clone(&memory), remote),
            memory,
            keys: Keys::new(&settings)?,
            recorder,
            rates,
            traces: Traces::start(settings.otlp_endpoint.as_deref())?,
            sessions: Sessions::new(settings.session_idle),
            feedback,
            stats: Stats::default(),
            connections: AtomicUsize::new(0),
            machine: Machine::new(),
            phase: watch::Sender::new(Phase::Serving),
            settings,
        })
    }

    /// Waits for the end of [`Phase::Serving`].
    pub(crate) async fn wait_for_draining(&self) {
        // Cannot fail: the sender is a field of `self`.
        let _ = self.phase.subscribe().wait_for(|phase| *phase != Phase::Serving).await;
    }

    /// Waits for [`Phase::Closing`].
    pub(crate) async fn wait_for_closing(&self) {
        // Cannot fail: the sender is a field of `self`.
        let _ = self.phase.subscribe().wait_for(|phase| *phase == Phase::Closing).await;
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    pub(crate) fn is_serving(&self) -> bool {
        *self.phase.borrow() == Phase::Serving
    }

    /// All metrics in Prometheus' text format.
    pub(crate) fn scrape(&self) -> String {
        self.recorder.scrape(|| {
            gauge!(names::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
            self.machine.set_gauges(self.feedback.as_ref().map(|feedback| feedback.path.as_path()));
            gauge!(names::ACTIVE_USER_SESSIONS).set(self.sessions.active(Instant::now()) as f64);
            self.batcher.cache.set_gauges();
            self.memory.set_gauges();
            gauge!(names::OPEN_CONNECTIONS).set(self.connections.load(Ordering::Relaxed) as f64);
            counter!(names::LOG_LINES_DROPPED_TOTAL).absolute(dropped_lines());
            self.rates.set_gauges();
            let models: Vec<_> = self.models.iter().filter_map(|served| served.get()).collect();
            self.models.iter().for_each(|served| served.set_gauges());
            if let Some(feedback) = &self.feedback {
                feedback.set_gauges(&models);
            }
        })
    }

    /// The model for a request's images, by name, or the default model.
    /// Errors: 404 for an unknown name; 503 while the model is not loaded, or the memory budget is not open yet.
    pub(crate) fn target(
        &self,
        name: Option<&str>,
        priority: Priority,
    ) -> Result<RequestModel, Problem> {
        let served = self.models.find(name)?;
        if self.memory.is_open() { served.target(priority) } else { Err(Problem::not_ready()) }
    }

    /// True once the default model can be used.
    pub(crate) fn is_loaded(&self) -> bool {
        self.memory.is_open() && self.models.default().get().is_some()
    }

    /// Loads all models, then opens the memory budget with what they leave.
    /// Errors: when a model cannot be loaded, or too little memory is left.
    pub(crate) async fn load(self: &Arc<Self>) -> Result<()> {
        for served in self.models.iter() {
            self.reload(served).await?;
        }
        self.memory.open()
    }

    /// Reloads a model on a thread, which a cancelled caller does not end; on failure the previous model remains in use.
    pub(crate) async fn reload(self: &Arc<Self>, served: &Arc<ServedModel>) -> Result<Arc<Model>> {
        let claim = self.memory.claim_loading().await;
        let (app, served) = (Arc::clone(self), Arc::clone(served));
        let (sender, loaded) = oneshot::channel();
        let load = move || {
            let reloaded = served.reload(&app.settings);
            drop(claim);
            // Fails where the caller was cancelled.
            let _ = sender.send(reloaded);
            allocator::trim();
        };
        std::thread::Builder::new().name("reload".into()).spawn(load)?;
        loaded.await.unwrap_or_else(|_| Err(anyhow!("loading the model panicked")))
    }
}

/// Periodic maintenance that does not depend on metrics being scraped.
pub(crate) async fn run_maintenance(app: Arc<App>) {
    const INTERVAL: Duration = Duration::from_secs(5);
    /// Ticks between two removals of old feedback, and between two trims of the allocator.
    const TICKS_PER_CLEANUP: u64 = 12;
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for tick in 0.. {
        ticks.tick().await;
        let app = Arc::clone(&app);
        // A panic ends this tick's work only.
        let _ = tokio::task::spawn_blocking(move || {
            app.recorder.upkeep();
            app.sessions.active(Instant::now());
            if let Some(feedback) = &app.feedback {
                feedback.reopen();
                if tick % TICKS_PER_CLEANUP == 0 {
                    feedback.retain();
                }
            }
            if tick % TICKS_PER_CLEANUP == 0 {
                allocator::trim();
            }
        })
        .await;
    }
}
