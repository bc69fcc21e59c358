//! Where a disk is: claim, `PersistentVolume`, node affinity and driver -> locality.
//!
//! ```text
//! claim ─► bound volume ─► 1. the affinity pins it to one node of several        ─► Local
//!   │                      2. a person's word on the class (`ClassOverrides`)    ─► Local | Network
//!   │                      3. what backs it, and its driver's name:
//!   │                           path on a node, node-local driver                ─► Local | Unknown
//!   │                           network volume, network driver                   ─► Network (one replica: Unknown)
//!   │                           a driver that we do not know                     ─► Unknown (zones: Network)
//!   └► missing, unbound, Lost, bound to another, without its volume              ─► Unknown
//! ```
//!
//! Unknown never means network. Taking a local disk for network storage starts the VM elsewhere, where a
//! `hostPath` boots a blank disk; taking network storage for unknown costs a person's look, and one line of
//! [`ClassOverrides`] settles it for good. So each vote for network needs evidence of its own, and the affinity
//! is asked first, because the scheduler obeys it whatever anybody believes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::decision::{Locality, Reason};
use crate::fleet::{Claim, Disk, DiskSource, Fleet, Volume};
use crate::migration;
use crate::names::{Key, NodeName, VolumeName};

mod drivers;
mod overlap;
mod reach;
#[cfg(test)]
mod tests;

use drivers::Vote;
use reach::{Nodes, Reach};

pub(crate) use overlap::other_user;
pub(crate) use reach::{Likely, likely_node};

/// What people say of a storage class, by its name: for drivers that we cannot know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClassOverrides(pub BTreeMap<String, ClassOverride>);

/// A person's word on a storage class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClassOverride {
    /// Each volume is on one node.
    Local,
    /// Volumes are reached from every node that their affinity admits.
    Network,
}

/// Where a disk of a VM in this namespace is, and how we know, in words.
pub fn locate(
    fleet: &Fleet,
    overrides: &ClassOverrides,
    vm_namespace: &str,
    disk: &Disk,
) -> (Locality, String) {
    let Verdict { locality, because, .. } = judge(fleet, overrides, vm_namespace, disk);
    (locality, because)
}

/// A locality with what is wrong beside it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) locality: Locality,
    pub(crate) because: String,
    /// What is wrong with the disk, where something is.
    pub(crate) fault: Option<Reason>,
}

impl Verdict {
    fn new(locality: Locality, because: impl Into<String>) -> Self {
        Self { locality, because: because.into(), fault: None }
    }

    fn unknown(fault: Reason, because: impl Into<String>) -> Self {
        Self { locality: Locality::Unknown, because: because.into(), fault: Some(fault) }
    }
}

/// As [`locate`], with what is wrong.
pub(crate) fn judge(fleet: &Fleet, overrides: &ClassOverrides, vm_namespace: &str, disk: &Disk) -> Verdict {
    match &disk.source {
        DiskSource::Claim { name, .. } => match bound_volume(fleet, &Key::new(vm_namespace, name)) {
            Ok((claim, name, volume)) => {
                let mut verdict = judge_volume(fleet, overrides, claim, name, volume);
                if volume.deleting {
                    let _ = write!(
                        verdict.because,
                        "; somebody is deleting volume {name}: its object goes when its claim does, and until then it cannot be moved"
                    );
                }
                verdict
            }
            Err(broken) => broken,
        },
        DiskSource::HostDisk { path } => {
            Verdict::unknown(Reason::HostDisk, format!("hostDisk {path}: on whichever node the VM last ran"))
        }
        DiskSource::Rebuildable { field } => {
            Verdict::new(Locality::Rebuildable, format!("{field}: made anew at every start"))
        }
        DiskSource::Empty => Verdict::new(Locality::Lost, "emptyDisk: gone with every stop"),
        DiskSource::Unknown { field } => Verdict::unknown(
            Reason::LocalityUnknown,
            format!("a volume of a kind that is not known here ({})", or_none(field)),
        ),
    }
}

