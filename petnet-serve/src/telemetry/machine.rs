//! Gauges of the process, the clock, GPUs and the disk; those that cannot be measured here are absent.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use metrics::{counter, gauge};
use metrics_process::collector::collect;

use crate::telemetry::names;

/// Minimum time over which CPU usage is averaged.
const CPU_INTERVAL: Duration = Duration::from_secs(10);
const MEGABYTE: f64 = 1e6;
const DAY: u64 = 86_400;

/// Measures the process and its machine.
pub(crate) struct Machine {
    started: Instant,
    /// Two earlier samples of the CPU time in seconds, the older first.
    samples: Mutex<[(Instant, f64); 2]>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let first = (Instant::now(), collect().cpu_seconds_total.unwrap_or_default());
        Self { started: Instant::now(), samples: Mutex::new([first; 2]) }
    }

    /// Sets the gauges of process, clock, GPUs and the disk below `folder`.
    pub(crate) fn set_gauges(&self, folder: Option<&Path>) {
        let process = collect();
        if let Some(bytes) = process.resident_memory_bytes {
            gauge!(names::PROCESS_MEMORY_USAGE_MB).set(bytes as f64 / MEGABYTE);
        }
        if let Some(seconds) = process.cpu_seconds_total {
            counter!(names::PROCESS_CPU_SECONDS_TOTAL).absolute(seconds as u64);
            if let Some(percent) = self.cpu_percent(seconds) {
                gauge!(names::PROCESS_CPU_USAGE_PERCENT).set(percent);
            }
        }
        for (name, value) in [
            (names::PROCESS_RESIDENT_MEMORY_BYTES, process.resident_memory_bytes),
            (names::PROCESS_VIRTUAL_MEMORY_BYTES, process.virtual_memory_bytes),
            // Zero means no limit.
            (
                names::PROCESS_VIRTUAL_MEMORY_MAX_BYTES,
                process.virtual_memory_max_bytes.filter(|n| *n > 0),
            ),
            (names::PROCESS_OPEN_FDS, process.open_fds),
            (names::PROCESS_MAX_FDS, process.max_fds),
            (names::PROCESS_THREADS, process.threads),
            (names::PROCESS_START_TIME_SECONDS, process.start_time_seconds),
        ] {
            if let Some(value) = value {
                gauge!(name).set(value as f64);
            }
        }
        gauge!(names::SERVICE_UPTIME_SECONDS).set(self.started.elapsed().as_secs_f64());
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (hour, day) = clock(since.as_secs());
        gauge!(names::CURRENT_HOUR).set(hour as f64);
        gauge!(names::CURRENT_DAY_OF_WEEK).set(day as f64);
        let gpus = sysfs(Path::new("/sys/class/drm")).into_iter().chain(nvidia());
        gpus.for_each(|gpu| gpu.set_gauges());
        if let Some(disk) = folder.and_then(|folder| rustix::fs::statvfs(folder).ok()) {
            gauge!(names::DISK_FREE_BYTES).set(disk.f_bavail as f64 * disk.f_frsize as f64);
            gauge!(names::DISK_SIZE_BYTES).set(disk.f_blocks as f64 * disk.f_frsize as f64);
        }
    }

    fn cpu_percent(&self, cpu_seconds: f64) -> Option<f64> {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now - samples[1].0 >= CPU_INTERVAL {
            *samples = [samples[1], (now, cpu_seconds)];
        }
        let (start, start_cpu_seconds) = samples[0];
        let elapsed = (now - start).as_secs_f64();
        (elapsed > 0.0).then(|| (cpu_seconds - start_cpu_seconds) / elapsed * 100.0)
    }
}

/// Hour of the day and day of the week (Monday is 0) of a time in seconds since 1970, UTC.
fn clock(seconds: u64) -> (u64, u64) {
    // 1 January 1970 was a Thursday.
    (seconds % DAY / 3600, (seconds / DAY + 3) % 7)
}

