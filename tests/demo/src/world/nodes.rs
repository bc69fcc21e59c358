//! The three nodes.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use somersault_test_support::certs::CertAuthority;
use somersault_test_support::world::network;
use somersault_test_support::world::node::NodeSpec;

use super::layout::Layout;
use super::programs::{AGENT_PORT, COORDINATOR_PORT};
use crate::kubelet::AgentPod;
use crate::power;

/// Their names, in the order of their numbers.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// Builds the nodes, dark and cabled, and the power switch.
pub fn build(layout: &Layout, authority: &CertAuthority) -> Result<()> {
    network::create_bridge()?;
    let program = std::env::current_exe().context("finding this program")?;
    std::fs::create_dir_all(layout.work.join("power")).context("making the switch's folder")?;
    symlink(&program, power_switch(layout)).context("making the power switch")?;
    for (node, number) in NODES.into_iter().zip(1..) {
        network::lay_cable(node, number)?;
        let home = layout.node(node);
        for folder in ["local-path", "hostpath", "etc/bin"] {
            std::fs::create_dir_all(home.join(folder)).with_context(|| format!("making {node}'s folders"))?;
        }
        authority.issue_node(node, &home.join("etc/tls"))?;
        let spec = specification(layout, &program, node, number);
        let file = home.join("node.json");
        spec.write(&file)?;
        let pod = serde_json::to_vec_pretty(&agent_pod(layout, &spec))?;
        std::fs::write(AgentPod::file(&file), pod).context("writing the agent's pod")?;
    }
    Ok(())
}

fn specification(layout: &Layout, program: &std::path::Path, node: &str, number: u8) -> NodeSpec {
    let home = layout.node(node);
    let own = ["local-path", "hostpath", "etc"].map(|folder| (home.join(folder), folder.to_owned()));
    let shared = ["nfs", "rbd"].map(|folder| (layout.shared.join(folder), folder.to_owned()));
    NodeSpec {
        name: node.to_owned(),
        number,
        mount_point: layout.mount_point.clone(),
        folders: own.into_iter().chain(shared).collect(),
        hidden: vec![layout.work.join("nodes"), layout.shared.clone(), layout.cluster.clone()],
        boot_id: home.join("etc/boot_id"),
        log: layout.log(&format!("{node}-kubelet")),
        init: vec![program.display().to_string(), "node".to_owned()],
    }
}

fn agent_pod(layout: &Layout, spec: &NodeSpec) -> AgentPod {
    let path = |folder: &str| spec.path(folder).display().to_string();
    let command = [
        layout.program("somersault-agent").display().to_string(),
        "--node".to_owned(),
        spec.name.clone(),
        "--coordinator".to_owned(),
        format!("{}:{COORDINATOR_PORT}", network::GATEWAY),
        "--listen".to_owned(),
        format!("{}:{AGENT_PORT}", network::address(spec.number)),
        "--tls".to_owned(),
        path("etc/tls"),
        "--root".to_owned(),
        format!("local-path={}", path("local-path")),
        "--root".to_owned(),
        format!("hostpath={}", path("hostpath")),
        "--shared-root".to_owned(),
        format!("nfs={}", path("nfs")),
    ];
    AgentPod {
        command: command.to_vec(),
        path: vec![spec.path("etc/bin")],
        log: layout.log(&format!("{}-agent", spec.name)),
    }
}

/// The fence agent.
pub fn power_switch(layout: &Layout) -> PathBuf {
    layout.work.join("power").join(power::PROGRAM)
}

/// Uses the power switch, as the coordinator does: options on standard input. Returns the exit code.
pub fn press(layout: &Layout, action: &str, node: &str) -> Result<i32> {
    let mut switch = Command::new(power_switch(layout))
        .stdin(Stdio::piped())
        .spawn()
        .context("starting the power switch")?;
    let specification = layout.node(node).join("node.json");
    let options = format!("action={action}\nplug={node}\nspecification={}\n", specification.display());
    // Dropped at once: the switch reads to the end.
    switch.stdin.take().context("a switch without input")?.write_all(options.as_bytes())?;
    switch.wait()?.code().context("the power switch was killed")
}

/// Boots a node.
pub fn power_on(layout: &Layout, node: &str) -> Result<()> {
    match press(layout, "on", node)? {
        0 => Ok(()),
        code => bail!("the power switch could not boot {node} (exit code {code})"),
    }
}
