//! The programs under test, as processes: one coordinator, and an agent on each node.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::network;
use super::node::NodeSpec;
use super::power::open_log;

/// Where the coordinator serves the agents.
pub const COORDINATOR_PORT: u16 = 7443;
/// Where an agent serves its peers.
pub const AGENT_PORT: u16 = 7444;
/// A crashing agent is started again, not more often than this.
const RESTART_PERIOD: Duration = Duration::from_secs(1);

/// A process that is killed with this value.
pub struct Process {
    child: Child,
    name: &'static str,
}

impl Process {
    /// An error when it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status})", self.name),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone is as good.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// What the coordinator is told.
pub struct CoordinatorFlags<'a> {
    /// Folder of the built programs.
    pub programs: &'a Path,
    /// The cluster's folder.
    pub cluster: &'a Path,
    /// Its certificate.
    pub certs: &'a Path,
    /// Its policy.
    pub policy: &'a Path,
    /// Its fence agents.
    pub fence_config: Option<&'a Path>,
    /// Its log.
    pub log: &'a Path,
}

/// Starts a coordinator on the bridge.
pub fn start_coordinator(flags: &CoordinatorFlags<'_>) -> Result<Process> {
    let log = open_log(flags.log)?;
    let mut command = Command::new(flags.programs.join("somersault-coordinator"));
    let mut cluster = OsString::from("dir:");
    cluster.push(flags.cluster);
    command.arg("--cluster").arg(cluster);
    command.arg("--listen").arg(format!("{}:{COORDINATOR_PORT}", network::GATEWAY));
    command.arg("--certs").arg(flags.certs).arg("--policy").arg(flags.policy);
    if let Some(file) = flags.fence_config {
        command.arg("--fence-config").arg(file);
    }
    let child = command
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("sharing the coordinator's log")?)
        .stderr(log)
        .spawn()
        .context("starting the coordinator (is it built?)")?;
    Ok(Process { child, name: "the coordinator" })
}

/// The agent of a node, as its first process runs it. Kept beside the node's specification.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentPod {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Folders in front of the PATH.
    pub path: Vec<PathBuf>,
    /// Its log.
    pub log: PathBuf,
}

impl AgentPod {
    /// The agent of this node; its certificate is in the node's folder `etc/tls`.
    pub fn new(programs: &Path, spec: &NodeSpec, log: PathBuf) -> Self {
        let text = |path: PathBuf| path.display().to_string();
        let command = vec![
            text(programs.join("somersault-agent")),
            "--node".to_owned(),
            spec.name.clone(),
            "--coordinator".to_owned(),
            format!("{}:{COORDINATOR_PORT}", network::GATEWAY),
            "--listen".to_owned(),
            format!("{}:{AGENT_PORT}", network::address(spec.number)),
            "--advertise".to_owned(),
            format!("{}:{AGENT_PORT}", network::address(spec.number)),
            "--certs".to_owned(),
            text(spec.path("etc/tls")),
        ];
        Self { command, path: vec![spec.path("etc/bin")], log }
    }

    /// The same with more arguments.
    #[must_use]
    pub fn with(mut self, arguments: impl IntoIterator<Item = String>) -> Self {
        self.command.extend(arguments);
        self
    }

    /// Writes it beside the node's specification.
    pub fn write(&self, node_spec: &Path) -> Result<()> {
        std::fs::write(file(node_spec), serde_json::to_vec_pretty(self)?).context("writing the agent's pod")
    }
}

/// The running agent of a node.
pub struct Agent {
    pod: AgentPod,
    log: File,
    child: Option<Child>,
    started: Option<Instant>,
}

impl Agent {
    /// Of the node with this specification; to be called before the node's other files are hidden.
    pub fn of(node_spec: &Path) -> Result<Self> {
        let text = std::fs::read(file(node_spec)).context("reading the agent's pod")?;
        let pod: AgentPod = serde_json::from_slice(&text).context("understanding the agent's pod")?;
        let log = open_log(&pod.log)?;
        Ok(Self { pod, log, child: None, started: None })
    }

    /// Starts the agent, or starts it again when it has ended.
    pub fn keep_running(&mut self) -> Result<()> {
        if let Some(child) = &mut self.child
            && child.try_wait()?.is_none()
        {
            return Ok(());
        }
        if self.started.is_none_or(|at| at.elapsed() > RESTART_PERIOD) {
            self.started = Some(Instant::now());
            self.child = Some(self.start()?);
        }
        Ok(())
    }

    fn start(&self) -> Result<Child> {
        let mut path = self.pod.path.clone();
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let (program, arguments) = self.pod.command.split_first().context("an agent without a program")?;
        Command::new(program)
            .args(arguments)
            .env("PATH", std::env::join_paths(path)?)
            .stdin(Stdio::null())
            .stdout(self.log.try_clone()?)
            .stderr(self.log.try_clone()?)
            .spawn()
            .with_context(|| format!("starting {program}"))
    }
}

fn file(node_spec: &Path) -> PathBuf {
    node_spec.with_file_name("agent.json")
}
