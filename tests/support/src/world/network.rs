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

/// Takes the power of the node's network away: nothing answers there, not even a kernel, while its namespace stays.
pub fn darken(node: &str) -> Result<()> {
    let table = "table inet powerless { chain in { type filter hook input priority -300; policy drop; }; \
                 chain out { type filter hook output priority -300; policy drop; }; \
                 chain through { type filter hook forward priority -300; policy drop; }; }";
    in_network(node, &["nft", table])?;
    // What its programs had written and nobody has received yet dies with a machine's memory. Here the kernel lives on,
    // and would deliver it to the coordinator after the next boot: beats of a boot that is proven dead.
    in_network(node, &["ss", "--tcp", "--all", "--kill"])?;
    // No name of the machine is known on its network any more, either.
    in_network(node, &["ip", "link", "set", "eth0", "arp", "off"])
}

/// Gives it back.
pub fn lighten(node: &str) -> Result<()> {
    in_network(node, &["ip", "link", "set", "eth0", "arp", "on"])?;
    // `add` first, so that there is something to delete.
    in_network(node, &["nft", "add table inet powerless; delete table inet powerless"])
}

/// By `nsenter`: `ip netns exec` mounts a /sys anew and hides the control groups.
fn in_network(node: &str, command: &[&str]) -> Result<()> {
    let network = format!("--net=/run/netns/{node}");
    run("nsenter", [&[network.as_str(), "--"], command].concat()).map(drop)
}

/// The world's end of the node's cable.
pub fn plug(node: &str) -> String {
    format!("plug-{node}")
}

fn ip(args: &[&str]) -> Result<()> {
    run("ip", args).map(drop)
}
