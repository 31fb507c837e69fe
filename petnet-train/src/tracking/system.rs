//! System metrics during a run, under MLflow's names: CPU, memory, disk, network.

use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use sysinfo::{Networks, System};

use super::run::Run;
use super::worker::Worker;
use crate::disk::{self, Space};

/// Sampling interval, as in MLflow.
const SAMPLING_INTERVAL: Duration = Duration::from_secs(10);
const MEGABYTE: f64 = 1e6;

/// Starts the sampling thread.
pub(super) fn start(run: &Run) -> std::io::Result<Worker<()>> {
    let run = run.share();
    Worker::start("system metrics", move |ended| {
        let Ok(mut sampler) = Sampler::new(&run) else { return };
        while ended.recv_timeout(SAMPLING_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            sampler.log(&run);
        }
        // A run shorter than the interval gets one sample, too.
        sampler.log(&run);
    })
}

/// State between two samples.
struct Sampler {
    system: System,
    networks: Networks,
    step: i64,
}

impl Sampler {
    fn new(run: &Run) -> Result<Self, sysinfo::Error> {
        let mut system = System::new()?;
        // CPU usage is measured since the previous refresh.
        system.refresh_cpu_usage();
        let last = run.points("system/cpu_utilization_percentage").last().map(|p| p.step + 1);
        Ok(Self {
            system,
            networks: Networks::new_with_refreshed_list()?,
            step: last.unwrap_or_default(),
        })
    }

    fn log(&mut self, run: &Run) {
        self.system.refresh_cpu_usage();
        self.system.refresh_memory();
        self.networks.refresh(true);
        let mut figures = vec![
            ("cpu_utilization_percentage", f64::from(self.system.global_cpu_usage())),
            ("system_memory_usage_megabytes", self.system.used_memory() as f64 / MEGABYTE),
            (
                "system_memory_usage_percentage",
                percentage(self.system.used_memory(), self.system.total_memory()),
            ),
        ];
        if let Some(Space { total, free }) = disk::space(run.folder()) {
            let used = total.saturating_sub(free);
            figures.push(("disk_usage_percentage", percentage(used, total)));
            figures.push(("disk_usage_megabytes", used as f64 / MEGABYTE));
            figures.push(("disk_available_megabytes", free as f64 / MEGABYTE));
        }
        let received: u64 = self.networks.values().map(|n| n.total_received()).sum();
        let sent: u64 = self.networks.values().map(|n| n.total_transmitted()).sum();
        figures.push(("network_receive_megabytes", received as f64 / MEGABYTE));
        figures.push(("network_transmit_megabytes", sent as f64 / MEGABYTE));
        for (name, value) in figures {
            // A full disk is reported by the metrics of the training.
            let _ = run.metric(&format!("system/{name}"), value, self.step);
        }
        self.step += 1;
    }
}

fn percentage(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64 * 100.0
}
