//! The first process of a world or a node: it starts programs, starts them again when they end, and buries
//! orphans.
//!
//! ```text
//!   waiting ──after exists──> running ──ended──> waiting, not before RESTART_PERIOD
//!      ^                        │ `once` and exit code 0 ──> done
//!      └── hold removed ── held <── hold/<name> appears: SIGKILL
//! ```
//!
//! Commands come as files, so that nobody needs to reach into the namespace: `hold/<name>` keeps a program from
//! running, `running/<name>` says that it runs (its content is the pid).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use somersault_test_support::world::power::open_log;

const POLL: Duration = Duration::from_millis(20);
/// Parts that wait for another one simply end when it is not there yet; a second is short enough to be patient
/// with, and long enough not to burn the machine.
const RESTART_PERIOD: Duration = Duration::from_secs(1);
/// A wrong flag or file is found out within this time.
const SETTLED: Duration = Duration::from_secs(2);
/// Nothing of the caller's environment reaches a cluster: no proxies, no kubeconfig.
const ENVIRONMENT: [(&str, &str); 2] = [("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/root")];

/// One program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Program {
    /// Its name, for people.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Where its output goes.
    pub log: PathBuf,
    /// Not started before this file exists.
    pub after: Option<PathBuf>,
    /// It has done its work when it exits with 0.
    pub once: bool,
}

impl Program {
    /// A program that runs for ever.
    pub fn new(name: &str, command: Vec<String>, log: PathBuf) -> Self {
        Self { name: name.to_owned(), command, log, after: None, once: false }
    }

    /// The same, started when `file` exists.
    #[must_use]
    pub fn after(mut self, file: PathBuf) -> Self {
        self.after = Some(file);
        self
    }

    /// The same, run to its end once.
    #[must_use]
    pub fn once(mut self) -> Self {
        self.once = true;
        self
    }
}

/// The files by which a supervisor is told what to do.
#[derive(Clone, Debug)]
pub struct Control(pub PathBuf);

impl Control {
    /// Keeps a program from running, from now on.
    pub fn hold(&self, program: &str) -> Result<()> {
        let file = self.file("hold", program);
        write(&file, "")
    }

    /// Lets it run again.
    pub fn release(&self, program: &str) -> Result<()> {
        remove(&self.file("hold", program))
    }

    /// Whether it runs now.
    pub fn is_running(&self, program: &str) -> bool {
        self.file("running", program).exists()
    }

    /// Whether it has run for a while: one that ends at once, and is started again, never has.
    pub fn is_settled(&self, program: &str) -> bool {
        let since = std::fs::metadata(self.file("running", program)).and_then(|file| file.modified());
        since.is_ok_and(|since| since.elapsed().is_ok_and(|age| age >= SETTLED))
    }

    /// Forgets everything: at the start of a supervisor.
    pub fn clear(&self) -> Result<()> {
        for folder in ["hold", "running"] {
            let folder = self.0.join(folder);
            if folder.exists() {
                std::fs::remove_dir_all(&folder).with_context(|| format!("emptying {}", folder.display()))?;
            }
            std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        Ok(())
    }

    fn file(&self, folder: &str, program: &str) -> PathBuf {
        self.0.join(folder).join(program)
    }
}

/// Runs the programs for ever. To be called by the first process of a pid namespace.
pub fn supervise(programs: Vec<Program>, control: &Control) -> Result<Infallible> {
    control.clear()?;
    let mut all: Vec<_> = programs.into_iter().map(Supervised::new).collect();
    loop {
        bury(&mut all, control)?;
        for program in &mut all {
            program.look_after(control)?;
        }
        std::thread::sleep(POLL);
    }
}

struct Supervised {
    program: Program,
    running: Option<Pid>,
    started: Option<Instant>,
    done: bool,
}

impl Supervised {
    fn new(program: Program) -> Self {
        Self { program, running: None, started: None, done: false }
    }

    fn look_after(&mut self, control: &Control) -> Result<()> {
        let held = control.file("hold", &self.program.name).exists();
        match self.running {
            Some(pid) if held => {
                // It is buried, and its file removed, by the next round.
                let _gone = kill(pid, Signal::SIGKILL);
                Ok(())
            }
            Some(_) => Ok(()),
            None if held || self.done || !self.is_due() => Ok(()),
            None => self.start(control),
        }
    }

    fn is_due(&self) -> bool {
        self.started.is_none_or(|at| at.elapsed() >= RESTART_PERIOD)
            && self.program.after.as_deref().is_none_or(Path::exists)
    }

    fn start(&mut self, control: &Control) -> Result<()> {
        let Program { name, command, log, .. } = &self.program;
        let (program, arguments) = command.split_first().context("a program without a command")?;
        let log = open_log(log)?;
        self.started = Some(Instant::now());
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(ENVIRONMENT)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        self.running = Some(pid);
        write(&control.file("running", name), &pid.to_string())
    }

    fn ended(&mut self, exit: Option<i32>, control: &Control) -> Result<()> {
        eprintln!(
            "{} ended ({})",
            self.program.name,
            exit.map_or("killed".to_owned(), |code| code.to_string())
        );
        self.running = None;
        self.done = self.program.once && exit == Some(0);
        remove(&control.file("running", &self.program.name))
    }
}

/// Takes note of every child that has ended; orphans of others are children too.
fn bury(all: &mut [Supervised], control: &Control) -> Result<()> {
    let mut alive: BTreeMap<Pid, &mut Supervised> =
        all.iter_mut().filter_map(|program| program.running.map(|pid| (pid, program))).collect();
    loop {
        let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, Some(code)),
            Ok(WaitStatus::Signaled(pid, _, _)) => (pid, None),
            // Nobody has ended, or there are no children at all.
            _ => return Ok(()),
        };
        if let Some(program) = alive.remove(&pid) {
            program.ended(exit, control)?;
        }
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

fn remove(file: &Path) -> Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", file.display()))
        }
        _ => Ok(()),
    }
}
