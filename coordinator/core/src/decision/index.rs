//! What a decision needs to know of everything else in the fleet, gathered once for many decisions.

use std::collections::{BTreeMap, BTreeSet};

use crate::decision::disks::Examined;
use crate::decision::whereabouts::Whereabouts;
use crate::decision::{Finding, Reason};
use crate::fleet::{self, ClaimUse, DiskSource, Fleet, Resources, Snapshot, Usage, Vm, Volume};
use crate::names::{Key, NodeName, VolumeName};

/// Namespace and name of a claim: borrowed, since a fleet has thousands.
type ClaimName<'a> = (&'a str, &'a str);

/// What the rest of the fleet has and does.
pub(super) struct Index<'a> {
    /// VMs that use a claim, with what they keep there.
    users: BTreeMap<ClaimName<'a>, Vec<(&'a Key, ClaimUse)>>,
    /// Claims that pods outside any VM use.
    used_by_pods: &'a BTreeMap<Key, BTreeSet<String>>,
    /// What all VMs on a node ask for.
    asked: BTreeMap<NodeName, Resources>,
    /// Volumes whose `claimRef` names a claim.
    volumes: BTreeMap<&'a Key, Vec<(&'a VolumeName, &'a Volume)>>,
    /// Snapshots of a claim.
    snapshots: BTreeMap<ClaimName<'a>, Vec<(&'a Key, &'a Snapshot)>>,
    /// Folders below storage roots that are in no `PersistentVolume`.
    orphans: Vec<(&'a NodeName, &'a str, &'a Usage)>,
}

impl<'a> Index<'a> {
    pub(super) fn of(fleet: &'a Fleet) -> Self {
        let mut users: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut asked: BTreeMap<NodeName, Resources> = BTreeMap::new();
        for (key, vm) in &fleet.vms {
            for disk in &vm.disks {
                if let DiskSource::Claim { name, use_ } = &disk.source {
                    users.entry((key.namespace.as_str(), name.as_str())).or_default().push((key, *use_));
                }
            }
            for node in Whereabouts::of(vm).nodes {
                let sum = asked.entry(node).or_default();
                sum.cpu_millis = sum.cpu_millis.saturating_add(vm.requests.cpu_millis);
                sum.memory_bytes = sum.memory_bytes.saturating_add(vm.requests.memory_bytes);
            }
        }
        let mut volumes: BTreeMap<&Key, Vec<_>> = BTreeMap::new();
        for (name, volume) in &fleet.volumes {
            if let Some(owner) = &volume.claim {
                volumes.entry(&owner.key).or_default().push((name, volume));
            }
        }
        let mut snapshots: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (key, snapshot) in &fleet.snapshots {
            if let Some(claim) = &snapshot.claim {
                snapshots.entry((key.namespace.as_str(), claim.as_str())).or_default().push((key, snapshot));
            }
        }
        let (used_by_pods, orphans) = (&fleet.claims_used_by_others, fleet.orphans());
        Self { users, used_by_pods, asked, volumes, snapshots, orphans }
    }

    /// Who else uses the claim of this disk. Several ephemeral disks may share a backing, which nobody writes;
    /// any other sharing needs a person, who knows which of the users may write.
    pub(super) fn other_users(&self, vm: &Key, disk: &Examined) -> Vec<Finding> {
        let (Some(claim), Some(use_)) = (&disk.claim, disk.use_) else { return Vec::new() };
        if !disk.holds_data {
            return Vec::new();
        }
        let mut findings = Vec::new();
        let read_only =
            |other: &ClaimUse| *other == ClaimUse::EphemeralBacking && use_ == ClaimUse::EphemeralBacking;
        for (other, their_use) in
            self.users.get(&(claim.namespace.as_str(), claim.name.as_str())).into_iter().flatten()
        {
            if *other != vm && !read_only(their_use) {
                findings.push((Reason::ClaimSharedWithVm, format!("VM {other} uses claim {claim} too")));
            }
        }
        if let Some(pods) = self.used_by_pods.get(claim) {
            let detail = format!("claim {claim} is used outside of any VM, by {}", fleet::pods_words(pods));
            findings.push((Reason::ClaimUsedByPod, detail));
        }
        findings
    }

    /// What VMs other than this one ask for on a node.
    pub(super) fn asked_by_others(&self, vm: &Vm, node: &NodeName) -> Resources {
        let all = self.asked.get(node).copied().unwrap_or_default();
        if !Whereabouts::of(vm).nodes.contains(node) {
            return all;
        }
        Resources {
            cpu_millis: all.cpu_millis.saturating_sub(vm.requests.cpu_millis),
            memory_bytes: all.memory_bytes.saturating_sub(vm.requests.memory_bytes),
        }
    }

    /// Volumes whose `claimRef` names the claim, bound to it or not.
    pub(super) fn volumes_naming(&self, claim: &Key) -> &[(&'a VolumeName, &'a Volume)] {
        self.volumes.get(claim).map_or(&[], Vec::as_slice)
    }

    /// Snapshots of the claim.
    pub(super) fn snapshots_of<'b>(&'b self, claim: &'b Key) -> &'b [(&'b Key, &'b Snapshot)] {
        let name = (claim.namespace.as_str(), claim.name.as_str());
        self.snapshots.get(&name).map_or(&[], Vec::as_slice)
    }

    /// Folders that are in no `PersistentVolume`.
    pub(super) fn orphans(&self) -> &[(&'a NodeName, &'a str, &'a Usage)] {
        &self.orphans
    }
}
