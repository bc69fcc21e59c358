//! The API server's objects, and KubeVirt's controllers as they behave with them: an instance whose launcher is gone or
//! failed is started anew, at once, on any node that takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use somersault_coordinator_core::fleet::{
    CLOUD_SHUTDOWN_TAINT, Claim, ClaimRef, ClaimUse, DataVolume, Disk, DiskSource, FENCING_TAINT, Fleet,
    Instance, Node, NodeSelector, OUT_OF_SERVICE_OURS, OUT_OF_SERVICE_TAINT, Owner, Pod, Requirement,
    Resources, RunStrategy, SavedStart, StorageClass, Taint, Vm, Volume, VolumeMode, VolumeSource,
    ZONE_LABEL,
};
use somersault_coordinator_core::io::{OpenRecovery, Record, RecordKey, Requests};
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
    /// Recoveries that are shown as open.
    pub shown: Vec<OpenRecovery>,
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
        api.add_vm("image1", Some("n1"));
        api.make_rebuildable("image1");
        let class = StorageClass {
            provisioner: "rancher.io/local-path".to_owned(),
            waits_for_consumer: true,
            ..StorageClass::default()
        };
        api.fleet.classes.insert("local-path".to_owned(), class);
        api
    }

    /// The VM's disk is a system disk, imported from an image, and its owner agrees to a rebuild.
    fn make_rebuildable(&mut self, name: &str) {
        let (key, claim) = (Key::new("sim", name), Key::new("sim", format!("{name}-data")));
        let image = Some("https://images.example/system.img".to_owned());
        if let Some(vm) = self.fleet.vms.get_mut(&key) {
            vm.rebuild_allowed = true;
            vm.disks[0].image.clone_from(&image);
        }
        if let Some(claim) = self.fleet.claims.get_mut(&claim) {
            claim.data_volume = Some(format!("{name}-data"));
            "local-path".clone_into(&mut claim.class);
        }
        if let Some(volume) = self.fleet.volumes.get_mut(&VolumeName(format!("pv-{name}"))) {
            volume.retained = false;
        }
        let data_volume = DataVolume { phase: "Succeeded".to_owned(), pre_populated: false, image };
        self.fleet.data_volumes.insert(claim, data_volume);
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
            fixed: BTreeMap::new(),
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

    /// Changes the start field of a VM.
    pub fn set_running(&mut self, vm: &Key, running: bool) {
        if let Some(vm) = self.fleet.vms.get_mut(vm) {
            vm.run = if running { RunStrategy::Always } else { RunStrategy::Halted };
            vm.start = SavedStart::Running(running);
        }
    }

    /// Deletes a claim, if it is still this one. Says whether its old content was kept.
    pub fn delete_claim(&mut self, claim: &Key, uid: &Uid) -> bool {
        let Some(found) = self.fleet.claims.get(claim).filter(|found| found.uid == *uid) else { return true };
        let volume = found.volume.as_ref().and_then(|name| self.fleet.volumes.get_mut(name));
        let kept = volume.is_none_or(|volume| {
            "Released".clone_into(&mut volume.phase);
            volume.retained
        });
        self.fleet.claims.remove(claim);
        kept
    }

    /// One round of CDI's controller: a claim that is missing is made anew, one that is bound is filled.
    fn cdi(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        let keys: Vec<Key> = self.fleet.data_volumes.keys().cloned().collect();
        for key in keys {
            let uid = self.uid("claim");
            let Some(data_volume) = self.fleet.data_volumes.get_mut(&key) else { continue };
            let Some(claim) = self.fleet.claims.get(&key) else {
                let mut claim = bound_claim(uid, VolumeName(String::new()));
                (claim.volume, claim.data_volume) = (None, Some(key.name.clone()));
                "Pending".clone_into(&mut claim.phase);
                "local-path".clone_into(&mut claim.class);
                self.fleet.claims.insert(key.clone(), claim);
                "WaitForFirstConsumer".clone_into(&mut data_volume.phase);
                told.push(format!("cdi: claim {key} is made anew"));
                continue;
            };
            let next = match (data_volume.phase.as_str(), claim.volume.is_some()) {
                ("WaitForFirstConsumer", true) => "ImportScheduled",
                ("ImportScheduled", true) => "ImportInProgress",
                ("ImportInProgress", true) => "Succeeded",
                _ => continue,
            };
            next.clone_into(&mut data_volume.phase);
            told.push(format!("cdi: {key} is {next}"));
        }
        told
    }

    /// Whether the VM is meant to be stopped.
    pub fn is_halted(&self, vm: &Key) -> bool {
        self.fleet.vms.get(vm).is_some_and(|vm| vm.run == RunStrategy::Halted)
    }

    /// Whether everything that the VM's disk is to hold is there.
    pub fn is_filled(&self, vm: &Key) -> bool {
        let data_volume = self.fleet.data_volumes.get(&Key::new("sim", format!("{}-data", vm.name)));
        data_volume.is_none_or(|found| found.phase == "Succeeded")
    }

    /// Makes a volume for a claim that waited for its first consumer.
    fn provision(&mut self, claim: &Key, node: &NodeName) {
        let Some(uid) =
            self.fleet.claims.get(claim).filter(|claim| claim.volume.is_none()).map(|c| c.uid.clone())
        else {
            return;
        };
        let name = VolumeName(format!("pvc-{}", uid.0));
        let path = format!("/data/{}", name.0);
        let mut volume =
            bound_volume(claim, &uid, VolumeSource::Local { path }, Some(only_on(node.as_str())));
        volume.retained = false;
        self.fleet.volumes.insert(name.clone(), volume);
        if let Some(claim) = self.fleet.claims.get_mut(claim) {
            claim.volume = Some(name);
            "Bound".clone_into(&mut claim.phase);
        }
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
        node.taints.retain(|taint| taint.key != key || taint.is_our_out_of_service());
        if on && !node.has_taint(key) {
            let effect = if key == OUT_OF_SERVICE_TAINT { "NoExecute" } else { "NoSchedule" };
            node.taints.push(Taint { key: key.to_owned(), value: String::new(), effect: effect.to_owned() });
        }
    }

    /// Sets or removes the out-of-service taint with the coordinator's value.
    pub fn call_out_of_service(&mut self, node: &NodeName, on: bool) {
        let Some(node) = self.fleet.nodes.get_mut(node) else { return };
        node.taints.retain(|taint| !taint.is_our_out_of_service());
        if on && !node.has_taint(OUT_OF_SERVICE_TAINT) {
            node.taints.push(Taint {
                key: OUT_OF_SERVICE_TAINT.to_owned(),
                value: OUT_OF_SERVICE_OURS.to_owned(),
                effect: "NoExecute".to_owned(),
            });
        }
    }

    /// One round of KubeVirt's controllers and of the scheduler.
    pub fn kubevirt(&mut self, rng: &mut StdRng) -> Vec<String> {
        let keys: Vec<Key> = self.fleet.vms.keys().cloned().collect();
        let mut told = self.cdi();
        told.extend(keys.into_iter().filter_map(|key| self.start(rng, &key)));
        told
    }

    /// A VM that is to stop: what waits goes at once, what runs is stopped by its kubelet.
    fn stop(&mut self, key: &Key) -> Option<String> {
        let vm = self.fleet.vms.get_mut(key)?;
        vm.pods.retain(|pod| pod.node.is_some() && pod.phase != "Failed");
        if vm.pods.is_empty() && vm.instance.take().is_some() {
            return Some(format!("kubevirt: {key} is stopped"));
        }
        None
    }

    fn start(&mut self, rng: &mut StdRng, key: &Key) -> Option<String> {
        let vm = self.fleet.vms.get_mut(key)?;
        if vm.run == RunStrategy::Halted {
            return self.stop(key);
        }
        vm.pods.retain(|pod| pod.phase != "Failed");
        if vm.pods.is_empty() && !self.is_filled(key) {
            // A pod that only waits for the volume stands in for the launcher until the import is done.
            let node = self.place(rng, key)?;
            self.provision(&Key::new("sim", format!("{}-data", key.name)), &node);
            return None;
        }
        let vm = self.fleet.vms.get_mut(key)?;
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
                not_migratable: None,
                claims: BTreeSet::new(),
                agent_connected: false,
                has_address: false,
            });
            let name = format!("virt-launcher-{}", key.name);
            let phase = "Pending".to_owned();
            let instance = Some(instance);
            vm.pods.push(Pod {
                name,
                uid: pod,
                node: None,
                phase,
                instance,
                address: None,
                claims: [].into(),
            });
        }
        self.fleet.vms.get(key)?.pods.first().filter(|pod| pod.node.is_none())?;
        let node = self.place(rng, key)?;
        self.provision(&Key::new("sim", format!("{}-data", key.name)), &node);
        let vm = self.fleet.vms.get_mut(key)?;
        let (pod, instance) = (vm.pods.first_mut()?, vm.instance.as_mut()?);
        pod.node = Some(node.clone());
        instance.node = Some(node.clone());
        Some(format!("kubevirt: {key} goes to {node} as {}", pod.uid.0))
    }

    /// Where a waiting launcher goes. The scheduler knows taints and readiness, and nothing of dead nodes that are
    /// still called ready.
    fn place(&self, rng: &mut StdRng, key: &Key) -> Option<NodeName> {
        let claim = self.fleet.claims.get(&Key::new("sim", format!("{}-data", key.name)))?;
        let volume = claim.volume.as_ref().and_then(|name| self.fleet.volumes.get(name));
        let affinity = volume.and_then(|volume| volume.node_affinity.as_ref());
        let takes = |(name, node): &(&NodeName, &Node)| {
            let tainted = [FENCING_TAINT, CLOUD_SHUTDOWN_TAINT, OUT_OF_SERVICE_TAINT]
                .iter()
                .any(|key| node.has_taint(key));
            node.ready && !tainted && affinity.is_none_or(|affinity| affinity.matches(name, node))
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

/// Whether the VM's data is on one node only, and nowhere else to be had.
pub fn is_local(key: &Key) -> bool {
    key.name.starts_with("local")
}

/// The epoch under which a record was written.
pub fn epoch_of(record: &Record) -> u64 {
    match record {
        Record::Fence(record) => record.epoch,
        Record::Migration(record) => record.epoch,
        Record::Evacuation(record) => record.epoch,
        Record::Rebuild(record) => record.epoch,
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
        created: None,
        deleting: false,
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
        deleting: false,
    }
}
