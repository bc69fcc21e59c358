//! One run of a fence agent's program: options on stdin, a deadline that the whole process group keeps, and
//! output that is bounded.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// What is kept of the end of the output, where programs say what went wrong. The rest is read and dropped, so that
/// the program does not block.
const KEPT_BYTES_MAX: usize = 8 * 1024;
/// Between TERM and KILL: time to log out of a management controller, which allows few sessions.
const GRACE: Duration = Duration::from_millis(500);
/// Output that is still under way when the program has ended.
const LATE_OUTPUT: Duration = Duration::from_millis(100);

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit status; `None`: killed at the deadline.
    pub status: Option<ExitStatus>,
    /// The end of stderr, or of stdout where stderr is empty.
    pub output: String,
    /// Something before that was dropped.
    pub cut: bool,
}

/// Runs the program once. The process group is gone when this returns, or when it is dropped.
pub async fn run(program: &Path, stdin: &str, deadline: Instant) -> std::io::Result<Ended> {
    let mut child = Command::new(program)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("LC_ALL", "C")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let group = Group::of(&child);
    let stdout = child.stdout.take().map(|pipe| tokio::spawn(keep_end(pipe)));
    let stderr = child.stderr.take().map(|pipe| tokio::spawn(keep_end(pipe)));

    if let Some(mut pipe) = child.stdin.take() {
        // A program that ends without reading closes the pipe: its exit code tells more than that error.
        drop(timeout_at(deadline, pipe.write_all(stdin.as_bytes())).await);
    }
    let status = if let Ok(status) = timeout_at(deadline, child.wait()).await {
        Some(status?)
    } else {
        group.end(&mut child).await;
        None
    };
    drop(group);

    let mut kept = [(String::new(), false), (String::new(), false)];
    for ((text, cut), reader) in kept.iter_mut().zip([stderr, stdout]) {
        let Some(mut reader) = reader else { continue };
        match timeout(LATE_OUTPUT, &mut reader).await {
            Ok(Ok(end)) => {
                String::from_utf8_lossy(&end.bytes).trim().clone_into(text);
                *cut = end.cut;
            }
            // Somebody outside the group holds the pipe open: what it may still say is not worth waiting for.
            _ => reader.abort(),
        }
    }
    let [stderr, stdout] = kept;
    let (output, cut) = if stderr.0.is_empty() { stdout } else { stderr };
    Ok(Ended { status, output, cut })
}

/// The child's process group, killed when dropped: a fence agent starts helpers (ipmitool, ssh), and none of them
/// may go on switching power after we have given up.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    /// Asks to end, then kills.
    async fn end(&self, child: &mut Child) {
        self.signal(Signal::SIGTERM);
        sleep(GRACE).await;
        self.signal(Signal::SIGKILL);
        drop(child.wait().await);
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // ESRCH: nobody is left, which is what we want.
            let _ = killpg(group, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// The end of what a pipe gave.
struct End {
    bytes: Vec<u8>,
    cut: bool,
}

/// Reads to the end, and keeps that.
async fn keep_end(mut pipe: impl AsyncRead + Unpin) -> End {
    let mut end = End { bytes: Vec::new(), cut: false };
    let mut buffer = [0; 4096];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => return end,
            Ok(count) => {
                end.bytes.extend_from_slice(&buffer[..count]);
                let excess = end.bytes.len().saturating_sub(KEPT_BYTES_MAX);
                end.bytes.drain(..excess);
                end.cut |= excess > 0;
            }
        }
    }
}
