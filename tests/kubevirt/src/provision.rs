//! Storage that the test cluster lacks, and the label that says that virt-handler is on a node.
//!
//! | class | what it stands for | volumes |
//! |---|---|---|
//! | `nfs-standin` | an NFS export | a folder of `/mnt/network`, which every node sees; no affinity |
//! | `hostpath-standin` | Docker Desktop, minikube | a folder of whichever node the pod is on; no affinity |
//!
//! A volume whose claim is gone stays, folder and all: nobody deletes here.

use serde_json::{Value, json};

use crate::change::Change;
use crate::names::SCHEDULABLE_LABEL;
use crate::objects::{Kind, Objects, annotation, is_deleting, label, name, namespace, phase, uid};

/// Class of the folder that every node sees.
pub const NETWORK_CLASS: &str = "nfs-standin";
/// Class of folders of which nothing says where they are.
pub const HOSTPATH_CLASS: &str = "hostpath-standin";
/// What Kubernetes writes on a claim that it wants provisioned.
const WANTED_FROM: &str = "volume.kubernetes.io/storage-provisioner";
/// Provisioner, and the folder on nodes in which it makes volumes.
const PROVISIONERS: [(&str, &str); 2] = [
    ("kubevirt-standin/network", "/mnt/network"),
    ("kubevirt-standin/hostpath", "/var/lib/kubevirt-standin-hostpath"),
];

pub(crate) fn reconcile(objects: &Objects) -> Vec<Change> {
    let claims = objects.all(Kind::PersistentVolumeClaim).filter_map(|claim| volume(objects, claim));
    claims.chain(objects.all(Kind::Node).filter_map(host)).collect()
}

fn volume(objects: &Objects, claim: &Value) -> Option<Change> {
    let provisioner = annotation(claim, WANTED_FROM)?;
    let (_, folder) = PROVISIONERS.iter().find(|(name, _)| *name == provisioner)?;
    let volume = format!("pvc-{}", uid(claim));
    let is_wanted = phase(claim) == "Pending" && claim["spec"]["volumeName"].is_null() && !is_deleting(claim);
    if !is_wanted || objects.get(Kind::PersistentVolume, "", &volume).is_some() {
        return None;
    }
    let class = claim["spec"]["storageClassName"].as_str()?;
    Some(Change::Create(json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": volume,
            "annotations": {"pv.kubernetes.io/provisioned-by": provisioner},
        },
        "spec": {
            "storageClassName": class,
            "accessModes": claim["spec"]["accessModes"],
            "volumeMode": "Filesystem",
            "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": namespace(claim), "name": name(claim), "uid": uid(claim),
            },
            "hostPath": {"path": format!("{folder}/{volume}"), "type": "DirectoryOrCreate"},
        },
    })))
}

/// KubeVirt's virt-handler says on each node that launchers may run there. It is never taken back here: a launcher
/// of a dead node is not moved by it anyway (measured on KubeVirt 1.9.0: `false` after 4 min 41 s).
fn host(node: &Value) -> Option<Change> {
    if label(node, SCHEDULABLE_LABEL).is_some() {
        return None;
    }
    let mut next = node.clone();
    next["metadata"]["labels"][SCHEDULABLE_LABEL] = json!("true");
    Some(Change::Update(next))
}
