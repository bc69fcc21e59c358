//! `make demo`: three nodes on this machine, and what Somersault does for their VMs.
//!
//! ```text
//!   somersault-demo            the demo itself, in namespaces of its own
//!   somersault-demo node …     first process of a node: init, kubelet (a stand-in), the agent's DaemonSet
//!   somersault-demo guest …    a VM: a process that writes on its disks
//!   fence_demo                 the power switch: a fence agent, the same program by another name
//! ```
//!
//! Real: coordinator, agents, command line, disks, namespaces, processes, kills. Played by stand-ins, and said
//! so: KubeVirt, Wukong's operator, kubelets, scheduler, volume binder; a `smartctl` that prints a report.

mod guest;
mod kubelet;
mod power;
mod progress;
mod standin;
mod steps;
mod table;
mod watch;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use somersault_test_support::world::enter;

#[derive(Parser)]
#[command(
    name = "somersault-demo",
    version,
    about = "Shows what Somersault does, on three nodes of this machine"
)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// First process of a node.
    #[command(hide = true)]
    Node {
        /// The node's specification.
        specification: PathBuf,
    },
    /// Kills the pulling agent and the coordinator halfway through a migration, which must end all the same.
    Crash,
    /// A VM.
    #[command(hide = true)]
    Guest(guest::Arguments),
}

fn main() -> ExitCode {
    let name = std::env::args_os().next().map(PathBuf::from);
    if name.is_some_and(|path| path.ends_with(power::PROGRAM)) {
        return power::run();
    }
    let done = match Cli::parse().role {
        Some(Role::Node { specification }) => kubelet::run(&specification).map(|()| ExitCode::SUCCESS),
        Some(Role::Guest(arguments)) => guest::run(&arguments).map(|()| ExitCode::SUCCESS),
        Some(Role::Crash) => in_own_world(steps::crash),
        None => in_own_world(steps::demo),
    };
    done.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}

fn in_own_world(play: fn() -> Result<()>) -> Result<ExitCode> {
    match enter::enter()? {
        Some(status) => Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1).into()),
        None => play().map(|()| ExitCode::SUCCESS),
    }
}
