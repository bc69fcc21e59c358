//! New volumes that only the class's own provisioner can make, and that no agent reaches below a storage root of its own: a
//! claim of ours has the volume made, and a pod of ours, the holder, keeps it mounted on the target node while that node's
//! agent writes to it.
//!
//! ```text
//!   nothing ──Stage──► claim and holder wait ──► bound, on Retain, mounted: the agent copies
//!                                                   │
//!          put back: the volume is discarded, if ◄──┴──► swap: Unstage, the volume is kept. It is Released by our
//!          it was made for our claim; Unstage            claim, and then pre-bound to the VM's, as any other
//! ```
//!
//! Claim and holder have one name, and live in a namespace of the coordinator's own. The volume's name is learnt when it is
//! bound. What a claim is bound to need not have been made for it: a volume that was there before, with whatever is on it,
//! is never discarded, and one that was made never once another claim than ours was bound to it.

use std::collections::BTreeSet;

use super::{DiskMove, MigrationRecord, Refusal, mounted};
use crate::fleet::{Fleet, Holder, Staged, StorageRoot, Volume, VolumeMode, VolumeSource};
use crate::io::{Action, ClaimTemplate, Staging};
use crate::locality;
use crate::names::{Key, NodeName, Uid, VolumeName};

/// What a new volume still needs until it can be copied into.
pub(super) enum Step {
    Act(Action),
    /// Other people's turn; what is waited for.
    Wait(String),
    /// It is there, on Retain, and the agent of the target reaches it.
    Ready(VolumeName),
}

/// Whether a node's agent can be given a volume of this class that its provisioner makes: kubelets mount most volumes, and
/// those of a provisioner whose folders are below a root are reached there.
pub(crate) fn can_hold(fleet: &Fleet, node: &NodeName, class: &str) -> bool {
    let provisioner = |class: &str| fleet.classes.get(class).map(|class| class.provisioner.as_str());
    let known = |root: &str| provisioner(root).is_some() && provisioner(root) == provisioner(class);
    let known = |root: &StorageRoot| root.takes_copies() && known(&root.class);
    let report = fleet.reports.get(node);
    report.is_some_and(|report| report.pods.is_some() || report.roots.iter().any(known))
}

/// Towards a volume that can be copied into.
pub(super) fn prepare(
    record: &MigrationRecord,
    disk: &DiskMove,
    name: &str,
    fleet: &Fleet,
) -> Result<Step, Refusal> {
    let wait = |what: String| Ok(Step::Wait(what));
    let Staged { claim, holder, .. } = fleet.staged.get(name).cloned().unwrap_or_default();
    let (Some(claim), Some(holder)) = (claim, holder.filter(|holder| !holder.ended)) else {
        return Ok(Step::Act(Action::Stage(Box::new(staging(&record.key, disk, name)))));
    };
    if claim.deleting || holder.deleting {
        return wait(format!("what was {name} before is going"));
    }
    let Some(volume_name) = claim.volume else {
        return wait(format!("claim {name} of class {} is not bound: kubectl describe it", disk.new.class));
    };
    let bound = |volume: &&Volume| {
        volume.claim.as_ref().is_some_and(|reference| reference.uid.as_ref() == Some(&claim.uid))
    };
    let Some(volume) = fleet.volumes.get(&volume_name).filter(bound) else {
        return wait(format!("volume {volume_name} is not seen bound to claim {name}"));
    };
    if !volume.retained {
        return Ok(Step::Act(Action::RetainVolume { volume: volume_name }));
    }
    if !holder.running {
        return wait(format!("pod {name} does not run on node {}: kubectl describe it", disk.target_node));
    }
    if path(disk, &volume_name, volume, &holder, fleet).is_some() {
        return Ok(Step::Ready(volume_name));
    }
    let message = format!(
        "volume {volume_name} of class {} is nowhere that the agent of node {} can write to: a storage root is needed there, or \
         the component movers of Somersault's deploy/",
        disk.new.class, disk.target_node
    );
    Err(Refusal::new("VolumeNotReachable", message))
}

