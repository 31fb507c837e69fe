//! The serving status that gRPC's health service reports.

use tokio::sync::Mutex;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

/// Maximum size of a request in bytes; it holds the name of a service only.
const MAX_MESSAGE: usize = 16 << 10;
const INFERENCE_SERVICE: &str = "inference.GRPCInferenceService";

/// The health service and the status it last reported.
pub(crate) struct Health {
    reporter: HealthReporter,
    server: HealthServer<HealthService>,
    /// The readiness that was reported last; `None` before the first report.
    reported: Mutex<Option<bool>>,
}

impl Health {
    pub(crate) fn new() -> Self {
        let reporter = HealthReporter::new();
        let server = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        let server = server.max_decoding_message_size(MAX_MESSAGE);
        Self { reporter, server, reported: Mutex::default() }
    }

    /// The service that implements `Check` and `Watch`.
    pub(crate) fn server(&self) -> HealthServer<HealthService> {
        self.server.clone()
    }

    /// Reports a change of readiness to clients that watch; an unchanged readiness sends nothing.
    pub(crate) async fn update(&self, ready: bool) {
        let mut reported = self.reported.lock().await;
        if reported.replace(ready) == Some(ready) {
            return;
        }
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", INFERENCE_SERVICE] {
            self.reporter.set_service_status(service, status).await;
        }
    }
}
