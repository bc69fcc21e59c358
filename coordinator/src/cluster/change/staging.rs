//! Claims of ours for which a class's own provisioner makes a volume, and the pods that hold those mounted while an agent
//! writes to them. Both have one name, lie in a namespace for them, and bear a label by which they are known again.

use serde_json::{Value, json};
use somersault_coordinator_core::io::Staging;
use somersault_coordinator_core::names::{Key, Uid};

use super::{MANAGED_BY, MANAGER, check_stays, uid, volume};
use crate::cluster::ClusterError;
use crate::cluster::error::{conflict, refused};
use crate::cluster::manifest::{ObjectId, PROVISIONED_BY, STAGING_LABEL};

/// Annotation with the migration that needs it, for people.
const MIGRATION_ANNOTATION: &str = "somersault.novasphere.dev/migration";
/// The reclaim policy under which a volume goes with its claim.
const DELETE: &str = "Delete";
/// Our binary in our image.
const PROGRAM: &str = "/usr/local/bin/somersault-coordinator";
/// Who runs it in our image.
const USER: u32 = 65532;

/// The claim.
pub(in crate::cluster) fn claim_id(namespace: &str, name: &str) -> ObjectId {
    ObjectId::namespaced("PersistentVolumeClaim", &Key::new(namespace, name))
}

/// The pod.
pub(in crate::cluster) fn holder_id(namespace: &str, name: &str) -> ObjectId {
    ObjectId::namespaced("Pod", &Key::new(namespace, name))
}

/// The claim's manifest.
pub(in crate::cluster) fn claim(namespace: &str, staging: &Staging) -> Value {
    let template = &staging.template;
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(namespace, staging),
        "spec": {
            "accessModes": template.access_modes,
            "resources": { "requests": { "storage": template.requested_bytes.to_string() } },
            "storageClassName": template.class,
            "volumeMode": volume::mode(template.mode),
        },
    })
}

/// The pod's manifest. It can be scheduled to one node only, since the volume must be where the agent is that writes it; where
/// a provisioner or a static volume waits for the first consumer, the scheduler tells which node that is. It may nothing, and
/// does nothing. `ours` is a pod template of our own, for the image and the right to pull it.
pub(in crate::cluster) fn holder(namespace: &str, staging: &Staging, ours: &Value) -> Value {
    let name = json!({ "key": "metadata.name", "operator": "In", "values": [staging.node.as_str()] });
    let mut spec = json!({
        "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchFields": [name] }],
        } } },
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 1,
        // A cordoned node may be where the disks go; one that is being drained ends its pods all the same.
        "tolerations": [
            { "key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule" },
        ],
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [{
            "name": "hold",
            "image": ours["spec"]["containers"][0]["image"],
            "imagePullPolicy": ours["spec"]["containers"][0]["imagePullPolicy"],
            "command": [PROGRAM, "hold"],
            "resources": { "requests": { "cpu": "1m", "memory": "8Mi" }, "limits": { "memory": "32Mi" } },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            },
            "volumeMounts": [{ "name": "held", "mountPath": "/held", "readOnly": true }],
        }],
        "volumes": [{ "name": "held", "persistentVolumeClaim": { "claimName": staging.name } }],
    });
    if ours["spec"]["imagePullSecrets"].is_array() {
        spec["imagePullSecrets"] = ours["spec"]["imagePullSecrets"].clone();
    }
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata(namespace, staging), "spec": spec })
}

fn metadata(namespace: &str, staging: &Staging) -> Value {
    json!({
        "namespace": namespace,
        "name": staging.name,
        "labels": { MANAGED_BY: MANAGER, "app.kubernetes.io/name": MANAGER, STAGING_LABEL: "true" },
        "annotations": { MIGRATION_ANNOTATION: staging.migration.to_string() },
    })
}

/// Whether what is there under the name is what was asked for.
pub(in crate::cluster) fn check_same(
    id: &ObjectId,
    stored: &Value,
    wanted: &Value,
) -> Result<(), ClusterError> {
    check_ours(id, stored)?;
    check_stays(id, stored)?;
    let same = |field: &str| stored["spec"][field] == wanted["spec"][field];
    if same("storageClassName") && same("affinity") {
        return Ok(());
    }
    Err(conflict(id, "it is there for something else"))
}

/// Refuses what bears the name and is not of our making.
pub(in crate::cluster) fn check_ours(id: &ObjectId, stored: &Value) -> Result<(), ClusterError> {
    if stored["metadata"]["labels"][STAGING_LABEL] == "true" {
        return Ok(());
    }
    Err(refused(id, format!("it lacks the label {STAGING_LABEL}: it is somebody else's, and left alone")))
}

