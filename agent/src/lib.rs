//! The agent: beats, senses, obeys. One process on every node.
//!
//! ```text
//!   beat (own thread, own connections) ----------beats---> coordinators
//!                                      <---------grants---
//!   inventory (thread per root) --samples--+
//!   sense (kernel, SMART, host) --grades---+--> session --reports, progress--> coordinators
//!                                                       <--orders--
//!   orders --pull--> transfer --> other agents' transfer service
//! ```
//!
//! Nothing here stops anything on the node. A coordinator that is silent changes nothing; an order does.

pub mod beat;
pub mod clock;
pub mod config;
pub mod enroll;
pub mod host;
pub mod inventory;
pub mod metrics;
pub mod orders;
pub mod peer;
pub mod probe;
mod replicas;
mod report;
pub mod run;
mod sense;
mod session;
pub mod transfer;
