//! A VM of the demo: a process in its node's namespaces that holds its disks open and writes a sign of life on
//! each of them ten times a second.

pub mod journal;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::time::{ClockId, clock_gettime};
use tokio::signal::unix::{SignalKind, signal};

use self::journal::{Entry, Journal};

const BEAT: Duration = Duration::from_millis(100);

/// What a VM is told at its start.
#[derive(clap::Args)]
pub struct Arguments {
    /// The instance (uid of the `VirtualMachineInstance`, shortened).
    #[arg(long)]
    instance: String,
    /// The node that it runs on.
    #[arg(long)]
    node: String,
    /// Folder of a volume; its disk.img is the disk.
    #[arg(long = "volume", required = true)]
    volumes: Vec<PathBuf>,
}

struct Disk {
    journal: Journal,
    slot: u64,
    number: u64,
}

/// Runs until SIGTERM.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut disks = arguments.volumes.iter().map(|volume| open(volume)).collect::<Result<Vec<_>>>()?;
    if disks.is_empty() {
        bail!("a VM needs a disk");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut shutdown = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
        let mut beat = tokio::time::interval(BEAT);
        loop {
            for disk in &mut disks {
                disk.sign(&arguments.instance, &arguments.node)?;
            }
            tokio::select! {
                _ = shutdown.recv() => return Ok(()),
                _ = beat.tick() => {}
            }
        }
    })
}

fn open(volume: &Path) -> Result<Disk> {
    let journal = Journal::open(&volume.join("disk.img"), true)?;
    let number = journal.entries()?.last().map_or(0, |entry| entry.number);
    Ok(Disk { journal, slot: number + 1, number })
}

impl Disk {
    fn sign(&mut self, instance: &str, node: &str) -> Result<()> {
        self.number += 1;
        let at_ms = boot_time_ms()?;
        let entry =
            Entry { instance: instance.to_owned(), node: node.to_owned(), number: self.number, at_ms };
        self.slot = self.journal.append(self.slot, &entry)?;
        Ok(())
    }
}

/// The machine's boot-time clock.
pub fn boot_time_ms() -> Result<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).context("reading the clock")?);
    Ok(u64::try_from(now.as_millis())?)
}