/// The volume that a claim is bound to. Absent phases are accepted: hand-written manifests have none, and the
/// binding itself is what counts.
pub(crate) fn bound_volume<'a>(
    fleet: &'a Fleet,
    key: &Key,
) -> Result<(&'a Claim, &'a VolumeName, &'a Volume), Verdict> {
    let Some(claim) = fleet.claims.get(key) else {
        return Err(Verdict::unknown(Reason::ClaimMissing, format!("claim {key} does not exist")));
    };
    if let Some(because) = migration::locked(key, claim) {
        return Err(Verdict::unknown(Reason::ClaimLocked, because));
    }
    if claim.phase == "Lost" {
        return Err(Verdict::unknown(Reason::ClaimLost, format!("claim {key} is Lost")));
    }
    let not_bound = || {
        let (fault, what) = if claim.data_volume.is_some() {
            (Reason::DataVolumeImporting, "is not bound: its DataVolume is not ready")
        } else {
            (Reason::ClaimNotBound, "is not bound to a volume")
        };
        Verdict::unknown(fault, format!("claim {key} {what}"))
    };
    let Some(name) = &claim.volume else { return Err(not_bound()) };
    let Some(volume) = fleet.volumes.get(name) else {
        let because = format!("claim {key} names volume {name}, which does not exist");
        return Err(Verdict::unknown(Reason::VolumeMissing, because));
    };
    if let Some(because) = belongs_to_another(claim, key, volume, name) {
        return Err(Verdict::unknown(Reason::VolumeBoundElsewhere, because));
    }
    // It names a volume that may become its own.
    if claim.phase == "Pending" {
        return Err(not_bound());
    }
    Ok((claim, name, volume))
}

/// Why the volume that a claim names is not the claim's, and cannot be.
fn belongs_to_another(claim: &Claim, key: &Key, volume: &Volume, name: &VolumeName) -> Option<String> {
    if let Some(owner) = volume.claim.as_ref().filter(|owner| owner.key != *key) {
        return Some(format!("volume {name} of claim {key} belongs to claim {}", owner.key));
    }
    let earlier = volume.claim.as_ref().and_then(|owner| owner.uid.as_ref()).is_some_and(|uid| {
        // A manifest without a uid cannot contradict.
        *uid != claim.uid && !uid.as_str().is_empty() && !claim.uid.as_str().is_empty()
    });
    (earlier || matches!(volume.phase.as_str(), "Released" | "Failed"))
        .then(|| format!("volume {name} belongs to an earlier claim {key}, not to the present one"))
}

fn judge_volume(
    fleet: &Fleet,
    overrides: &ClassOverrides,
    claim: &Claim,
    name: &VolumeName,
    volume: &Volume,
) -> Verdict {
    let reach = Reach::of(fleet, volume);
    match &reach.nodes {
        Nodes::One(node) if fleet.nodes.len() > 1 && !reach.zones_only => {
            return local(node, format!("the node affinity of volume {name} admits node {node} only"));
        }
        Nodes::Absent(node) => {
            return named_only(fleet, node, name);
        }
        _ => {}
    }
    let class = if volume.class.is_empty() { &claim.class } else { &volume.class };
    match overrides.0.get(class) {
        Some(ClassOverride::Network) => {
            return Verdict::new(
                Locality::Network,
                format!("class {class} is declared network storage by the policy"),
            );
        }
        Some(ClassOverride::Local) => {
            return on_the_only_node(
                fleet,
                &reach,
                &format!("class {class}, which the policy declares local"),
                name,
            );
        }
        None => {}
    }
    match drivers::vote(fleet, class, volume) {
        Vote::OnNode(what) => on_the_only_node(fleet, &reach, &what, name),
        Vote::Network(what) => match drivers::single_replica(fleet, class, volume) {
            Some(trap) => {
                unclear(format!("{what}, but {trap}: its only copy is on one node, and which is not written"))
            }
            None => Verdict::new(Locality::Network, network_words(&what, &reach)),
        },
        Vote::Contradiction(what) => unclear(what),
        Vote::Unknown(what) => judge_unknown_driver(&reach, &what, name),
    }
}

