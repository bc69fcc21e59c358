//! A small cluster for tests: three nodes in two zones, one VM on n1 with one disk on NFS.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::decision::{Decision, Question, decide};
use crate::fleet::{
    Claim, ClaimRef, ClaimUse, DataVolume, Disk, DiskHealth, DiskSource, Fleet, Grade, Instance, Node,
    NodeReport, NodeSelector, Owner, Pod, Requirement, Resources, RunStrategy, SavedStart, StorageClass,
    StorageRoot, Usage, Vm, Volume, VolumeMode, VolumeSource, ZONE_LABEL,
};
use crate::locality::ClassOverrides;
use crate::names::{Key, NodeName, Uid, VolumeName};

/// Namespace of everything.
pub(crate) const NAMESPACE: &str = "shop";
const GIB: u64 = 1 << 30;

/// The cluster, the policy's word on classes, and the question.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) fleet: Fleet,
    pub(crate) overrides: ClassOverrides,
    pub(crate) question: Question,
}

/// Storage root `/data` on disk `sda`, last listed so long ago.
pub(crate) fn data_root(listed_age: Option<Duration>) -> StorageRoot {
    StorageRoot {
        path: "/data".to_owned(),
        class: "gold".to_owned(),
        depth: 1,
        shared: false,
        size_bytes: 100,
        available_bytes: 50,
        read_only: false,
        disk: Some("sda".to_owned()),
        listed_age,
    }
}

/// What an agent tells of that root, its disk and the folders in it.
pub(crate) fn data_report<'a>(
    listed_age: Option<Duration>,
    grade: Grade,
    folders: impl IntoIterator<Item = (&'a str, Usage)>,
) -> NodeReport {
    let health = DiskHealth { grade, reasons: Vec::new(), model: String::new(), serial: String::new() };
    NodeReport {
        roots: vec![data_root(listed_age)],
        usage: folders.into_iter().map(|(path, usage)| (path.to_owned(), usage)).collect(),
        disks: [("sda".to_owned(), health)].into(),
        ..NodeReport::default()
    }
}

impl World {
    /// n1 and n2 in zone a, n3 in zone b; VM `web` runs on n1, which is dead, with disk `data` on NFS.
    pub(crate) fn new() -> Self {
        let mut world = Self::bare();
        world.fleet.vms.insert(key("web"), running_vm("web", "n1"));
        world.add_disk("web", "data", nfs(), None);
        world
    }

    /// The nodes, n1 dead, and nothing else.
    pub(crate) fn bare() -> Self {
        let mut fleet = Fleet::default();
        for (name, zone) in [("n1", "a"), ("n2", "a"), ("n3", "b")] {
            fleet.nodes.insert(NodeName::from(name), node(name, zone));
        }
        let question = Question { dead: [NodeName::from("n1")].into(), ..Question::default() };
        Self { fleet, overrides: ClassOverrides::default(), question }
    }

    /// Adds a disk with a bound claim and volume: `NAME` is the disk, `VM-NAME` its claim, `pv-VM-NAME` its volume.
    pub(crate) fn add_disk(
        &mut self,
        vm: &str,
        name: &str,
        source: VolumeSource,
        affinity: Option<NodeSelector>,
    ) {
        let claim = format!("{vm}-{name}");
        let volume = VolumeName(format!("pv-{claim}"));
        self.fleet.claims.insert(key(&claim), bound_claim(&volume));
        self.fleet.volumes.insert(volume, bound_volume(&claim, source, affinity));
        let vm = self.vm(vm);
        if let Some(instance) = &mut vm.instance {
            instance.claims.insert(claim.clone());
        }
        vm.disks.push(Disk {
            name: name.to_owned(),
            source: DiskSource::Claim { name: claim, use_: ClaimUse::Disk },
            boot: false,
            image: None,
        });
    }

    /// Adds a system disk on n1 that its `DataVolume` would import anew anywhere.
    pub(crate) fn add_local_system_disk(&mut self, vm: &str) {
        self.add_disk(vm, "system", host_path(), on_host(&["n1"]));
        let disk = self.vm(vm).disks.last_mut().expect("just added");
        disk.boot = true;
        disk.image = Some("https://images.example/debian.qcow2".to_owned());
        let image = disk.image.clone();
        let name = format!("{vm}-system");
        self.claim(&name).data_volume = Some(name.clone());
        self.claim(&name).class = "local-path".to_owned();
        let data_volume = DataVolume { phase: "Succeeded".to_owned(), pre_populated: false, image };
        self.fleet.data_volumes.insert(key(&name), data_volume);
        let class = StorageClass {
            provisioner: "rancher.io/local-path".to_owned(),
            waits_for_consumer: true,
            ..StorageClass::default()
        };
        self.fleet.classes.insert("local-path".to_owned(), class);
    }

    pub(crate) fn data_volume(&mut self, name: &str) -> &mut DataVolume {
        self.fleet.data_volumes.get_mut(&key(name)).expect("the DataVolume was added")
    }

    pub(crate) fn class(&mut self, name: &str) -> &mut StorageClass {
        self.fleet.classes.get_mut(name).expect("the class was added")
    }

    pub(crate) fn vm(&mut self, name: &str) -> &mut Vm {
        self.fleet.vms.get_mut(&key(name)).expect("the VM was added")
    }

