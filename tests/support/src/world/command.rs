//! Running the machine's own tools, with errors that say what they said.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `program` to its end and returns what it printed; an error carries what it complained of.
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<String> {
    let mut command = tool(program);
    command.args(args).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("starting {program} (is it installed?)"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed ({}): {}", output.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command whose program is killed when the thread that starts it ends, however it ends; every other way of cleaning up
/// needs somebody who is still alive.
pub fn tied(program: impl AsRef<OsStr>) -> Command {
    let mut command = tool("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A command that is also found where Debian keeps the administrator's tools, which are not on everybody's
/// PATH.
pub fn tool(program: &str) -> Command {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    let mut command = Command::new(program);
    command.env("PATH", path);
    command
}
