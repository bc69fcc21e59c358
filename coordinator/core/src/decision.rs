//! One VM's disks + run strategy + where it may still run -> decision and its reasons.
//!
//! ```text
//! not concerned by the dead nodes ────────────────────────────────► NothingToDo
//! storage broken (claim Lost, volume gone, disk Failed, …) ───────► ManualRecovery, with what may bring it back
//! meant to be stopped ────────────────────────────────────────────► NothingToDo
//! any blocker: a local or unknown disk, a shared claim, a live
//!   migration, paused, never ran, run strategy Manual or Once ────► ManualRecovery
//!   … only system disks that CDI would import anew, from an image,
//!     on another node, and the owner agrees ──────────────────────► Rebuild, if a node fits
//! no blocker ─────────────────────────────────────────────────────► Recreate, if a node fits, else ManualRecovery
//!   … but it tolerates our taint, so that it could be bound to the
//!     dead node again ────────────────────────────────────────────► ManualRecovery
//! ```
//!
//! No proof is asked for here: the decision is published as soon as a node is declared unreachable, so that
//! people know at once. Whoever acts on it must hold a proof for every node in [`Decision::nodes`].
//!
//! Each VM is judged as if it were the only one to be placed; what launchers of other VMs will ask for once
//! they are recreated too is the scheduler's business, which keeps them Pending where there is no room.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::fleet::{Fleet, RunStrategy, Vm};
use crate::locality::ClassOverrides;
use crate::names::{Key, NodeName, VolumeName};

mod disks;
mod index;
pub(crate) mod placement;
mod reason;
pub(crate) mod remedy;
mod report;
mod restore;
mod storage;
mod whereabouts;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod table;
#[cfg(test)]
pub(crate) mod testkit;

use disks::Examined;
use index::Index;
use whereabouts::Whereabouts;

pub use reason::Reason;
pub use report::{ExpectedTimes, ReportRow, report};
pub use restore::{RestoreSource, SourceKind};
pub(crate) use storage::{BrokenDisk, Told, broken_disks};

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
    /// The nodes that are dead, or that we suppose dead. Empty asks about the VM's storage alone.
    pub dead: NodeNameSet,
    /// Other nodes that must not receive a VM now (suspect, quarantined, …).
    pub unusable: NodeNameSet,
}

/// A set of nodes.
pub type NodeNameSet = BTreeSet<NodeName>;

/// Locality of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Locality {
    /// On one node.
    Local {
        /// Which; not necessarily one that exists.
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
    /// The same for people, with names: one sentence or more for each reason, sorted by it.
    pub details: Vec<String>,
    /// Nodes on which it may still run: each must be proven dead before anything is done elsewhere.
    pub nodes: Vec<NodeName>,
    /// Each disk, with its locality.
    pub disks: Vec<DiskFinding>,
    /// In a manual recovery: what may bring back the data of disks that are broken, local or unknown, as far as
    /// objects and agents tell.
    pub restore_from: Vec<RestoreSource>,
    /// One line: what to do so that it fares better.
    pub remedy: String,
}

impl Decision {
    /// The nodes of its local disks, in the order of the disks; a node is named for each of its disks.
    pub fn local_nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.disks.iter().filter_map(|disk| match &disk.locality {
            Locality::Local { node } => Some(node),
            _ => None,
        })
    }

    /// Whether nothing but chance brings it back to its disks still: nobody has moved since what nobody can place.
    pub(crate) fn is_unpinned_still(&self, fleet: &Fleet) -> bool {
        let mut unknown = self.disks.iter().filter(|disk| disk.locality == Locality::Unknown);
        let are_its_own = unknown.all(|disk| {
            let Some(claim) = &disk.claim else { return true };
            let now = fleet.claims.get(&Key::new(&self.vm.namespace, claim));
            now.is_some_and(|now| now.volume.as_ref().map(VolumeName::as_str) == disk.volume.as_deref())
        });
        self.is_unpinned() && are_its_own
    }

    /// Whether nothing but chance brings the VM back to its disks: one of them may be on a single node, and no volume
    /// tells the scheduler of a node.
    pub fn is_unpinned(&self) -> bool {
        let unknown = self.disks.iter().any(|disk| disk.locality == Locality::Unknown);
        unknown && self.local_nodes().next().is_none()
    }
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
    /// Its volume is a folder of a node, and nothing says of which: a node affinity would.
    #[serde(default)]
    pub untied: bool,
    /// A person has said where its class is: to ask again would change nothing.
    #[serde(default)]
    pub declared: bool,
}

