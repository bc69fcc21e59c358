//! Grades the disks below the storage roots: reads the kernel's counters, collects what smartctl found, and
//! publishes the assessments. One task owns the graders; each disk has a task of its own for smartctl.
//!
//! ```text
//!   every kernel period: /proc, /sys --signals--> grader of each disk --+
//!   smartctl task of each disk ------report-----> its grader -----------+--> Sensed, published
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use somersault_agent_core::health::{Assessment, DeviceState, FilesystemSample, Grader, Signals, Thresholds};
use somersault_agent_core::smart::{SmartReport, SmartState};
use somersault_proto::model::Host;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

use crate::clock::boottime;
use crate::config::StorageRoot;
use crate::host::HostSampler;
use crate::inventory::RootWatch;
use crate::probe::device::{Stack, StackError, stack};
use crate::probe::mountinfo::{Mount, containing};
use crate::probe::smartctl::{Run, Smartctl};
use crate::probe::{btrfs, diskstats, ext4, mountinfo, state};

/// Processes of smartctl at once: a shelf of disks must not be woken in one go.
const SMARTCTL_AT_ONCE: usize = 4;
/// Longest pause after runs that hung. Each hang doubles the pause; a disk that hangs its probe is left alone.
const PAUSE_MAX: Duration = Duration::from_hours(6);
/// Findings of smartctl that wait for the grader: one for each disk at most, and it takes microseconds.
const FINDINGS_MAX: usize = 16;

/// A storage root and its inventory.
#[derive(Clone, Debug)]
pub struct WatchedRoot {
    /// The root.
    pub root: StorageRoot,
    /// What its inventory found.
    pub watch: Arc<RootWatch>,
}

/// Where to look, and how often.
#[derive(Clone, Debug)]
pub struct SenseConfig {
    /// The host's `/proc`.
    pub proc_root: PathBuf,
    /// The host's `/sys`.
    pub sys_root: PathBuf,
    /// The smartctl program.
    pub smartctl: PathBuf,
    /// How often the kernel's counters are read.
    pub kernel_period: Duration,
    /// How often each disk is asked.
    pub smart_period: Duration,
    /// What is graded: the disks below these.
    pub roots: Vec<WatchedRoot>,
    /// From when on a signal counts.
    pub thresholds: Thresholds,
}

/// What is believed of the disks and of the machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sensed {
    /// By disk name.
    pub disks: BTreeMap<String, Assessment>,
    /// Names of the disks below each storage root, by the root's path.
    pub disks_of_root: BTreeMap<String, BTreeSet<String>>,
    /// The machine; `None` before the first look.
    pub host: Option<Host>,
}

/// What a disk's smartctl task found.
enum Finding {
    Report(SmartReport),
    /// The process hangs in the kernel, or does no more.
    Hangs(bool),
}

/// Senses until dropped.
pub async fn sense(config: SenseConfig, published: watch::Sender<Arc<Sensed>>) {
    let (findings, mut inbox) = mpsc::channel(FINDINGS_MAX);
    let mut ticks = interval(config.kernel_period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut senses = Senses {
        host: HostSampler::new(&config.proc_root),
        config,
        stacks: BTreeMap::new(),
        disks: BTreeMap::new(),
        findings,
        permits: Arc::new(Semaphore::new(SMARTCTL_AT_ONCE)),
        last_error: String::new(),
    };
    let mut host = senses.host.sample();
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                host = senses.host.sample();
                senses.look(boottime());
            }
            Some((disk, finding)) = inbox.recv() => senses.take(&disk, finding, boottime()),
        }
        published.send_replace(Arc::new(senses.sensed(host)));
    }
}

struct Senses {
    config: SenseConfig,
    host: HostSampler,
    /// What each root lies on, by the root's path; kept when the device is gone.
    stacks: BTreeMap<String, Stack>,
    disks: BTreeMap<String, SensedDisk>,
    findings: mpsc::Sender<(String, Finding)>,
    permits: Arc<Semaphore>,
    last_error: String,
}

struct SensedDisk {
    grader: Grader,
    smartctl_hangs: bool,
    /// Only for the log: transitions are said, states are not repeated.
    told: Assessment,
    /// Likewise: why SMART could not be read.
    unreadable: String,
    smartctl: JoinHandle<()>,
}

impl Drop for SensedDisk {
    fn drop(&mut self) {
        self.smartctl.abort();
    }
}

impl Senses {
    /// Reads the kernel's counters once.
    fn look(&mut self, now: Duration) {
        let proc_root = &self.config.proc_root;
        let read = mountinfo::read(proc_root).and_then(|mounts| Ok((mounts, diskstats::read(proc_root)?)));
        let (mounts, io) = match read {
            Ok(read) => read,
            Err(error) => return self.complain(format!("cannot read {}: {error}", proc_root.display())),
        };
        let mut signals = self.signals(&mounts);
        self.disks.retain(|name, _| signals.contains_key(name));
        for (name, signals) in &mut signals {
            signals.io = io.get(name).copied();
            if !self.disks.contains_key(name) {
                let disk = self.new_disk(name);
                self.disks.insert(name.clone(), disk);
            }
            if let Some(disk) = self.disks.get_mut(name) {
                signals.probe_stuck |= disk.smartctl_hangs;
                disk.grader.observe(now, signals);
            }
        }
        self.tell(now);
    }

