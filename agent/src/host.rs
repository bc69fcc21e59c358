//! The machine itself: CPU, memory, load, pressure.

use std::path::{Path, PathBuf};
use std::time::Duration;

use somersault_proto::model::Host;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};
use tracing::warn;

/// Samples the machine; CPU use is that since the sample before.
pub struct HostSampler {
    system: Option<System>,
    pressure_file: PathBuf,
}

impl HostSampler {
    /// A sampler that reads the pressure below this `/proc`.
    pub fn new(proc_root: &Path) -> Self {
        let kinds = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_usage())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(kinds)
            .inspect_err(|error| warn!(%error, "CPU and memory of this host cannot be read"))
            .ok();
        Self { system, pressure_file: proc_root.join("pressure/io") }
    }

    /// The machine as it is now. Reads `/proc` only.
    pub fn sample(&mut self) -> Host {
        let pressure = std::fs::read_to_string(&self.pressure_file).ok();
        let mut host = Host {
            cpu_ratio: 0.0,
            memory_total_bytes: 0,
            memory_available_bytes: 0,
            load1: System::load_average().map_or(0.0, |load| load.one),
            io_pressure_ratio: pressure.as_deref().and_then(some_avg10),
            uptime: Duration::from_secs(System::uptime().unwrap_or(0)),
        };
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory();
            host.cpu_ratio = f64::from(system.global_cpu_usage() / 100.0).clamp(0.0, 1.0);
            host.memory_total_bytes = system.total_memory();
            host.memory_available_bytes = system.available_memory().min(host.memory_total_bytes);
        }
        host
    }
}

/// `some avg10=1.23 avg60=…` of a pressure file, as a ratio.
fn some_avg10(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let percent: f64 =
        some.split_whitespace().find_map(|field| field.strip_prefix("avg10="))?.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_a_ratio() {
        let text =
            "some avg10=12.50 avg60=3.00 avg300=0.00 total=99\nfull avg10=99.00 avg60=0 avg300=0 total=1\n";
        assert_eq!(some_avg10(text), Some(0.125));
        for broken in
            ["", "full avg10=1.0", "some avg60=1", "some avg10=x", "some avg10=NaN", "some avg10=-1"]
        {
            assert_eq!(some_avg10(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn this_machine_can_be_sampled() {
        let host = HostSampler::new(Path::new("/proc")).sample();
        assert!(host.memory_total_bytes > 0 && host.memory_available_bytes <= host.memory_total_bytes);
        assert!(!host.uptime.is_zero());
    }
}
