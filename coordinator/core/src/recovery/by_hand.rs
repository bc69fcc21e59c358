//! Whether a person is at work on a VM of a dead node, somewhere between the first step of its runbook and the last.
//!
//! ```text
//!   untouched, its node proven ── its pods deleted, or a claim deleted and not bound anew yet ──► at work
//!      ▲                                                                                            │
//!      └── undone ──────────────────────────────────────────────────────────────────────────────────┤
//!                          every claim bound elsewhere, or seen running elsewhere: settled ◄────────┘
//! ```
//!
//! Each step changes what would be decided: without its pods the VM "runs on no node", without its claim the dead node is
//! no concern of it, and its storage is broken. None of that is news to whoever does it, and a runbook that follows it
//! drops the manifest of the claim that was just deleted. So the decision and the steps stay those that the work began
//! with, until the work is done.

use crate::decision::{Decision, DecisionKind};
use crate::fleet::Fleet;
use crate::names::Key;

/// What the runbook of a VM says that a person may do once its node is proven dead.
#[derive(Clone, Debug, Default)]
pub(super) enum Steps {
    /// Nothing was proven yet, or nothing is for a person to do.
    #[default]
    Unwritten,
    /// Nobody has begun.
    Written(String),
    /// Somebody has begun, and is not done.
    Followed(String),
}

impl Steps {
    /// Takes in the VM as it stands: what was decided before, and what would be now.
    pub fn look(&mut self, fleet: &Fleet, before: Option<&Decision>, now: &Decision) {
        let (Self::Written(text) | Self::Followed(text)) = std::mem::take(self) else { return };
        let at_work = before.is_some_and(|before| is_at_work(fleet, before, now));
        *self = if at_work { Self::Followed(text) } else { Self::Written(text) };
    }

    /// The node is back: the VM is its own again, unless one of its claims is still missing.
    pub fn node_returned(&mut self, fleet: &Fleet, before: Option<&Decision>) {
        if !before.is_some_and(|before| has_claim_between(fleet, before, before)) {
            *self = Self::Unwritten;
        }
    }

    /// Whether somebody is at work.
    pub fn are_followed(&self) -> bool {
        matches!(self, Self::Followed(_))
    }
}

/// Whether somebody has begun to do what the runbook of `before` says, and is not done. `now` is what is decided of the VM
/// as it stands.
fn is_at_work(fleet: &Fleet, before: &Decision, now: &Decision) -> bool {
    if before.kind != DecisionKind::ManualRecovery {
        return false;
    }
    let pods_deleted = !before.nodes.is_empty()
        && now.kind == DecisionKind::ManualRecovery
        && before.nodes.iter().all(|node| !now.nodes.contains(node));
    pods_deleted || has_claim_between(fleet, before, now)
}

/// Whether a claim of a disk that was on one node, and that the VM still has, is gone, or was made anew and is not bound
/// yet.
fn has_claim_between(fleet: &Fleet, before: &Decision, now: &Decision) -> bool {
    let local = before.disks.iter().filter(|disk| disk.is_local());
    let still = |name: &&String| now.disks.iter().any(|disk| disk.claim.as_ref() == Some(*name));
    let mut claims = local.filter_map(|disk| disk.claim.as_ref()).filter(still);
    claims.any(|name| {
        let claim = fleet.claims.get(&Key::new(&before.vm.namespace, name));
        claim.is_none_or(|claim| claim.volume.is_none() || claim.phase == "Pending")
    })
}

/// Whether a claim that the VM names is not there: of a VM that a leader before us has shown, somebody may be about to
/// make it anew, and only that leader knew what was in it.
pub(super) fn is_claim_missing(fleet: &Fleet, now: &Decision) -> bool {
    let mut claims = now.disks.iter().filter_map(|disk| disk.claim.as_ref());
    claims.any(|name| !fleet.claims.contains_key(&Key::new(&now.vm.namespace, name)))
}
