//! Claims of ours for which a class's own provisioner makes a volume, or that read an old one by an alias, and the pods that
//! hold those mounted for an agent. All have one name, claims and pods lie in a namespace for them, and all bear a label by
//! which they are known again.
//!
//! An **alias** is a second `PersistentVolume` object for the storage of a volume. It is made on Retain, names no provisioner
//! and no class, and is deleted by [`check_is_alias`] alone, which wants all of that to be so still: no storage goes with it.

use serde_json::{Value, json};
use somersault_coordinator_core::fleet::VolumeMode;
use somersault_coordinator_core::io::Staging;
use somersault_coordinator_core::names::{Key, Uid};

use super::{MANAGED_BY, MANAGER, check_stays, is_ours, uid, volume};
use crate::cluster::ClusterError;
use crate::cluster::error::{conflict, refused};
use crate::cluster::manifest::{ObjectId, PROVISIONED_BY, STAGING_LABEL};

/// Annotation with the migration that needs it, for people.
const MIGRATION_ANNOTATION: &str = "somersault.novasphere.dev/migration";
/// The reclaim policy under which a volume goes with its claim.
const DELETE: &str = "Delete";
/// Our binaries in our image.
const PROGRAM: &str = "/usr/local/bin/somersault-coordinator";
const AGENT: &str = "/usr/local/bin/somersault-agent";
/// Where a holder has a block device, and the volume where it hands it to the agent. The volume's name is an agreement with that
/// agent.
const DEVICE: &str = "/dev/held";
const HANDING: (&str, &str) = ("somersault-device", "/handing");
/// Who runs it in our image.
const USER: u32 = 65532;
/// Kinds of storage that kubelets mount where agents find it, by their fields of a volume's `spec`.
const MOUNTED: [&str; 3] = ["csi", "nfs", "local"];
/// What an alias has of the volume, beside its source.
const AS_THE_VOLUME: [&str; 5] = ["accessModes", "capacity", "mountOptions", "nodeAffinity", "volumeMode"];

/// The claim.
pub(in crate::cluster) fn claim_id(namespace: &str, name: &str) -> ObjectId {
    ObjectId::namespaced("PersistentVolumeClaim", &Key::new(namespace, name))
}

/// The pod.
pub(in crate::cluster) fn holder_id(namespace: &str, name: &str) -> ObjectId {
    ObjectId::namespaced("Pod", &Key::new(namespace, name))
}

/// The alias's manifest, of a volume as it is stored: only of one that no claim has any more, and that stays.
pub(in crate::cluster) fn alias(
    namespace: &str,
    staging: &Staging,
    id: &ObjectId,
    of: &Value,
) -> Result<Value, ClusterError> {
    check_stays(id, of)?;
    let released = of["status"]["phase"] == "Released" && of["spec"]["claimRef"]["uid"].is_string();
    if !released || !volume::is_retained(of) {
        return Err(refused(
            id,
            "it is not Released and on reclaim policy Retain: a claim has it, or may get it",
        ));
    }
    let Some(source) = MOUNTED.into_iter().find(|source| of["spec"][*source].is_object()) else {
        return Err(refused(id, "it is of no kind that kubelets mount where an agent finds it"));
    };
    let mut spec = json!({
        "claimRef": volume::claim_ref(&Key::new(namespace, &staging.name), None),
        "persistentVolumeReclaimPolicy": volume::RETAIN,
        "storageClassName": "",
        source: of["spec"][source],
    });
    for field in AS_THE_VOLUME.into_iter().filter(|field| !of["spec"][*field].is_null()) {
        spec[field] = of["spec"][field].clone();
    }
    let mut metadata = metadata(namespace, staging);
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.remove("namespace");
    }
    Ok(json!({ "apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec }))
}

/// Whether what is there under an alias's name is that very one.
pub(in crate::cluster) fn check_same_alias(
    namespace: &str,
    id: &ObjectId,
    stored: &Value,
    wanted: &Value,
) -> Result<(), ClusterError> {
    check_is_alias(namespace, id, stored)?;
    check_stays(id, stored)?;
    // The API server adds what a source leaves out: of what names the storage, nothing is.
    let same = |pointer: &str| stored["spec"].pointer(pointer) == wanted["spec"].pointer(pointer);
    let named = ["/csi/driver", "/csi/volumeHandle", "/nfs/server", "/nfs/path", "/local/path"];
    if named.into_iter().all(same) { Ok(()) } else { Err(conflict(id, "it is there for other storage")) }
}

/// Refuses whatever is not an alias of ours with which no storage goes: only such a one is deleted here.
pub(in crate::cluster) fn check_is_alias(
    namespace: &str,
    id: &ObjectId,
    stored: &Value,
) -> Result<(), ClusterError> {
    check_ours(id, stored)?;
    let of_claim = &stored["spec"]["claimRef"];
    let for_us = of_claim["namespace"] == namespace && of_claim["name"] == id.name.as_str();
    if !is_ours(stored) || !for_us {
        return Err(refused(id, "it is not for a claim of ours: left alone"));
    }
    if !volume::is_retained(stored) || stored["metadata"]["annotations"][PROVISIONED_BY].is_string() {
        return Err(refused(
            id,
            "it is not on reclaim policy Retain, or a provisioner's: its storage might go",
        ));
    }
    Ok(())
}

/// The claim's manifest. One for an alias names it.
pub(in crate::cluster) fn claim(namespace: &str, staging: &Staging) -> Value {
    let template = &staging.template;
    let mut claim = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(namespace, staging),
        "spec": {
            "accessModes": template.access_modes,
            "resources": { "requests": { "storage": template.requested_bytes.to_string() } },
            "storageClassName": template.class,
            "volumeMode": volume::mode(template.mode),
        },
    });
    if staging.alias_of.is_some() {
        claim["spec"]["volumeName"] = json!(staging.name);
    }
    claim
}

