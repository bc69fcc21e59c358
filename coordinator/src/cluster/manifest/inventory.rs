//! Every object of a cluster, typed, with the place it came from; joined into a snapshot.
//!
//! ```text
//!   objects ──► add: by kind, typed, converted where that needs no other object ──► snapshot: the rest, and joined
//!                    a bad one becomes a problem
//! ```
//!
//! Kinds that we do not know are left alone. A large cluster has an object of many kinds for each VM: what is kept of
//! those is what is read of them, since the API's own types take kilobytes for what an object could have besides.

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttachment};
use serde::de::DeserializeOwned;
use serde_json::Value;
use somersault_coordinator_core::fleet::{
    Alias, Attachment, Claim, Fleet, Holder, Node, StagedClaim, Volume,
};
use somersault_coordinator_core::names::{BootId, Key, NodeName, VolumeName};
use somersault_crd as crd;

use super::convert::{self, FieldError};
use super::kubevirt::{
    DataVolume, InstanceMigration, VirtualMachine, VirtualMachineInstance, VolumeSnapshot, Wukong,
};
use super::pod::{self, STAGING_LABEL, VmPod, claims_of};
use super::{ObjectId, disks, requests, vm};
use crate::cluster::{Problem, Snapshot};

/// Namespace of the kubelets' Leases.
const NODE_LEASE_NAMESPACE: &str = "kube-node-lease";

/// Objects of a cluster.
#[derive(Debug, Default)]
pub struct Inventory {
    /// That of claims of ours; empty where nobody coordinates.
    staging_namespace: String,
    nodes: BTreeMap<NodeName, Node>,
    volumes: BTreeMap<VolumeName, Volume>,
    /// Those of them that are aliases of ours, whether or not they are being deleted.
    aliases: BTreeMap<VolumeName, Alias>,
    claims: BTreeMap<Key, Claim>,
    pub(super) classes: BTreeMap<String, Placed<StorageClass>>,
    attachments: BTreeMap<String, Attachment>,
    /// Those that may be a VM's own.
    pub(super) pods: BTreeMap<Key, VmPod>,
    /// Of all other pods that use claims, the names of those.
    pub(super) claims_of_other_pods: BTreeMap<Key, Box<[String]>>,
    /// Pods of ours that hold a claim mounted.
    holders: BTreeMap<Key, Holder>,
    pub(super) leases: BTreeMap<NodeName, Placed<Lease>>,
    pub(super) vms: BTreeMap<Key, Placed<VirtualMachine>>,
    pub(super) instances: BTreeMap<Key, Placed<VirtualMachineInstance>>,
    pub(super) live_migrations: BTreeMap<Key, Placed<InstanceMigration>>,
    pub(super) data_volumes: BTreeMap<Key, Placed<DataVolume>>,
    pub(super) snapshots: BTreeMap<Key, Placed<VolumeSnapshot>>,
    /// With the raw `spec.startStrategy`, which must be given back as it was.
    pub(super) wukongs: BTreeMap<Key, (Placed<Wukong>, Option<String>)>,
    pub(super) node_healths: BTreeMap<NodeName, Placed<crd::NodeHealth>>,
    pub(super) migrations: BTreeMap<Key, Placed<crd::VolumeMigration>>,
    pub(super) evacuations: BTreeMap<String, Placed<crd::Evacuation>>,
    pub(super) policies: BTreeMap<String, Placed<crd::RecoveryPolicy>>,
    /// Those that we make, by uid, whether or not they can be read.
    ours: BTreeMap<ObjectId, String>,
    problems: Vec<Problem>,
}

/// An object and where it came from.
#[derive(Clone, Debug)]
pub(super) struct Placed<T> {
    /// The object.
    pub object: T,
    place: Place,
}

/// Where an object came from.
#[derive(Clone, Debug)]
struct Place {
    file: String,
    document: usize,
    id: ObjectId,
}

impl Place {
    fn problem(&self, message: &(impl ToString + ?Sized)) -> Problem {
        Problem {
            file: self.file.clone(),
            document: self.document,
            object: self.id.to_string(),
            message: message.to_string(),
        }
    }
}

impl<T> Placed<T> {
    /// A problem of this object.
    pub(super) fn problem(&self, error: &FieldError) -> Problem {
        self.place.problem(error)
    }
}

impl Inventory {
    /// Of the coordinator in this namespace.
    pub fn of_coordinator(namespace: &str) -> Self {
        Self { staging_namespace: pod::staging_namespace(namespace), ..Self::default() }
    }

