//! The coordinator as a process: what it refuses at its start, in which words, and how it ends.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use somersault_test_support::certs::CertAuthority;
use tempfile::TempDir;

/// Longest wait for anything; nothing waits for it to pass.
const SOON: Duration = Duration::from_secs(20);

/// A folder with a cluster and certificates.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        let folder = TempDir::new()?;
        fs::create_dir(folder.path().join("cluster"))?;
        let authority = CertAuthority::new()?;
        authority.issue_coordinator(&folder.path().join("certs"))?;
        authority.issue_node("n1", &folder.path().join("agent"))?;
        Ok(Self { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str, content: &str) -> Result<PathBuf> {
        fs::write(self.path(name), content)?;
        Ok(self.path(name))
    }

    /// The command with good flags.
    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_somersault-coordinator"));
        command
            .arg("--cluster")
            .arg(format!("dir:{}", self.path("cluster").display()))
            .arg("--certs")
            .arg(self.path("certs"))
            .args(["--admin-listen", "127.0.0.1:0", "--log-format", "json"])
            // A flag wins over its variable.
            .env("SOMERSAULT_LISTEN", "127.0.0.1:0")
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs with these flags besides, and expects a refusal with this exit code.
    fn refused(&self, code: i32, flags: &[&str]) -> Result<String> {
        let Output { status, stderr, .. } = self.command().args(flags).output()?;
        let words = String::from_utf8_lossy(&stderr).into_owned();
        ensure!(status.code() == Some(code), "{status}: {words}");
        Ok(words)
    }
}

/// A running coordinator, killed when dropped.
struct Running {
    child: Child,
    agents: String,
    operators: String,
}

