//! The programs under test: the coordinator as a process, the command line as a tool.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use somersault_test_support::certs::CertAuthority;
use somersault_test_support::world::programs::{self, CoordinatorFlags, Process};

use super::layout::Layout;
use super::nodes::{NODES, power_switch};
use super::write;

const POLICY: &str = include_str!("../../policy.yaml");

/// Starts the coordinator, with the demo's policy and power switch.
pub fn start_coordinator(layout: &Layout, authority: &CertAuthority) -> Result<Process> {
    let folder = layout.work.join("coordinator");
    let (certs, policy, fence) = (folder.join("tls"), folder.join("policy.yaml"), folder.join("fence.yaml"));
    authority.issue_coordinator(&certs)?;
    write(&policy, POLICY)?;
    let switch = power_switch(layout);
    let agent = |node| (node, json!({"agent": switch, "options": {"plug": node}}));
    let nodes: BTreeMap<_, _> = NODES.into_iter().map(agent).collect();
    // JSON is YAML.
    write(&fence, &json!({"nodes": nodes}).to_string())?;
    programs::start_coordinator(&CoordinatorFlags {
        programs: &layout.programs,
        cluster: &layout.cluster,
        certs: &certs,
        policy: &policy,
        fence_config: Some(&fence),
        log: &layout.log("coordinator"),
    })
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