/// Where the target's agent writes a new volume now; `None` while nothing holds it.
pub(super) fn reach(disk: &DiskMove, fleet: &Fleet) -> Option<String> {
    let Some(name) = &disk.staging else { return Some(disk.new.path.clone()) };
    let staged = fleet.staged.get(name)?;
    let claim = staged.claim.as_ref().filter(|claim| claim.volume.as_ref() == Some(&disk.new.name))?;
    let holder =
        staged.holder.as_ref().filter(|holder| holder.running && !holder.deleting && !holder.ended)?;
    let volume = fleet.volumes.get(&disk.new.name).filter(|_| !claim.deleting)?;
    path(disk, &disk.new.name, volume, holder, fleet)
}

/// A holder that was lost (evicted, or gone with its node) is made anew, for volumes that are still to be written.
pub(super) fn hold_again(record: &MigrationRecord, fleet: &Fleet) -> Vec<Action> {
    let again = |disk: &DiskMove| {
        let name = disk.staging.as_ref()?;
        let staged = fleet.staged.get(name)?;
        let lost = staged.holder.as_ref().is_none_or(|holder| holder.ended && !holder.deleting);
        let whole = staged.claim.as_ref().is_some_and(|claim| !claim.deleting);
        (lost && whole).then(|| Action::Stage(Box::new(staging(&record.key, disk, name))))
    };
    record.disks.iter().filter_map(again).collect()
}

/// What still stands between the new volumes and their pre-binding: claims and holders of ours, which go and leave the
/// volumes. `None` where nothing does.
pub(super) fn let_go(disks: &[DiskMove], fleet: &Fleet) -> Option<Vec<Action>> {
    let names = disks.iter().filter_map(|disk| disk.staging.as_ref());
    let there: Vec<&String> = names.filter(|name| fleet.staged.contains_key(*name)).collect();
    let keep = |name: &&String| unstage(name, fleet, false);
    (!there.is_empty()).then(|| there.iter().map(keep).collect())
}

/// What putting back still has to do with the volumes that were made.
pub(super) enum Clearing {
    /// These are to be known, by the places of their disks, before their claims go.
    Learn(Vec<(usize, VolumeName)>),
    Need(Vec<Action>),
    Done,
}

/// Everything goes that was made for this migration and that no claim but ours ever had. `unstaged` are the names whose claim
/// and pod were deleted in this phase; when they are gone is for Kubernetes to say, and on a dead node may take long.
pub(super) fn clear(disks: &[DiskMove], unstaged: &BTreeSet<String>, fleet: &Fleet) -> Clearing {
    let (mut unknown, mut needs, mut done) = (Vec::new(), Vec::new(), true);
    for (place, disk) in disks.iter().enumerate() {
        let Some(name) = &disk.staging else { continue };
        let claim = fleet.staged.get(name).and_then(|staged| staged.claim.as_ref());
        match claim.and_then(|claim| claim.volume.as_ref()) {
            Some(volume) if *volume != disk.new.name => unknown.push((place, volume.clone())),
            _ => match let_nothing_stay(name, &disk.new.name, unstaged, fleet) {
                Some(action) => needs.push(action),
                None => done &= unstaged.contains(name),
            },
        }
    }
    match (unknown.is_empty(), done && needs.is_empty()) {
        (false, _) => Clearing::Learn(unknown),
        (true, true) => Clearing::Done,
        (true, false) => Clearing::Need(needs),
    }
}

/// Claims and pods of ours that no migration at work has any more: a leader that was deposed, or a migration that ended
/// while they were being made, has left them.
pub(super) fn sweep(wanted: &BTreeSet<&String>, fleet: &Fleet) -> Vec<Action> {
    let left = fleet.staged.iter().filter(|(name, _)| !wanted.contains(name));
    let action = |(name, staged): (&String, &Staged)| {
        let volume = staged.claim.as_ref().and_then(|claim| claim.volume.clone());
        let nobody = BTreeSet::new();
        let_nothing_stay(name, &volume.unwrap_or_else(|| VolumeName(name.clone())), &nobody, fleet)
    };
    left.filter_map(action).collect()
}

