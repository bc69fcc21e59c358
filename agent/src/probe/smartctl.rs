//! Runs smartctl: one process for each disk at a time, with a deadline and a limit on what it prints.
//!
//! A process that waits for a dead disk cannot be killed. It is left behind then, still counted against its
//! disk, and no second one is started until it is gone.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use somersault_agent_core::smart::{SmartReport, SmartState};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Time for one run. A spun-down or busy disk takes seconds; a bus reset may take 20.
const RUN_MAX: Duration = Duration::from_secs(30);
/// Time for a killed process to be gone; longer means that the kernel holds it.
const KILL_MAX: Duration = Duration::from_secs(2);
/// What a run may print. Reports of real disks have 5 to 60 kB.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// How one run ended.
#[derive(Debug)]
pub enum Run {
    /// It ended by itself.
    Ended(SmartReport),
    /// It did not end in time, and was killed.
    Overdue(SmartReport),
    /// It was killed and is still there.
    Stuck(StuckChild),
}

/// A process that the kernel does not let go.
#[derive(Debug)]
pub struct StuckChild(Child);

impl StuckChild {
    /// Waits until it is gone, for as long as that takes.
    pub async fn gone(mut self) {
        // An error means that there is nothing left to wait for.
        let _gone = self.0.wait().await;
    }
}

/// One disk's smartctl.
#[derive(Clone, Debug)]
pub struct Smartctl {
    program: PathBuf,
    disk: String,
    device_type: Option<String>,
    run_max: Duration,
}

impl Smartctl {
    /// For the disk of this name in `/sys/block`.
    pub fn new(program: &Path, disk: &str) -> Self {
        Self { program: program.to_owned(), disk: disk.to_owned(), device_type: None, run_max: RUN_MAX }
    }

    /// The same with another deadline.
    #[must_use]
    pub fn with_run_max(self, run_max: Duration) -> Self {
        Self { run_max, ..self }
    }

    /// Asks the disk once.
    pub async fn run(&mut self) -> Run {
        let mut child = match self.command().spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return ended(SmartState::Unsupported);
            }
            Err(error) => return ended(SmartState::Unreadable(format!("cannot start smartctl: {error}"))),
        };
        let outcome = timeout(self.run_max, read_to_end(&mut child)).await;
        if let Ok(Ok(Some((output, exit_status)))) = outcome {
            let report = SmartReport::parse(&output, exit_status);
            match report.state {
                SmartState::Values(_) if report.device_type.is_some() => {
                    self.device_type.clone_from(&report.device_type);
                }
                SmartState::Values(_) | SmartState::Asleep => {}
                // Another disk may have taken its place: it is detected anew.
                _ => self.device_type = None,
            }
            return Run::Ended(report);
        }
        let overdue = outcome.is_err();
        let why = match outcome {
            Err(_) => format!("smartctl did not end within {:?}", self.run_max),
            Ok(Ok(_)) => "smartctl printed too much, or was killed".to_owned(),
            Ok(Err(error)) => format!("cannot read what smartctl prints: {error}"),
        };
        kill(&child);
        let report = SmartReport::without_identity(SmartState::Unreadable(why));
        match timeout(KILL_MAX, child.wait()).await {
            Err(_) => Run::Stuck(StuckChild(child)),
            Ok(_) if overdue => Run::Overdue(report),
            Ok(_) => Run::Ended(report),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["--json=c", "-i", "-H", "-A"]);
        if !self.disk.starts_with("nvme") {
            // A sleeping disk is left asleep, and says so by exit status 3. NVMe has no such state.
            command.args(["-n", "standby,3"]);
            if let Some(device_type) = &self.device_type {
                // Without the type smartctl detects it, which may wake the disk.
                command.args(["-d", device_type]);
            }
        }
        // The kernel writes `/` in device names as `!`.
        command.arg(Path::new("/dev").join(self.disk.replace('!', "/")));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        // A group of its own, so that a wrapper's children die with it.
        command.process_group(0).kill_on_drop(true);
        command
    }
}

/// Output and exit status; `None` where it printed too much or was ended by a signal.
async fn read_to_end(child: &mut Child) -> std::io::Result<Option<(Vec<u8>, i32)>> {
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut output).await?;
    }
    if u64::try_from(output.len()).unwrap_or(u64::MAX) > OUTPUT_BYTES_MAX {
        return Ok(None);
    }
    let status = child.wait().await?;
    Ok(status.code().map(|code| (output, code)))
}

fn kill(child: &Child) {
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(group) = group {
        // It may have ended in this instant, which is as good.
        let _ended = kill_process_group(group, Signal::KILL);
    }
}

fn ended(state: SmartState) -> Run {
    Run::Ended(SmartReport::without_identity(state))
}
