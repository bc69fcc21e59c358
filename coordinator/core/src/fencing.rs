//! Proofs, fence records, lease arithmetic.

use serde::{Deserialize, Serialize};

use crate::names::{BootId, NodeName};

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
