//! The three nodes.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use somersault_test_support::certs::CertAuthority;
use somersault_test_support::world::network;
use somersault_test_support::world::node::NodeSpec;
use somersault_test_support::world::programs::AgentPod;

use super::layout::Layout;
use super::{smart, stored_disk};
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
        smart::install(layout, node)?;
        authority.issue_node(node, &home.join("etc/tls"))?;
        let spec = specification(layout, &program, node, number);
        let file = home.join("node.json");
        spec.write(&file)?;
        let mut pod = agent_pod(layout, &spec);
        if stored_disk::is_needed(layout)? {
            stored_disk::install(layout, &spec)?;
            pod = pod.with(stored_disk::flags(&spec));
        }
        pod.write(&file)?;
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
    let root = |class: &str| format!("{class}={}", spec.path(class).display());
    let log = layout.log(&format!("{}-agent", spec.name));
    AgentPod::new(&layout.programs, spec, log).with([
        format!("--root={}", root("local-path")),
        format!("--root={}", root("hostpath")),
        format!("--shared-root={}", root("nfs")),
        // A demo has no time for the usual minute and ten minutes.
        "--kernel-period-ms=1000".to_owned(),
        "--smart-period-ms=1000".to_owned(),
        "--inventory-period-ms=1000".to_owned(),
    ])
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
