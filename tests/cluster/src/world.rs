//! The world from outside: starting its first process, finding it again, entering it, ending it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;
use somersault_test_support::world::command::{self, tool};
use somersault_test_support::world::power::open_log;

use crate::layout::Layout;
use crate::node;
use crate::processes::{find, kill_namespace};
use crate::wait::{Log, until};

/// Making namespaces, a bridge and some cables takes a tenth of this on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(20);
const NAMESPACES: [&str; 8] =
    ["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc", "--"];

/// Where the world's first process says on which port of this machine the apiserver is reached.
pub fn door_file(layout: &Layout) -> PathBuf {
    layout.control_plane("door")
}

/// Starts the world of a layout that is complete; returns the door's port. A `tied` world dies with the calling
/// thread.
pub fn start(layout: &Layout, tied: bool) -> Result<u16> {
    let log = open_log(&layout.log("world"))?;
    let mut command = if tied {
        command::tied("unshare")
    } else {
        // A session of its own: neither Ctrl-C nor a closed terminal ends it.
        let mut command = tool("setsid");
        command.arg("unshare");
        command
    };
    let mut child = command
        .args(NAMESPACES)
        .args(world_command(layout))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("sharing the world's log")?)
        .stderr(log)
        .spawn()
        .context("starting unshare")?;
    until("the world exists", START_DEADLINE, &[Log(layout.log("world"))], || {
        if let Some(status) = child.try_wait()? {
            bail!("its first process ended ({status})");
        }
        let text = std::fs::read_to_string(door_file(layout)).unwrap_or_default();
        Ok(text.strip_suffix('\n').and_then(|port| port.parse().ok()))
    })
}

/// The world's first process, if the world exists.
pub fn init(layout: &Layout) -> Result<Option<Pid>> {
    find(&world_command(layout))
}

/// A node's first process, if the node is on.
pub fn node_init(layout: &Layout, node: &str) -> Result<Option<Pid>> {
    let program = layout.program().into_os_string();
    find(&[program, "inside".into(), "node".into(), node::spec_file(layout, node).into_os_string()])
}

/// Runs one of this program's own commands in the world, or the node, of this first process.
pub fn enter(init: Pid, layout: &Layout, command: &[&str]) -> Result<()> {
    let mut nsenter = nsenter(init);
    nsenter.arg(layout.program()).arg("inside").args(command).stdin(Stdio::null());
    let output = nsenter.output().context("starting nsenter")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// A command that runs a program in the world, or the node, of this first process.
pub fn nsenter(init: Pid) -> Command {
    let mut command = tool("nsenter");
    command
        .arg(format!("--target={init}"))
        .args(["--mount", "--net", "--pid", "--ipc", "--uts", "--wd=/", "--"]);
    command
}

/// Ends the world, and everything in it.
pub fn end(layout: &Layout) -> Result<()> {
    init(layout)?.map_or(Ok(()), kill_namespace)
}

fn world_command(layout: &Layout) -> [OsString; 4] {
    [layout.program().into_os_string(), "inside".into(), "world".into(), layout.name().into()]
}
