//! What all requests share, and the phases of the service's life.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow};
use metrics::{counter, gauge};
use tokio::sync::{mpsc, oneshot, watch};

use crate::access::Keys;
use crate::allocator;
use crate::batcher::Batcher;
use crate::drift::Drift;
use crate::feedback::Feedback;
use crate::memory::Memory;
use crate::model::{Model, Slot};
use crate::problem::Problem;
use crate::registry;
use crate::routes::Stats;
use crate::sessions::Sessions;
use crate::settings::{ModelAddress, Settings};
use crate::telemetry::{Machine, Rates, Recorder, Traces, dropped_lines};
use crate::tls::Tls;
use crate::upload::Uploads;

/// Where the service stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Open to all.
    Serving,
    /// Not ready, but serving those who have not heard yet.
    Draining,
    /// No new connections; open requests finish.
    Closing,
}

/// The state behind every request.
pub(crate) struct App {
    pub(crate) settings: Settings,
    pub(crate) slot: Slot,
    pub(crate) batcher: Batcher,
    pub(crate) uploads: Uploads,
    pub(crate) memory: Arc<Memory>,
    pub(crate) keys: Keys,
    pub(crate) recorder: Recorder,
    pub(crate) rates: Arc<Rates>,
    pub(crate) traces: Traces,
    pub(crate) sessions: Sessions,
    pub(crate) drift: Drift,
    pub(crate) feedback: Option<Feedback>,
    pub(crate) stats: Stats,
    /// Open connections.
    pub(crate) connections: AtomicUsize,
    machine: Machine,
    phase: watch::Sender<Phase>,
}

impl App {
    pub(crate) fn new(settings: Settings) -> Result<Self> {
        let recorder = Recorder::get()?;
        let rates = Arc::new(Rates::default());
        let feedback = Feedback::open(&settings)?;
        let memory = Arc::new(Memory::new(&settings));
        let (shared, digests) = (Arc::clone(&memory), feedback.is_some());
        Ok(Self {
            slot: Slot::default(),
            batcher: Batcher::start(&settings, shared, Arc::clone(&rates), digests)?,
            uploads: Uploads::new(Arc::clone(&memory)),
            memory,
            keys: Keys::new(&settings)?,
            recorder,
            rates,
            traces: Traces::start(settings.otlp_endpoint.as_deref())?,
            sessions: Sessions::new(settings.session_idle),
            drift: Drift::new(settings.drift_window),
            feedback,
            stats: Stats::default(),
            connections: AtomicUsize::new(0),
            machine: Machine::new(),
            phase: watch::Sender::new(Phase::Serving),
            settings,
        })
    }

