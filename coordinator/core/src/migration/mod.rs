//! Phases of a `VolumeMigration`: a VM's local disks (or one unused claim) move to another node or class, and
//! every claim keeps its name.
//!
//! ```text
//!  Pending ─► Checking ─► Provisioning ─► PreCopying ─► Stopping ─► FinalCopying ─► Verifying ─► Swapping
//!                │              │             │  ▲          │  ▲         │               │           │
//!                ▼              │             ▼  │ freshen  │  └─────────┤ VM was started│           ▼
//!             Failed            │                           │            │               │       Starting
//!           (refused)           └─────────────┴─────────────┴─────┬──────┴───────────────┘           │
//!                                                                 ▼                                  ▼
//!                                   RolledBack / Cancelled ◄─ RollingBack ◄─── never started ── Confirming
//!                                                                                                    │
//!                                                            Failed (both volumes kept) ◄── started ─┴─► Succeeded
//! ```
//!
//! Every arrow is a commit; a phase's actions leave only after its commit came back. Within a phase everything is
//! level-triggered: the newest [`Fleet`] says what is still missing, so that a repeated or lost action, a crash or
//! a change of leader needs no case of its own. From the end of Stopping to the end of Swapping the claims are locked:
//! the VM cannot run, whoever starts it (see `claims`). Everything can be undone automatically until the VM is first
//! scheduled on the new volumes. The old volumes are kept until somebody asks for their removal (see `cleanup`).
//!
//! `plan` says which disks go where, `staging` how a class's own provisioner makes the new volumes, `reading` from where old ones
//! are read that only kubelets mount (`mounted`), `checks` whether that is allowed, `dry_run` what the API server is asked before
//! the VM is stopped, `claims` how claims are locked and change volumes, `phases` what each phase still needs, `guest` what a user
//! asks of the guest at last, `one` drives a migration, `machine` all.

mod checks;
mod claims;
mod cleanup;
mod copies;
mod dry_run;
mod guest;
mod machine;
#[cfg(test)]
pub(crate) mod model;
mod mounted;
mod one;
mod phases;
mod plan;
mod quota;
mod reading;
mod staging;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub(crate) use self::checks::room_in;
pub use self::claims::{LOCK_FOLDER, LOCK_LABEL, LOCKED_BY};
pub(crate) use self::claims::{locked, locked_for, reserved};
pub use self::cleanup::{Moves, OldVolume, kept_because};
pub use self::dry_run::{DryRun, DryRunAnswer, NewClaim, Verdict};
pub use self::guest::{
    BadProbe, CRON_JOB_NAME_LENGTH_MAX, CronJobName, GuestAnswer, GuestProbe, GuestQuestion,
    HTTP_PATH_LENGTH_MAX, HttpPath, NoAnswer,
};
pub(crate) use self::machine::ACTIVE_MAX;
pub use self::machine::Migrations;
pub use self::phases::GUEST_WAIT_MAX;
pub(crate) use self::plan::{name_part, template};
pub use self::quota::{Charge, Quota};
pub(crate) use self::staging::can_hold;
use crate::fleet::{Fleet, Owner, SavedStart};
use crate::io::{ClaimTemplate, NewVolume, Requests};
use crate::names::{Key, NodeName, Uid, VolumeName};
use crate::policy::Policy;

/// What migrations and evacuations may look at.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The cluster as last read, with the agents' reports.
    pub fleet: &'a Fleet,
    /// What people ask for.
    pub requests: &'a Requests,
    /// Limits.
    pub policy: &'a Policy,
    /// Our epoch.
    pub epoch: u64,
    /// Healthy nodes with a live agent.
    pub usable: &'a BTreeSet<NodeName>,
    /// Nodes that are declared dead and have not come back.
    pub dead: &'a BTreeSet<NodeName>,
}

/// A `VolumeMigration` object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationRequest {
    /// `metadata.uid`: another one of its name is another migration.
    pub uid: Uid,
    /// What it asks.
    pub spec: MigrationSpec,
}

/// What is to be moved, and whereto (`spec` of a `VolumeMigration`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MigrationSpec {
    /// The disks of this VM of the same namespace, or
    pub vm: Option<String>,
    /// this one claim, which no VM uses. Exactly one of the two is set.
    pub claim: Option<String>,
    /// Whereto.
    pub destination: Destination,
    /// Which of its disks.
    pub disks: WhichDisks,
    /// Copy, keep the copy fresh, but do not stop the VM before `false`.
    pub pre_copy_only: bool,
    /// Somebody wants it to end.
    pub cancelled: bool,
    /// Somebody wants the old volumes to be removed, once it has succeeded.
    pub remove_old: bool,
    /// What becomes of what a source cannot read.
    pub unreadable: Unreadable,
    /// What is asked of the guest once it runs on its new volumes. Only of a VM.
    pub probe: Option<GuestProbe>,
    /// The evacuation that made it.
    pub evacuation: Option<String>,
}

impl MigrationSpec {
    /// The VM whose disks are moved by this migration.
    fn vm_key(&self, migration: &Key) -> Option<Key> {
        self.vm.as_ref().map(|vm| Key::new(migration.namespace.clone(), vm))
    }
}

/// What becomes of what a source's disk cannot read, in a second try, block by block, either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Unreadable {
    /// The copy fails.
    #[default]
    Fail,
    /// Zeroes stand for it, and it is told which: somebody has said so.
    Zeroes,
}

