//! A folder that no volume names becomes the disk of the claim that lost it: a disk that was put into another machine, a
//! node that came back under another name, a volume whose object somebody deleted.
//!
//! ```text
//!   folders that agents list, and no volume names ──► orphans, each with the claim that its name tells of
//!
//!   orphan + claim ── nothing speaks against it ──► the old volume on Retain ─► a volume for the folder, kept for nobody
//!                                                   ─► pre-bound to the claim's name ─► the claim made anew
//! ```
//!
//! Nothing is copied and no byte is touched. A claim that some living machine may still write to by another volume is left
//! alone: two disks of one name would drift apart unseen.

use std::collections::{BTreeMap, BTreeSet};

use crate::fleet::{Claim, DiskImage, Fleet, StorageRoot, Usage, Volume, VolumeMode, folder};
use crate::io::{Action, ClaimTemplate, NewVolume};
use crate::locality::{self, pinned_node};
use crate::migration::{self, Refusal};
use crate::names::{Key, NodeName, Uid, VolumeName};

/// How the names of volumes begin that are made for adopted folders.
const ADOPTED_PREFIX: &str = "smst-adopted-";
/// How a claim may be used where nothing tells: by pods of one node.
const ACCESS_MODE: &str = "ReadWriteOnce";

/// A folder that no volume names.
#[derive(Clone, Debug, PartialEq)]
pub struct Orphan {
    /// Where it is.
    pub node: NodeName,
    /// Absolute path there.
    pub path: String,
    /// Storage class of the root that it is below.
    pub class: String,
    /// Its size, and whether `disk.img` is in it.
    pub usage: Usage,
    /// The claim that its name tells of, in the way in which provisioners name folders.
    pub of: Option<Key>,
}

/// What agents may be asked about, and which nodes can be doing something unseen.
#[derive(Clone, Copy, Debug)]
pub struct Nodes<'a> {
    /// Healthy nodes with a live agent.
    pub usable: &'a BTreeSet<NodeName>,
    /// Nodes of which nothing runs or writes any more, as is proven.
    pub proven_dead: &'a BTreeSet<NodeName>,
}

/// A folder, and the claim that is to have it.
#[derive(Clone, Debug, PartialEq)]
pub struct Adoption {
    /// The claim.
    pub claim: Key,
    /// The volume for the folder.
    pub volume: NewVolume,
    /// The volume's object is there already.
    made: bool,
    /// The claim's present object, which goes.
    present: Option<Uid>,
    /// The volume that the claim has now, where its object is there.
    old: Option<VolumeName>,
    template: ClaimTemplate,
}

/// Every folder that no volume names, of nodes whose agents live.
pub fn orphans(fleet: &Fleet, nodes: &Nodes<'_>) -> Vec<Orphan> {
    let nobody = VolumeName::from("");
    let mut found = Vec::new();
    for (node, report) in fleet.reports.iter().filter(|(node, _)| nodes.usable.contains(*node)) {
        for (path, usage) in &report.usage {
            let Some(root) = report.root_of(path).filter(|root| root.lists(path) && !root.shared) else {
                continue;
            };
            if locality::other_user(fleet, &nobody, Some(node), path).is_none() {
                found.push(Orphan {
                    node: node.clone(),
                    path: path.clone(),
                    class: root.class.clone(),
                    usage: *usage,
                    of: claim_of(fleet, path),
                });
            }
        }
    }
    found
}

/// The claim that a folder's name tells of. Provisioners name it after the volume, local-path after volume, namespace and
/// claim.
fn claim_of(fleet: &Fleet, path: &str) -> Option<Key> {
    let name = folder(path).rsplit('/').next()?;
    let mut parts = name.split('_');
    let volume = VolumeName::from(parts.next()?);
    let lost = fleet.claims.iter().find(|(_, claim)| claim.volume.as_ref() == Some(&volume));
    if let Some((key, _)) = lost {
        return Some(key.clone());
    }
    match (parts.next(), parts.next(), parts.next()) {
        (Some(namespace), Some(claim), None) if !namespace.is_empty() && !claim.is_empty() => {
            Some(Key::new(namespace, claim))
        }
        _ => None,
    }
}