impl DiskFinding {
    /// On one node.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.locality, Locality::Local { .. })
    }
}

/// Decides what becomes of `vm` if the nodes of the question are dead. For many VMs of one fleet, a [`Decider`]
/// does it in a fraction of the time.
pub fn decide(fleet: &Fleet, overrides: &ClassOverrides, vm: &Key, question: &Question) -> Decision {
    Decider::new(fleet, overrides).decide(vm, question)
}

/// Decides about VMs of one fleet, of which it has gathered once what each needs to know of the others.
pub struct Decider<'a> {
    fleet: &'a Fleet,
    overrides: &'a ClassOverrides,
    index: Index<'a>,
}

impl<'a> Decider<'a> {
    /// Gathers; takes time in proportion to the number of VMs.
    pub fn new(fleet: &'a Fleet, overrides: &'a ClassOverrides) -> Self {
        Self { fleet, overrides, index: Index::of(fleet) }
    }

    /// Decides what becomes of `vm` if the nodes of the question are dead.
    pub fn decide(&self, vm: &Key, question: &Question) -> Decision {
        decide_with(&self.index, self.fleet, self.overrides, vm, question, &|_, _| true)
    }

    /// Decides about the VM's storage alone, as if only those faults were there that count, by disk and reason: the
    /// others may be of the moment.
    pub(crate) fn decide_storage(&self, vm: &Key, counts: &dyn Fn(&str, Reason) -> bool) -> Decision {
        decide_with(&self.index, self.fleet, self.overrides, vm, &Question::default(), counts)
    }
}

/// Why something is so: the name and the sentence.
type Finding = (Reason, String);

fn decide_with(
    index: &Index,
    fleet: &Fleet,
    overrides: &ClassOverrides,
    key: &Key,
    question: &Question,
    counts: &dyn Fn(&str, Reason) -> bool,
) -> Decision {
    let Some(vm) = fleet.vms.get(key) else {
        let missing = (Reason::VmNotFound, format!("there is no VirtualMachine {key}"));
        return Draft::default().decide(key, DecisionKind::NothingToDo, vec![missing]);
    };
    let whereabouts = Whereabouts::of(vm);
    let examined = disks::examine(fleet, overrides, question, key, vm);
    let draft = Draft {
        nodes: whereabouts.nodes.iter().cloned().collect(),
        disks: examined.iter().map(|disk| disk.finding.clone()).collect(),
        ..Draft::default()
    };

    if let Some(why) = not_concerned(vm, question, &whereabouts, &examined) {
        return draft.decide(key, DecisionKind::NothingToDo, vec![why]);
    }
    let counts = |disk: &Examined, reason| counts(&disk.finding.disk, reason);
    let broken = examined.iter().filter_map(|disk| disk.broken().filter(|(reason, _)| counts(disk, *reason)));
    let broken: Vec<Finding> = broken.collect();
    if !broken.is_empty() {
        // With no dead node nobody asks what would forbid to start it elsewhere.
        let blockers = if question.dead.is_empty() {
            Vec::new()
        } else {
            blockers(index, key, vm, question, &whereabouts, &examined)
        };
        return draft.manual(index, fleet, key, &examined, broken.into_iter().chain(blockers).collect());
    }
    if vm.run == RunStrategy::Halted {
        return draft.decide(key, DecisionKind::NothingToDo, vec![stopped()]);
    }
    if question.dead.is_empty() {
        let sound = (Reason::StorageSound, "no disk of it is broken".to_owned());
        return draft.decide(key, DecisionKind::NothingToDo, vec![sound]);
    }
    let mut findings = blockers(index, key, vm, question, &whereabouts, &examined);
    let (kind, success) = if findings.is_empty() {
        (DecisionKind::Recreate, recreate_reason(&examined))
    } else {
        match disks::rebuild(fleet, vm, &findings, &examined) {
            Ok(reason) => (DecisionKind::Rebuild, reason),
            Err(refusal) => {
                findings.extend(refusal);
                return draft.manual(index, fleet, key, &examined, findings);
            }
        }
    };
    if let Some(node) = placement::dead_node_that_takes_it(fleet, question, vm) {
        let why = format!(
            "it tolerates the taint that keeps VMs off a dead node, and could be bound to {node} again"
        );
        findings.push((Reason::ToleratesFencing, why));
        return draft.manual(index, fleet, key, &examined, findings);
    }
    match placement::fitting_node(index, fleet, question, vm, &examined) {
        Ok(_) => draft.decide(key, kind, vec![success]),
        Err(why) => {
            findings.push((Reason::NoFittingNode, why));
            draft.manual(index, fleet, key, &examined, findings)
        }
    }
}

