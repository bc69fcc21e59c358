//! The coordinator under test: the real program, with the rights that it has on every cluster, and what the kernel says
//! of its process.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use somersault_test_cluster::Cluster;
use somersault_test_support::world::power::open_log;

use super::audit::{ACCOUNT, NAMESPACE};
use super::plan::doomed_node;

/// Longer than any run of this bench.
const TOKEN_LIFETIME: &str = "6h";
/// The answer to a look at a page of the coordinator's takes milliseconds where it is not busy.
const LOOK_WITHIN: Duration = Duration::from_secs(10);
/// Of the kernel's times in /proc (`USER_HZ`), on every machine that this runs on.
const TICKS_PER_SECOND: u64 = 100;
/// A fence agent by the `FenceAgentAPI`, for the one node that dies: a file says that it is off.
const FENCE_AGENT: &str = "#!/bin/sh\n\
    off=\"$0.off\"\n\
    action=$(sed -n 's/^action=//p' | tail -n 1)\n\
    case \"$action\" in\n\
    off) : > \"$off\" ;;\n\
    on) rm -f \"$off\" ;;\n\
    status|monitor) [ ! -e \"$off\" ] || exit 2 ;;\n\
    *) exit 1 ;;\n\
    esac\n";

/// The running coordinator; killed with this value.
pub struct Coordinator {
    child: Child,
    /// When it was started.
    pub started: Instant,
    /// Where agents connect.
    pub agents: SocketAddr,
    operators: SocketAddr,
    /// Its log.
    pub log: PathBuf,
}

/// What the kernel says of a process.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Memory in use now.
    pub resident_bytes: u64,
    /// The most that ever was.
    pub peak_bytes: u64,
    /// Processor time since its start.
    pub cpu: Duration,
}

impl Usage {
    /// Share of one core that was used since.
    pub fn cpu_since(&self, before: &Self, took: Duration) -> f64 {
        self.cpu.saturating_sub(before.cpu).as_secs_f64() / took.as_secs_f64()
    }
}

impl Coordinator {
    /// Starts it. `folder` is its own; `certs` has its certificate.
    pub fn start(cluster: &Cluster, program: &Path, folder: &Path, certs: &Path) -> Result<Self> {
        let kubeconfig = write_kubeconfig(cluster, folder)?;
        let fence_config = write_fence_agent(folder)?;
        let (agents, operators) = (free_address()?, free_address()?);
        let log = folder.join("coordinator.log");
        let output = open_log(&log)?;
        let child = Command::new(program)
            .args(["--cluster", "kube", "--namespace", NAMESPACE, "--instance", "bench"])
            .args(["--listen", &agents.to_string(), "--admin-listen", &operators.to_string()])
            .arg("--certs")
            .arg(certs)
            .arg("--fence-config")
            .arg(fence_config)
            .env("KUBECONFIG", kubeconfig)
            .env("NO_COLOR", "1")
            // As the Deployment has it.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("sharing the coordinator's log")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { child, started: Instant::now(), agents, operators, log })
    }

    /// An error when it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the coordinator ended ({status}); its log is {}", self.log.display()),
        }
    }

    /// What it says at a path, headers and all; nothing while it does not answer.
    pub fn says(&self, path: &str) -> Option<String> {
        let mut socket = TcpStream::connect_timeout(&self.operators, LOOK_WITHIN).ok()?;
        socket.set_read_timeout(Some(LOOK_WITHIN)).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// Whether it is ready, and says that it does this: `leading` or `following`.
    pub fn is_ready(&self, doing: &str) -> bool {
        self.says("/readyz").is_some_and(|answer| answer.contains(" 200 ") && answer.contains(doing))
    }

    /// The sum of a metric's values over all of its series that have these labels.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let series = self.series(name).into_iter().filter(|line| line.contains(labels));
        series.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// The series of a metric.
    pub fn series(&self, name: &str) -> Vec<String> {
        let text = self.says("/metrics").unwrap_or_default();
        text.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
    }

    /// What the kernel says of it (`proc_pid_status(5)`, `proc_pid_stat(5)`).
    pub fn usage(&self) -> Result<Usage> {
        let place = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = std::fs::read_to_string(place.join("status")).context("reading a process's status")?;
        let bytes = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field))?;
            line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
        };
        let stat = std::fs::read_to_string(place.join("stat")).context("reading a process's times")?;
        // Fields 14 and 15; the name before them, which may have spaces, ends with the last bracket.
        let fields: Vec<_> = stat.rsplit_once(") ").context("no process name")?.1.split(' ').collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
        let ticks = ticks(11).zip(ticks(12)).map(|(user, system)| user + system).context("no times")?;
        Ok(Usage {
            resident_bytes: bytes("VmRSS").context("no VmRSS")?,
            peak_bytes: bytes("VmHWM").context("no VmHWM")?,
            cpu: Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND),
        })
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // Already gone is as good.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The administrator's kubeconfig with the coordinator's token instead.
fn write_kubeconfig(cluster: &Cluster, folder: &Path) -> Result<PathBuf> {
    let duration = format!("--duration={TOKEN_LIFETIME}");
    let token = cluster.ask(&["create", "token", ACCOUNT, "-n", NAMESPACE, &duration])?;
    let text = std::fs::read(cluster.kubeconfig()).context("reading the kubeconfig")?;
    let mut config: Value = serde_json::from_slice(&text).context("understanding the kubeconfig")?;
    config["users"][0]["user"] = json!({"token": token.trim()});
    let file = folder.join("kubeconfig");
    std::fs::write(&file, config.to_string()).context("writing the coordinator's kubeconfig")?;
    Ok(file)
}

fn write_fence_agent(folder: &Path) -> Result<PathBuf> {
    let agent = folder.join("fence_bench");
    std::fs::write(&agent, FENCE_AGENT).context("writing the fence agent")?;
    std::fs::set_permissions(&agent, std::fs::Permissions::from_mode(0o755)).context("its rights")?;
    let config = json!({"nodes": {doomed_node(): {"agent": agent, "deadlineMs": 10_000}}});
    let file = folder.join("fence.yaml");
    // JSON is YAML.
    std::fs::write(&file, config.to_string()).context("writing the fence agents' configuration")?;
    Ok(file)
}

/// A port that was free a moment ago.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    listener.local_addr().context("looking at a free port")
}
