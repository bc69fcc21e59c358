//! Which VMs leave a node or a disk, in which order, how many at once.
//!
//! ```text
//!   asked for ─► planned (committed) ─► complete at once, where it is a dry run
//!                      │
//!                      ▼
//!        Waiting ─► Running ─► Succeeded | Failed | Refused     each migration; at most N Running
//!                      │
//!                      ▼
//!                  complete when none is Waiting or Running
//! ```
//!
//! A VM that runs on the node with no disk there is moved while it runs: KubeVirt does that, asked by a
//! `VirtualMachineInstanceMigration`, and disturbs nobody, so that no word is waited for. One that KubeVirt cannot move is
//! told with KubeVirt's own reason.
//!
//! An evacuation only creates migrations and watches them; each is safe by itself, and one that fails does not
//! stop the others. `auto` asks for an evacuation when a disk starts to fail, `drain` when a
//! node is cordoned and marked for it, `returned` when a dead node has come back.

mod auto;
mod drain;
mod live;
mod machine;
mod plan;
mod returned;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::auto::SOURCES;
pub use self::machine::Evacuations;
use crate::migration::{Context, Destination};
use crate::names::{Key, NodeName, Uid};

/// A creation whose object does not show is asked for again.
const ACTION_RETRY: Duration = Duration::from_secs(10);

/// Evacuations of one node for one cause that may lie around before somebody should clean up.
const SAME_NAMES_MAX: usize = 1_000;

/// The name, and those of the later ones of it.
fn numbered(name: &str, number: usize) -> String {
    if number == 1 { name.to_owned() } else { format!("{name}-{number}") }
}

/// The first of these names that is not taken; `None` where there are too many.
fn free(name: &str, is_taken: impl Fn(&str) -> bool) -> Option<String> {
    (1..=SAME_NAMES_MAX).map(|number| numbered(name, number)).find(|name| !is_taken(name))
}

/// The first of these names that no evacuation has.
fn free_name(name: &str, ctx: &Context<'_>) -> Option<String> {
    free(name, |name| ctx.requests.evacuations.contains_key(name))
}

/// What is to be emptied (`spec` of an `Evacuation`).
#[expect(clippy::struct_excessive_bools, reason = "fields of an object, each of its own")]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EvacuationSpec {
    /// `metadata.uid` (read with the spec, never written by it): another one of its name is another evacuation.
    pub uid: Uid,
    /// The node.
    pub node: NodeName,
    /// Only volumes on this disk of it.
    pub disk: Option<String>,
    /// Whereto; `None`: any node that fits, same class.
    pub destination: Option<Destination>,
    /// What it may do to running VMs.
    pub disruption: Disruption,
    /// Its window is open now: noted by the shell, which has a clock.
    pub window_open: bool,
    /// Only tell what would be done.
    pub dry_run: bool,
    /// Somebody wants it to end.
    pub cancelled: bool,
    /// Its status says that it is over (read with the spec, never written by it).
    pub complete: bool,
}

/// What the policy says of an evacuation that no person has asked for.
fn by_policy(node: NodeName, disk: Option<String>, ctx: &Context<'_>) -> EvacuationSpec {
    let policy = &ctx.policy.evacuation;
    EvacuationSpec {
        uid: Uid::from(""),
        node,
        disk,
        destination: policy.destination_class.clone().map(Destination::Class),
        disruption: policy.disruption,
        window_open: false,
        dry_run: policy.dry_run,
        cancelled: false,
        complete: false,
    }
}

/// What an evacuation may do to running VMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Disruption {
    /// Copy while they run, keep the copy fresh, wait for a word.
    #[default]
    PreCopyOnly,
    /// Copy while they run, keep the copy fresh, and stop them while its window is open.
    Window,
    /// Stop them at once for the final copy.
    Now,
}

impl EvacuationSpec {
    /// Whether a VM may be stopped now.
    fn may_stop(&self) -> bool {
        match self.disruption {
            Disruption::PreCopyOnly => false,
            Disruption::Window => self.window_open,
            Disruption::Now => true,
        }
    }
}

/// State of an evacuation (`status` of an `Evacuation`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvacuationRecord {
    /// The object's name.
    pub name: String,
    /// Its uid.
    pub uid: Uid,
    /// Epoch of the leader that wrote it.
    pub epoch: u64,
    /// What became of each migration, in the order of the plan.
    pub plan: Vec<Planned>,
    /// All ended.
    pub complete: bool,
    /// For people.
    pub message: String,
}

/// One migration of an evacuation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// The migration's key.
    pub migration: Key,
    /// The VM, or the bare claim.
    pub subject: Key,
    /// Whether the subject is a VM.
    pub is_vm: bool,
    /// The VM has no disk there and moves while it runs; the migration is KubeVirt's.
    #[serde(default)]
    pub live: bool,
    /// Bytes to move.
    pub bytes: u64,
    /// What became of it.
    pub state: PlanState,
    /// Why it failed or waits, for people.
    pub message: String,
}

/// What became of one migration of an evacuation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlanState {
    /// Its turn has not come, or no destination has room.
    Waiting,
    /// The migration exists.
    Running,
    /// Copied, and waiting for a person's word to stop the VM.
    PreCopied,
    /// Done.
    Succeeded,
    /// It failed, was refused, cancelled or rolled back.
    Failed,
}
