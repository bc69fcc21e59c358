//! Findings from the kernel's own counters: none of them touches the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::grade::Reason;
use super::thresholds::Thresholds;

/// What the kernel says of one disk at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// Whether the kernel can use it.
    pub device: DeviceState,
    /// It belongs to an array (md) that lacks a disk.
    pub degraded: bool,
    /// Failed requests ever since the device came (SCSI and ATA).
    pub io_errors: Option<u64>,
    /// A probe (a walk, `statvfs`, `smartctl`) is overdue.
    pub probe_stuck: bool,
    /// Its line of `/proc/diskstats`.
    pub io: Option<IoSample>,
    /// The mounted filesystems on it, by mount point.
    pub filesystems: BTreeMap<String, FilesystemSample>,
}

/// Whether the kernel can use a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceState {
    /// It takes requests, or says nothing of that.
    #[default]
    Usable,
    /// It was given up after errors (`device/state` of SCSI: `offline`).
    Offline,
    /// Its controller is dead (`device/state` of `NVMe`: `dead`).
    Dead,
    /// The device node left the kernel's list while a filesystem on it is mounted.
    Gone,
}

/// A line of `/proc/diskstats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoSample {
    /// Requests given to the device and not completed.
    pub in_flight: u64,
    /// Reads, writes, discards and flushes completed, summed up.
    pub completed: u64,
}

/// A mounted filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilesystemSample {
    /// Whether the filesystem (not this mount of it) can be written.
    pub access: Access,
    /// Its error counter, for ext4.
    pub errors: Option<FilesystemErrors>,
    /// Errors ever counted of its devices, for btrfs; they stay until somebody clears them.
    pub device_errors: Option<u64>,
}

/// Whether a filesystem can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Super options say `rw`.
    ReadWrite,
    /// Super options say `ro`.
    ReadOnly,
    /// Super options say `emergency_ro`: the kernel stopped writes after an error (Linux 6.14 and later).
    EmergencyReadOnly,
}

/// `/sys/fs/ext4/*/errors_count` and `last_error_time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilesystemErrors {
    /// Errors ever recorded in the superblock; survives reboots.
    pub count: u64,
    /// How long ago the last one was, by the clock of this host.
    pub last_age: Option<Duration>,
}

/// What must be remembered between two samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct KernelMemory {
    stall: Option<Stall>,
    io_errors: Option<u64>,
    filesystems: BTreeMap<String, FilesystemMemory>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Stall {
    completed: u64,
    lasted: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct FilesystemMemory {
    was_writable: bool,
    errors: Option<u64>,
    device_errors: Option<u64>,
}

impl KernelMemory {
    /// The findings of this sample; `gap` is the observed time since the one before.
    pub(super) fn judge(
        &mut self,
        gap: Duration,
        signals: &Signals,
        limits: &Thresholds,
    ) -> BTreeSet<Reason> {
        let mut found = BTreeSet::new();
        found.extend(match signals.device {
            DeviceState::Usable => None,
            DeviceState::Offline => Some(Reason::DeviceOffline),
            DeviceState::Dead => Some(Reason::NvmeDead),
            DeviceState::Gone => Some(Reason::DeviceGone),
        });
        if signals.degraded {
            found.insert(Reason::RaidDegraded);
        }
        if rises(&mut self.io_errors, signals.io_errors) {
            found.insert(Reason::IoErrorsGrowing);
        }
        if signals.probe_stuck {
            found.insert(Reason::ProbeStuck);
        }
        self.stall = signals.io.map(|io| self.next_stall(gap, io));
        match self.stall.map(|stall| stall.lasted) {
            Some(lasted) if lasted >= limits.stall_failed => found.insert(Reason::IoStalled),
            Some(lasted) if lasted >= limits.stall_warning => found.insert(Reason::IoStalling),
            _ => false,
        };
        self.filesystems.retain(|mount, _| signals.filesystems.contains_key(mount));
        for (mount, sample) in &signals.filesystems {
            let memory = self.filesystems.entry(mount.clone()).or_default();
            found.extend(memory.judge(sample, limits));
        }
        found
    }

    /// How long requests have been waiting without any completion.
    pub(super) fn stalled_for(&self) -> Duration {
        self.stall.map_or(Duration::ZERO, |stall| stall.lasted)
    }

    fn next_stall(&self, gap: Duration, io: IoSample) -> Stall {
        let lasted = match self.stall {
            Some(before) if io.in_flight > 0 && before.completed == io.completed => before.lasted + gap,
            _ => Duration::ZERO,
        };
        Stall { completed: io.completed, lasted }
    }
}

impl FilesystemMemory {
    fn judge(&mut self, sample: &FilesystemSample, limits: &Thresholds) -> Vec<Reason> {
        let mut found = Vec::new();
        let count = sample.errors.map_or(0, |errors| errors.count);
        let after_error = match sample.access {
            Access::ReadWrite => false,
            // Up to Linux 6.11 a plain `ro` is all there is; it counts where the filesystem had been writable
            // or has recorded errors. A filesystem mounted read-only on purpose has neither.
            Access::ReadOnly => self.was_writable || count > 0,
            Access::EmergencyReadOnly => true,
        };
        if after_error {
            found.push(Reason::ReadOnlyAfterError);
        }
        self.was_writable |= sample.access == Access::ReadWrite;
        if let Some(errors) = sample.errors {
            let grew = self.errors.is_some_and(|before| errors.count > before);
            // The age lets a restarted agent see what its predecessor saw.
            let recent = errors.last_age.is_some_and(|age| age < limits.clean);
            if errors.count > 0 {
                found.push(if grew || recent {
                    Reason::FilesystemErrorsGrowing
                } else {
                    Reason::HistoricErrors
                });
            }
        }
        self.errors = sample.errors.map(|errors| errors.count);
        if rises(&mut self.device_errors, sample.device_errors) {
            found.push(Reason::BtrfsDeviceErrors);
        } else if sample.device_errors.is_some_and(|count| count > 0) {
            found.push(Reason::HistoricErrors);
        }
        found
    }
}

/// Whether a counter is higher than it was; takes what it is now.
fn rises(before: &mut Option<u64>, now: Option<u64>) -> bool {
    let rises = before.zip(now).is_some_and(|(before, now)| now > before);
    *before = now;
    rises
}
