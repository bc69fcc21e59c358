//! Proofs, fence records, lease arithmetic: when we may act on a declared node.
//!
//! ```text
//!  declared ─► Declared ──────────────► PowerOrdered ──────────────► Fenced{proof} ──► Quarantine{boot} ─► Closed
//!                │  │  a fence agent       │   off, read back           ▲   │  new boot      │   ▲  │        ▲
//!                │  │  is configured       ├────────────────────────────┘   │                └───┘  │        │
//!                │  └──────────────────────┼── taint, word, new boot ─►     │           another boot│        │
//!                │                         │  (word: this boot only)        └── a beat of the fenced│boot:   │
//!                │                         │                                    FenceContradicted   │        │
//!                └── the same boot beats ──┴ (once no run of the fence agent is under way) ─► Closed └───────┘
//! ```
//!
//! Every arrow is a commit under our epoch, and nothing that follows from a stage happens before that commit came
//! back: the fence agent runs after `PowerOrdered` is stored, VMs are touched after `Fenced` is. From the
//! declaration until Quarantine the node's beats are not answered. A record that an earlier leader left is taken
//! over by storing it again under our epoch, which fails where somebody newer leads.
//!
//! Nobody switches a living node off: no run begins once the node has beaten since its declaration, nor while its kubelet
//! renews its lease, and a leader that finds an order in a record, and has not heard the node itself, listens first. A run
//! that is under way may still take effect: until it has ended the node is not trusted, after that its incident is over, and
//! if it falls silent all the same, that is another incident. Only of a fence agent that said off of a node that beats
//! nobody knows what it switches, and a person must reboot the node.
//!
//! The rules of each proof:
//! - `PowerOffConfirmed`: the run that we ordered in this epoch ended with off, read back, and every other node that beat when
//!   it was ordered has beaten since: see `bystanders`.
//! - `CloudShutdown`, `OutOfServiceByOthers`: the taint, if we saw it appear while the node was silent: one that was
//!   there before is left over from another time.
//! - `HumanAttested`: a person's word about this very boot, if we saw it given while the node was silent, and no beat
//!   came since: see `attested`.
//! - `NewBootId`: a beat in a boot that is new to us, or a boot id in Node.status that appeared since the
//!   declaration.
//! - `LeaseExpired`: see `lease`; only of a boot in which a grant arrived, for enrolled nodes, and only the simulation enrols any.
//!
//! All but `NewBootId` are believed only of a node that is silent: a proof that beats contradict is none. A fence agent
//! that looks at another machine proves nothing and is not run: see `agents`, which asks them while all is well.

pub mod agents;
mod attested;
mod bystanders;
mod case;
pub mod lease;
#[cfg(test)]
mod tests;
pub(crate) mod words;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub(crate) use self::attested::Attested;
pub(crate) use self::case::{Around, Case, Settled};
use crate::BootTime;
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
    /// The node's fence agent looks at another machine, or may have switched another one off: in this incident its word
    /// proves nothing, whoever leads.
    #[serde(default)]
    pub agent_distrusted: bool,
}

/// How far the fencing of a node has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FenceStage {
    /// Declared unreachable; no grant from here on, no order given.
    Declared,
    /// A power order may have been given, and may take effect as long as its run is under way.
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
    let power = scene.can_power_off(node).then_some(ProofKind::PowerOffConfirmed);
    let lease = policy.watchdog_fencing.contains(node).then_some(ProofKind::LeaseExpired);
    let always = [ProofKind::OutOfServiceByOthers, ProofKind::NewBootId, ProofKind::HumanAttested];
    power.into_iter().chain(always).chain(lease).collect()
}

/// Taints by which others say that a machine is off. One counts only for the boot in which we saw it appear on a
/// silent node: one that was there before, or that is still there when the node beats or has booted anew, is left
/// over from another time.
#[derive(Clone, Debug, Default)]
pub(crate) struct PowerTaints {
    seen: BTreeMap<(NodeName, ProofKind), Seen>,
    /// Boots that the Node objects named when they were last read.
    boots: BTreeMap<NodeName, BootId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Absent,
    Appeared,
    LeftOver,
}

impl PowerTaints {
    /// The cluster was read anew.
    pub fn fleet_read(&mut self, scene: &Scene<'_>) {
        self.seen.retain(|(node, _), _| scene.exists(node));
        self.boots.retain(|node, _| scene.exists(node));
        for (name, node) in &scene.facts.fleet.nodes {
            let before = node.boot_id.clone().and_then(|boot| self.boots.insert(name.clone(), boot));
            let booted = before.is_some() && before != node.boot_id;
            for (taint, kind) in POWER_TAINTS {
                // What we have set ourselves follows from a proof and is none.
                let set =
                    node.taints.iter().any(|other| other.key == taint && !other.is_our_out_of_service());
                let seen = self.seen.entry((name.clone(), kind)).or_insert(Seen::LeftOver);
                *seen = match (set, *seen) {
                    (false, _) => Seen::Absent,
                    (true, _) if booted => Seen::LeftOver,
                    (true, Seen::Absent) => Seen::Appeared,
                    (true, before) => before,
                };
            }
        }
    }

    /// The node beats: what its taints say is not so.
    pub fn beats(&mut self, node: &NodeName) {
        for (_, kind) in POWER_TAINTS {
            if let Some(seen) =
                self.seen.get_mut(&(node.clone(), kind)).filter(|seen| **seen == Seen::Appeared)
            {
                *seen = Seen::LeftOver;
            }
        }
    }

    /// The proof that somebody else gave by a taint.
    pub fn proof(&self, name: &NodeName) -> Option<ProofKind> {
        let appeared = |kind: &ProofKind| self.seen.get(&(name.clone(), *kind)) == Some(&Seen::Appeared);
        POWER_TAINTS.into_iter().map(|(_, kind)| kind).find(appeared)
    }
}

const POWER_TAINTS: [(&str, ProofKind); 2] = [
    (CLOUD_SHUTDOWN_TAINT, ProofKind::CloudShutdown),
    (OUT_OF_SERVICE_TAINT, ProofKind::OutOfServiceByOthers),
];

/// How long a run of a fence agent may take at the most: the shell has the same deadline, and the second half is for what it
/// needs around the run.
fn run_max(scene: &Scene<'_>) -> BootTime {
    scene.facts.policy.fencing.timeout.mul_f64(1.5)
}

/// The proof that others give for this boot of a node: a taint, or a person's word.
pub(crate) fn given_by_others(
    taints: &PowerTaints,
    words: &Attested,
    node: &NodeName,
    boot: Option<&BootId>,
) -> Option<ProofKind> {
    taints.proof(node).or(words.proves(node, boot).then_some(ProofKind::HumanAttested))
}
