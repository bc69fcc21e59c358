//! A node's power cord: switching it on, killing every process in it, and counting what is left.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::command::tool;
use super::node::NodeSpec;

/// SIGKILL takes effect within milliseconds unless a process hangs in the kernel.
const OFF_DEADLINE: Duration = Duration::from_secs(5);

/// Every process that is on the node now, counted by the network namespace it is in: a node's processes cannot
/// leave it, and the namespace is the same in every boot.
pub fn census(node: &str) -> Result<Vec<Pid>> {
    let home = std::fs::metadata(format!("/run/netns/{node}"))
        .with_context(|| format!("there is no node {node}"))?;
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").context("reading /proc")? {
        let entry = entry.context("reading /proc")?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that has just ended has no namespace any more.
        let Ok(place) = std::fs::metadata(entry.path().join("ns/net")) else { continue };
        if (place.dev(), place.ino()) == (home.dev(), home.ino()) {
            pids.push(Pid::from_raw(pid));
        }
    }
    Ok(pids)
}

/// Kills every process on the node, and returns when none is left.
pub fn off(node: &str) -> Result<()> {
    let started = Instant::now();
    loop {
        let left = census(node)?;
        if left.is_empty() {
            return Ok(());
        }
        if started.elapsed() > OFF_DEADLINE {
            bail!("{node}: {} processes outlived SIGKILL by {OFF_DEADLINE:?}", left.len());
        }
        for pid in left {
            // It may have died with its parent in the meantime.
            let _gone = kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Boots the node of this specification. It belongs to nobody: only [`off`] ends it.
pub fn on(spec_file: &Path) -> Result<()> {
    let spec = NodeSpec::read(spec_file)?;
    if !census(&spec.name)?.is_empty() {
        return Ok(());
    }
    let log = open_log(&spec.log)?;
    let mut command = tool("nsenter");
    command
        .arg(format!("--net=/run/netns/{}", spec.name))
        .args([
            "--",
            "unshare",
            "--mount",
            "--pid",
            "--ipc",
            "--uts",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--",
        ])
        .args(&spec.init)
        .arg(spec_file)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("sharing the node's log")?)
        .stderr(log)
        .process_group(0); // Ctrl-C in the terminal is not for the node
    command.spawn().map(drop).with_context(|| format!("booting {}", spec.name))
}

/// Opens a log for appending: a node's second boot goes on where the first one ended.
pub fn open_log(file: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .with_context(|| format!("opening {}", file.display()))
}
