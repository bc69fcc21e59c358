//! The two nodes: a network namespace each, joined by a pair of virtual Ethernet devices as they come (MTU 1500,
//! offloads on).

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use somersault_test_support::world::command::{run, tool};
use somersault_test_support::world::power;

/// Where the source serves.
pub const SOURCE_ADDRESS: &str = "10.78.0.1";
/// The port of every contender's server; only one runs at a time.
pub const PORT: u16 = 10_809;
const TARGET_ADDRESS: &str = "10.78.0.2";
const DEVICE: &str = "eth0";
/// A server starts within milliseconds.
const START_WITHIN: Duration = Duration::from_secs(20);
const LOOK_PERIOD: Duration = Duration::from_millis(2);
/// Bytes that pass the slow link at once: what a timer tick of 4 ms lets through at a gigabit, far more than one needs.
const BURST: &str = "512kb";
/// Waiting time of a full queue: a router's, roughly.
const QUEUE: &str = "50ms";

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source,
    Target,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Source, Self::Target];

    /// Its namespace.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }

    /// A command that runs there; its process is the program's own.
    pub fn command(self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = tool("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name())).arg("--").arg(program);
        command
    }

    /// Kills every process there.
    pub fn kill_all(self) -> Result<()> {
        power::off(self.name())
    }
}

/// Both nodes; they end with the namespaces of this process.
pub struct World {
    /// The kernel's tables of the source: an open file shows those of the namespace in which it was opened.
    devices: File,
    sockets: File,
}

impl World {
    /// Builds them.
    pub fn build() -> Result<Self> {
        for side in Side::BOTH {
            ip(&["netns", "add", side.name()])?;
        }
        let (source, target) = (Side::Source.name(), Side::Target.name());
        ip(&[
            "link", "add", DEVICE, "netns", source, "type", "veth", "peer", "name", DEVICE, "netns", target,
        ])?;
        for (side, address) in [(source, SOURCE_ADDRESS), (target, TARGET_ADDRESS)] {
            ip(&["-n", side, "address", "add", &format!("{address}/24"), "dev", DEVICE])?;
            ip(&["-n", side, "link", "set", "lo", "up"])?;
            ip(&["-n", side, "link", "set", DEVICE, "up"])?;
        }
        let [devices, sockets] = tables(source)?;
        Ok(Self { devices, sockets })
    }

    /// Bytes that have left the source's device.
    pub fn sent_bytes(&self) -> Result<u64> {
        sent_of(&read(&self.devices)?).with_context(|| format!("the source has no {DEVICE}"))
    }

    /// Waits until something listens on [`PORT`] of the source. Nobody connects: some servers serve one connection.
    pub fn wait_listening(&self, server: &mut Child) -> Result<()> {
        let began = Instant::now();
        while !is_listening(&read(&self.sockets)?) {
            if let Some(status) = server.try_wait()? {
                bail!("ended ({status})");
            }
            ensure!(began.elapsed() < START_WITHIN, "listens not even after {} s", START_WITHIN.as_secs());
            std::thread::sleep(LOOK_PERIOD);
        }
        Ok(())
    }

    /// Makes the link as slow as this, both ways, or as fast as it is.
    pub fn limit(mbit: Option<u32>) -> Result<()> {
        for side in Side::BOTH {
            let device = ["-n", side.name(), "qdisc"];
            let Some(mbit) = mbit else {
                run("tc", [&device[..], &["del", "dev", DEVICE, "root"]].concat())?;
                continue;
            };
            let rate = format!("{mbit}mbit");
            let shape =
                ["replace", "dev", DEVICE, "root", "tbf", "rate", &rate, "burst", BURST, "latency", QUEUE];
            run("tc", [&device[..], &shape[..]].concat())?;
        }
        Ok(())
    }
}

/// Opened by a thread that moves there and ends.
fn tables(namespace: &str) -> Result<[File; 2]> {
    let namespace = File::open(format!("/run/netns/{namespace}")).context("opening a namespace")?;
    let visit = std::thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).context("entering a namespace")?;
        let open = |name| {
            File::open(format!("/proc/thread-self/net/{name}")).context("opening a table of the kernel")
        };
        anyhow::Ok([open("dev")?, open("tcp")?])
    });
    visit.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn read(mut table: &File) -> Result<String> {
    let mut text = String::new();
    table.rewind().and_then(|()| table.read_to_string(&mut text)).context("reading a table of the kernel")?;
    Ok(text)
}

/// The ninth figure: eight are of what was received.
fn sent_of(devices: &str) -> Option<u64> {
    let figures =
        devices.lines().find_map(|line| line.trim_start().strip_prefix(DEVICE)?.strip_prefix(':'))?;
    figures.split_whitespace().nth(8)?.parse().ok()
}

/// Second column: local address; fourth: state, 0A is LISTEN.
fn is_listening(sockets: &str) -> bool {
    let port = format!(":{PORT:04X}");
    sockets.lines().any(|line| {
        let mut columns = line.split_whitespace().skip(1);
        columns.next().is_some_and(|local| local.ends_with(&port)) && columns.nth(1) == Some("0A")
    })
}

fn ip(args: &[&str]) -> Result<()> {
    run("ip", args).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sent_bytes_are_the_devices_own() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes    packets\n    lo:  1 1 0 0 0 0 0 0  1 1 0 0 0 0 0 0\n  \
                     eth0: 70 1 0 0 0 0 0 0 4096 2 0 0 0 0 0 0\n";
        assert_eq!(sent_of(table), Some(4096));
        assert_eq!(sent_of("Inter-| Receive\n"), None);
    }

    #[test]
    fn only_a_listening_socket_listens() {
        let row =
            |port: u16, state: &str| format!("   0: 01004E0A:{port:04X} 00000000:0000 {state} 00000000\n");
        assert!(is_listening(&row(PORT, "0A")));
        assert!(!is_listening(&row(PORT, "01")) && !is_listening(&row(PORT + 1, "0A")));
    }
}
