//! What the core shows of itself: the display part of our objects' status. Built on demand, and never read back, but for
//! which recoveries are open: a new leader shows those to their end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::BootTime;
use crate::decision::Decision;
use crate::evacuation::EvacuationRecord;
use crate::fencing::agents::FenceAgentView;
use crate::fencing::{FenceRecord, ProofKind};
use crate::fleet::NodeReport;
use crate::io::OpenRecovery;
use crate::migration::{MigrationRecord, Refusal};
use crate::names::{BootId, Key, NodeName};

/// Everything that people may want to see.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// By node.
    pub nodes: BTreeMap<NodeName, NodeView>,
    /// By VM: of running incidents, of those that ended since we lead, and of broken storage.
    pub recoveries: BTreeMap<Key, RecoveryView>,
    /// VMs whose storage may be broken, which nobody was told of yet. `None` while too little is known to call the
    /// storage of any VM sound: what earlier leaders have told of it still holds then.
    pub storage_in_doubt: Option<BTreeSet<Key>>,
    /// By key.
    pub migrations: BTreeMap<Key, MigrationView>,
    /// By name.
    pub evacuations: BTreeMap<String, EvacuationRecord>,
    /// Why the whole cluster is in storm hold, where it is.
    pub storm_hold: Option<String>,
}

impl View {
    /// What whoever leads next has to show to its end: recoveries of dead nodes that are neither over nor settled.
    pub fn open_recoveries(&self) -> Vec<OpenRecovery> {
        let open = |(vm, recovery): (&Key, &RecoveryView)| {
            let goes_on = recovery.cause == RecoveryCause::NodeDied
                && !recovery.ended
                && !recovery.progress.is_settled();
            Some(OpenRecovery { vm: vm.clone(), node: recovery.node.clone().filter(|_| goes_on)? })
        };
        self.recoveries.iter().filter_map(open).collect()
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    /// State.
    pub state: NodeState,
    /// Since when.
    pub since: BootTime,
    /// Why, for people.
    pub message: String,
    /// Its boot, as last told by a beat.
    pub boot_id: Option<BootId>,
    /// Proofs that this node could offer if it died now.
    pub proofs_possible: Vec<ProofKind>,
    /// What its fence agent said when it was last asked, where it has one.
    pub fence_agent: Option<FenceAgentView>,
    /// The proof at hand.
    pub proof: Option<ProofKind>,
    /// The running or last incident: what happened when, in order.
    pub timeline: Vec<(Milestone, BootTime)>,
    /// Last report of its agent.
    pub report: Option<NodeReport>,
    /// The stored record.
    pub fence: Option<FenceRecord>,
}

/// State of a node; see `liveness` for the diagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NodeState {
    /// No agent was heard from, ever or since this coordinator started: nothing can be said yet, and nothing is done.
    NoAgent,
    /// Beats arrive.
    Healthy,
    /// Beats are missing; probes are out.
    Suspect,
    /// The agent is silent, the kernel or the kubelet is not.
    AgentSilent,
    /// Peers reach the agent, we do not.
    Partitioned,
    /// Too many nodes at once: we suspect ourselves.
    StormHold,
    /// Declared; waits for a proof.
    AwaitingProof,
    /// Proven; recovery is about to act.
    Fenced,
    /// VMs are being recreated.
    Recovering,
    /// Back in a new boot, watched before it is trusted.
    Quarantine,
    /// Beats of a fenced boot: somebody must look at once.
    FenceContradicted,
}

/// What happened in an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Milestone {
    /// The last beat that arrived.
    LastBeat,
    /// Suspicion.
    Suspected,
    /// The verdict.
    Declared,
    /// Each VM's decision was published.
    Decided,
    /// The fence agent was started.
    FencingStarted,
    /// The proof was committed.
    Proven,
    /// The first action on a VM was performed.
    FirstAction,
    /// Every VM that we act upon is dealt with.
    Settled,
    /// The node came back.
    Returned,
    /// The incident ended.
    Closed,
}

/// Why a VM has to be recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RecoveryCause {
    /// Its node died.
    NodeDied,
    /// Its storage broke, and no node of it died.
    StorageFailed,
}

/// One VM of an incident.
#[derive(Clone, Debug, PartialEq)]
pub struct RecoveryView {
    /// Why.
    pub cause: RecoveryCause,
    /// The node that died; for broken storage the node that the VM runs on, else where its disk is, as far as that is
    /// known.
    pub node: Option<NodeName>,
    /// What becomes of the VM.
    pub decision: Decision,
    /// How far.
    pub progress: RecoveryProgress,
    /// The proof of its own incident; a later one of the same node has another.
    pub proof: Option<ProofKind>,
    /// The incident is over: nothing of this changes any more.
    pub ended: bool,
    /// For a person, where one is needed; Markdown.
    pub runbook: Option<String>,
}

impl RecoveryView {
    /// What helps: as long as its node is dead what can be done then, else what lets it fare better next time.
    pub fn remedy(&self) -> String {
        let settled = self.progress.is_settled() || self.progress == RecoveryProgress::Unaffected;
        if self.cause == RecoveryCause::NodeDied && !self.ended && !settled {
            self.decision.remedy_while_dead(self.proof.is_some())
        } else {
            self.decision.remedy.clone()
        }
    }
}

/// How far a recovery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RecoveryProgress {
    /// Decided; the proof is missing.
    AwaitingProof,
    /// Proven; pods are being deleted.
    Acting,
    /// Pods are deleted; the VM has not been seen running elsewhere yet.
    Restarting,
    /// Seen running elsewhere; for broken storage: nothing of it is broken any more.
    Recovered,
    /// A person must act.
    NeedsPerson,
    /// The node came back with the VM untouched.
    NodeReturned,
    /// The dead node holds nothing of it any more: a person moved its disks, or stopped it. It has not been seen running
    /// elsewhere.
    Unaffected,
}

impl RecoveryProgress {
    /// The VM was seen running again, or its node is back.
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Recovered | Self::NodeReturned)
    }
}

/// A migration with its live progress.
#[derive(Clone, Debug, PartialEq)]
pub struct MigrationView {
    /// The stored record; before it begins, with what it waits for.
    pub record: MigrationRecord,
    /// How far the present copy of each disk is, by its claim.
    pub copies: BTreeMap<Key, CopyView>,
    /// It has copied ahead, keeps its copy fresh, and may not stop the VM before somebody says so.
    pub waits_for_word: bool,
    /// Where somebody asked for the old volumes to be removed: how that fares.
    pub removal: Option<RemovalView>,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyView {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all; 0 while unknown.
    pub total_bytes: u64,
    /// Bytes per second.
    pub rate_bytes_per_s: u64,
}

impl CopyView {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            done_bytes: self.done_bytes + other.done_bytes,
            total_bytes: self.total_bytes + other.total_bytes,
            rate_bytes_per_s: self.rate_bytes_per_s + other.rate_bytes_per_s,
        }
    }

    /// How long the rest takes at this rate; `None` while nothing moves, or nobody knows how much there is.
    pub fn left(&self) -> Option<Duration> {
        let left = self.total_bytes.saturating_sub(self.done_bytes);
        (self.total_bytes > 0)
            .then(|| left.checked_div(self.rate_bytes_per_s))
            .flatten()
            .map(Duration::from_secs)
    }
}

/// The removal of a migration's old volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemovalView {
    /// The migration has not ended, or they are being removed.
    UnderWay,
    /// At least one is kept, or is not gone yet, for this reason.
    Kept(Refusal),
    /// All are gone, objects and folders.
    Removed,
}
