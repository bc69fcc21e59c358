//! The coordinator's shell: IO around `somersault-coordinator-core`.
//!
//! ```text
//!   agents ──► ingest ─┐                              ┌─► agents (grants, orders)
//!   cluster ─► watch ──┼─► inbox ─► driver ─► effects ┼─► store, cluster, fence agents, probes
//!   leader ────────────┘            (core)            └─► publish, alert, metrics
//! ```

pub mod admin;
pub mod agents;
pub mod alert;
pub mod app;
pub mod ca;
pub mod certificates;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod convert;
pub mod driver;
pub mod effects;
pub mod enroll;
pub mod fence;
pub mod guest;
pub mod inbox;
pub mod ingest;
pub mod lanes;
pub mod leader;
pub mod metrics;
pub mod orders;
pub mod probe;
pub mod publish;
pub mod store;
#[cfg(test)]
mod testkit;
pub mod windows;
