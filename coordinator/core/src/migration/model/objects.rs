//! The objects of the model's cluster: nodes, VMs, claims and volumes, made as an API server with its binder and a
//! provisioner would have them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::staged::PODS;
use super::{HOSTNAME, ROOT, SHARED_ROOT, World, key, place, place_of, place_of_volume};
use crate::fleet::{
    Claim, ClaimRef, ClaimUse, Disk, DiskImage, DiskSource, Node, NodeReport, NodeSelector, Owner,
    Requirement, Resources, RunStrategy, SavedStart, StorageRoot, Usage, Vm, Volume, VolumeMode,
    VolumeSource,
};
use crate::io::NewVolume;
use crate::locality::{ClassOverride, ClassOverrides};
use crate::names::{Key, NodeName, Uid, VolumeName};
use crate::policy::PolicySpec;

impl World {
    pub(super) fn add_node(&mut self, name: &str) {
        let node = Node {
            labels: BTreeMap::from([(HOSTNAME.to_owned(), name.to_owned())]),
            ready: true,
            allocatable: Resources { cpu_millis: 8000, memory_bytes: 16 << 30 },
            ..Node::default()
        };
        self.fleet.nodes.insert(name.into(), node);
        let root = StorageRoot {
            path: ROOT.into(),
            class: "local-path".into(),
            depth: 1,
            shared: false,
            size_bytes: 100 << 30,
            available_bytes: 80 << 30,
            read_only: false,
            disk: Some("sda".into()),
            listed_age: Some(Duration::from_secs(1)),
        };
        let shared = StorageRoot {
            path: SHARED_ROOT.into(),
            class: "nfs".into(),
            shared: true,
            disk: None,
            ..root.clone()
        };
        let pods = Some(PODS.into());
        let report = NodeReport { pods, roots: vec![root, shared], ..NodeReport::default() };
        self.fleet.reports.insert(name.into(), report);
        self.usable.insert(name.into());
    }

    pub fn add_vm(&mut self, name: &str, node: &str, disks: &[&str]) {
        let disk = |disk: &&str| Disk {
            name: (*disk).to_owned(),
            source: DiskSource::Claim { name: format!("{name}-{disk}"), use_: ClaimUse::Disk },
            boot: *disk == "system",
            image: None,
        };
        for disk in disks {
            self.add_claim(&format!("{name}-{disk}"), node);
        }
        let vm = Vm {
            uid: Uid(format!("uid-{name}")),
            owner: Owner::Wukong { name: name.to_owned() },
            run: RunStrategy::Always,
            start: SavedStart::WukongStartStrategy(None),
            disks: disks.iter().map(disk).collect(),
            fixed: BTreeMap::new(),
            node_selector: BTreeMap::new(),
            node_affinity: None,
            requests: Resources { cpu_millis: 1000, memory_bytes: 1 << 30 },
            tolerations: Vec::new(),
            rebuild_allowed: false,
            instance: None,
            pods: Vec::new(),
        };
        self.fleet.vms.insert(key(name), vm);
        self.kubevirt();
    }

    pub fn add_claim(&mut self, name: &str, node: &str) {
        let volume = NewVolume {
            name: VolumeName(format!("pv-{name}")),
            class: "local-path".into(),
            node: Some(node.into()),
            path: format!("{ROOT}/pv-{name}"),
            capacity_bytes: 4 << 30,
            access_modes: vec!["ReadWriteOnce".into()],
            mode: VolumeMode::Filesystem,
            claim: key(name),
        };
        self.content.insert(place(node, &volume.path), 0);
        self.report_usage(&NodeName::from(node), &volume.path);
        self.create_volume(&volume);
        self.fleet.volumes.get_mut(&volume.name).expect("just made").retained = false;
        self.create_claim(&key(name), Some(volume.name));
    }

    /// The disks of a VM were on network storage all along: in a folder that every node mounts.
    pub fn put_on_network(&mut self, vm: &str) {
        let classes = ["nfs", "gold"].map(|class| (class.to_owned(), ClassOverride::Network));
        let storage_classes = ClassOverrides(classes.into());
        self.policy = PolicySpec { storage_classes, ..PolicySpec::default() }.try_into().expect("it holds");
        let claims: Vec<Key> = self.fleet.vms[&key(vm)].claims("default").collect();
        for claim in claims {
            let claim = self.fleet.claims.get_mut(&claim).expect("there");
            claim.class = "nfs".into();
            let name = claim.volume.clone().expect("bound");
            let volume = self.fleet.volumes.get_mut(&name).expect("there");
            let (path, from) = (format!("{SHARED_ROOT}/{name}"), place_of_volume(volume).expect("on a node"));
            volume.class = "nfs".into();
            volume.node_affinity = None;
            volume.source = VolumeSource::Local { path: path.clone() };
            let generation = self.content.remove(&place_of(from.0.as_deref(), &from.1)).expect("there");
            self.content.insert(place_of(None, &path), generation);
            for node in ["n1", "n2", "n3"] {
                self.report_usage(&node.into(), &path);
            }
        }
    }

