//! The programs under test: the coordinator as a process, the command line as a tool.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use somersault_test_support::world::{network, power};

use super::layout::Layout;

/// Where the coordinator serves the agents.
pub const COORDINATOR_PORT: u16 = 7443;
/// Where an agent serves its peers.
pub const AGENT_PORT: u16 = 7444;

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

/// Starts the coordinator.
pub fn start_coordinator(layout: &Layout, policy: &Path, tls: &Path) -> Result<Process> {
    let log = power::open_log(&layout.log("coordinator"))?;
    let child = Command::new(layout.program("somersault-coordinator"))
        .arg("--cluster")
        .arg(format!("dir:{}", layout.cluster.display()))
        .arg("--policy")
        .arg(policy)
        .arg("--listen")
        .arg(format!("{}:{COORDINATOR_PORT}", network::GATEWAY))
        .arg("--tls")
        .arg(tls)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting the coordinator")?;
    Ok(Process { child, name: "the coordinator" })
}

/// The command line on the demo's cluster.
pub fn command_line(layout: &Layout, arguments: &[&str]) -> Command {
    let mut command = Command::new(layout.program("kubectl-somersault"));
    command.arg("--cluster").arg(format!("dir:{}", layout.cluster.display())).args(arguments);
    command
}

/// Runs it, showing what it prints.
pub fn show(layout: &Layout, arguments: &[&str]) -> Result<()> {
    println!("\n$ kubectl somersault {}", arguments.join(" "));
    let status = command_line(layout, arguments).status().context("starting kubectl-somersault")?;
    if status.success() {
        Ok(())
    } else {
        bail!("kubectl somersault {} failed ({status})", arguments.join(" "))
    }
}

/// Runs it with `-o json` and returns what it prints.
pub fn ask(layout: &Layout, arguments: &[&str]) -> Result<Value> {
    let output = command_line(layout, arguments).args(["-o", "json"]).output();
    let output = output.context("starting kubectl-somersault")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("kubectl somersault {}: {}", arguments.join(" "), complaint.trim());
    }
    serde_json::from_slice(&output.stdout).context("kubectl-somersault printed no JSON")
}
