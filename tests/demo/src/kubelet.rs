//! A node's first process: stand-in for init, for the kubelet, and for the DaemonSet that runs the agent.
//!
//! It starts and stops VM processes as the control plane says, and says what runs. While the control plane is
//! out of reach everything goes on as it is: silence stops nothing.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use somersault_test_support::world::node::{NodeSpec, settle_in};
use somersault_test_support::world::{network, power};

use crate::standin::kubelets::{PORT, PodState, Status, Wanted, WantedPod, read_line, write_line};

const PERIOD: Duration = Duration::from_millis(100);
const DIAL_TIMEOUT: Duration = Duration::from_millis(500);
/// The control plane answers at once, or not at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// A crashing agent is started again, not more often than this.
const RESTART_PERIOD: Duration = Duration::from_secs(1);

/// The DaemonSet's pod of this node. Kept beside the node's specification, as `kubelet.json`.
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
    /// Where it is kept.
    pub fn file(node_spec: &Path) -> PathBuf {
        node_spec.with_file_name("kubelet.json")
    }
}

struct Kubelet {
    node: String,
    boot_id: String,
    guests: BTreeMap<String, Guest>,
    applied: u64,
}

enum Guest {
    Running(Child),
    Ended(Option<i32>),
}

/// Runs until the power goes.
pub fn run(spec_file: &Path) -> Result<()> {
    let spec = NodeSpec::read(spec_file)?;
    let agent: AgentPod = serde_json::from_slice(&std::fs::read(AgentPod::file(spec_file))?)?;
    let agent_log = power::open_log(&agent.log)?;
    settle_in(&spec)?;
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    let mut kubelet = Kubelet { node: spec.name, boot_id, guests: BTreeMap::new(), applied: 0 };
    let mut connection: Option<BufReader<TcpStream>> = None;
    let mut agent_process: Option<Child> = None;
    let mut agent_started = None;
    loop {
        let ended = match agent_process.as_mut() {
            None => true,
            Some(process) => process.try_wait()?.is_some(),
        };
        if ended && agent_started.is_none_or(|at: Instant| at.elapsed() > RESTART_PERIOD) {
            agent_started = Some(Instant::now());
            agent_process = start_agent(&agent, &agent_log).inspect_err(complain).ok();
        }
        kubelet.reap()?;
        connection = connection.or_else(dial).and_then(|mut stream| {
            let wanted =
                kubelet.converse(&mut stream).inspect_err(|error| eprintln!("kubelet: {error:#}")).ok()?;
            kubelet.apply(wanted);
            Some(stream)
        });
        std::thread::sleep(PERIOD);
    }
}

fn complain(error: &anyhow::Error) {
    eprintln!("kubelet: {error:#}");
}

fn start_agent(agent: &AgentPod, log: &std::fs::File) -> Result<Child> {
    let mut path: Vec<PathBuf> = agent.path.clone();
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let (program, arguments) = agent.command.split_first().context("an agent pod without a command")?;
    Command::new(program)
        .args(arguments)
        .env("PATH", std::env::join_paths(path)?)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .spawn()
        .with_context(|| format!("starting {program}"))
}

fn dial() -> Option<BufReader<TcpStream>> {
    let address = format!("{}:{PORT}", network::GATEWAY).parse().ok()?;
    let stream = TcpStream::connect_timeout(&address, DIAL_TIMEOUT).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).ok()?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT)).ok()?;
    Some(BufReader::new(stream))
}

impl Kubelet {
    fn converse(&self, stream: &mut BufReader<TcpStream>) -> Result<Wanted> {
        let pods = self.guests.iter().map(|(uid, guest)| (uid.clone(), guest.state())).collect();
        let (node, boot_id) = (self.node.clone(), self.boot_id.clone());
        write_line(stream.get_ref(), &Status { node, boot_id, applied: self.applied, pods })?;
        read_line(stream)
    }

    fn apply(&mut self, wanted: Wanted) {
        for pod in &wanted.pods {
            if !self.guests.contains_key(&pod.uid) {
                let guest = if pod.started { Guest::Ended(None) } else { self.start(pod) };
                self.guests.insert(pod.uid.clone(), guest);
            }
        }
        let is_wanted = |uid: &String| wanted.pods.iter().any(|pod| pod.uid == *uid);
        self.guests.retain(|uid, guest| match guest {
            Guest::Running(process) if !is_wanted(uid) => {
                terminate(process);
                true
            }
            Guest::Ended(_) => is_wanted(uid),
            Guest::Running(_) => true,
        });
        self.applied = wanted.version;
    }

    fn start(&self, pod: &WantedPod) -> Guest {
        let started = std::env::current_exe().and_then(|program| {
            let mut command = Command::new(program);
            command.args(["guest", "--instance", &pod.instance, "--node", &self.node]);
            for volume in &pod.volumes {
                command.args(["--volume", volume]);
            }
            command.stdin(Stdio::null()).spawn()
        });
        match started {
            Ok(process) => Guest::Running(process),
            Err(error) => {
                eprintln!("kubelet: starting {}: {error}", pod.uid);
                Guest::Ended(None)
            }
        }
    }

    fn reap(&mut self) -> Result<()> {
        for guest in self.guests.values_mut() {
            if let Guest::Running(process) = guest
                && let Some(status) = process.try_wait()?
            {
                *guest = Guest::Ended(status.code());
            }
        }
        Ok(())
    }
}

impl Guest {
    fn state(&self) -> PodState {
        match self {
            Self::Running(_) => PodState::Running,
            Self::Ended(code) => PodState::Ended { code: *code },
        }
    }
}

/// Repeated until the process has ended: a signal more does no harm.
fn terminate(process: &Child) {
    if let Ok(pid) = i32::try_from(process.id()) {
        // It may end at this very moment.
        let _gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
}
