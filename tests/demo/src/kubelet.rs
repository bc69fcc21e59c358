//! A node's first process: stand-in for init, for the kubelet, and for the `DaemonSet` that runs the agent.
//!
//! It starts and stops VM processes as the control plane says, and says what runs. While the control plane is
//! out of reach everything goes on as it is: silence stops nothing.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use somersault_test_support::world::network;
use somersault_test_support::world::node::{NodeSpec, settle_in};
use somersault_test_support::world::programs::Agent;

use crate::standin::kubelets::{PORT, PodState, Status, Wanted, WantedPod, read_line, write_line};

const PERIOD: Duration = Duration::from_millis(100);
const DIAL_TIMEOUT: Duration = Duration::from_millis(500);
/// The control plane answers at once, or not at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

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
    let mut agent = Agent::of(spec_file)?;
    settle_in(&spec)?;
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    let mut kubelet = Kubelet { node: spec.name, boot_id, guests: BTreeMap::new(), applied: 0 };
    let mut connection: Option<BufReader<TcpStream>> = None;
    loop {
        agent.keep_running().unwrap_or_else(|error| complain(&error));
        kubelet.reap()?;
        connection = connection.or_else(dial).and_then(|mut stream| {
            let wanted =
                kubelet.converse(&mut stream).inspect_err(|error| eprintln!("kubelet: {error:#}")).ok()?;
            kubelet.apply(&wanted);
            Some(stream)
        });
        std::thread::sleep(PERIOD);
    }
}

fn complain(error: &anyhow::Error) {
    eprintln!("kubelet: {error:#}");
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

    fn apply(&mut self, wanted: &Wanted) {
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
