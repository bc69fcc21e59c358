//! `somersault-cluster`: a real Kubernetes cluster on this machine, for people and tests.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use somersault_test_cluster::{BmcFault, Cluster, InsideCommand, Missing, Options, run_inside};

/// By convention of test harnesses: skipped, because something is missing here.
const EXIT_SKIPPED: u8 = 77;

/// A real Kubernetes cluster on this machine, each of whose nodes has a power cord, a network plug and disks of
/// its own. Exit code 77: this machine lacks what a cluster needs.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Name of the cluster. (`SOMERSAULT_CLUSTER` is the plugin's, and the coordinator's: where their cluster is.)
    #[arg(long, global = true, env = "SOMERSAULT_TEST_CLUSTER", default_value = "default")]
    name: String,
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Build a cluster, wait until its nodes are Ready, print its KUBECONFIG.
    Up {
        /// Number of nodes.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
    },
    /// End it; nothing is left behind.
    Down,
    /// Kill every process of a node at once.
    PowerOff {
        /// The node.
        node: String,
    },
    /// Boot a node: same disks, new boot id.
    PowerOn {
        /// The node.
        node: String,
    },
    /// Make a node's management controller lie, hang or fail; or behave again.
    Bmc {
        /// The node.
        node: String,
        /// lies (says off, switches nothing), hangs, fails, or well.
        #[arg(value_parser = parse_fault)]
        behaves: Behaviour,
    },
    /// Pull a node's network plug.
    Cut {
        /// The node.
        node: String,
    },
    /// Put it back.
    Mend {
        /// The node.
        node: String,
    },
    /// Stop every process of a node, as a hypervisor that pauses a machine does.
    Freeze {
        /// The node.
        node: String,
    },
    /// Let a frozen node go on.
    Thaw {
        /// The node.
        node: String,
    },
    /// Kill a program and keep it from running: kubelet, containerd or kube-proxy of a node, else a part of the
    /// control plane.
    Stop {
        /// The program.
        program: String,
        /// The node that it runs on.
        #[arg(long)]
        node: Option<String>,
    },
    /// Let it run again.
    Start {
        /// The program.
        program: String,
        /// The node that it runs on.
        #[arg(long)]
        node: Option<String>,
    },
    /// Give every node an image, from an archive as `docker save` or buildah writes it.
    Load {
        /// The archive.
        archive: PathBuf,
    },
    /// Which nodes are on, and what Kubernetes says about them.
    Status,
    /// A shell on a node, or a command there, with this machine's programs: its processes, mounts and network are the
    /// node's.
    Shell {
        /// The node.
        node: String,
        /// The command; absent: a shell.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// The cluster's own kubectl.
    #[command(disable_help_flag = true)]
    Kubectl {
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// What this program does inside the cluster.
    #[command(hide = true)]
    Inside {
        #[command(subcommand)]
        command: InsideCommand,
    },
}

/// How a management controller is to behave.
#[derive(Clone, Copy)]
struct Behaviour(Option<BmcFault>);

fn parse_fault(text: &str) -> Result<Behaviour> {
    let fault = if text == "well" { None } else { Some(text.parse()?) };
    Ok(Behaviour(fault))
}

fn main() -> ExitCode {
    let Arguments { name, command } = Arguments::parse();
    match run(&name, command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Missing>() => {
            eprintln!("{error:#}");
            ExitCode::from(EXIT_SKIPPED)
        }
        Err(error) => {
            eprintln!("somersault-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(name: &str, command: Subcommands) -> Result<()> {
    let attach = || Cluster::attach(name);
    match command {
        Subcommands::Up { nodes } => {
            let program = std::env::current_exe().context("finding this program")?;
            let cluster = Cluster::up(&Options { name: name.to_owned(), nodes, tied: false, program })?;
            println!("{}", cluster.kubeconfig().display());
            Ok(())
        }
        Subcommands::Down => Cluster::down(name),
        Subcommands::PowerOff { node } => attach()?.power_off(&node),
        Subcommands::PowerOn { node } => attach()?.power_on(&node),
        Subcommands::Bmc { node, behaves: Behaviour(fault) } => attach()?.bmc_fault(&node, fault),
        Subcommands::Cut { node } => attach()?.cut(&node),
        Subcommands::Mend { node } => attach()?.mend(&node),
        Subcommands::Freeze { node } => attach()?.freeze(&node),
        Subcommands::Thaw { node } => attach()?.thaw(&node),
        Subcommands::Stop { program, node } => attach()?.stop_program(node.as_deref(), &program),
        Subcommands::Start { program, node } => attach()?.start_program(node.as_deref(), &program),
        Subcommands::Load { archive } => attach()?.load_image(&archive),
        Subcommands::Status => attach()?.status().map(|text| println!("{text}")),
        Subcommands::Shell { node, command } => {
            let command = if command.is_empty() { vec![OsString::from("sh")] } else { command };
            Err(attach()?.command_on(&node)?.args(command).exec()).context("starting nsenter")
        }
        Subcommands::Kubectl { arguments } => {
            Err(attach()?.kubectl().args(arguments).exec()).context("starting kubectl")
        }
        Subcommands::Inside { command } => run_inside(command),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// One that the plugin and the coordinator read says where their cluster is (`kube`, `dir:PATH`), and is no name.
    #[test]
    fn the_clusters_name_has_a_variable_of_its_own() {
        let command = Arguments::command();
        let name = command.get_arguments().find(|argument| argument.get_id() == "name");
        let variable = name.and_then(|name| name.get_env()).and_then(|variable| variable.to_str());
        assert_eq!(variable, Some("SOMERSAULT_TEST_CLUSTER"));
    }
}