/// Which disks move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WhichDisks {
    /// Local ones: those on network storage are reached from every node as they are.
    #[default]
    Local,
    /// Those on network storage too, as far as they are not of the destination's class already. Only to a class.
    All,
}

/// Whereto.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Destination {
    /// Another node, same storage class.
    Node(NodeName),
    /// Another storage class; where it is local, a node is chosen.
    Class(String),
}

/// Where a migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// Seen, not yet looked at.
    Pending,
    /// Pre-flight checks.
    Checking,
    /// Target volumes are made.
    Provisioning,
    /// Copied while the VM runs.
    PreCopying,
    /// The owner stops the VM, and its claims are locked.
    Stopping,
    /// What differs is copied.
    FinalCopying,
    /// The copy's root is compared with the source's.
    Verifying,
    /// The claims change volumes.
    Swapping,
    /// The owner starts the VM.
    Starting,
    /// Post-migration checks.
    Confirming,
    /// Done. The old volumes are kept.
    Succeeded,
    /// Refused or failed before anything was changed.
    Failed,
    /// Everything is being put back.
    RollingBack,
    /// Everything is as it was.
    RolledBack,
    /// Ended by somebody's word, everything as it was.
    Cancelled,
}

impl Phase {
    /// Nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::RolledBack | Self::Cancelled)
    }

    /// Something was made or changed that has to be finished or put back.
    pub fn is_at_work(self) -> bool {
        self >= Self::Provisioning && !self.is_final()
    }

    /// Nothing of the VM or its claims was changed yet.
    pub fn is_before_stop(self) -> bool {
        self < Self::Stopping
    }
}

/// State of a migration (`status` of a `VolumeMigration`): enough to go on after any crash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MigrationRecord {
    /// The object's key.
    pub key: Key,
    /// Its uid.
    pub uid: Uid,
    /// Epoch of the leader that wrote it.
    pub epoch: u64,
    /// Phase.
    pub phase: Phase,
    /// Why it failed, was refused or rolls back; `CamelCase`.
    pub reason: Option<String>,
    /// The same for people, with what to do.
    pub message: String,
    /// The VM's owner and start field before we stopped it.
    pub stopped: Option<(Owner, SavedStart)>,
    /// The guest before we stopped it, where it ran.
    pub guest: Option<Guest>,
    /// The disks that move.
    pub disks: Vec<DiskMove>,
    /// Checks made, in order.
    pub checks: Vec<Check>,
    /// Milliseconds from the VM's stop to its start, once it has ended. Absent where it was not stopped, and where more than
    /// one leader has driven it while it stood still: their clocks have nothing in common.
    pub downtime_ms: Option<u64>,
}

/// A guest that ran: what must be seen of it again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Its agent answered.
    pub agent_connected: bool,
    /// It had an address.
    pub has_address: bool,
    /// Claims that were attached to it.
    pub claims: BTreeSet<String>,
}

/// One disk that moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMove {
    /// The claim that keeps its name.
    pub claim: Key,
    /// Its uid before the swap.
    pub claim_uid: Uid,
    /// What to ask when it is created again.
    pub template: ClaimTemplate,
    /// The volume that holds the data now.
    pub old: VolumeName,
    /// The node whose agent reads the old volume: the one that has it, where it is local.
    pub source_node: NodeName,
    /// Its path there; empty where only kubelets mount it.
    pub source_path: String,
    /// Where only kubelets mount the old volume: name of our alias of it, and of the claim and the pod of ours by which the
    /// last copy reads it.
    pub reading: Option<String>,
    /// The volume that will hold it.
    pub new: NewVolume,
    /// Where the class's own provisioner makes the new volume: name of our claim and pod that have it made and hold it.
    /// The new volume's name and node are those of the plan until it was made.
    pub staging: Option<String>,
    /// The node whose agent pulls.
    pub target_node: NodeName,
    /// Result of the final copy.
    pub copied: Option<Copied>,
    /// What became of the old volume.
    pub old_volume: OldVolume,
}

/// Result of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// BLAKE3 root in hex.
    pub root_hash: String,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that crossed the wire.
    pub sent_bytes: u64,
    /// Milliseconds that it took.
    pub elapsed_ms: u64,
    /// What the source could not read, by file and range, in words: the copy has zeroes there.
    pub unreadable: Option<String>,
}

/// One pre-flight or post-migration check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// Whether it held.
    pub passed: bool,
    /// What was found, and what to do where it did not hold.
    pub message: String,
}

/// Reason of a refusal: there is no such storage class to move to.
pub(crate) const CLASS_NOT_FOUND: &str = "ClassNotFound";

/// Why a migration that somebody is about to ask for would be refused, or would have to wait, as far as the fleet tells
/// now. Whether another one moves the same disks is not asked.
pub fn refusal(key: &Key, spec: &MigrationSpec, ctx: &Context<'_>) -> Option<Refusal> {
    // The uid names its volumes only.
    checks::preflight(key, &Uid::from(""), spec, &[], ctx).disks.err()
}

/// Why something is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `CamelCase` condition reason.
    pub reason: &'static str,
    /// For people, with what to do.
    pub message: String,
    /// It may hold by itself in a moment: a report is still to come.
    pub transient: bool,
}

impl Refusal {
    pub(crate) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), transient: false }
    }

    pub(crate) fn not_yet(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), transient: true }
    }
}
