//! Moving the running program into namespaces of its own.
//!
//! The program starts itself again by `unshare`, as pid 1 of a new pid namespace: in a user namespace where the
//! system allows one, else as root, else not at all, with a sentence that says what to do.

use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::unistd::Uid;

use super::command::{run, tied, tool};

/// Set in the process that `unshare` started.
const INSIDE: &str = "SOMERSAULT_WORLD";
/// How long the inner program may take to say goodbye after a signal before it is killed.
const GOODBYE: Duration = Duration::from_secs(2);
const NEW_WORLD: [&str; 5] = ["--net", "--mount", "--ipc", "--pid", "--mount-proc"];

/// Returns `None` in the new world, and the inner program's exit status in the old one.
pub fn enter() -> Result<Option<ExitStatus>> {
    if is_inside()? {
        return Ok(None);
    }
    match () {
        () if can_unshare(&["--user", "--map-root-user"]) => begin(&["--user", "--map-root-user"]),
        () if Uid::effective().is_root() && can_unshare(&[]) => begin(&[]),
        () => bail!(
            "this system lets neither this user nor root make namespaces. As root: `sysctl -w \
             kernel.unprivileged_userns_clone=1` (Debian) or `sysctl -w \
             kernel.apparmor_restrict_unprivileged_userns=0` (Ubuntu), or run the same command by sudo; in a \
             container: start it with --privileged"
        ),
    }
}

/// The same for who needs the machine's root inside as well: to mount a loop device, to drop the page cache.
pub fn enter_as_root() -> Result<Option<ExitStatus>> {
    if is_inside()? {
        return Ok(None);
    }
    if !Uid::effective().is_root() || !can_unshare(&[]) {
        bail!(
            "this needs root that may make namespaces: use sudo; in a container, start that one with --privileged"
        )
    }
    begin(&[])
}

fn is_inside() -> Result<bool> {
    if std::env::var_os(INSIDE).is_none() {
        return Ok(false);
    }
    settle_in().map(|()| true)
}

fn begin(user: &[&str]) -> Result<Option<ExitStatus>> {
    // When this process dies, however it dies, the inner one dies too, and with it the whole world.
    let mut child = tied("unshare")
        .args(user)
        .args(NEW_WORLD)
        .args(["--fork", "--kill-child", "--"])
        .arg(std::env::current_exe().context("finding this program")?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .spawn()
        .context("starting unshare (package util-linux)")?;
    wait_through_signals(&mut child).map(Some)
}

fn can_unshare(user: &[&str]) -> bool {
    tool("unshare")
        .args(user)
        .args(NEW_WORLD)
        .args(["--fork", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A terminal sends Ctrl-C to both programs: the inner one ends in its own time, then we do.
fn wait_through_signals(child: &mut Child) -> Result<ExitStatus> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut poll = tokio::time::interval(Duration::from_millis(20));
        let mut deadline = None;
        loop {
            tokio::select! {
                _ = interrupt.recv() => deadline = Some(tokio::time::Instant::now() + GOODBYE),
                _ = terminate.recv() => deadline = Some(tokio::time::Instant::now()),
                _ = poll.tick() => {}
            }
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if deadline.is_some_and(|at| at <= tokio::time::Instant::now()) {
                child.kill()?;
            }
        }
    })
}

/// First things in the new world: loopback, and a /run of our own, where `ip netns` keeps its names.
fn settle_in() -> Result<()> {
    mount(Some("world"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, None::<&str>)
        .context("mounting a /run of our own")?;
    run("ip", ["link", "set", "lo", "up"]).map(drop)
}
