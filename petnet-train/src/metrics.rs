//! Metrics of a running training for Prometheus.

use std::net::SocketAddr;

use anyhow::{Result, anyhow};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use metrics_process::Collector;
use petnet::train::{EpochReport, StepReport};
use tiny_http::{Header, Response, Server};

/// Bucket bounds of the time that a step waits for its batch.
const SECONDS: [f64; 9] = [0.0001, 0.001, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0];

/// Updates the metrics after each step and epoch.
pub(crate) struct Metrics {
    /// Seconds of the epoch, up to the last report, in which training waited for batches.
    waited: Option<f64>,
}

impl Metrics {
    /// Serves `/metrics` from a separate thread until the process ends.
    /// Errors: when the address cannot be listened on.
    pub(crate) fn serve(address: SocketAddr, epochs: usize) -> Result<Self> {
        let wait = Matcher::Full("training_loader_wait_seconds".into());
        let handle =
            PrometheusBuilder::new().set_buckets_for_metric(wait, &SECONDS)?.install_recorder()?;
        describe();
        gauge!("training_epochs").set(epochs as f64);
        let server = Server::http(address).map_err(|e| anyhow!("--metrics-addr {address}: {e}"))?;
        tracing::info!(address = %server.server_addr(), "metrics");
        let kind = Header::from_bytes("content-type", "text/plain; version=0.0.4")
            .map_err(|()| anyhow!("invalid header"))?;
        std::thread::Builder::new().name("metrics".into()).spawn(move || {
            let process = Collector::default();
            for request in server.incoming_requests() {
                let reply = if request.url() == "/metrics" {
                    process.collect();
                    Response::from_string(handle.render()).with_header(kind.clone())
                } else {
                    Response::from_string("see /metrics\n").with_status_code(404)
                };
                // A client that has disconnected needs no answer.
                let _ = request.respond(reply);
            }
        })?;
        Ok(Self { waited: None })
    }

    pub(crate) fn step(&mut self, report: &StepReport) {
        let before = self.waited.replace(report.waited);
        // The first report after a resume within an epoch has the seconds of the run before as well.
        if let Some(before) = if report.step == 1 { Some(0.0) } else { before } {
            histogram!("training_loader_wait_seconds").record(report.waited - before);
        }
        counter!("training_steps_total").increment(1);
        counter!("training_images_total").increment(report.images as u64);
        gauge!("training_epoch").set(report.epoch as f64);
        gauge!("training_loss").set(report.loss);
        gauge!("training_accuracy").set(report.accuracy);
        gauge!("training_learning_rate").set(report.learning_rate);
        gauge!("training_images_per_second").set(report.images_per_second);
    }

    pub(crate) fn epoch(&mut self, report: &EpochReport) {
        gauge!("training_validation_loss").set(report.val_loss);
        gauge!("training_validation_accuracy").set(report.val_accuracy);
    }
}

fn describe() {
    Collector::default().describe();
    describe_counter!("training_steps_total", "Steps taken by this process");
    describe_counter!("training_images_total", "Images trained on by this process");
    describe_histogram!("training_loader_wait_seconds", "Seconds that a step waited for its batch");
    for (name, help) in [
        ("training_epoch", "The current epoch, from 1"),
        ("training_epochs", "Number of epochs of the training"),
        ("training_loss", "Mean loss of the epoch so far"),
        ("training_accuracy", "Accuracy of the epoch so far"),
        ("training_learning_rate", "Learning rate of the last step"),
        ("training_images_per_second", "Images per second in the last step"),
        ("training_validation_loss", "Validation loss after the last epoch"),
        ("training_validation_accuracy", "Validation accuracy after the last epoch"),
    ] {
        describe_gauge!(name, help);
    }
}
