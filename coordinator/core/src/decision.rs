//! One VM's disks + proof + policy -> decision and its reasons; the recoverability report.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::fleet::Fleet;
use crate::locality::ClassOverrides;
use crate::names::{Key, NodeName};

mod reason;

pub use reason::Reason;

/// What becomes of a VM whose node dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DecisionKind {
    /// Started elsewhere from its disks on network storage.
    Recreate,
    /// System disk imported anew elsewhere, data disks attached.
    Rebuild,
    /// A person follows the runbook; nothing is touched.
    ManualRecovery,
    /// It should not run, or does not run there: nothing to do.
    NothingToDo,
}

/// What a decision is asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// The node that is dead, or that we suppose dead.
    pub dead: NodeNameSet,
    /// Other nodes that must not receive a VM now (suspect, quarantined, …).
    pub unusable: NodeNameSet,
}

/// Decides what becomes of `vm` if the nodes of the question are dead.
pub fn decide(_fleet: &Fleet, _overrides: &ClassOverrides, vm: &Key, _question: &Question) -> Decision {
    Decision {
        vm: vm.clone(),
        kind: DecisionKind::ManualRecovery,
        reasons: vec![Reason::LocalityUnknown],
        nodes: Vec::new(),
        disks: Vec::new(),
        remedy: String::new(),
    }
}

/// A set of nodes.
pub type NodeNameSet = BTreeSet<NodeName>;

/// Locality of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Locality {
    /// On one node.
    Local {
        /// Which.
        node: NodeName,
    },
    /// Reached from other nodes.
    Network,
    /// Made anew at every start.
    Rebuildable,
    /// Gone with every stop (`emptyDisk`).
    Lost,
    /// Nobody can tell: never taken for network.
    Unknown,
}

/// The decision about one VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// The VM.
    pub vm: Key,
    /// What becomes of it.
    pub kind: DecisionKind,
    /// Why, most telling first; never empty.
    pub reasons: Vec<Reason>,
    /// Nodes on which it may still run: each must be proven dead before anything is done elsewhere.
    pub nodes: Vec<NodeName>,
    /// Each disk, with its locality.
    pub disks: Vec<DiskFinding>,
    /// One line: what to do so that it fares better.
    pub remedy: String,
}

/// One disk, judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFinding {
    /// Volume name in the VM.
    pub disk: String,
    /// Its claim.
    pub claim: Option<String>,
    /// Its volume.
    pub volume: Option<String>,
    /// Its storage class.
    pub class: Option<String>,
    /// Where it is.
    pub locality: Locality,
    /// How we know, in words.
    pub because: String,
}