    /// Adds an object; `file` and `document` say where problems are. Kinds that we do not know are left alone.
    pub fn add(&mut self, file: &str, document: usize, id: &ObjectId, value: &Value) {
        let place = Place { file: file.to_owned(), document, id: id.clone() };
        let name = NodeName(id.name.clone());
        if matches!(id.kind.as_str(), "NodeHealth" | "Recovery") {
            let uid = value["metadata"]["uid"].as_str().unwrap_or_default();
            self.ours.insert(id.clone(), uid.to_owned());
        }
        let result = match id.kind.as_str() {
            "Node" => keep_converted(&mut self.nodes, name, &place, value, convert::node),
            "PersistentVolume" => {
                let converted = |object: &core::PersistentVolume| convert::volume(object, value);
                let name = VolumeName(id.name.clone());
                let of_claim = value["spec"]["claimRef"]["namespace"].as_str();
                let labelled = value["metadata"]["labels"][STAGING_LABEL].is_string();
                if labelled && of_claim == Some(self.staging_namespace.as_str()) {
                    let deleting = value["metadata"]["deletionTimestamp"].is_string();
                    self.aliases.insert(name.clone(), Alias { deleting });
                }
                keep_converted(&mut self.volumes, name, &place, value, converted)
            }
            "PersistentVolumeClaim" => {
                keep_converted(&mut self.claims, id.key(), &place, value, convert::claim)
            }
            "StorageClass" => keep(&mut self.classes, id.name.clone(), place, value),
            "VolumeAttachment" => {
                let converted = |object: &VolumeAttachment| Ok(convert::attachment(object));
                keep_converted(&mut self.attachments, id.name.clone(), &place, value, converted)
            }
            "Pod" => self.add_pod(id.key(), &place, value),
            "Lease" if id.namespace == NODE_LEASE_NAMESPACE => keep(&mut self.leases, name, place, value),
            "VirtualMachine" => keep(&mut self.vms, id.key(), place, value),
            "VirtualMachineInstance" => keep(&mut self.instances, id.key(), place, value),
            "VirtualMachineInstanceMigration" => keep(&mut self.live_migrations, id.key(), place, value),
            "DataVolume" => keep(&mut self.data_volumes, id.key(), place, value),
            "VolumeSnapshot" => keep(&mut self.snapshots, id.key(), place, value),
            "Wukong" => self.add_wukong(place, value),
            "NodeHealth" => keep(&mut self.node_healths, name, place, value),
            "VolumeMigration" => keep(&mut self.migrations, id.key(), place, value),
            "Evacuation" => keep(&mut self.evacuations, id.name.clone(), place, value),
            "RecoveryPolicy" => keep(&mut self.policies, id.name.clone(), place, value),
            _ => Ok(()),
        };
        if let Err(problem) = result {
            self.problems.push(problem);
        }
    }

    /// Takes an object out, and what was wrong with it.
    pub fn remove(&mut self, id: &ObjectId) {
        let name = NodeName(id.name.clone());
        match id.kind.as_str() {
            "Node" => drop(self.nodes.remove(&name)),
            "PersistentVolume" => {
                let name = VolumeName(id.name.clone());
                self.volumes.remove(&name);
                self.aliases.remove(&name);
            }
            "PersistentVolumeClaim" => drop(self.claims.remove(&id.key())),
            "StorageClass" => drop(self.classes.remove(&id.name)),
            "VolumeAttachment" => drop(self.attachments.remove(&id.name)),
            "Pod" => {
                self.pods.remove(&id.key());
                self.claims_of_other_pods.remove(&id.key());
                self.holders.remove(&id.key());
            }
            "Lease" => drop(self.leases.remove(&name)),
            "VirtualMachine" => drop(self.vms.remove(&id.key())),
            "VirtualMachineInstance" => drop(self.instances.remove(&id.key())),
            "VirtualMachineInstanceMigration" => drop(self.live_migrations.remove(&id.key())),
            "DataVolume" => drop(self.data_volumes.remove(&id.key())),
            "VolumeSnapshot" => drop(self.snapshots.remove(&id.key())),
            "Wukong" => drop(self.wukongs.remove(&id.key())),
            "NodeHealth" => drop(self.node_healths.remove(&name)),
            "VolumeMigration" => drop(self.migrations.remove(&id.key())),
            "Evacuation" => drop(self.evacuations.remove(&id.name)),
            "RecoveryPolicy" => drop(self.policies.remove(&id.name)),
            _ => {}
        }
        self.ours.remove(id);
        let object = id.to_string();
        self.problems.retain(|problem| problem.object != object);
    }

    fn add_pod(&mut self, key: Key, place: &Place, value: &Value) -> Result<(), Problem> {
        let object: core::Pod = typed(value).map_err(|e| place.problem(&e))?;
        if let Some(holder) = pod::holder(&object) {
            self.holders.insert(key.clone(), holder);
        }
        if let Some(pod) = VmPod::of(&object) {
            self.pods.insert(key, pod);
        } else {
            let claims: Box<[String]> = claims_of(&object).collect();
            if !claims.is_empty() {
                self.claims_of_other_pods.insert(key, claims);
            }
        }
        Ok(())
    }

    fn add_wukong(&mut self, place: Place, value: &Value) -> Result<(), Problem> {
        let object = typed(value).map_err(|e| place.problem(&e))?;
        let start = value["spec"].get("startStrategy").map(Value::to_string);
        self.wukongs.insert(place.id.key(), (Placed { object, place }, start));
        Ok(())
    }