/// What has to be done so that the claim gets this folder, or what speaks against it. Whether a migration is at work on the
/// claim is not asked: the lock of one that has ended is nothing that a claim would lose.
pub fn plan(
    fleet: &Fleet,
    nodes: &Nodes<'_>,
    (node, path): (&NodeName, &str),
    claim: &Key,
) -> Result<Adoption, Refusal> {
    let path = folder(path);
    let name = volume_name(node, path, claim);
    let (root, usage) = seen(fleet, nodes, node, path)?;
    if let Some(user) = locality::other_user(fleet, &name, Some(node), path) {
        let message =
            format!("{user} has folder {path}, one inside of it, or one around it: it is no orphan");
        return Err(Refusal::new("FolderInUse", message));
    }
    let present = fleet.claims.get(claim);
    if present
        .is_some_and(|present| present.volume.as_ref() == Some(&name) && fleet.volumes.contains_key(&name))
    {
        let message = format!("claim {claim} has the folder already, by volume {name}");
        return Err(Refusal::new("AlreadyAdopted", message));
    }
    if let Some(present) = present {
        may_lose_its_volume(fleet, nodes, node, claim, present)?;
    }
    nobody_uses(fleet, claim)?;
    let template = template(fleet, present, fleet.volumes.get(&name), root, usage);
    let volume = NewVolume {
        class: root.class.clone(),
        node: Some(node.clone()),
        path: path.to_owned(),
        capacity_bytes: template.requested_bytes,
        access_modes: template.access_modes.clone(),
        mode: VolumeMode::Filesystem,
        claim: migration::reserved(claim, name.as_str()),
        name,
    };
    let bound = present.and_then(|present| present.volume.clone());
    Ok(Adoption {
        claim: claim.clone(),
        made: fleet.volumes.contains_key(&volume.name),
        present: present.map(|present| present.uid.clone()),
        old: bound.filter(|old| *old != volume.name && fleet.volumes.contains_key(old)),
        template,
        volume,
    })
}

impl Adoption {
    /// In this order. Each may be done twice: after a crash the same plan, made anew, goes on.
    pub fn steps(&self) -> Vec<Action> {
        let mut steps: Vec<Action> =
            self.old.iter().map(|volume| Action::RetainVolume { volume: volume.clone() }).collect();
        let (claim, volume) = (self.claim.clone(), self.volume.name.clone());
        // Made once, it is pre-bound: not as it was made.
        steps.extend((!self.made).then(|| Action::CreateVolume(self.volume.clone())));
        steps.push(Action::PrebindVolume { volume: volume.clone(), claim: claim.clone() });
        let present = self.present.clone();
        steps.extend(present.map(|uid| Action::DeleteClaim { claim: claim.clone(), uid }));
        steps.push(Action::CreateClaim { claim, template: self.template.clone(), volume });
        steps
    }
}

/// The folder was listed by a living agent, and holds a disk.
fn seen<'a>(
    fleet: &'a Fleet,
    nodes: &Nodes<'_>,
    node: &NodeName,
    path: &str,
) -> Result<(&'a StorageRoot, &'a Usage), Refusal> {
    if !fleet.nodes.contains_key(node) {
        return Err(Refusal::new("NodeNotFound", format!("there is no node {node}")));
    }
    let report = fleet.reports.get(node).filter(|_| nodes.usable.contains(node)).ok_or_else(|| {
        let message =
            format!("node {node} is not healthy, or its agent has told nothing: kubectl somersault status");
        Refusal::not_yet("NodeNotUsable", message)
    })?;
    let root = report.root_of(path).filter(|root| root.lists(path));
    let Some(root) = root else {
        let roots: Vec<&str> = report.roots.iter().map(|root| root.path.as_str()).collect();
        let message = format!(
            "{path} is not where a storage root of node {node} has its volumes (there are: {})",
            roots.join(", ")
        );
        return Err(Refusal::new("PathNotAllowed", message));
    };
    if root.shared {
        let message = format!("{path} is on a filesystem that every node sees: a volume of it needs no node");
        return Err(Refusal::new("FolderShared", message));
    }
    match report.usage.get(path) {
        None => {
            let message = format!(
                "the agent of node {node} does not see folder {path}; what just came is told of within a minute"
            );
            Err(Refusal::not_yet("FolderNotSeen", message))
        }
        Some(usage) if usage.disk_image != DiskImage::Present => {
            let message =
                format!("no disk.img was seen in folder {path} of node {node}: a VM would boot a blank disk");
            Err(Refusal::new("NoDiskImage", message))
        }
        Some(usage) => Ok((root, usage)),
    }
}

