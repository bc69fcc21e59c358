//! The coordinator's decisions, and nothing else: no clock, no network, no disk, no randomness.
//!
//! The shell owns one [`Coordinator`] in one task and drives it:
//!
//! ```text
//!   beats, reports, probes, cluster snapshots, results ──► step(now, Input) ──► Vec<Effect> ──► shell performs
//!                        ▲                                                                        │
//!                        └──────────────── results come back as Inputs ◄──────────────────────────┘
//! ```
//!
//! `now` is the shell's own boot-time clock; readings of different hosts are never compared. A decision that
//! must survive a crash leaves as [`Effect::Commit`] and is acted upon only when [`Input::Committed`] comes
//! back. Effects are idempotent: the shell may perform one twice.

pub mod adopt;
pub mod alerts;
pub mod coordinator;
pub mod decision;
pub mod evacuation;
pub mod fencing;
pub mod fleet;
pub mod invariants;
pub mod io;
pub mod liveness;
pub mod locality;
pub mod migration;
pub mod names;
pub mod policy;
pub mod rebuild;
mod recovery;
pub mod runbook;
mod scene;
pub mod view;

pub use coordinator::Coordinator;
pub use io::{Action, Effect, Input, Notice, Record, Severity};

/// Reading of the coordinator's own `CLOCK_BOOTTIME`: it goes on in suspend, and is never compared with the
/// clock of another host.
pub type BootTime = std::time::Duration;
