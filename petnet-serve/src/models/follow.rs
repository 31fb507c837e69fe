//! Hot reload: watches a model's file, or the version that a registered name resolves to.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use metrics::counter;

use super::ServedModel;
use crate::model_source::ModelAddress;
use crate::registry;
use crate::settings::Settings;
use crate::telemetry::names;

/// Calls `reload` when the model's file has changed and was then unchanged for one interval, or when its registered name
/// resolves to another version and `--follow` is set. Returns only where there is nothing to watch.
pub(crate) async fn follow<F: Future<Output = ()>>(
    served: Arc<ServedModel>,
    settings: Settings,
    reload: impl Fn() -> F,
) {
    let interval = match &served.source.address {
        ModelAddress::Registered(_) => settings.follow.unwrap_or_default(),
        ModelAddress::File(_) => settings.watch,
        ModelAddress::Bundled => Duration::ZERO,
    };
    if interval.is_zero() {
        return;
    }
    let attempt_stamp = || *served.attempt_stamp.lock().unwrap_or_else(PoisonError::into_inner);
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last_seen = attempt_stamp();
    loop {
        ticks.tick().await;
        let changed = match &served.source.address {
            ModelAddress::Registered(name) => version_changed(&served, &settings, name).await,
            ModelAddress::File(_) => {
                let now = served.file_stamp();
                // A file that was deleted has no stamp: the model remains in use.
                let complete = now.is_some() && now == last_seen && now != attempt_stamp();
                last_seen = now;
                complete
            }
            ModelAddress::Bundled => false,
        };
        // A model that was unloaded by request is not loaded again here.
        if changed && served.get().is_some() {
            reload().await;
        }
    }
}

/// True when the model's name resolves to a version other than the loaded one.
async fn version_changed(served: &ServedModel, settings: &Settings, name: &str) -> bool {
    let (settings, name) = (settings.clone(), name.to_string());
    let current = tokio::task::spawn_blocking(move || registry::resolve(&settings, &name)).await;
    match current.unwrap_or_else(|e| Err(e.into())) {
        Ok(version) => {
            let loaded = served.get();
            loaded.is_some_and(|model| model.registry_version.as_ref() != Some(&version.version))
        }
        Err(error) => {
            counter!(names::MODEL_REGISTRY_ERRORS_TOTAL).increment(1);
            tracing::warn!(error = format!("{error:#}"), "the registry could not be read");
            false
        }
    }
}