    /// Waits for [`Phase::Closing`].
    pub(crate) async fn closing(&self) {
        // The sender is part of `self` and cannot be gone.
        let _ = self.phase.subscribe().wait_for(|phase| *phase == Phase::Closing).await;
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    pub(crate) fn serving(&self) -> bool {
        *self.phase.borrow() == Phase::Serving
    }

    /// All metrics, in Prometheus' text format.
    pub(crate) fn scrape(&self) -> String {
        self.recorder.scrape(|| {
            gauge!("build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
            self.machine.observe(self.feedback.as_ref().map(Feedback::folder));
            gauge!("active_user_sessions").set(self.sessions.active() as f64);
            self.batcher.observe();
            self.memory.observe();
            gauge!("open_connections").set(self.connections.load(Ordering::Relaxed) as f64);
            counter!("log_lines_dropped_total").absolute(dropped_lines());
            self.drift.observe();
            self.rates.observe();
            let model = self.slot.get();
            if let Some(model) = &model {
                model.observe();
            }
            if let Some(feedback) = &self.feedback {
                feedback.observe(model.as_deref());
            }
        })
    }

    /// # Errors
    /// 503 while no model is loaded, or memory is not shared out yet.
    pub(crate) fn model(&self) -> Result<Arc<Model>, Problem> {
        let model = self.slot.get().filter(|_| self.memory.is_open());
        model.ok_or_else(Problem::not_ready)
    }

    /// Loads the first model, then shares out the memory that it leaves.
    ///
    /// # Errors
    /// When there is no such model, or too little memory.
    pub(crate) async fn load(self: &Arc<Self>) -> Result<()> {
        self.reload().await?;
        self.memory.open()
    }

    /// Loads the model anew, on a thread of its own; on failure the old one goes on serving.
    pub(crate) async fn reload(self: &Arc<Self>) -> Result<Arc<Model>> {
        let _claim = self.memory.loading().await;
        let app = Arc::clone(self);
        let (reply, loaded) = oneshot::channel();
        let load = move || {
            // A caller that has gone needs no answer.
            let _ = reply.send(app.slot.reload(&app.settings));
            allocator::trim();
        };
        std::thread::Builder::new().name("reload".into()).spawn(load)?;
        let outcome = loaded.await.unwrap_or_else(|_| Err(anyhow!("loading the model panicked")));
        if let Err(error) = &outcome {
            counter!("model_reloads_total", "result" => "refused").increment(1);
            tracing::error!(error = format!("{error:#}"), "the new model was refused");
        }
        outcome
    }
}

/// What must be done now and then, whether somebody asks for metrics or not.
pub(crate) async fn keep_house(app: Arc<App>) {
    const EVERY: Duration = Duration::from_secs(5);
    /// Ticks between two looks at what is kept too long.
    const RARELY: u64 = 12;
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for tick in 0.. {
        ticks.tick().await;
        let app = Arc::clone(&app);
        // A panic over there ends one turn.
        let _ = tokio::task::spawn_blocking(move || {
            app.recorder.upkeep();
            app.sessions.active();
            if let Some(feedback) = &app.feedback {
                feedback.revive();
                if tick % RARELY == 0 {
                    feedback.retain();
                }
            }
            if tick % RARELY == 0 {
                allocator::trim();
            }
        })
        .await;
    }
}

/// Reloads the model, the certificate and the keys when asked; the model also when its file has changed and then kept still for a
/// look, and when its name stands for another version, if that is to be followed. `loaded` is the file's stamp from before
/// it was loaded, so that a change meanwhile is noticed.
pub(crate) async fn follow_model(
    app: Arc<App>,
    mut loaded: Option<Stamp>,
    mut asked: mpsc::Receiver<()>,
    tls: Option<Arc<Tls>>,
) {
    let look = match &app.settings.model {
        ModelAddress::Registered(_) => app.settings.follow.unwrap_or_default(),
        ModelAddress::File(_) => app.settings.watch,
        ModelAddress::Bundled => Duration::ZERO,
    };
    let watching = look > Duration::ZERO;
    let mut ticks = tokio::time::interval(if watching { look } else { Duration::MAX / 4 });
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut seen = loaded;
    let mut open = true;
    loop {
        tokio::select! {
            message = asked.recv(), if open => {
                open = message.is_some();
                if !open { continue }
                tls.iter().for_each(|tls| tls.reload());
                app.keys.reload();
                loaded = stamp(&app);
            }
            _ = ticks.tick() => if let ModelAddress::Registered(name) = &app.settings.model {
                if !promoted(&app, name).await { continue }
            } else {
                let now = stamp(&app);
                let settled = now == seen && now != loaded;
                seen = now;
                if !settled { continue }
                loaded = now;
            }
        }
        // A refusal is logged and counted where it happens.
        let _ = app.reload().await;
    }
}

/// The marks of a model's file that change with it: the time of its last change, and its length.
pub(crate) type Stamp = (SystemTime, u64);

pub(crate) fn stamp(app: &App) -> Option<Stamp> {
    let ModelAddress::File(path) = &app.settings.model else { return None };
    let file = std::fs::metadata(path).ok()?;
    Some((file.modified().ok()?, file.len()))
}

/// True when the model's name stands for another version than the loaded one.
async fn promoted(app: &Arc<App>, name: &str) -> bool {
    let (asking, name) = (Arc::clone(app), name.to_string());
    let current =
        tokio::task::spawn_blocking(move || registry::current(&asking.settings, &name)).await;
    match current.unwrap_or_else(|e| Err(e.into())) {
        Ok(version) => {
            app.slot.get().and_then(|model| model.registered.clone()) != Some(version.version)
        }
        Err(error) => {
            counter!("model_registry_errors_total").increment(1);
            tracing::warn!(error = format!("{error:#}"), "the registry was not read");
            false
        }
    }
}
