//! The bridge, and a cable to each node that can be pulled.

use anyhow::Result;

use super::command::run;

/// Address of the bridge, where the coordinator listens.
pub const GATEWAY: &str = "10.77.0.1";
const BRIDGE: &str = "fleet";
/// Without one of its own a bridge takes the lowest address of its cables, and changes it with each new cable:
/// nodes that had learned the old one would reach nobody for half a minute.
const BRIDGE_MAC: &str = "02:00:00:00:00:01";

/// Address of the node with this number, counted from 1.
pub fn address(number: u8) -> String {
    format!("10.77.0.{}", 10 + number)
}

/// Makes the bridge.
pub fn create_bridge() -> Result<()> {
    ip(&["link", "add", BRIDGE, "address", BRIDGE_MAC, "type", "bridge"])?;
    ip(&["address", "add", &format!("{GATEWAY}/24"), "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])
}

/// Makes the node's network namespace, which outlives its power, and lays the cable.
pub fn lay_cable(node: &str, number: u8) -> Result<()> {
    let plug = plug(node);
    ip(&["netns", "add", node])?;
    ip(&["link", "add", &plug, "type", "veth", "peer", "name", "eth0", "netns", node])?;
    ip(&["link", "set", &plug, "master", BRIDGE, "up"])?;
    ip(&["-n", node, "link", "set", "lo", "up"])?;
    ip(&["-n", node, "address", "add", &format!("{}/24", address(number)), "dev", "eth0"])?;
    ip(&["-n", node, "link", "set", "eth0", "up"])
}

/// Pulls the node's network plug: packets vanish, and no connection is told.
pub fn pull_plug(node: &str) -> Result<()> {
    ip(&["link", "set", &plug(node), "down"])
}

/// Puts it back.
pub fn push_plug(node: &str) -> Result<()> {
    ip(&["link", "set", &plug(node), "up"])
}

fn plug(node: &str) -> String {
    format!("plug-{node}")
}

fn ip(args: &[&str]) -> Result<()> {
    run("ip", args).map(drop)
}
