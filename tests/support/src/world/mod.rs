//! Nodes on one machine, each with a network plug and a power cord.
//!
//! ```text
//!   namespaces of this run (user, network, mount, pid)              everything dies with their pid 1
//!   ┌───────────────────────────────────────────────────────────────────────────────┐
//!   │ whoever called enter()   coordinator   fence agent          10.77.0.1, bridge  │
//!   │        plug-n1 ─┐            plug-n2 ─┐            plug-n3 ─┐                  │
//!   │  ┌──────────────┴──┐   ┌──────────────┴──┐   ┌──────────────┴──┐  a node: its  │
//!   │  │ n1   10.77.0.11 │   │ n2   10.77.0.12 │   │ n3   10.77.0.13 │  own network, │
//!   │  │ pid 1, agent, … │   │                 │   │                 │  mounts, pids │
//!   │  └─────────────────┘   └─────────────────┘   └─────────────────┘               │
//!   └───────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Nothing is left behind however the run ends: processes, mounts and interfaces belong to the namespaces, and
//! the kernel takes those down with their first process.

pub mod command;
pub mod enter;
pub mod network;
pub mod node;
pub mod power;
pub mod programs;
