//! The claims behind a VM's volumes.

use serde_json::Value;

use crate::objects::{Kind, Objects, controller, list, name, namespace, phase, uid};

/// A volume with a claim.
#[derive(Clone, Copy, Debug)]
pub struct Volume<'a> {
    /// Name of the volume.
    pub name: &'a str,
    /// Name of its claim; a `DataVolume`'s has its name.
    pub claim: &'a str,
    /// It may come and go while the VM runs, so it is no part of the launcher.
    pub hotplugged: bool,
}

/// The volumes of a VMI's spec that have claims.
pub fn of(spec: &Value) -> impl Iterator<Item = Volume<'_>> {
    list(&spec["volumes"]).filter_map(|volume| {
        let claim = volume["persistentVolumeClaim"]["claimName"].as_str();
        let claim = claim.or_else(|| volume["dataVolume"]["name"].as_str())?;
        let may_come_and_go = |field: &str| volume[field]["hotpluggable"] == true;
        let hotplugged = may_come_and_go("persistentVolumeClaim") || may_come_and_go("dataVolume");
        Some(Volume { name: volume["name"].as_str()?, claim, hotplugged })
    })
}

/// The claim, where it exists.
pub fn claim<'a>(objects: &'a Objects, owner: &Value, volume: Volume<'_>) -> Option<&'a Value> {
    objects.get(Kind::PersistentVolumeClaim, namespace(owner), volume.claim)
}

/// The `DataVolumes` behind a VMI's volumes: those that it names, and those that control a claim that it names.
pub fn data_volumes<'a>(objects: &'a Objects, owner: &'a Value, spec: &'a Value) -> Vec<Option<&'a Value>> {
    let found = |name: &str| objects.get(Kind::DataVolume, namespace(owner), name);
    let of_volume = |volume: &Value| {
        if let Some(name) = volume["dataVolume"]["name"].as_str() {
            return Some(found(name));
        }
        let claim = volume["persistentVolumeClaim"]["claimName"].as_str()?;
        let claim = objects.get(Kind::PersistentVolumeClaim, namespace(owner), claim)?;
        let controller = controller(claim).filter(|owner| owner["kind"] == "DataVolume")?;
        Some(found(controller["name"].as_str()?))
    };
    list(&spec["volumes"]).filter_map(of_volume).collect()
}

/// KubeVirt takes a claim that a `DataVolume` controls for populated when that one has succeeded
/// (staging/src/kubevirt.io/containerized-data-importer-api/pkg/apis/core/v1beta1/utils.go, `IsPopulated`).
pub fn are_populated(data_volumes: &[Option<&Value>]) -> bool {
    data_volumes.iter().all(|found| found.is_some_and(|found| phase(found) == "Succeeded"))
}

/// Whether a claim is for a block device.
pub fn is_block(claim: &Value) -> bool {
    claim["spec"]["volumeMode"] == "Block"
}

/// Bytes that a claim has, or asks for as long as it has none.
pub fn bytes(claim: &Value) -> Option<u64> {
    let capacity = claim["status"]["capacity"]["storage"].as_str();
    quantity(capacity.or_else(|| claim["spec"]["resources"]["requests"]["storage"].as_str())?)
}

/// A quantity of bytes, <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>, in the
/// forms that sizes are written in.
pub fn quantity(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    let unit = UNITS.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)));
    let (number, unit) = unit.unwrap_or((text, 1));
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// Whether a lock on the claim's volume is seen by its own host only: so it is on whatever is not tied to one node,
/// as an NFS export mounted with nolock, a block device that two hosts have, a folder that each host has of its own.
/// (Here all nodes share one kernel, whose locks would keep a VM from running twice where nothing else does.) As long
/// as no volume is bound, the class tells.
pub fn has_no_lock(objects: &Objects, claim: &Value) -> bool {
    let is_kept_for = |volume: &&Value| {
        let reference = &volume["spec"]["claimRef"];
        reference["namespace"] == *namespace(claim) && reference["name"] == *name(claim)
    };
    let volume = match claim["spec"]["volumeName"].as_str() {
        Some(volume) => objects.get(Kind::PersistentVolume, "", volume),
        None => objects.all(Kind::PersistentVolume).find(is_kept_for),
    };
    match volume {
        Some(volume) => volume["spec"]["nodeAffinity"].is_null(),
        None => !waits_for_consumer(objects, claim),
    }
}