/// Why the dead nodes are no concern of the VM. With no dead node only its storage is asked about, which always
/// is its concern.
fn not_concerned(
    vm: &Vm,
    question: &Question,
    whereabouts: &Whereabouts,
    examined: &[Examined],
) -> Option<Finding> {
    let disk_there = |disk: &Examined| match &disk.finding.locality {
        Locality::Local { node } => disk.holds_data && question.dead.contains(node),
        _ => false,
    };
    if question.dead.is_empty()
        || !whereabouts.nodes.is_disjoint(&question.dead)
        || examined.iter().any(disk_there)
    {
        return None;
    }
    Some(match whereabouts.nodes.iter().next() {
        Some(node) => (Reason::RunsElsewhere, format!("it runs on node {node}")),
        None if vm.run == RunStrategy::Halted => stopped(),
        None => (Reason::NotRunning, "it does not run, and no disk of it is on a dead node".to_owned()),
    })
}

fn stopped() -> Finding {
    (Reason::Stopped, "it is meant to be stopped".to_owned())
}

/// Everything that forbids starting the VM elsewhere without a person.
fn blockers(
    index: &Index,
    key: &Key,
    vm: &Vm,
    question: &Question,
    whereabouts: &Whereabouts,
    examined: &[Examined],
) -> Vec<Finding> {
    let disks = examined.iter().filter_map(Examined::blocker);
    let shared = examined.iter().flat_map(|disk| index.other_users(key, disk));
    let running = whereabouts.blockers(vm, question);
    disks.chain(shared).chain(running).collect()
}

fn recreate_reason(examined: &[Examined]) -> Finding {
    if examined.iter().any(|disk| disk.holds_data) {
        (Reason::AllDisksOnNetwork, "every data disk is on network storage".to_owned())
    } else {
        (Reason::NoDataDisks, "nothing of it is kept: every volume is made anew at each start".to_owned())
    }
}

/// What is known before the verdict.
#[derive(Default)]
struct Draft {
    nodes: Vec<NodeName>,
    disks: Vec<DiskFinding>,
    restore_from: Vec<RestoreSource>,
}

impl Draft {
    fn manual(
        self,
        index: &Index,
        fleet: &Fleet,
        key: &Key,
        examined: &[Examined],
        findings: Vec<Finding>,
    ) -> Decision {
        let restore_from = restore::sources(index, fleet, examined);
        Self { restore_from, ..self }.decide(key, DecisionKind::ManualRecovery, findings)
    }

    /// Reasons are sorted and named once, so that the order of a VM's disks changes nothing.
    fn decide(self, key: &Key, kind: DecisionKind, findings: Vec<Finding>) -> Decision {
        let findings: BTreeSet<Finding> = findings.into_iter().collect();
        let mut reasons: Vec<Reason> = findings.iter().map(|(reason, _)| *reason).collect();
        reasons.dedup();
        let mut decision = Decision {
            vm: key.clone(),
            kind,
            reasons,
            details: findings.into_iter().map(|(_, detail)| detail).collect(),
            nodes: self.nodes,
            disks: self.disks,
            restore_from: self.restore_from,
            remedy: String::new(),
        };
        decision.remedy =
            decision.reasons.first().map_or_else(String::new, |reason| decision.remedy_for(*reason));
        decision
    }
}