/// Utilisation of one GPU.
#[derive(Debug, PartialEq)]
struct Gpu {
    name: String,
    /// Share of the time in use, from 0 to 1.
    busy: Option<f64>,
    /// Memory in use, in bytes.
    memory: Option<f64>,
}

impl Gpu {
    fn set_gauges(&self) {
        let name = &self.name;
        if let Some(busy) = self.busy {
            gauge!(names::GPU_UTILIZATION_RATIO, "gpu" => name.clone()).set(busy);
            gauge!(names::GPU_UTILIZATION_PERCENT, "gpu" => name.clone()).set(busy * 100.0);
        }
        if let Some(bytes) = self.memory {
            gauge!(names::GPU_MEMORY_USED_BYTES, "gpu" => name.clone()).set(bytes);
            gauge!(names::GPU_MEMORY_USED_MB, "gpu" => name.clone()).set(bytes / MEGABYTE);
        }
    }
}

/// GPUs whose driver reports utilisation in sysfs, such as amdgpu.
fn sysfs(root: &Path) -> Vec<Gpu> {
    let number = |path: &Path| std::fs::read_to_string(path).ok()?.trim().parse::<f64>().ok();
    let cards = std::fs::read_dir(root).into_iter().flatten().flatten();
    let read = |card: std::fs::DirEntry| {
        let name = card.file_name().to_string_lossy().into_owned();
        let device = card.path().join("device");
        let busy = number(&device.join("gpu_busy_percent")).map(|percent| percent / 100.0);
        let memory = number(&device.join("mem_info_vram_used"));
        // `card0-DP-1` is a connector of `card0`.
        let card = !name.contains('-') && (busy.is_some() || memory.is_some());
        card.then_some(Gpu { name, busy, memory })
    };
    let mut gpus: Vec<Gpu> = cards.filter_map(read).collect();
    gpus.sort_by(|a, b| a.name.cmp(&b.name));
    gpus
}

#[cfg(feature = "nvml")]
fn nvidia() -> Vec<Gpu> {
    static DRIVER: std::sync::OnceLock<Option<nvml_wrapper::Nvml>> = std::sync::OnceLock::new();
    let Some(driver) = DRIVER.get_or_init(|| nvml_wrapper::Nvml::init().ok()) else {
        return Vec::new();
    };
    let devices = 0..driver.device_count().unwrap_or_default();
    let read = |index: u32| {
        let device = driver.device_by_index(index).ok()?;
        let busy = device.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0);
        let memory = device.memory_info().ok().map(|memory| memory.used as f64);
        Some(Gpu { name: format!("nvidia{index}"), busy, memory })
    };
    devices.filter_map(read).collect()
}

#[cfg(not(feature = "nvml"))]
fn nvidia() -> Vec<Gpu> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_agrees_with_the_calendar() {
        assert_eq!(clock(0), (0, 3), "a Thursday");
        assert_eq!(clock(1_795_544_057), (18, 1), "Tuesday, 24 November 2026, 18:14:17");
    }

    #[test]
    fn gpus_are_read_from_sysfs_and_a_machine_without_a_driver_has_none() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(sysfs(root.path()), []);
        assert_eq!(sysfs(&root.path().join("nothing")), []);
        for (card, busy) in [("card1", "37\n"), ("card0", "5\n"), ("card0-DP-1", "5\n")] {
            let device = root.path().join(card).join("device");
            std::fs::create_dir_all(&device).unwrap();
            std::fs::write(device.join("gpu_busy_percent"), busy).unwrap();
        }
        std::fs::write(root.path().join("card0/device/mem_info_vram_used"), "1048576\n").unwrap();
        let gpu = |name: &str, busy, memory| Gpu { name: name.into(), busy: Some(busy), memory };
        assert_eq!(
            sysfs(root.path()),
            [gpu("card0", 0.05, Some(1_048_576.0)), gpu("card1", 0.37, None)]
        );
    }
}