    /// The disks of a VM are where only kubelets mount them: on a CSI driver's network storage, or in a folder of their node
    /// that no root covers.
    pub fn put_where_kubelets_mount(&mut self, vm: &str, network: bool) {
        let claims: Vec<Key> = self.fleet.vms[&key(vm)].claims("default").collect();
        for claim in claims {
            let claim = self.fleet.claims.get_mut(&claim).expect("there");
            let name = claim.volume.clone().expect("bound");
            let volume = self.fleet.volumes.get_mut(&name).expect("there");
            let (node, path) = place_of_volume(volume).expect("on a node");
            let generation = self.content.remove(&place_of(node.as_deref(), &path)).expect("there");
            let node = node.expect("on a node");
            self.fleet.reports.get_mut(&NodeName::from(node.as_str())).expect("there").usage.remove(&path);
            if network {
                (claim.class, volume.class) = ("ceph".into(), "ceph".into());
                volume.node_affinity = None;
                let driver = "rbd.csi.ceph.com".to_owned();
                volume.source = VolumeSource::Csi { driver, handle: name.0.clone() };
            } else {
                volume.source = VolumeSource::Local { path: format!("/elsewhere/{name}") };
            }
            let (node, path) = place_of_volume(volume).expect("somewhere");
            self.content.insert(place_of(node.as_deref(), &path), generation);
        }
    }

    /// The same as block devices.
    pub fn put_on_devices(&mut self, vm: &str, network: bool) {
        self.put_where_kubelets_mount(vm, network);
        for claim in self.fleet.vms[&key(vm)].claims("default").collect::<Vec<_>>() {
            let claim = self.fleet.claims.get_mut(&claim).expect("there");
            let volume = self.fleet.volumes.get_mut(claim.volume.as_ref().expect("bound")).expect("there");
            (claim.mode, volume.mode) = (VolumeMode::Block, VolumeMode::Block);
        }
    }

    pub(super) fn report_usage(&mut self, node: &NodeName, path: &str) {
        let usage = Usage {
            allocated_bytes: 1 << 30,
            apparent_bytes: 4 << 30,
            inodes: 2,
            disk_image: DiskImage::Present,
        };
        self.fleet.reports.get_mut(node).expect("node exists").usage.insert(path.to_owned(), usage);
    }

    pub(super) fn create_volume(&mut self, new: &NewVolume) {
        let volume = Volume {
            source: VolumeSource::Local { path: new.path.clone() },
            node_affinity: new.node.as_ref().map(|node| hostname(&node.0)),
            provisioned_by: None,
            class: new.class.clone(),
            capacity_bytes: new.capacity_bytes,
            access_modes: new.access_modes.clone(),
            mode: new.mode,
            retained: true,
            claim: Some(ClaimRef { key: new.claim.clone(), uid: None }),
            phase: "Available".into(),
            created: None,
            deleting: false,
        };
        self.fleet.volumes.entry(new.name.clone()).or_insert(volume);
    }

    /// Somebody deletes the object of a volume: it goes at once, or when no claim is bound to it any more.
    pub fn delete_volume(&mut self, name: &VolumeName) {
        if let Some(volume) = self.fleet.volumes.get_mut(name) {
            volume.deleting = true;
            self.deleted.insert(name.clone());
        }
        self.let_deleted_go();
    }

    pub(super) fn let_deleted_go(&mut self) {
        let claims = &self.fleet.claims;
        let is_bound = |name: &VolumeName| claims.values().any(|claim| claim.volume.as_ref() == Some(name));
        self.fleet.volumes.retain(|name, volume| !volume.deleting || is_bound(name));
    }

    /// As the binder does: a claim without a volume takes the one that is pre-bound to it.
    pub(super) fn create_claim(&mut self, claim: &Key, volume: Option<VolumeName>) {
        self.next_uid += 1;
        let uid = Uid(format!("claim-uid-{}", self.next_uid));
        let volume =
            volume.or_else(|| self.fleet.volumes.keys().find(|name| self.is_prebound(name, claim)).cloned());
        let volume = volume.unwrap_or_else(|| {
            // Nobody pre-bound anything: a provisioner makes a blank volume on a node of its choice.
            let name = VolumeName(format!("blank-{}", uid.0));
            let path = format!("{ROOT}/{name}");
            let claim = claim.clone();
            self.create_volume(&NewVolume {
                name: name.clone(),
                class: "local-path".into(),
                node: Some("n1".into()),
                path,
                capacity_bytes: 4 << 30,
                access_modes: vec!["ReadWriteOnce".into()],
                mode: VolumeMode::Filesystem,
                claim,
            });
            name
        });
        let object = Claim {
            uid: uid.clone(),
            volume: Some(volume.clone()),
            class: "local-path".into(),
            requested_bytes: 4 << 30,
            access_modes: vec!["ReadWriteOnce".into()],
            mode: VolumeMode::Filesystem,
            phase: "Bound".into(),
            data_volume: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::from([("pv.kubernetes.io/bind-completed".into(), "yes".into())]),
            deleting: false,
        };
        self.fleet.claims.insert(claim.clone(), object);
        let bound = self.fleet.volumes.get_mut(&volume).expect("volume exists");
        bound.claim = Some(ClaimRef { key: claim.clone(), uid: Some(uid) });
        bound.phase = "Bound".into();
    }

    pub(super) fn is_prebound(&self, volume: &VolumeName, claim: &Key) -> bool {
        let to = self.fleet.volumes.get(volume).and_then(|volume| volume.claim.as_ref());
        to.is_some_and(|to| to.key == *claim && to.uid.is_none())
    }
}

pub(super) fn hostname(node: &str) -> NodeSelector {
    let requirement =
        Requirement { key: HOSTNAME.into(), operator: "In".into(), values: vec![node.to_owned()] };
    NodeSelector { terms: vec![vec![requirement]] }
}
