//! The API server's objects, and KubeVirt's controllers as they behave with them: an instance whose launcher is gone or
//! failed is started anew, at once, on any node that takes it.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use somersault_coordinator_core::fleet::{
    CLOUD_SHUTDOWN_TAINT, Claim, ClaimRef, ClaimUse, Disk, DiskSource, FENCING_TAINT, Fleet, Instance, Node,
    NodeSelector, OUT_OF_SERVICE_TAINT, Owner, Pod, Requirement, Resources, RunStrategy, SavedStart, Taint,
    Vm, Volume, VolumeMode, VolumeSource, ZONE_LABEL,
};
use somersault_coordinator_core::io::{Record, RecordKey, Requests};
use somersault_coordinator_core::names::{Key, NodeName, Uid, VolumeName};

const HOSTNAME: &str = "kubernetes.io/hostname";

/// A stored record with its version.
pub type Stored = (u64, Record);

/// The API server.
#[derive(Clone, Debug, Default)]
pub struct Api {
    /// Nodes, volumes, VMs.
    pub fleet: Fleet,
    /// What people ask for.
    pub requests: Requests,
    /// Our records.
    pub records: BTreeMap<RecordKey, Stored>,
    /// The leader's lease.
    pub lease: Lease,
    next_uid: u64,
    next_version: u64,
}

/// The leader's lease.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lease {
    /// Who holds it.
    pub holder: Option<usize>,
    /// Grows with each holder.
    pub epoch: u64,
    /// Grows with each renewal.
    pub revision: u64,
}

/// Why a record was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict;

impl Api {
    /// `nodes` nodes, two to a zone, with `vms` VMs on network storage and one on the first node's own disk.
    pub fn new(nodes: usize, vms: usize) -> Self {
        let mut api = Self::default();
        for index in 1..=nodes {
            let name = format!("n{index}");
            let zone = format!("z{}", index.div_ceil(2));
            let labels = [(HOSTNAME, name.clone()), (ZONE_LABEL, zone)];
            let node = Node {
                labels: labels.map(|(label, value)| (label.to_owned(), value)).into(),
                ready: true,
                allocatable: Resources { cpu_millis: 64_000, memory_bytes: 1 << 40 },
                boot_id: Some(format!("{name}-b1").as_str().into()),
                ..Node::default()
            };
            api.fleet.nodes.insert(NodeName(name), node);
        }
        for index in 1..=vms {
            api.add_vm(&format!("net{index}"), None);
        }
        api.add_vm("local1", Some("n1"));
        api
    }

    fn add_vm(&mut self, name: &str, local: Option<&str>) {
        let key = Key::new("sim", name);
        let claim = Key::new("sim", format!("{name}-data"));
        let volume = VolumeName(format!("pv-{name}"));
        let (source, node_affinity) = match local {
            None => (VolumeSource::Network { field: "nfs".to_owned() }, None),
            Some(node) => (VolumeSource::Local { path: format!("/data/{name}") }, Some(only_on(node))),
        };
        let uid = self.uid("claim");
        self.fleet.volumes.insert(volume.clone(), bound_volume(&claim, &uid, source, node_affinity.clone()));
        self.fleet.claims.insert(claim.clone(), bound_claim(uid, volume));
        let vm = Vm {
            uid: self.uid("vm"),
            owner: Owner::Itself,
            run: RunStrategy::Always,
            start: SavedStart::Running(true),
            disks: vec![Disk {
                name: "data".to_owned(),
                source: DiskSource::Claim { name: claim.name, use_: ClaimUse::Disk },
                boot: true,
                image: None,
            }],
            node_selector: BTreeMap::new(),
            node_affinity: None,
            tolerations: Vec::new(),
            requests: Resources { cpu_millis: 1_000, memory_bytes: 1 << 30 },
            rebuild_allowed: false,
            instance: None,
            pods: Vec::new(),
        };
        self.fleet.vms.insert(key, vm);
    }

    fn uid(&mut self, what: &str) -> Uid {
        self.next_uid += 1;
        Uid(format!("{what}-{}", self.next_uid))
    }

    /// Stores a record by compare-and-swap.
    pub fn commit(&mut self, record: &Record, epoch: u64, known: Option<u64>) -> Result<u64, Conflict> {
        let stored = self.records.get(&record.key());
        let newer = stored.is_some_and(|(_, record)| epoch_of(record) > epoch);
        if newer || stored.map(|(version, _)| *version) != known {
            return Err(Conflict);
        }
        Ok(self.overwrite(record))
    }

    /// Stores a record without looking.
    pub fn overwrite(&mut self, record: &Record) -> u64 {
        self.next_version += 1;
        self.records.insert(record.key(), (self.next_version, record.clone()));
        self.next_version
    }

    /// Deletes a pod, if it is still this one.
    pub fn delete_pod(&mut self, uid: &Uid) {
        for vm in self.fleet.vms.values_mut() {
            vm.pods.retain(|pod| pod.uid != *uid);
        }
    }

    /// Sets or removes a taint.
    pub fn taint(&mut self, node: &NodeName, key: &str, on: bool) {
        let Some(node) = self.fleet.nodes.get_mut(node) else { return };
        node.taints.retain(|taint| taint.key != key);
        if on {
            let effect = if key == OUT_OF_SERVICE_TAINT { "NoExecute" } else { "NoSchedule" };
            node.taints.push(Taint { key: key.to_owned(), value: String::new(), effect: effect.to_owned() });
        }
    }

