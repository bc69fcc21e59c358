//! `make bench`: how fast a dead node is declared, and whether a loaded machine makes a living one look dead; what a
//! large cluster costs; how fast volumes are copied, beside what people use today.
//!
//! `detection`: real coordinator, real agents, each on a node of its own (network, mounts, processes), fast profile.
//! `scale`: real coordinator on a real kube-apiserver full of objects, simulated agents.
//! `transfer`: the agent's engine and other programs, on the same bytes, between two network namespaces.

mod detection;
mod fleet;
mod scale;
mod statistics;
mod transfer;

use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use somersault_test_support::world::enter;

#[derive(Parser)]
#[command(name = "somersault-bench", version, about = "Measures Somersault on this machine")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Time from a node's last beat to the verdict; false verdicts beside a CPU hog.
    Detection {
        /// How often the plug is pulled.
        #[arg(long, default_value_t = 50)]
        repetitions: usize,
        /// How long the CPU hog runs.
        #[arg(long, default_value_t = 60)]
        hog_seconds: u64,
    },
    /// Memory, processor and requests of a coordinator of a large cluster, and a node with many VMs that dies. Skipped
    /// where there is neither root nor Go.
    Scale(scale::Options),
    /// Time, bytes and memory of copies of volumes, beside rsync, nbdcopy, qemu-img, tar and socat. Skipped without root.
    Transfer(transfer::Options),
    /// The source of such a copy: serves until it is killed.
    #[command(hide = true)]
    TransferSource(transfer::SourceOptions),
    /// The target: pulls once.
    #[command(hide = true)]
    TransferTarget(transfer::TargetOptions),
    /// First process of a node.
    #[command(hide = true)]
    Node {
        /// The node's specification.
        specification: PathBuf,
    },
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    let what = Cli::parse().what;
    let (repetitions, hog) = match what {
        What::Node { specification } => return fleet::run_node(&specification).map(|()| ExitCode::SUCCESS),
        What::Scale(options) => return scale::run(options).map(|()| ExitCode::SUCCESS),
        What::Transfer(options) => return transfer::run(&options),
        What::TransferSource(options) => return transfer::serve(&options).map(|()| ExitCode::SUCCESS),
        What::TransferTarget(options) => return transfer::pull(options).map(|()| ExitCode::SUCCESS),
        What::Detection { repetitions, hog_seconds } => (repetitions, Duration::from_secs(hog_seconds)),
    };
    match enter::enter()? {
        Some(status) => Ok(exit_code(status)),
        None => detection::run(repetitions, hog).map(|()| ExitCode::SUCCESS),
    }
}

/// The inner program's end as ours.
fn exit_code(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1).into()
}
