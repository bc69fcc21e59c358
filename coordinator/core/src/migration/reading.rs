//! Old volumes that no agent reaches below a storage root, since only kubelets mount them (CSI, NFS, local volumes that no
//! root covers): from where they are read.
//!
//! ```text
//!   the VM runs ──► read where its own pod has them mounted: the pre-copy. A block device, which no pod but a holder hands
//!        │          over, is left to the last copy.
//!        │
//!        │ stopped, every claim locked, and with that Released
//!        ▼
//!   Stage: alias, claim, holder ──► mounted read-only for the holder: the last copy
//!        │
//!        │ copied, or put back
//!        ▼
//!   Unstage: all three go, the storage stays
//! ```
//!
//! While its claims are locked no pod of the VM's namespace can have its volumes, and we may make pods nowhere but in our
//! own. So the last copy reads by way of an **alias**: a second `PersistentVolume` object of ours for the same storage, with
//! a claim and a holder of its name in our namespace for such. It is made for a Released volume only, is on Retain from its
//! first moment and names no provisioner, so that its deletion never deletes storage. The old volume and its object are
//! looked at, and not touched.
//!
//! A guest must not have a volume that our holder still has mounted. Therefore [`let_go`] is asked wherever a holder has no
//! business to be, and whoever gives a claim its old volume back waits for [`are_gone`]. On the way forward nobody waits: the
//! guest goes to other storage, and a driver's detaching would be downtime.

use std::collections::BTreeSet;

use super::{Context, DiskMove, MigrationRecord, mounted, staging};
use crate::fleet::{Fleet, Staged, Vm, VolumeMode};
use crate::io::{Action, ClaimTemplate, Staging};
use crate::names::{NodeName, Uid, VolumeName};

/// Where an old volume is read now: by which node's agent, and at which path there. `None` while nobody has it mounted.
pub(super) fn reach(
    vm: Option<&Vm>,
    disk: &DiskMove,
    final_: bool,
    fleet: &Fleet,
) -> Option<(NodeName, String)> {
    let Some(name) = &disk.reading else {
        return Some((disk.source_node.clone(), disk.source_path.clone()));
    };
    let (node, pod) = if final_ { held(fleet.staged.get(name)?)? } else { used(vm?, &disk.claim.name)? };
    let pods = fleet.reports.get(node)?.pods.as_ref()?;
    let old = fleet.volumes.get(&disk.old)?;
    let path = if final_ {
        mounted::held(pods, pod, old, &VolumeName(name.clone()))?
    } else {
        mounted::path(pods, pod, &old.source, &disk.old).filter(|_| old.mode == VolumeMode::Filesystem)?
    };
    Some((node.clone(), path))
}

/// The pod of a VM that has the claim mounted, where the VM runs.
fn used<'a>(vm: &'a Vm, claim: &str) -> Option<(&'a NodeName, &'a Uid)> {
    let node = vm.instance.as_ref()?.node.as_ref()?;
    let mut pods = vm.pods.iter().filter(|pod| pod.node.as_ref() == Some(node) && pod.phase == "Running");
    pods.find(|pod| pod.claims.contains(claim)).map(|pod| (node, &pod.uid))
}

/// The holder, while all of it is there to stay.
fn held(staged: &Staged) -> Option<(&NodeName, &Uid)> {
    let holder = staged.holder.as_ref().filter(|holder| holder.running && !holder.ended)?;
    let whole = staged.alias.is_some() && staged.claim.is_some() && !is_any_going(staged);
    Some((holder.node.as_ref().filter(|_| whole)?, &holder.uid))
}

