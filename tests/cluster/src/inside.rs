//! What this program does inside a world: as its first process, as a node's first process, and on short visits.

use std::convert::Infallible;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use somersault_test_support::world::command::run as run_tool;
use somersault_test_support::world::{network, power};

use crate::addresses::{node_address, node_pods};
use crate::layout::Layout;
use crate::supervisor::{Control, Program, supervise};
use crate::{bmc, forward, node, world};

/// Commands of the hidden `inside`; the program calls itself with them.
#[derive(Debug, clap::Subcommand)]
pub enum InsideCommand {
    /// Be the first process of a world.
    World {
        /// The cluster.
        cluster: String,
    },
    /// Be the first process of a node.
    Node {
        /// The node's specification.
        specification: PathBuf,
    },
    /// Boot a node.
    PowerOn {
        /// The cluster.
        cluster: String,
        /// The node.
        node: String,
    },
    /// Be the nodes' management controller.
    Bmc {
        /// The cluster.
        cluster: String,
    },
    /// Let nothing answer at a node that has no power.
    Darken {
        /// The node.
        node: String,
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
    /// Stop, or let go on, every process of the node that this is run on, but the first.
    Freeze {
        /// Let them go on.
        #[arg(long)]
        thaw: bool,
    },
    /// Give a node the images that it lacks.
    LoadImages {
        /// The cluster.
        cluster: String,
        /// The node.
        node: String,
    },
}

/// Runs such a command.
pub fn run(command: InsideCommand) -> Result<()> {
    match command {
        InsideCommand::World { cluster } => match be_world(&Layout::of(&cluster)?)? {},
        InsideCommand::Node { specification } => match node::boot(&specification)? {},
        InsideCommand::PowerOn { cluster, node } => {
            network::lighten(&node)?;
            power::on(&node::spec_file(&Layout::of(&cluster)?, &node))
        }
        InsideCommand::Darken { node } => network::darken(&node),
        InsideCommand::Bmc { cluster } => bmc::serve(&Layout::of(&cluster)?),
        InsideCommand::Cut { node } => network::pull_plug(&node),
        InsideCommand::Mend { node } => network::push_plug(&node),
        InsideCommand::Freeze { thaw } => {
            node::signal_all(if thaw { Signal::SIGCONT } else { Signal::SIGSTOP })
        }
        InsideCommand::LoadImages { cluster, node } => node::load_images(&Layout::of(&cluster)?, &node),
    }
}

fn be_world(layout: &Layout) -> Result<Infallible> {
    let door = forward::open_door()?;
    let port = door.local_addr().context("asking for the door's port")?.port();
    unshare(CloneFlags::CLONE_NEWNET).context("making a network")?;
    mount(Some("world"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, None::<&str>)
        .context("mounting a /run of the world's own")?;
    run_tool("ip", ["link", "set", "lo", "up"])?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forwarding packets between nodes")?;
    network::create_bridge()?;
    for (name, number) in layout.nodes().iter().zip(1..) {
        network::lay_cable(name, number)?;
        run_tool("ip", ["route", "add", &node_pods(number), "via", &node_address(number)])?;
    }
    let text = std::fs::read(layout.control_plane("programs.json")).context("reading what to run")?;
    let programs: Vec<Program> = serde_json::from_slice(&text).context("understanding what to run")?;
    forward::start(door)?;
    // Complete only with its line's end: whoever reads it may be faster than we write.
    std::fs::write(world::door_file(layout), format!("{port}\n")).context("telling the door's port")?;
    supervise(programs, &Control(layout.control_plane("")))
}