/// The next step until nothing of it is there but what somebody else had a use for.
fn let_nothing_stay(
    name: &str,
    volume_name: &VolumeName,
    unstaged: &BTreeSet<String>,
    fleet: &Fleet,
) -> Option<Action> {
    let claim = fleet.staged.get(name).and_then(|staged| staged.claim.as_ref());
    let volume = fleet.volumes.get(volume_name);
    let made_for = volume.and_then(|volume| made_for(name, volume_name, volume));
    if let (Some(volume), Some(claim_uid)) = (volume, &made_for)
        && volume.retained
    {
        return Some(Action::DiscardVolume { volume: volume_name.clone(), claim_uid: claim_uid.clone() });
    }
    if unstaged.contains(name) {
        return None;
    }
    let ours = |volume: &&Volume| {
        let uid = volume.claim.as_ref().and_then(|of| of.uid.as_ref());
        claim.is_some_and(|claim| uid == Some(&claim.uid))
    };
    // It was there before our claim, with whatever is on it.
    if let Some(volume) = volume.filter(ours)
        && made_for.is_none()
        && !volume.retained
    {
        return Some(Action::RetainVolume { volume: volume_name.clone() });
    }
    Some(unstage(name, fleet, made_for.is_some()))
}

/// The uid of our claim, where a provisioner has made the volume for that very one, and no other was ever bound to it:
/// provisioners name a volume after the claim's uid (`pvc-<uid>`, or with another prefix).
fn made_for(name: &str, volume_name: &VolumeName, volume: &Volume) -> Option<Uid> {
    let of = volume.claim.as_ref().filter(|of| of.key.name == name)?;
    let uid = of.uid.as_ref().filter(|uid| !uid.as_str().is_empty())?;
    (volume.provisioned_by.is_some() && volume_name.as_str().ends_with(uid.as_str())).then(|| uid.clone())
}

/// Volumes that are left over where everything was put back: there before our claims, or kept for another one already.
/// Nobody but a person removes those.
pub(super) fn left_over(disks: &[DiskMove], fleet: &Fleet) -> Vec<VolumeName> {
    let staged = disks.iter().filter(|disk| disk.staging.is_some()).map(|disk| &disk.new.name);
    let kept = |name: &&VolumeName| fleet.volumes.get(*name).is_some_and(|volume| volume.retained);
    staged.filter(kept).cloned().collect()
}

pub(super) fn unstage(name: &str, fleet: &Fleet, volume_goes: bool) -> Action {
    let claim = fleet.staged.get(name).and_then(|staged| staged.claim.as_ref());
    Action::Unstage { name: name.to_owned(), claim_uid: claim.map(|claim| claim.uid.clone()), volume_goes }
}

fn staging(migration: &Key, disk: &DiskMove, name: &str) -> Staging {
    Staging {
        name: name.to_owned(),
        node: disk.target_node.clone(),
        migration: migration.clone(),
        template: ClaimTemplate {
            class: disk.new.class.clone(),
            requested_bytes: disk.new.capacity_bytes,
            access_modes: disk.new.access_modes.clone(),
            mode: disk.new.mode,
            labels: [].into(),
            annotations: [].into(),
        },
        alias_of: None,
    }
}

/// Below a storage root, where the volume is a folder of one; else where the kubelet has mounted it for the holder.
fn path(
    disk: &DiskMove,
    name: &VolumeName,
    volume: &Volume,
    holder: &Holder,
    fleet: &Fleet,
) -> Option<String> {
    let report =
        fleet.reports.get(&disk.target_node).filter(|_| holder.node.as_ref() == Some(&disk.target_node))?;
    let here = locality::pinned_node(fleet, volume).map(|node| node == disk.target_node);
    if volume.mode == VolumeMode::Filesystem
        && let Some(path) = volume.source.path()
        && let Some(root) = report.root_of(path)
        && root.lists(path)
        && root.takes_copies()
    {
        // A folder that nothing pins is another one on every node, unless it is the same on all.
        return (here == Some(true) || root.shared).then(|| path.to_owned());
    }
    let reached = match &volume.source {
        VolumeSource::Csi { .. } => here != Some(false),
        VolumeSource::Local { .. } => here == Some(true),
        _ => true,
    };
    mounted::held(report.pods.as_ref()?, &holder.uid, volume, name).filter(|_| reached)
}