/// Nobody can be writing to the volume that the claim has now, and its data is not where it should be.
fn may_lose_its_volume(
    fleet: &Fleet,
    nodes: &Nodes<'_>,
    target: &NodeName,
    key: &Key,
    claim: &Claim,
) -> Result<(), Refusal> {
    if claim.mode == VolumeMode::Block {
        return Err(Refusal::new(
            "BlockMode",
            format!("claim {key} asks for a block device, and a folder is none"),
        ));
    }
    let Some(name) = &claim.volume else { return Ok(()) };
    // Lost.
    let Some(volume) = fleet.volumes.get(name) else { return Ok(()) };
    let (Some(node), Some(path)) = (pinned_node(fleet, volume), volume.source.path()) else {
        let message = format!("claim {key} has volume {name}, which is on no one node: it has lost nothing");
        return Err(Refusal::new("ClaimHasItsVolume", message));
    };
    if !fleet.nodes.contains_key(&node) {
        // A node whose label was changed is there by another name, with the disk in it.
        let mut others =
            fleet.reports.iter().filter(|(other, _)| *other != target && nodes.usable.contains(*other));
        return match others.find(|(_, report)| report.usage.contains_key(folder(path))) {
            Some((other, _)) => {
                let message = format!(
                    "node {other} has folder {path} of volume {name} too: which is the newest, nobody can tell"
                );
                Err(Refusal::new("SeveralFolders", message))
            }
            None => Ok(()),
        };
    }
    if nodes.proven_dead.contains(&node) {
        return Ok(());
    }
    let report = fleet.reports.get(&node).filter(|_| nodes.usable.contains(&node));
    let Some(report) = report else {
        let message = format!(
            "claim {key} has volume {name} on node {node}, which is neither healthy nor proven dead: its VM may be running \
             there. Make sure that it is off, then kubectl somersault attest {node}; or delete its Node object once it is gone for good"
        );
        return Err(Refusal::new("OldNodeInDoubt", message));
    };
    let listed = report.root_of(path).is_some_and(|root| root.lists(path) && root.listed_age.is_some());
    if report.usage.contains_key(folder(path)) || !listed {
        let message = format!(
            "claim {key} has volume {name}, whose folder {path} is on node {node} or may be: a copy of it is moved by kubectl \
             somersault migrate, and one that is to be replaced must be put aside first"
        );
        return Err(Refusal::new("ClaimHasItsVolume", message));
    }
    Ok(())
}

/// Neither a VM that runs, nor one that is about to, nor another pod.
fn nobody_uses(fleet: &Fleet, claim: &Key) -> Result<(), Refusal> {
    let mut users = fleet.vms_with(claim);
    if let Some((vm, _)) = users.find(|(_, vm)| vm.instance.is_some() || !vm.pods.is_empty()) {
        let message = format!(
            "VM {vm} uses claim {claim} and has not stopped: stop it through whoever starts it, first"
        );
        return Err(Refusal::new("VmNotStopped", message));
    }
    match fleet.claims_used_by_others.get(claim).and_then(|pods| pods.first()) {
        Some(pod) => Err(Refusal::new("ClaimInUse", format!("pod {pod} uses claim {claim}"))),
        None => Ok(()),
    }
}

/// As the claim was; else as the volume is that was made for the folder, before somebody broke off; else as the folder tells.
fn template(
    fleet: &Fleet,
    present: Option<&Claim>,
    made: Option<&Volume>,
    root: &StorageRoot,
    usage: &Usage,
) -> ClaimTemplate {
    let Some(claim) = present else {
        return ClaimTemplate {
            class: root.class.clone(),
            requested_bytes: made.map_or(usage.apparent_bytes.max(1), |made| made.capacity_bytes),
            access_modes: made.map_or_else(|| vec![ACCESS_MODE.to_owned()], |made| made.access_modes.clone()),
            mode: VolumeMode::Filesystem,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        };
    };
    let capacity = claim.volume.as_ref().and_then(|name| Some(fleet.volumes.get(name)?.capacity_bytes));
    ClaimTemplate {
        requested_bytes: claim.requested_bytes.max(capacity.unwrap_or_default()),
        ..migration::template(claim, &root.class)
    }
}

/// The same for the same folder and claim: done twice, it is one volume.
fn volume_name(node: &NodeName, path: &str, claim: &Key) -> VolumeName {
    // FNV-1a of 64 bits: no secret, and no two of a fleet's folders alike.
    let text = format!("{node}\0{path}\0{claim}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    VolumeName(format!("{ADOPTED_PREFIX}{hash:016x}-{}", migration::name_part(&claim.name)))
}

#[cfg(test)]
mod tests;