impl Running {
    fn start(place: &Place, flags: &[&str]) -> Result<Self> {
        let mut child = place.command().args(flags).spawn()?;
        let mut stderr = child.stderr.take().context("no stderr")?;
        let mut log = Vec::new();
        while !log.ends_with(b"\n") {
            let mut byte = [0];
            ensure!(stderr.read(&mut byte)? == 1, "ended: {}", String::from_utf8_lossy(&log));
            log.push(byte[0]);
        }
        // Read on, so that it never blocks on a full pipe.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        let line: serde_json::Value = serde_json::from_slice(&log)?;
        let field = |name: &str| {
            let value = line["fields"][name].as_str().map(str::to_owned);
            value.with_context(|| format!("no {name} in {line}"))
        };
        let (agents, operators) = (field("agents")?, field("operators")?);
        Ok(Self { child, agents, operators })
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut socket = TcpStream::connect(&self.operators)?;
        write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn until_ready(&self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < SOON {
            if self.get("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                return Ok(());
            }
            sleep(Duration::from_millis(20));
        }
        bail!("never ready")
    }

    fn exit_code_after(&mut self, signal: Signal) -> Result<Option<i32>> {
        kill(Pid::from_raw(self.child.id().try_into()?), signal)?;
        let start = Instant::now();
        while start.elapsed() < SOON {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            sleep(Duration::from_millis(20));
        }
        bail!("it goes on after {signal}")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone: all the better.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn it_leads_answers_operators_and_stops_cleanly() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let place = Place::new()?;
        let mut running = Running::start(&place, &[])?;
        running.until_ready()?;
        ensure!(running.get("/healthz")?.contains("ok"));
        ensure!(running.get("/metrics")?.contains("somersault_leading 1\n"));
        ensure!(running.get("/elsewhere")?.starts_with("HTTP/1.1 404"));
        ensure!(running.exit_code_after(signal)? == Some(0), "{signal}");
    }
    Ok(())
}

/// Nobody listens there.
const NO_API_SERVER: &str = "\
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]
users: [{name: u, user: {}}]
";

#[test]
fn one_that_waits_for_the_api_server_is_alive_and_not_ready() -> Result<()> {
    let place = Place::new()?;
    let kubeconfig = place.file("kubeconfig", NO_API_SERVER)?;
    // Free a moment ago; nothing is said on the log before the start is over.
    let operators = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let child = Command::new(env!("CARGO_BIN_EXE_somersault-coordinator"))
        .args(["--cluster", "kube", "--ca-secret", "ca", "--enroll-listen", "127.0.0.1:0"])
        .args(["--listen", "127.0.0.1:0", "--admin-listen", &operators])
        .env("KUBECONFIG", kubeconfig)
        .stderr(Stdio::null())
        .spawn()?;
    let mut running = Running { child, agents: String::new(), operators };
    let start = Instant::now();
    while running.get("/healthz").is_err() {
        ensure!(start.elapsed() < SOON, "nobody answers");
        sleep(Duration::from_millis(20));
    }
    ensure!(running.get("/healthz")?.starts_with("HTTP/1.1 200"));
    let answer = running.get("/readyz")?;
    ensure!(answer.starts_with("HTTP/1.1 503") && answer.contains("waiting for the API server"), "{answer}");
    ensure!(running.exit_code_after(Signal::SIGTERM)? == Some(0));
    Ok(())
}

#[test]
fn a_second_one_on_the_same_port_says_so() -> Result<()> {
    let place = Place::new()?;
    let first = Running::start(&place, &[])?;
    let words = place.refused(1, &["--listen", &first.agents])?;
    ensure!(words.contains(&first.agents) && words.contains("another coordinator"), "{words}");
    Ok(())
}

#[test]
fn a_killed_one_gives_way_to_the_next() -> Result<()> {
    let place = Place::new()?;
    let mut first = Running::start(&place, &[])?;
    first.until_ready()?;
    first.exit_code_after(Signal::SIGKILL)?;
    Running::start(&place, &[])?.until_ready()
}

#[test]
fn wrong_flags_are_refused() -> Result<()> {
    let place = Place::new()?;
    ensure!(place.refused(2, &["--no-such-flag"])?.contains("--no-such-flag"));
    ensure!(place.refused(2, &["--listen", "nowhere"])?.contains("nowhere"));
    for cluster in ["somewhere", "dir:", "kube:x"] {
        let words = Command::new(env!("CARGO_BIN_EXE_somersault-coordinator"))
            .args(["--cluster", cluster, "--certs", "x"])
            .output()?;
        ensure!(
            words.status.code() == Some(2) && String::from_utf8_lossy(&words.stderr).contains("dir:PATH")
        );
    }
    Ok(())
}

#[test]
fn a_cluster_that_is_not_there_is_named() -> Result<()> {
    let place = Place::new()?;
    fs::remove_dir(place.path("cluster"))?;
    let words = place.refused(1, &[])?;
    ensure!(words.contains("cluster"), "{words}");
    Ok(())
}

#[test]
fn certificates_that_cannot_work_are_refused() -> Result<()> {
    let place = Place::new()?;
    let agent = place.path("agent");
    let flags = |certs: &PathBuf| {
        let output = Command::new(env!("CARGO_BIN_EXE_somersault-coordinator"))
            .arg("--cluster")
            .arg(format!("dir:{}", place.path("cluster").display()))
            .arg("--certs")
            .arg(certs)
            .output()?;
        ensure!(output.status.code() == Some(1), "{}", output.status);
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let words = flags(&agent)?;
    ensure!(words.contains("n1.node.somersault") && words.contains("coordinator.somersault"), "{words}");
    fs::remove_file(agent.join("tls.key"))?;
    ensure!(flags(&agent)?.contains("tls.key"));
    Ok(())
}

#[test]
fn a_policy_that_cannot_hold_is_refused_with_what_is_wrong() -> Result<()> {
    let place = Place::new()?;
    let refused = |yaml: &str| {
        let file = place.file("policy.yaml", yaml)?;
        place.refused(1, &["--policy", &file.to_string_lossy()])
    };
    let words = refused("profile: fast\ndetection: {declareMs: 500}\n")?;
    ensure!(words.contains("declareMs (500 ms)") && words.contains("(600 ms)"), "{words}");
    let words = refused("profile: fast\nprofil: safe\n")?;
    ensure!(words.contains("policy.yaml") && words.contains("profil"), "{words}");
    ensure!(refused("profile: [fast\n")?.contains("policy.yaml"));
    let words = refused("fencing: {nodes: [n7]}\n")?;
    ensure!(words.contains("n7") && words.contains("--fence-config"), "{words}");
    Ok(())
}

#[test]
fn a_fence_agent_that_is_not_installed_is_found_at_start() -> Result<()> {
    let place = Place::new()?;
    let file =
        place.file("fence.yaml", "nodes:\n  n1: {agent: fence_nobody, options: {password: hunter2}}\n")?;
    let words = place.refused(1, &["--fence-config", &file.to_string_lossy()])?;
    ensure!(words.contains("n1") && words.contains("fence_nobody") && !words.contains("hunter2"), "{words}");
    Ok(())
}