/// What is still to be made so that every one of them is mounted for a holder: only of what no claim has any more, and not
/// while an earlier one is going.
pub(super) fn hold(record: &MigrationRecord, fleet: &Fleet) -> Vec<Action> {
    let missing = |disk: &DiskMove| {
        let name = disk.reading.as_ref()?;
        let old = fleet.volumes.get(&disk.old).filter(|old| old.phase == "Released")?;
        let staged = fleet.staged.get(name).cloned().unwrap_or_default();
        let held = staged.holder.as_ref().is_some_and(|holder| !holder.ended);
        let whole = staged.alias.is_some() && staged.claim.is_some() && held;
        let template = ClaimTemplate {
            // None: what it gets is told by name, and no provisioner is to care for it.
            class: String::new(),
            requested_bytes: old.capacity_bytes,
            access_modes: old.access_modes.clone(),
            mode: old.mode,
            labels: [].into(),
            annotations: [].into(),
        };
        (!whole && !is_any_going(&staged)).then(|| {
            Action::Stage(Box::new(Staging {
                name: name.clone(),
                node: disk.source_node.clone(),
                migration: record.key.clone(),
                template,
                alias_of: Some(disk.old.clone()),
            }))
        })
    };
    record.disks.iter().filter_map(missing).collect()
}

/// Lets go whatever of them is there and was not told to go yet.
pub(super) fn let_go(disks: &[DiskMove], fleet: &Fleet) -> Vec<Action> {
    let there =
        names(disks).filter(|name| fleet.staged.get(*name).is_some_and(|staged| !is_all_going(staged)));
    there.map(|name| staging::unstage(name, fleet, false)).collect()
}

/// What is still to be asked until nothing of them can be there: also of what is not seen, since a request to make it may be
/// on its way, and is done before this one is answered. `unstaged` are the names of which that was answered in this phase.
pub(super) fn let_all_go(disks: &[DiskMove], unstaged: &BTreeSet<String>, fleet: &Fleet) -> Vec<Action> {
    let mut actions = let_go(disks, fleet);
    let unseen = names(disks).filter(|name| !unstaged.contains(*name) && !fleet.staged.contains_key(*name));
    actions.extend(unseen.map(|name| staging::unstage(name, fleet, false)));
    actions
}

/// Whether no holder has any of them any more. The pod of a node that is dead stays until somebody says what has become of
/// the node, and nobody waits for that: it has the volume read-only, and Kubernetes itself gives a volume that only one node
/// may have to no other before it is taken from the dead one.
pub(super) fn are_gone(disks: &[DiskMove], ctx: &Context<'_>) -> bool {
    let is_gone = |disk: &DiskMove| {
        let staged = disk.reading.as_ref().and_then(|name| ctx.fleet.staged.get(name));
        staged.is_none_or(|staged| is_all_going(staged) && ctx.dead.contains(&disk.source_node))
    };
    disks.iter().all(is_gone)
}

/// What keeps the last copy from being made, where something of this does.
pub(super) fn missing(disks: &[DiskMove], fleet: &Fleet) -> Option<String> {
    let held = |name: &str| fleet.staged.get(name).is_some_and(|staged| held(staged).is_some());
    let disk = disks.iter().find(|disk| disk.reading.as_ref().is_some_and(|name| !held(name)))?;
    let name = disk.reading.as_ref()?;
    Some(format!(
        "pod {name}, which has volume {} mounted for the copy, does not run on node {}: kubectl describe it, and what its driver \
         says there",
        disk.old, disk.source_node
    ))
}

fn names(disks: &[DiskMove]) -> impl Iterator<Item = &String> {
    disks.iter().filter_map(|disk| disk.reading.as_ref())
}

/// Of each part that is there, whether it is being deleted.
fn going(staged: &Staged) -> impl Iterator<Item = bool> {
    let alias = staged.alias.as_ref().map(|alias| alias.deleting);
    let claim = staged.claim.as_ref().map(|claim| claim.deleting);
    let holder = staged.holder.as_ref().map(|holder| holder.deleting);
    [alias, claim, holder].into_iter().flatten()
}

fn is_any_going(staged: &Staged) -> bool {
    going(staged).any(|going| going)
}

fn is_all_going(staged: &Staged) -> bool {
    going(staged).all(|going| going)
}