    /// The signals of every disk below a root, but for its IO counters.
    fn signals(&mut self, mounts: &[Mount]) -> BTreeMap<String, Signals> {
        let mut signals: BTreeMap<String, Signals> = BTreeMap::new();
        for WatchedRoot { root, watch } in self.config.roots.clone() {
            let path = root.path.as_str();
            let real_path =
                watch.sample().map_or_else(|| PathBuf::from(path), |sample| sample.real_path.clone());
            let Some(mount) = containing(mounts, &real_path) else { continue };
            let gone = self.resolve(path, mounts, mount);
            let Some(stack) = self.stacks.get(path) else { continue };
            let sample = FilesystemSample {
                access: mount.access,
                errors: (mount.fs_type == "ext4")
                    .then(|| ext4::errors(&self.config.sys_root, &stack.device))
                    .flatten(),
                device_errors: stack
                    .btrfs
                    .as_ref()
                    .and_then(|folder| btrfs::errors(&self.config.sys_root, folder)),
            };
            let degraded = stack.arrays.iter().any(|array| state::is_degraded(&self.config.sys_root, array));
            for disk in &stack.disks {
                let of_disk = signals.entry(disk.clone()).or_default();
                let now = if gone { DeviceState::Gone } else { state::device(&self.config.sys_root, disk) };
                of_disk.device = of_disk.device.max(now);
                of_disk.degraded |= degraded;
                of_disk.io_errors = state::io_errors(&self.config.sys_root, disk);
                of_disk.probe_stuck |= watch.stuck();
                of_disk.filesystems.insert(mount.mount_point.display().to_string(), sample);
            }
        }
        signals
    }

    /// Brings the stack of a root up to date; true when its device is gone.
    fn resolve(&mut self, path: &str, mounts: &[Mount], mount: &Mount) -> bool {
        match stack(&self.config.sys_root, mounts, mount) {
            Ok(stack) => {
                self.stacks.insert(path.to_owned(), stack);
                false
            }
            // Not below any disk: an NFS export, or a tmpfs in a test.
            Err(StackError::NoDevice(_)) => {
                self.stacks.remove(path);
                false
            }
            Err(StackError::Gone(_)) => true,
            Err(error @ StackError::Unreadable { .. }) => {
                self.complain(error.to_string());
                false
            }
        }
    }

    fn new_disk(&self, name: &str) -> SensedDisk {
        let smartctl = Smartctl::new(&self.config.smartctl, name);
        let task = poll(
            smartctl,
            name.to_owned(),
            self.config.smart_period,
            self.permits.clone(),
            self.findings.clone(),
        );
        SensedDisk {
            grader: Grader::new(self.config.thresholds.clone()),
            smartctl_hangs: false,
            told: Assessment::default(),
            unreadable: String::new(),
            smartctl: tokio::spawn(task),
        }
    }

    fn take(&mut self, name: &str, finding: Finding, now: Duration) {
        // A disk that went away may still have a finding on its way.
        let Some(disk) = self.disks.get_mut(name) else { return };
        match finding {
            Finding::Report(report) => {
                let why = if let SmartState::Unreadable(why) = &report.state { why.as_str() } else { "" };
                if why != disk.unreadable && !why.is_empty() {
                    info!(disk = name, why, "SMART cannot be read");
                }
                why.clone_into(&mut disk.unreadable);
                disk.grader.observe_smart(now, report);
            }
            Finding::Hangs(hangs) => disk.smartctl_hangs = hangs,
        }
        self.tell(now);
    }

    fn tell(&mut self, now: Duration) {
        for (name, disk) in &mut self.disks {
            let assessment = disk.grader.assess(now);
            if (assessment.grade, &assessment.reasons) != (disk.told.grade, &disk.told.reasons) {
                let was = disk.told.grade;
                info!(disk = name, ?was, grade = ?assessment.grade, reasons = ?assessment.reasons, "disk graded");
            }
            disk.told = assessment;
        }
    }

    fn complain(&mut self, error: String) {
        if error != self.last_error {
            warn!(error, "the disks cannot be watched");
            self.last_error = error;
        }
    }

    fn sensed(&self, host: Host) -> Sensed {
        let now = boottime();
        Sensed {
            disks: self.disks.iter().map(|(name, disk)| (name.clone(), disk.grader.assess(now))).collect(),
            disks_of_root: self.stacks.iter().map(|(path, s)| (path.clone(), s.disks.clone())).collect(),
            host: Some(host),
        }
    }
}

/// Asks one disk for its SMART values, for ever.
async fn poll(
    mut smartctl: Smartctl,
    disk: String,
    period: Duration,
    permits: Arc<Semaphore>,
    findings: mpsc::Sender<(String, Finding)>,
) {
    // The receiver ends only together with this task.
    let send = |finding| async { findings.send((disk.clone(), finding)).await.is_ok() };
    let mut pause = period;
    loop {
        let run = {
            let Ok(_permit) = permits.acquire().await else { return };
            smartctl.run().await
        };
        pause = match &run {
            Run::Ended(_) => period,
            Run::Overdue(_) | Run::Stuck(_) => pause.saturating_mul(2).min(PAUSE_MAX.max(period)),
        };
        let delivered = match run {
            Run::Ended(report) | Run::Overdue(report) => send(Finding::Report(report)).await,
            Run::Stuck(child) => {
                // The permit is free again: a dead disk must not keep the others from being asked.
                let told = send(Finding::Hangs(true)).await;
                child.gone().await;
                told && send(Finding::Hangs(false)).await
            }
        };
        if !delivered {
            return;
        }
        sleep(pause).await;
    }
}

/// Whether there is a program to run, for the log at the start.
pub fn smartctl_exists(program: &Path) -> bool {
    if program.components().count() > 1 {
        return program.is_file();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
