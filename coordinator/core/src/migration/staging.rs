//! New volumes that only the class's own provisioner can make, and that no agent reaches below a storage root of its own: a
//! claim of ours has the volume made, and a pod of ours, the holder, keeps it mounted on the target node while that node's
//! agent writes to it.
//!
//! ```text
//!   nothing ──Stage──► claim and holder wait ──► bound, on Retain, mounted: the agent copies
//!                                                   │
//!                    put back: Unstage, discarded ◄─┴─► swap: Unstage, kept. The volume is Released by our claim,
//!                    (the volume goes with its claim)    and then pre-bound to the VM's, as any other
//! ```
//!
//! Claim and holder have one name, and live in the coordinator's own namespace: nobody else's pods or quotas are touched.
//! The volume's name is learnt when it is bound. It is discarded only while our claim is the one that it is bound to: then
//! no other claim ever had it.

use super::{DiskMove, MigrationRecord, Refusal};
use crate::fleet::{Fleet, Holder, Staged, StorageRoot, Volume, VolumeSource};
use crate::io::{Action, ClaimTemplate, Staging};
use crate::locality;
use crate::names::{Key, NodeName, VolumeName};

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
pub(super) fn can_hold(fleet: &Fleet, node: &NodeName, class: &str) -> bool {
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
    let Staged { claim, holder } = fleet.staged.get(name).cloned().unwrap_or_default();
    let (Some(claim), Some(holder)) = (claim, holder) else {
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
    let holder = staged.holder.as_ref().filter(|holder| holder.running && !holder.deleting)?;
    let volume = fleet.volumes.get(&disk.new.name).filter(|_| !claim.deleting)?;
    path(disk, &disk.new.name, volume, holder, fleet)
}

/// A holder that was lost (evicted, or gone with its node) is made anew, for volumes that are still to be written.
pub(super) fn hold_again(record: &MigrationRecord, fleet: &Fleet) -> Vec<Action> {
    let lost = |disk: &&DiskMove| disk.staging.is_some() && reach(disk, fleet).is_none();
    let again = |disk: &DiskMove| {
        let name = disk.staging.as_ref()?;
        let staged = fleet.staged.get(name)?;
        let whole = staged.claim.as_ref().is_some_and(|claim| !claim.deleting) && staged.holder.is_none();
        whole.then(|| Action::Stage(Box::new(staging(&record.key, disk, name))))
    };
    record.disks.iter().filter(lost).filter_map(again).collect()
}

/// What still stands between the new volumes and their pre-binding: claims and holders of ours, which go and leave the
/// volumes. `None` where nothing does.
pub(super) fn let_go(disks: &[DiskMove], fleet: &Fleet) -> Option<Vec<Action>> {
    unstage(disks, fleet, |_, _| None)
}

/// The same where everything is put back: what no other claim ever had goes.
pub(super) fn discard(disks: &[DiskMove], fleet: &Fleet) -> Option<Vec<Action>> {
    unstage(disks, fleet, |name, fleet| {
        let claim = fleet.staged.get(name)?.claim.as_ref()?;
        let volume = claim.volume.as_ref()?;
        let reference = fleet.volumes.get(volume)?.claim.as_ref()?;
        (reference.uid.as_ref() == Some(&claim.uid)).then(|| volume.clone())
    })
}

/// Volumes that no claim of ours has any more and that are left over where everything was put back: nobody but a person
/// removes those.
pub(super) fn left_over(disks: &[DiskMove], fleet: &Fleet) -> Vec<VolumeName> {
    let staged = disks.iter().filter(|disk| disk.staging.is_some()).map(|disk| &disk.new.name);
    staged.filter(|name| fleet.volumes.contains_key(*name)).cloned().collect()
}

fn unstage(
    disks: &[DiskMove],
    fleet: &Fleet,
    discarded: impl Fn(&str, &Fleet) -> Option<VolumeName>,
) -> Option<Vec<Action>> {
    let names: Vec<&String> = disks
        .iter()
        .filter_map(|disk| disk.staging.as_ref())
        .filter(|name| fleet.staged.contains_key(*name))
        .collect();
    let actions = names.iter().map(|name| Action::Unstage {
        name: (*name).clone(),
        claim_uid: fleet.staged[*name].claim.as_ref().map(|claim| claim.uid.clone()),
        discarded: discarded(name, fleet),
    });
    (!names.is_empty()).then(|| actions.collect())
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
    let pinned = locality::pinned_node(fleet, volume);
    if let Some(path) = volume.source.path()
        && pinned.as_ref().is_none_or(|node| *node == disk.target_node)
        && report.root_of(path).is_some_and(|root| root.lists(path) && root.takes_copies())
    {
        return Some(path.to_owned());
    }
    let (plugin, last) = match &volume.source {
        VolumeSource::Csi { .. } => ("csi", "/mount"),
        VolumeSource::Network { field } if field == "nfs" => ("nfs", ""),
        VolumeSource::Local { .. } => ("local-volume", ""),
        // Kubelets mount no hostPath, and the in-tree drivers of block storage are gone or speak CSI.
        _ => return None,
    };
    let (pods, uid) = (report.pods.as_ref()?, &holder.uid);
    Some(format!("{pods}/{uid}/volumes/kubernetes.io~{plugin}/{name}{last}"))
}