/// Lets a volume go with our claim, or after it: only one that a provisioner has made for that very claim, and that no other
/// claim was ever bound to.
pub(in crate::cluster) fn discard(
    id: &ObjectId,
    volume: &mut Value,
    claim_uid: &Uid,
) -> Result<(), ClusterError> {
    let made = volume["metadata"]["annotations"][PROVISIONED_BY].is_string();
    if !made || !id.name.ends_with(claim_uid.as_str()) {
        return Err(refused(id, "no provisioner made it for a claim of ours: left alone"));
    }
    if volume["spec"]["claimRef"]["uid"].as_str() != Some(claim_uid.as_str()) {
        return Err(refused(id, "it is not bound to the claim that it was made for any more: left alone"));
    }
    volume["spec"]["persistentVolumeReclaimPolicy"] = json!(DELETE);
    Ok(())
}

/// Whether a holder has ended, and holds nothing any more.
pub(in crate::cluster) fn has_ended(holder: &Value) -> bool {
    matches!(holder["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// Refuses to delete a claim whose volume is to stay, where it would not.
pub(in crate::cluster) fn check_kept(
    id: &ObjectId,
    claim: &Value,
    volume: Option<&Value>,
) -> Result<(), ClusterError> {
    let Some(volume) = volume else { return Ok(()) };
    let bound = volume["spec"]["claimRef"]["uid"].as_str() == Some(uid(claim));
    if bound && !volume::is_retained(volume) {
        return Err(refused(id, "its volume is not on reclaim policy Retain, and would go with it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staging() -> Staging {
        serde_json::from_value::<somersault_coordinator_core::io::ClaimTemplate>(json!({
            "class": "ceph", "requested_bytes": 4096, "access_modes": ["ReadWriteOnce"], "mode": "Filesystem",
            "labels": {}, "annotations": {},
        }))
        .map(|template| Staging {
            name: "smst-1".into(),
            node: "n1".into(),
            migration: Key::new("shop", "move"),
            template,
        })
        .expect("a template")
    }

    #[test]
    fn a_holder_may_nothing_and_pulls_what_we_are() {
        let ours = json!({ "spec": {
            "containers": [{ "image": "r/somersault:1", "imagePullPolicy": "IfNotPresent" }],
            "imagePullSecrets": [{ "name": "r" }],
        } });
        let pod = holder("system", &staging(), &ours);
        let spec = &pod["spec"];
        assert_eq!(spec["containers"][0]["image"], "r/somersault:1");
        assert_eq!(spec["imagePullSecrets"][0]["name"], "r");
        assert_eq!(spec["automountServiceAccountToken"], false);
        assert_eq!(spec["containers"][0]["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
        let terms = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(terms["nodeSelectorTerms"][0]["matchFields"][0]["values"], json!(["n1"]));
        assert_eq!(spec["volumes"][0]["persistentVolumeClaim"]["claimName"], "smst-1");
        let claim = claim("system", &staging());
        assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "4096");
    }

    #[test]
    fn a_volume_is_discarded_only_while_it_is_ours() {
        let id = ObjectId::cluster("PersistentVolume", "pvc-u1");
        let ours = json!({
            "metadata": { "annotations": { PROVISIONED_BY: "rbd.csi.ceph.com" } },
            "spec": { "claimRef": { "uid": "u1" }, "persistentVolumeReclaimPolicy": "Retain" },
        });
        let mut there_before = ours.clone();
        there_before["metadata"] = json!({});
        let mut anothers = ours.clone();
        anothers["spec"]["claimRef"]["uid"] = json!("u2");
        for mut volume in [there_before, anothers] {
            assert!(discard(&id, &mut volume, &"u1".into()).is_err());
            assert_eq!(volume["spec"]["persistentVolumeReclaimPolicy"], "Retain");
        }
        let mut volume = ours;
        let earlier = ObjectId::cluster("PersistentVolume", "pvc-u0");
        assert!(discard(&earlier, &mut volume, &"u1".into()).is_err(), "made for an earlier claim");
        discard(&id, &mut volume, &"u1".into()).expect("ours");
        assert_eq!(volume["spec"]["persistentVolumeReclaimPolicy"], "Delete");
    }

    #[test]
    fn a_claim_whose_volume_would_go_with_it_is_kept_and_so_is_what_is_not_ours() {
        let id = claim_id("system", "smst-1");
        let claim = json!({ "metadata": { "uid": "u1", "labels": { STAGING_LABEL: "true" } } });
        let volume = |uid: &str, policy: &str| json!({ "spec": { "claimRef": { "uid": uid }, "persistentVolumeReclaimPolicy": policy } });
        assert!(check_kept(&id, &claim, Some(&volume("u1", "Delete"))).is_err());
        assert!(check_kept(&id, &claim, Some(&volume("u1", "Retain"))).is_ok());
        assert!(check_kept(&id, &claim, None).is_ok());
        assert!(check_ours(&id, &claim).is_ok());
        assert!(check_ours(&id, &json!({ "metadata": {} })).is_err());
    }
}
