//! Who has which address inside a world. Worlds are closed, so every cluster has the same ones.

pub use somersault_test_support::world::network::{GATEWAY, address as node_address};

/// Where the apiserver listens, seen from the nodes and their pods.
pub const API_PORT: u16 = 6443;
/// Where the nodes' management controller listens.
pub const BMC_PORT: u16 = 8443;
/// What `kubernetes.default` resolves to: the first address of [`SERVICES`].
pub const API_SERVICE: &str = "10.79.0.1";
/// What pods ask for names.
pub const DNS_SERVICE: &str = "10.79.0.10";
/// Addresses of services.
pub const SERVICES: &str = "10.79.0.0/24";
/// Addresses of pods, of all nodes.
pub const PODS: &str = "10.78.0.0/16";
/// Node names and addresses have one digit for the number.
pub const NODES_MAX: u8 = 9;

/// Addresses of the pods on the node with this number.
pub fn node_pods(number: u8) -> String {
    format!("10.78.{number}.0/24")
}

/// Name of the node with this number, counted from 1.
pub fn node_name(number: u8) -> String {
    format!("n{number}")
}
