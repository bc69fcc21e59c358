//! Finding a world's, and a node's, first process from outside.
//!
//! Both run this program with a path of their own cluster in the arguments, so that the command line names them
//! for certain, however long ago they were started and by whom.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// SIGKILL takes milliseconds; a pid namespace's first process stays until all others have died, and those may
/// hang in the kernel for as long as a disk does.
const DEATH_DEADLINE: Duration = Duration::from_secs(10);

/// The process with exactly this command line, the eldest if there are several (a child between fork and exec
/// still has its parent's).
pub fn find(command: &[OsString]) -> Result<Option<Pid>> {
    let mut found: Option<(u64, Pid)> = None;
    for entry in std::fs::read_dir("/proc").context("reading /proc")? {
        let entry = entry.context("reading /proc")?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end between two looks at it.
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        if arguments(&line) != command {
            continue;
        }
        let Some(started) = start_time(&entry.path().join("stat")) else { continue };
        if found.is_none_or(|(eldest, _)| started < eldest) {
            found = Some((started, Pid::from_raw(pid)));
        }
    }
    Ok(found.map(|(_, pid)| pid))
}

/// Kills the first process of a pid namespace, and with it every process there; returns when none is left.
pub fn kill_namespace(init: Pid) -> Result<()> {
    let started = Instant::now();
    let place = PathBuf::from(format!("/proc/{init}/stat"));
    let born = start_time(&place);
    // Gone already is as good.
    let _gone = kill(init, Signal::SIGKILL);
    while born.is_some() && start_time(&place) == born && !is_zombie(&place) {
        if started.elapsed() > DEATH_DEADLINE {
            bail!("process {init} outlived SIGKILL by {DEATH_DEADLINE:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn arguments(line: &[u8]) -> Vec<OsString> {
    let line = line.strip_suffix(b"\0").unwrap_or(line);
    line.split(|byte| *byte == 0).map(|argument| OsString::from_vec(argument.to_vec())).collect()
}

/// Field 22 of `proc_pid_stat(5)`. The program's name, field 2, may contain spaces; it ends with the last `)`.
fn start_time(stat: &std::path::Path) -> Option<u64> {
    after_name(stat)?.split(' ').nth(19)?.parse().ok()
}

fn is_zombie(stat: &std::path::Path) -> bool {
    after_name(stat).is_some_and(|fields| fields.starts_with('Z'))
}

fn after_name(stat: &std::path::Path) -> Option<String> {
    let text = std::fs::read_to_string(stat).ok()?;
    text.rsplit_once(") ").map(|(_, fields)| fields.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_command_line_and_killed() {
        let seconds = format!("{}", 100_000 + std::process::id());
        let mut child = std::process::Command::new("sleep").arg(&seconds).spawn().expect("sleep starts");
        let command = ["sleep".into(), seconds.into()];
        let pid = loop {
            // Until the child has executed `sleep` it still has our own command line.
            if let Some(pid) = find(&command).expect("/proc can be read") {
                break pid;
            }
        };
        assert_eq!(pid.as_raw().unsigned_abs(), child.id());
        kill_namespace(pid).expect("killed");
        assert!(!child.wait().expect("reaped").success());
        assert_eq!(find(&command).expect("/proc can be read"), None);
    }
}