    /// One round of KubeVirt's controllers and of the scheduler.
    pub fn kubevirt(&mut self, rng: &mut StdRng) -> Vec<String> {
        let keys: Vec<Key> = self.fleet.vms.keys().cloned().collect();
        keys.into_iter().filter_map(|key| self.start(rng, &key)).collect()
    }

    fn start(&mut self, rng: &mut StdRng, key: &Key) -> Option<String> {
        let vm = self.fleet.vms.get_mut(key)?;
        vm.pods.retain(|pod| pod.phase != "Failed");
        if vm.pods.is_empty() {
            let (instance, pod) = (self.uid("vmi"), self.uid("pod"));
            let vm = self.fleet.vms.get_mut(key)?;
            vm.instance = Some(Instance {
                uid: instance.clone(),
                node: None,
                phase: "Scheduling".to_owned(),
                has_run: false,
                migrating: None,
                paused: None,
            });
            let name = format!("virt-launcher-{}", key.name);
            let phase = "Pending".to_owned();
            vm.pods.push(Pod { name, uid: pod, node: None, phase, instance: Some(instance) });
        }
        let node = self.place(rng, key)?;
        let vm = self.fleet.vms.get_mut(key)?;
        let (pod, instance) = (vm.pods.first_mut()?, vm.instance.as_mut()?);
        pod.node = Some(node.clone());
        instance.node = Some(node.clone());
        Some(format!("kubevirt: {key} goes to {node} as {}", pod.uid.0))
    }

    /// Where a waiting launcher goes. The scheduler knows taints and readiness, and nothing of dead nodes that are
    /// still called ready.
    fn place(&self, rng: &mut StdRng, key: &Key) -> Option<NodeName> {
        let vm = self.fleet.vms.get(key)?;
        vm.pods.first().filter(|pod| pod.node.is_none())?;
        let volume = self.fleet.volumes.get(&VolumeName(format!("pv-{}", key.name)))?;
        let takes = |(name, node): &(&NodeName, &Node)| {
            let tainted = [FENCING_TAINT, CLOUD_SHUTDOWN_TAINT, OUT_OF_SERVICE_TAINT]
                .iter()
                .any(|key| node.has_taint(key));
            node.ready
                && !tainted
                && volume.node_affinity.as_ref().is_none_or(|affinity| affinity.matches(name, node))
        };
        let fit: Vec<&NodeName> = self.fleet.nodes.iter().filter(takes).map(|(name, _)| name).collect();
        fit.choose(rng).map(|name| (*name).clone())
    }

    /// Nodes whose kubelet was not heard of for 40 s are no longer ready.
    pub fn judge_readiness(&mut self, node: &NodeName, silent: Duration) {
        if let Some(node) = self.fleet.nodes.get_mut(node) {
            node.ready = silent < Duration::from_secs(40);
        }
    }

    /// A pod and its VM.
    pub fn pod(&mut self, uid: &Uid) -> Option<(&mut Pod, Option<&mut Instance>)> {
        let vm = self.fleet.vms.values_mut().find(|vm| vm.pods.iter().any(|pod| pod.uid == *uid))?;
        let pod = vm.pods.iter_mut().find(|pod| pod.uid == *uid)?;
        Some((pod, vm.instance.as_mut()))
    }

    /// Pods that are bound to a node, with their VMs.
    pub fn pods_of(&self, node: &NodeName) -> Vec<(Key, Pod)> {
        let pods = self
            .fleet
            .vms
            .iter()
            .flat_map(|(key, vm)| vm.pods.iter().map(move |pod| (key.clone(), pod.clone())));
        pods.filter(|(_, pod)| pod.node.as_ref() == Some(node)).collect()
    }
}

/// Whether the VM's data is on one node only.
pub fn is_local(key: &Key) -> bool {
    key.name.starts_with("local")
}

/// The epoch under which a record was written.
pub fn epoch_of(record: &Record) -> u64 {
    match record {
        Record::Fence(record) => record.epoch,
        Record::Migration(record) => record.epoch,
        Record::Evacuation(record) => record.epoch,
    }
}

fn only_on(node: &str) -> NodeSelector {
    let requirement =
        Requirement { key: HOSTNAME.to_owned(), operator: "In".to_owned(), values: vec![node.to_owned()] };
    NodeSelector { terms: vec![vec![requirement]] }
}

fn bound_volume(claim: &Key, uid: &Uid, source: VolumeSource, node_affinity: Option<NodeSelector>) -> Volume {
    Volume {
        source,
        node_affinity,
        provisioned_by: None,
        class: "any".to_owned(),
        capacity_bytes: 1 << 30,
        access_modes: vec!["ReadWriteOnce".to_owned()],
        mode: VolumeMode::Filesystem,
        retained: true,
        claim: Some(ClaimRef { key: claim.clone(), uid: Some(uid.clone()) }),
        phase: "Bound".to_owned(),
    }
}

fn bound_claim(uid: Uid, volume: VolumeName) -> Claim {
    Claim {
        uid,
        volume: Some(volume),
        class: "any".to_owned(),
        requested_bytes: 1 << 30,
        access_modes: vec!["ReadWriteOnce".to_owned()],
        mode: VolumeMode::Filesystem,
        phase: "Bound".to_owned(),
        data_volume: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}