/// The affinity names a node, but no node bears the label: the node is gone, or was never labelled by a kubelet.
fn named_only(fleet: &Fleet, node: &NodeName, volume: &VolumeName) -> Verdict {
    let mut verdict = local(node, format!("the node affinity of volume {volume} names {node}"));
    if fleet.nodes.contains_key(node) {
        verdict.because.push_str(", though that node lacks the label");
    } else {
        verdict.because.push_str(", which is not in the cluster");
        verdict.fault = Some(Reason::DiskNodeGone);
    }
    verdict
}

/// The one node that a volume's affinity admits or names, whatever backs the volume.
pub fn pinned_node(fleet: &Fleet, volume: &Volume) -> Option<NodeName> {
    match Reach::of(fleet, volume).nodes {
        Nodes::One(node) | Nodes::Absent(node) => Some(node),
        Nodes::Any | Nodes::Several(_) | Nodes::None => None,
    }
}

/// A volume that is on one node by its nature: which, if its affinity does not say?
fn on_the_only_node(fleet: &Fleet, reach: &Reach, what: &str, name: &VolumeName) -> Verdict {
    match &reach.nodes {
        Nodes::One(node) => local(node, format!("{what}, on the one node that its affinity admits")),
        // Docker Desktop, minikube and the like: there is no other node that it could be on.
        Nodes::Any if fleet.nodes.len() == 1 => match fleet.nodes.keys().next() {
            Some(node) => local(node, format!("{what}, in a cluster of one node")),
            None => unclear(what),
        },
        // Also the shape of a path that every node mounts (local-path's sharedFileSystemPath): only a person
        // can tell it from a folder of the same name on each node.
        Nodes::Any => {
            unclear(format!("{what}, and volume {name} has no node affinity: nobody can tell which node"))
        }
        Nodes::Several(count) => unclear(format!(
            "{what}, and the affinity of volume {name} admits {count} nodes: nobody can tell which"
        )),
        Nodes::None | Nodes::Absent(_) => {
            unclear(format!("{what}, and the affinity of volume {name} admits no node that exists"))
        }
    }
}

/// A driver that is in no table of ours. That it constrains nothing proves nothing: drivers that keep data on a
/// node and publish no topology exist (the hostpath example driver among them), so silence is not evidence. A
/// topology made of zones is: the driver knows of topology and says that every node of the zone will do, which
/// a driver that keeps its data on one node cannot say, unless the zone is that one node.
fn judge_unknown_driver(reach: &Reach, what: &str, name: &VolumeName) -> Verdict {
    match &reach.nodes {
        Nodes::Several(count) if reach.zones_only => Verdict::new(
            Locality::Network,
            format!(
                "{what} that is not known here, but volume {name} may be used from any of {count} nodes of its zone"
            ),
        ),
        _ => unclear(format!("{what} that is not known here, and nothing else says where volume {name} is")),
    }
}

fn network_words(what: &str, reach: &Reach) -> String {
    match &reach.nodes {
        Nodes::Any => what.to_owned(),
        Nodes::One(node) => format!("{what}, to be reached from node {node} only"),
        Nodes::Several(count) => format!("{what}, to be reached from {count} nodes"),
        Nodes::None | Nodes::Absent(_) => format!("{what}, to be reached from no node that exists"),
    }
}

fn local(node: &NodeName, because: String) -> Verdict {
    Verdict::new(Locality::Local { node: node.clone() }, because)
}

fn unclear(because: impl Into<String>) -> Verdict {
    Verdict::unknown(Reason::LocalityUnknown, because)
}

fn or_none(field: &str) -> &str {
    if field.is_empty() { "no field" } else { field }
}
