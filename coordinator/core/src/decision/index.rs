//! What other VMs do, gathered once for many decisions.

use std::collections::{BTreeMap, BTreeSet};

use crate::decision::disks::Examined;
use crate::decision::whereabouts::Whereabouts;
use crate::decision::{Finding, Reason};
use crate::fleet::{ClaimUse, DiskSource, Fleet, Resources};
use crate::names::{Key, NodeName};

/// What other VMs do.
pub(super) struct Index<'a> {
    /// Users of each claim, with what they keep there.
    users: BTreeMap<Key, Vec<(&'a Key, ClaimUse)>>,
    /// Claims that pods outside any VM use.
    used_by_pods: &'a BTreeSet<Key>,
    /// What the VMs on each node ask for, by VM.
    asked: BTreeMap<NodeName, Vec<(&'a Key, Resources)>>,
}

impl<'a> Index<'a> {
    pub(super) fn of(fleet: &'a Fleet) -> Self {
        let mut users: BTreeMap<Key, Vec<_>> = BTreeMap::new();
        let mut asked: BTreeMap<NodeName, Vec<_>> = BTreeMap::new();
        for (key, vm) in &fleet.vms {
            for disk in &vm.disks {
                if let DiskSource::Claim { name, use_ } = &disk.source {
                    users.entry(Key::new(&key.namespace, name)).or_default().push((key, *use_));
                }
            }
            for node in Whereabouts::of(vm).nodes {
                asked.entry(node).or_default().push((key, vm.requests));
            }
        }
        Self { users, used_by_pods: &fleet.claims_used_by_others, asked }
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
        for (other, their_use) in self.users.get(claim).into_iter().flatten() {
            if *other != vm && !read_only(their_use) {
                findings.push((Reason::ClaimSharedWithVm, format!("VM {other} uses claim {claim} too")));
            }
        }
        if self.used_by_pods.contains(claim) {
            findings
                .push((Reason::ClaimUsedByPod, format!("a pod that is not the VM's own uses claim {claim}")));
        }
        findings
    }

    /// What VMs other than this one ask for on a node.
    pub(super) fn asked_by_others(&self, vm: &Key, node: &NodeName) -> Resources {
        let others = self.asked.get(node).into_iter().flatten().filter(|(key, _)| *key != vm);
        others.fold(Resources::default(), |sum, (_, asked)| Resources {
            cpu_millis: sum.cpu_millis.saturating_add(asked.cpu_millis),
            memory_bytes: sum.memory_bytes.saturating_add(asked.memory_bytes),
        })
    }
}
