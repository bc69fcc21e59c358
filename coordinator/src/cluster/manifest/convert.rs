//! Nodes and storage objects, one by one, into the core's values. What is missing stays missing; what is wrong
//! is refused with its field.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::storage::v1 as storage;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;
use somersault_coordinator_core::fleet::{
    Attachment, Claim, ClaimRef, EVACUATE_ANNOTATION, Node, NodeSelector, Requirement, Resources,
    StorageClass, Taint, Volume, VolumeMode, VolumeSource,
};
use somersault_coordinator_core::names::{BootId, Key, NodeName, Uid, VolumeName};

use super::quantity;

/// Annotation on a volume that the coordinator has put on reclaim policy Retain: which one it had.
pub const RETAINED_ANNOTATION: &str = "somersault.novasphere.dev/reclaim-policy-before";
/// Annotation of the provisioner on a volume that it made.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// Fields of a volume's spec that describe it; the one other field is its source.
const VOLUME_FIELDS: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// In-tree volumes that are reached over the network (Kubernetes API reference, `PersistentVolumeSpec`).
const NETWORK_FIELDS: [&str; 17] = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "fc",
    "gcePersistentDisk",
    "glusterfs",
    "iscsi",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

/// A field and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// Path of the field.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

impl FieldError {
    /// An error about a field.
    pub fn new(field: impl Into<String>, message: &(impl ToString + ?Sized)) -> Self {
        Self { field: field.into(), message: message.to_string() }
    }
}

/// A Node.
pub fn node(object: &core::Node) -> Result<Node, FieldError> {
    let spec = object.spec.as_ref();
    let status = object.status.as_ref();
    let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let taints = spec.and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let allocatable = status.and_then(|s| s.allocatable.as_ref());
    let boot_id = status.and_then(|s| s.node_info.as_ref()).map(|info| info.boot_id.as_str());
    // Only a dump written by hand has a node that nobody ever judged. Where it is wrong, a launcher stays Pending.
    let ready = conditions.iter().find(|c| c.type_ == "Ready").is_none_or(|c| c.status == "True");
    Ok(Node {
        labels: object.metadata.labels.clone().unwrap_or_default(),
        ready,
        unschedulable: spec.and_then(|s| s.unschedulable).unwrap_or(false),
        taints: taints.iter().map(taint).collect(),
        boot_id: boot_id.filter(|id| !id.is_empty()).map(BootId::from),
        allocatable: match allocatable {
            Some(map) => resources(map, "status.allocatable")?,
            None => Resources::default(),
        },
        evacuate: object.metadata.annotations.as_ref().and_then(|all| all.get(EVACUATE_ANNOTATION)).cloned(),
        address: address(status),
    })
}

fn taint(taint: &core::Taint) -> Taint {
    Taint {
        key: taint.key.clone(),
        value: taint.value.clone().unwrap_or_default(),
        effect: taint.effect.clone(),
    }
}

/// The first internal address, with the kubelet's port: a refused connection there proves the kernel alive.
fn address(status: Option<&core::NodeStatus>) -> Option<String> {
    let status = status?;
    let found = status.addresses.as_deref()?.iter().find(|a| a.type_ == "InternalIP")?;
    let port = status.daemon_endpoints.as_ref().and_then(|d| d.kubelet_endpoint.as_ref()).map(|k| k.port);
    Some(match port {
        Some(port) if found.address.contains(':') => format!("[{}]:{port}", found.address),
        Some(port) => format!("{}:{port}", found.address),
        None => found.address.clone(),
    })
}

/// CPU and memory of a resource list.
pub fn resources(map: &BTreeMap<String, Quantity>, field: &str) -> Result<Resources, FieldError> {
    let read = |name: &str, parse: fn(&str) -> Result<u64, quantity::QuantityError>| match map.get(name) {
        Some(quantity) => parse(&quantity.0).map_err(|e| FieldError::new(format!("{field}.{name}"), &e)),
        None => Ok(0),
    };
    Ok(Resources {
        cpu_millis: read("cpu", quantity::millis)?,
        memory_bytes: read("memory", quantity::units)?,
    })
}

/// A `PersistentVolume`; `raw` is the same object untyped, which names its source's field.
pub fn volume(object: &core::PersistentVolume, raw: &Value) -> Result<Volume, FieldError> {
    let spec = object.spec.as_ref().ok_or_else(|| FieldError::new("spec", "missing"))?;
    let affinity = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    Ok(Volume {
        source: source(spec, &raw["spec"]),
        node_affinity: affinity.map(node_selector),
        provisioned_by: object.metadata.annotations.as_ref().and_then(|a| a.get(PROVISIONED_BY)).cloned(),
        class: spec.storage_class_name.clone().unwrap_or_default(),
        capacity_bytes: storage_bytes(spec.capacity.as_ref(), "spec.capacity.storage")?,
        access_modes: spec.access_modes.clone().unwrap_or_default(),
        mode: volume_mode(spec.volume_mode.as_deref())?,
        // A volume without a policy is retained (Kubernetes' default for volumes made by hand).
        retained: spec.persistent_volume_reclaim_policy.as_deref().is_none_or(|policy| policy == "Retain"),
        claim: spec.claim_ref.as_ref().map(claim_ref).transpose()?,
        phase: object.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default(),
        created: object.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()),
        deleting: object.metadata.deletion_timestamp.is_some(),
    })
}