    /// Converts and joins what was added.
    pub fn snapshot(&self) -> Snapshot {
        let mut problems = self.problems.clone();
        let mut fleet = Fleet {
            nodes: self.nodes.clone(),
            volumes: self.volumes.clone(),
            claims: self.claims.clone(),
            attachments: self.attachments.clone(),
            ..Fleet::default()
        };
        fleet.classes = self
            .classes
            .iter()
            .map(|(name, placed)| (name.clone(), convert::storage_class(&placed.object)))
            .collect();
        let data_volumes = self.data_volumes.iter();
        fleet.data_volumes =
            data_volumes.map(|(key, placed)| (key.clone(), disks::data_volume(&placed.object))).collect();
        let snapshots = self.snapshots.iter();
        fleet.snapshots =
            snapshots.map(|(key, placed)| (key.clone(), disks::snapshot(&placed.object))).collect();
        let live = self.live_migrations.iter();
        fleet.live_migrations =
            live.map(|(key, placed)| (key.clone(), vm::live_migration(&placed.object))).collect();
        fleet.agents_seen = self.node_healths.iter().filter_map(agent_seen).collect();
        vm::join(self, &mut fleet, &mut problems);
        self.take_staged(&mut fleet);
        let requests = requests::read(self, &mut problems);
        let windows = requests::windows(self);
        let renewals = self.leases.iter().filter_map(|(name, lease)| {
            let renewed = lease.object.spec.as_ref()?.renew_time.as_ref()?;
            Some((name.clone(), renewed.0.to_string()))
        });
        let generations = self.generations();
        Snapshot {
            fleet: fleet.into(),
            requests: requests.into(),
            windows,
            kubelet_renewals: renewals.collect(),
            generations,
            ours: self.ours.clone(),
            problems,
        }
    }

    /// What provisioners make for us, and what reads old volumes: claims and pods with our label in the namespace for them, and
    /// aliases for such claims. They are nobody's disks, and appear nowhere else.
    fn take_staged(&self, fleet: &mut Fleet) {
        let ours = |key: &Key| key.namespace == self.staging_namespace;
        let claims =
            self.claims.iter().filter(|(key, claim)| ours(key) && claim.labels.contains_key(STAGING_LABEL));
        for (key, claim) in claims {
            fleet.claims.remove(key);
            fleet.claims_used_by_others.remove(key);
            let staged = fleet.staged.entry(key.name.clone()).or_default();
            let (uid, volume) = (claim.uid.clone(), claim.volume.clone());
            staged.claim = Some(StagedClaim { uid, volume, deleting: claim.deleting });
        }
        for (name, alias) in &self.aliases {
            fleet.volumes.remove(name);
            fleet.staged.entry(name.0.clone()).or_default().alias = Some(alias.clone());
        }
        for (key, holder) in self.holders.iter().filter(|(key, _)| ours(key)) {
            fleet.staged.entry(key.name.clone()).or_default().holder = Some(holder.clone());
        }
    }

    fn generations(&self) -> BTreeMap<ObjectId, i64> {
        let healths = self.node_healths.values().map(|p| (&p.place, p.object.metadata.generation));
        let migrations = self.migrations.values().map(|p| (&p.place, p.object.metadata.generation));
        let evacuations = self.evacuations.values().map(|p| (&p.place, p.object.metadata.generation));
        let all = healths.chain(migrations).chain(evacuations);
        all.filter_map(|(place, generation)| Some((place.id.clone(), generation?))).collect()
    }
}

/// The boot of the last beat that some leader told of.
fn agent_seen((node, placed): (&NodeName, &Placed<crd::NodeHealth>)) -> Option<(NodeName, BootId)> {
    let boot = placed.object.status.as_ref()?.boot_id.as_deref().filter(|boot| !boot.is_empty())?;
    Some((node.clone(), BootId::from(boot)))
}

fn keep<K: Ord, T: DeserializeOwned>(
    map: &mut BTreeMap<K, Placed<T>>,
    key: K,
    place: Place,
    value: &Value,
) -> Result<(), Problem> {
    let object = typed(value).map_err(|e| place.problem(&e))?;
    map.insert(key, Placed { object, place });
    Ok(())
}

/// Keeps what is read of an object, for kinds that need no other object to be converted.
fn keep_converted<K: Ord, T: DeserializeOwned, O>(
    map: &mut BTreeMap<K, O>,
    key: K,
    place: &Place,
    value: &Value,
    convert: impl FnOnce(&T) -> Result<O, FieldError>,
) -> Result<(), Problem> {
    let converted = typed(value).and_then(|object| convert(&object)).map_err(|e| place.problem(&e))?;
    map.insert(key, converted);
    Ok(())
}

/// Reads an object into its type; the error names the field.
fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let field = e.path().to_string();
        FieldError::new(if field == "." { "the object".to_owned() } else { field }, e.inner())
    })
}

/// Keeps a converted object, or its problem.
pub(super) fn insert<K: Ord + Clone, T, O>(
    map: &mut BTreeMap<K, O>,
    key: &K,
    placed: &Placed<T>,
    converted: Result<O, FieldError>,
    problems: &mut Vec<Problem>,
) {
    match converted {
        Ok(value) => {
            map.insert(key.clone(), value);
        }
        Err(error) => problems.push(placed.problem(&error)),
    }
}