    pub(crate) fn instance(&mut self, vm: &str) -> &mut Instance {
        self.vm(vm).instance.as_mut().expect("the VM has an instance")
    }

    pub(crate) fn claim(&mut self, name: &str) -> &mut Claim {
        self.fleet.claims.get_mut(&key(name)).expect("the claim was added")
    }

    pub(crate) fn volume(&mut self, name: &str) -> &mut Volume {
        self.fleet.volumes.get_mut(&VolumeName::from(name)).expect("the volume was added")
    }

    pub(crate) fn volume_if_any(&mut self, name: &str, change: impl FnOnce(&mut Volume)) {
        if let Some(volume) = self.fleet.volumes.get_mut(&VolumeName::from(name)) {
            change(volume);
        }
    }

    pub(crate) fn node(&mut self, name: &str) -> &mut Node {
        self.fleet.nodes.get_mut(&NodeName::from(name)).expect("the node was added")
    }

    pub(crate) fn set_use(&mut self, vm: &str, disk: usize, wanted: ClaimUse) {
        match &mut self.vm(vm).disks[disk].source {
            DiskSource::Claim { use_, .. } => *use_ = wanted,
            other => panic!("disk {disk} of {vm} is no claim but {other:?}"),
        }
    }

    pub(crate) fn decide(&self, vm: &str) -> Decision {
        decide(&self.fleet, &self.overrides, &key(vm), &self.question)
    }
}

pub(crate) fn key(name: &str) -> Key {
    Key::new(NAMESPACE, name)
}

pub(crate) fn node(name: &str, zone: &str) -> Node {
    let labels = [("kubernetes.io/hostname", name), (ZONE_LABEL, zone)];
    Node {
        labels: labels.map(|(label, value)| (label.to_owned(), value.to_owned())).into(),
        ready: true,
        allocatable: Resources { cpu_millis: 8_000, memory_bytes: 16 * GIB },
        ..Node::default()
    }
}

pub(crate) fn running_vm(name: &str, node: &str) -> Vm {
    let instance = Uid(format!("vmi-{name}"));
    Vm {
        uid: Uid(format!("vm-{name}")),
        owner: Owner::Itself,
        run: RunStrategy::Always,
        start: SavedStart::RunStrategy("Always".to_owned()),
        disks: Vec::new(),
        fixed: BTreeMap::new(),
        node_selector: BTreeMap::new(),
        node_affinity: None,
        tolerations: Vec::new(),
        requests: Resources { cpu_millis: 1_000, memory_bytes: 2 * GIB },
        rebuild_allowed: false,
        instance: Some(Instance {
            uid: instance.clone(),
            node: Some(NodeName::from(node)),
            phase: "Running".to_owned(),
            has_run: true,
            migrating: None,
            paused: None,
            not_migratable: None,
            claims: BTreeSet::new(),
            agent_connected: false,
            has_address: false,
        }),
        pods: vec![Pod {
            name: format!("virt-launcher-{name}"),
            uid: Uid(format!("pod-{name}")),
            node: Some(NodeName::from(node)),
            phase: "Running".to_owned(),
            instance: Some(instance),
            address: None,
            claims: BTreeSet::new(),
        }],
    }
}

fn bound_claim(volume: &VolumeName) -> Claim {
    Claim {
        uid: Uid(format!("uid-{volume}")),
        volume: Some(volume.clone()),
        class: "gold".to_owned(),
        requested_bytes: 10 * GIB,
        access_modes: vec!["ReadWriteOnce".to_owned()],
        mode: VolumeMode::Filesystem,
        phase: "Bound".to_owned(),
        data_volume: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        deleting: false,
    }
}

pub(crate) fn bound_volume(claim: &str, source: VolumeSource, affinity: Option<NodeSelector>) -> Volume {
    Volume {
        source,
        node_affinity: affinity,
        provisioned_by: None,
        class: "gold".to_owned(),
        capacity_bytes: 10 * GIB,
        access_modes: vec!["ReadWriteOnce".to_owned()],
        mode: VolumeMode::Filesystem,
        retained: false,
        claim: Some(ClaimRef { key: key(claim), uid: Some(Uid(format!("uid-pv-{claim}"))) }),
        phase: "Bound".to_owned(),
        created: None,
        deleting: false,
    }
}

pub(crate) fn nfs() -> VolumeSource {
    VolumeSource::Network { field: "nfs".to_owned() }
}

pub(crate) fn host_path() -> VolumeSource {
    VolumeSource::HostPath { path: "/data/vol".to_owned() }
}

pub(crate) fn csi(driver: &str) -> VolumeSource {
    VolumeSource::Csi { driver: driver.to_owned(), handle: "h".to_owned() }
}

/// One term: the label's value is one of these.
#[allow(clippy::unnecessary_wraps)] // every place that takes an affinity takes an optional one
pub(crate) fn on_label(label: &str, values: &[&str]) -> Option<NodeSelector> {
    let values = values.iter().map(|&value| value.to_owned()).collect();
    Some(NodeSelector {
        terms: vec![vec![Requirement { key: label.to_owned(), operator: "In".to_owned(), values }]],
    })
}

/// Pinned to nodes by their hostname label.
#[allow(clippy::unnecessary_wraps)] // as above
pub(crate) fn on_host(hosts: &[&str]) -> Option<NodeSelector> {
    on_label("kubernetes.io/hostname", hosts)
}