fn source(spec: &core::PersistentVolumeSpec, raw: &Value) -> VolumeSource {
    if let Some(local) = &spec.local {
        return VolumeSource::Local { path: local.path.clone() };
    }
    if let Some(host_path) = &spec.host_path {
        return VolumeSource::HostPath { path: host_path.path.clone() };
    }
    if let Some(csi) = &spec.csi {
        return VolumeSource::Csi { driver: csi.driver.clone(), handle: csi.volume_handle.clone() };
    }
    let fields = raw.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    let mut fields = fields.map(|(field, _)| field).filter(|field| !VOLUME_FIELDS.contains(&field.as_str()));
    match fields.next() {
        Some(field) if NETWORK_FIELDS.contains(&field.as_str()) => {
            VolumeSource::Network { field: field.clone() }
        }
        Some(field) => VolumeSource::Unknown { field: field.clone() },
        None => VolumeSource::Unknown { field: String::new() },
    }
}

fn claim_ref(reference: &core::ObjectReference) -> Result<ClaimRef, FieldError> {
    let part = |value: &Option<String>, field: &str| {
        value.clone().ok_or_else(|| FieldError::new(format!("spec.claimRef.{field}"), "missing"))
    };
    let key = Key::new(part(&reference.namespace, "namespace")?, part(&reference.name, "name")?);
    let uid = reference.uid.as_deref().filter(|uid| !uid.is_empty()).map(Uid::from);
    Ok(ClaimRef { key, uid })
}

fn storage_bytes(map: Option<&BTreeMap<String, Quantity>>, field: &str) -> Result<u64, FieldError> {
    let text = map.and_then(|map| map.get("storage")).ok_or_else(|| FieldError::new(field, "missing"))?;
    quantity::units(&text.0).map_err(|e| FieldError::new(field, &e))
}

fn volume_mode(text: Option<&str>) -> Result<VolumeMode, FieldError> {
    match text {
        None | Some("Filesystem") => Ok(VolumeMode::Filesystem),
        Some("Block") => Ok(VolumeMode::Block),
        Some(other) => {
            Err(FieldError::new("spec.volumeMode", &format!("{other:?} is neither Filesystem nor Block")))
        }
    }
}

/// A node selector. Terms whose `matchFields` name anything but the node's name match nothing, as everything
/// that we do not know.
pub fn node_selector(selector: &core::NodeSelector) -> NodeSelector {
    let requirement = |r: &core::NodeSelectorRequirement| Requirement {
        key: r.key.clone(),
        operator: r.operator.clone(),
        values: r.values.clone().unwrap_or_default(),
    };
    let terms = selector.node_selector_terms.iter().map(|term| {
        let expressions = term.match_expressions.iter().flatten();
        expressions.chain(term.match_fields.iter().flatten()).map(requirement).collect()
    });
    NodeSelector { terms: terms.collect() }
}

/// A `PersistentVolumeClaim`.
pub fn claim(object: &core::PersistentVolumeClaim) -> Result<Claim, FieldError> {
    let spec = object.spec.as_ref().ok_or_else(|| FieldError::new("spec", "missing"))?;
    let requests = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    let owners = object.metadata.owner_references.as_deref().unwrap_or_default();
    let data_volume = owners.iter().find(|o| o.controller == Some(true) && o.kind == "DataVolume");
    Ok(Claim {
        uid: Uid::from(object.metadata.uid.as_deref().unwrap_or_default()),
        volume: spec.volume_name.as_deref().filter(|name| !name.is_empty()).map(VolumeName::from),
        class: spec.storage_class_name.clone().unwrap_or_default(),
        requested_bytes: storage_bytes(requests, "spec.resources.requests.storage")?,
        access_modes: spec.access_modes.clone().unwrap_or_default(),
        mode: volume_mode(spec.volume_mode.as_deref())?,
        phase: object.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default(),
        data_volume: data_volume.map(|owner| owner.name.clone()),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        annotations: object.metadata.annotations.clone().unwrap_or_default(),
        deleting: object.metadata.deletion_timestamp.is_some(),
    })
}

/// A `StorageClass`.
pub fn storage_class(object: &storage::StorageClass) -> StorageClass {
    StorageClass {
        provisioner: object.provisioner.clone(),
        waits_for_consumer: object.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
        parameters: object.parameters.clone().unwrap_or_default(),
        allowed_topologies: object
            .allowed_topologies
            .as_deref()
            .filter(|terms| !terms.is_empty())
            .map(topologies),
    }
}

/// Topology terms as a node selector: labels whose value is one of several.
fn topologies(terms: &[core::TopologySelectorTerm]) -> NodeSelector {
    let requirement = |r: &core::TopologySelectorLabelRequirement| Requirement {
        key: r.key.clone(),
        operator: "In".to_owned(),
        values: r.values.clone(),
    };
    let labels = |term: &core::TopologySelectorTerm| {
        term.match_label_expressions.iter().flatten().map(requirement).collect()
    };
    NodeSelector { terms: terms.iter().map(labels).collect() }
}

/// A `VolumeAttachment`.
pub fn attachment(object: &storage::VolumeAttachment) -> Attachment {
    let volume = object.spec.source.persistent_volume_name.as_deref().filter(|name| !name.is_empty());
    Attachment {
        uid: Uid::from(object.metadata.uid.as_deref().unwrap_or_default()),
        node: NodeName::from(object.spec.node_name.as_str()),
        volume: volume.map(VolumeName::from),
        attached: object.status.as_ref().is_some_and(|status| status.attached),
        deleting: object.metadata.deletion_timestamp.is_some(),
    }
}