/// The pod's manifest. It can be scheduled to one node only, since the volume must be where the agent is that writes it; where
/// a provisioner or a static volume waits for the first consumer, the scheduler tells which node that is. It may nothing, and
/// does nothing. What is read by an alias is mounted read-only, by the kubelet. `ours` is a pod template of our own, for the
/// image and the right to pull it. A block device has no other way to the agent than the holder's hand: there it opens what belongs
/// to root, as root without any right.
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
    if staging.alias_of.is_some() {
        spec["volumes"][0]["persistentVolumeClaim"]["readOnly"] = json!(true);
    }
    if staging.template.mode == VolumeMode::Block {
        let (name, folder) = HANDING;
        let container = &mut spec["containers"][0];
        container["command"] = json!([AGENT, "hold", DEVICE, folder]);
        container["volumeDevices"] = json!([{ "name": "held", "devicePath": DEVICE }]);
        container["volumeMounts"] = json!([{ "name": name, "mountPath": folder }]);
        spec["securityContext"] = json!({
            "runAsUser": 0,
            "runAsGroup": 0,
            "seccompProfile": { "type": "RuntimeDefault" },
        });
        if let Some(volumes) = spec["volumes"].as_array_mut() {
            volumes.push(json!({ "name": name, "emptyDir": {} }));
        }
    }
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
            alias_of: None,
        })
        .expect("a template")
    }

    fn of_alias() -> Staging {
        let mut staging = Staging { alias_of: Some("pvc-1".into()), ..staging() };
        staging.template.class = String::new();
        staging
    }

    /// As a CSI driver has made it, of a claim that is gone.
    fn released() -> Value {
        json!({
            "metadata": {
                "name": "pvc-1",
                "annotations": { PROVISIONED_BY: "rbd.csi.ceph.com" },
                "finalizers": ["kubernetes.io/pv-protection"],
            },
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": { "storage": "4Ki" },
                "claimRef": { "namespace": "shop", "name": "db", "uid": "u1" },
                "csi": {
                    "driver": "rbd.csi.ceph.com", "volumeHandle": "h", "fsType": "ext4",
                    "volumeAttributes": { "pool": "rbd" },
                    "nodeStageSecretRef": { "name": "s", "namespace": "ceph" },
                },
                "mountOptions": ["discard"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "ceph",
                "volumeMode": "Filesystem",
            },
            "status": { "phase": "Released" },
        })
    }

    #[test]
    fn an_alias_is_the_same_storage_and_nothing_goes_with_it() {
        let (of, id) = (released(), volume::id(&"pvc-1".into()));
        let made = alias("system", &of_alias(), &id, &of).expect("made");
        for field in ["csi", "mountOptions", "accessModes", "capacity", "volumeMode"] {
            assert_eq!(made["spec"][field], of["spec"][field], "{field}");
        }
        assert_eq!(made["spec"]["persistentVolumeReclaimPolicy"], "Retain");
        assert_eq!(
            (&made["spec"]["storageClassName"], &made["metadata"]["annotations"][PROVISIONED_BY]),
            (&json!(""), &Value::Null)
        );
        let reference = &made["spec"]["claimRef"];
        assert_eq!((&reference["namespace"], &reference["name"]), (&json!("system"), &json!("smst-1")));
        assert!(
            made["metadata"]["namespace"].is_null() && made["metadata"]["finalizers"].is_null(),
            "{made}"
        );
        let claim = claim("system", &of_alias());
        assert_eq!(
            (&claim["spec"]["volumeName"], &claim["spec"]["storageClassName"]),
            (&json!("smst-1"), &json!(""))
        );
        let ours = json!({ "spec": { "containers": [{ "image": "i" }] } });
        let volumes = |staging: &Staging| holder("system", staging, &ours)["spec"]["volumes"][0].clone();
        assert_eq!(volumes(&of_alias())["persistentVolumeClaim"]["readOnly"], true);
        assert!(volumes(&staging())["persistentVolumeClaim"]["readOnly"].is_null());
    }

    #[test]
    fn no_alias_is_made_of_what_somebody_has_or_of_what_is_not_found_where_it_is_mounted() {
        let (id, changed) = (volume::id(&"pvc-1".into()), |pointer: &str, value: Value| {
            let mut of = released();
            *of.pointer_mut(pointer).expect("there") = value;
            of
        });
        let mut prebound = released();
        prebound["spec"]["claimRef"].as_object_mut().expect("a reference").remove("uid");
        let mut other = released();
        other["spec"].as_object_mut().expect("a spec").remove("csi");
        other["spec"]["hostPath"] = json!({ "path": "/x" });
        let mut going = released();
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        for of in [
            changed("/status/phase", json!("Bound")),
            changed("/status/phase", json!("Available")),
            changed("/spec/persistentVolumeReclaimPolicy", json!("Delete")),
            prebound,
            other,
            going,
        ] {
            assert!(alias("system", &of_alias(), &id, &of).is_err(), "{of}");
        }
    }

    #[test]
    fn only_an_alias_of_ours_on_retain_is_deleted() {
        let made = alias("system", &of_alias(), &volume::id(&"pvc-1".into()), &released()).expect("made");
        let id = volume::id(&"smst-1".into());
        check_is_alias("system", &id, &made).expect("ours");
        check_same_alias("system", &id, &made, &made).expect("the same");
        let mut elsewhere = made.clone();
        elsewhere["spec"]["csi"]["volumeHandle"] = json!("other");
        assert!(check_same_alias("system", &id, &made, &elsewhere).is_err());
        let spoilt: [fn(&mut Value); 6] = [
            |made| made["metadata"]["labels"][STAGING_LABEL] = Value::Null,
            |made| made["metadata"]["labels"][MANAGED_BY] = json!("helm"),
            |made| made["spec"]["persistentVolumeReclaimPolicy"] = json!("Delete"),
            |made| made["spec"]["claimRef"]["namespace"] = json!("shop"),
            |made| made["spec"]["claimRef"]["name"] = json!("db"),
            |made| made["metadata"]["annotations"][PROVISIONED_BY] = json!("rbd.csi.ceph.com"),
        ];
        for spoil in spoilt {
            let mut other = made.clone();
            spoil(&mut other);
            assert!(check_is_alias("system", &id, &other).is_err(), "{other}");
        }
        // What a VM's disk is on is none, whatever its name.
        assert!(check_is_alias("system", &volume::id(&"pvc-1".into()), &released()).is_err());
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
    fn a_holder_of_a_block_device_hands_it_over_and_may_nothing_else() {
        let ours = json!({ "spec": { "containers": [{ "image": "i" }] } });
        let mut staging = staging();
        staging.template.mode = VolumeMode::Block;
        let spec = holder("system", &staging, &ours)["spec"].clone();
        let container = &spec["containers"][0];
        assert_eq!(container["command"], json!([AGENT, "hold", "/dev/held", "/handing"]));
        assert_eq!(container["volumeDevices"], json!([{ "name": "held", "devicePath": "/dev/held" }]));
        assert_eq!(
            container["volumeMounts"],
            json!([{ "name": "somersault-device", "mountPath": "/handing" }])
        );
        assert_eq!(spec["volumes"][1], json!({ "name": "somersault-device", "emptyDir": {} }));
        assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
        assert_eq!(claim("system", &staging)["spec"]["volumeMode"], "Block");
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
