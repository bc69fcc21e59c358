//! Proofs, fence records, lease arithmetic: when we may act on a declared node.
//!
//! ```text
//!  declared ─► Declared ──────────────► PowerOrdered ──────────────► Fenced{proof} ──► Quarantine{boot} ─► Closed
//!                │  │  a fence agent       │   off, read back           ▲   │  new boot      │   ▲  │        ▲
//!                │  │  is configured       ├────────────────────────────┘   │                └───┘  │        │
//!                │  └──────────────────────┼── taint, word, new boot ─►     │           another boot│        │
//!                │                         │  (word: this boot only)        └── a beat of the fenced│boot:   │
//!                │                         │                                    FenceContradicted   │        │
//!                └── the same boot beats ──┴ (only while no order can have been given) ─► Closed    └────────┘
//! ```
//!
//! Every arrow is a commit under our epoch, and nothing that follows from a stage happens before that commit came
//! back: the fence agent runs after `PowerOrdered` is stored, VMs are touched after `Fenced` is. From the
//! declaration until Quarantine the node's beats are not answered. A record that an earlier leader left is taken
//! over by storing it again under our epoch, which fails where somebody newer leads.
//!
//! The rules of each proof:
//! - `PowerOffConfirmed`: the run that we ordered in this epoch ended with off, read back.
//! - `CloudShutdown`, `OutOfServiceByOthers`: the taint, unless it was already there while the node beat (left
//!   over from another time).
//! - `HumanAttested`: a person's word about this very boot.
//! - `NewBootId`: a beat in a boot that is new to us, or a boot id in Node.status that appeared since the
//!   declaration.
//! - `LeaseExpired`: see `lease`; only for enrolled nodes, and only the simulation enrols any.
//!
//! All but `NewBootId` are believed only of a node that is silent: a proof that beats contradict is none.

mod case;
pub mod lease;
#[cfg(test)]
mod tests;
pub(crate) mod words;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub(crate) use self::case::{Around, Case, Settled};
use crate::fleet::{CLOUD_SHUTDOWN_TAINT, OUT_OF_SERVICE_TAINT};
use crate::names::{BootId, NodeName};
use crate::scene::Scene;

/// Evidence that nothing on a node can run or write any more. Only this module can make one, so that acting
/// before fencing does not compile.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FenceProof {
    node: NodeName,
    boot_id: Option<BootId>,
    kind: ProofKind,
    epoch: u64,
}

impl FenceProof {
    /// The node that it is about.
    pub fn node(&self) -> &NodeName {
        &self.node
    }
    /// The boot that it is about.
    pub fn boot_id(&self) -> Option<&BootId> {
        self.boot_id.as_ref()
    }
    /// What kind of evidence.
    pub fn kind(&self) -> ProofKind {
        self.kind
    }
    /// Leader epoch under which it was committed.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
}

/// Kinds of evidence, the practical ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ProofKind {
    /// The fence agent's `off`, read back by `status`.
    PowerOffConfirmed,
    /// A cloud controller's shutdown taint.
    CloudShutdown,
    /// The out-of-service taint, set by somebody else.
    OutOfServiceByOthers,
    /// The node came back in another boot.
    NewBootId,
    /// A person's word.
    HumanAttested,
    /// The lease of a node with an armed watchdog ran out.
    LeaseExpired,
}

/// How far the fencing of a node has come. Stored before each step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceRecord {
    /// The node.
    pub node: NodeName,
    /// The boot that is fenced, where it is known.
    pub boot_id: Option<BootId>,
    /// Epoch of the leader that wrote it.
    pub epoch: u64,
    /// How far.
    pub stage: FenceStage,
}

/// How far the fencing of a node has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FenceStage {
    /// Declared unreachable; no grant from here on, no order given.
    Declared,
    /// A power order may have been given: only a new boot id, or a person, clears the node.
    PowerOrdered,
    /// Proven. Recovery may act.
    Fenced {
        /// By what.
        proof: ProofKind,
    },
    /// The node came back in this boot and is watched before it is trusted.
    Quarantine {
        /// The new boot.
        boot_id: BootId,
    },
    /// The incident is over.
    Closed,
}

/// Which proofs a node could offer if it died now, in the order in which they are tried.
pub(crate) fn proofs_possible(scene: &Scene<'_>, node: &NodeName) -> Vec<ProofKind> {
    let policy = &scene.facts.policy;
    let power = policy.fencing.nodes.contains(node).then_some(ProofKind::PowerOffConfirmed);
    let lease = policy.watchdog_fencing.contains(node).then_some(ProofKind::LeaseExpired);
    let always = [ProofKind::OutOfServiceByOthers, ProofKind::NewBootId, ProofKind::HumanAttested];
    power.into_iter().chain(always).chain(lease).collect()
}

/// Taints that say a machine is off, and that were seen on a node that beat: they say nothing of its next death.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeftoverTaints(BTreeMap<NodeName, BTreeSet<ProofKind>>);

impl LeftoverTaints {
    /// The cluster was read anew; `beats` tells which nodes are healthy.
    pub fn fleet_read(&mut self, scene: &Scene<'_>, beats: impl Fn(&NodeName) -> bool) {
        self.0.retain(|node, _| scene.exists(node));
        for (name, node) in &scene.facts.fleet.nodes {
            for (taint, kind) in POWER_TAINTS {
                let kinds = self.0.entry(name.clone()).or_default();
                match (node.has_taint(taint), beats(name)) {
                    (true, true) => _ = kinds.insert(kind),
                    (true, false) => {}
                    (false, _) => _ = kinds.remove(&kind),
                }
            }
        }
    }

    /// The proof that somebody else gave by a taint.
    pub fn proof(&self, scene: &Scene<'_>, name: &NodeName) -> Option<ProofKind> {
        let node = scene.facts.fleet.nodes.get(name)?;
        let leftover = |kind: &ProofKind| self.0.get(name).is_some_and(|kinds| kinds.contains(kind));
        POWER_TAINTS
            .into_iter()
            .find(|(taint, kind)| node.has_taint(taint) && !leftover(kind))
            .map(|(_, kind)| kind)
    }
}

const POWER_TAINTS: [(&str, ProofKind); 2] = [
    (CLOUD_SHUTDOWN_TAINT, ProofKind::CloudShutdown),
    (OUT_OF_SERVICE_TAINT, ProofKind::OutOfServiceByOthers),
];

/// The proof that others give for this boot of a node: a taint, or a person's word.
pub(crate) fn given_by_others(
    scene: &Scene<'_>,
    leftovers: &LeftoverTaints,
    node: &NodeName,
    boot: Option<&BootId>,
) -> Option<ProofKind> {
    let attested =
        scene.facts.requests.attestations.get(node).is_some_and(|word| Some(&word.boot_id) == boot);
    leftovers.proof(scene, node).or(attested.then_some(ProofKind::HumanAttested))
}