/// Whether a claim is bound only when a pod uses it.
pub fn waits_for_consumer(objects: &Objects, claim: &Value) -> bool {
    let class = claim["spec"]["storageClassName"].as_str();
    let class = class.and_then(|class| objects.get(Kind::StorageClass, "", class));
    class.is_some_and(|class| class["volumeBindingMode"] == "WaitForFirstConsumer")
}

/// Whether some claim of these volumes exists and is not bound.
pub fn has_unbound(objects: &Objects, owner: &Value, spec: &Value) -> bool {
    of(spec).any(|volume| claim(objects, owner, volume).is_some_and(|claim| phase(claim) != "Bound"))
}

/// The first claim that does not exist, as KubeVirt says it (measured on 1.9.0).
pub fn missing_claim(objects: &Objects, owner: &Value, spec: &Value) -> Option<String> {
    let missing = of(spec).find(|volume| claim(objects, owner, *volume).is_none())?;
    Some(format!("PVC {}/{} does not exist, waiting for it to appear", namespace(owner), missing.claim))
}

/// `status.volumeStatus` of a VMI.
pub fn status(objects: &Objects, vmi: &Value, launcher: &Value) -> Value {
    let of_volume = |volume: Volume<'_>| {
        let claim = claim(objects, vmi, volume)?;
        let mut status = serde_json::json!({
            "name": volume.name,
            "target": "",
            "persistentVolumeClaimInfo": {
                "claimName": name(claim),
                "accessModes": claim["spec"]["accessModes"],
                "volumeMode": claim["spec"]["volumeMode"],
                "capacity": claim["status"]["capacity"],
                "requests": claim["spec"]["resources"]["requests"],
                "filesystemOverhead": "0.06",
            },
        });
        if volume.hotplugged {
            let pod = crate::hotplug::pod_of(objects, launcher, volume.name);
            status["hotplugVolume"] = serde_json::json!({
                "attachPodName": pod.map(name), "attachPodUID": pod.map(uid),
            });
        }
        Some(status)
    };
    let mut all: Vec<_> = of(&vmi["spec"]).filter_map(of_volume).collect();
    all.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    all.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn locks_are_believed_only_on_what_is_tied_to_a_node() {
        let claim = json!({"metadata": {"namespace": "n", "name": "c"}, "spec": {"storageClassName": "s"}});
        let mut objects = Objects::default();
        let mut class =
            json!({"kind": "StorageClass", "metadata": {"name": "s"}, "volumeBindingMode": "Immediate"});
        objects.put(class.clone());
        assert!(has_no_lock(&objects, &claim));
        class["volumeBindingMode"] = json!("WaitForFirstConsumer");
        objects.put(class);
        assert!(!has_no_lock(&objects, &claim));
        let mut volume = json!({
            "kind": "PersistentVolume", "metadata": {"name": "v"},
            "spec": {"claimRef": {"namespace": "n", "name": "c"}},
        });
        objects.put(volume.clone());
        assert!(has_no_lock(&objects, &claim));
        volume["spec"]["nodeAffinity"] = json!({"required": {}});
        objects.put(volume);
        assert!(!has_no_lock(&objects, &claim));
    }

    #[test]
    fn sizes_as_people_write_them() {
        assert_eq!(quantity("1Gi"), Some(1 << 30));
        assert_eq!(quantity("1138166334"), Some(1_138_166_334));
        assert_eq!(quantity("50M"), Some(50_000_000));
        assert_eq!(quantity("much"), None);
    }
}
