//! Pods: those of VMs, of which much is known, and all others, which matter for nothing but the claims that they use.
//!
//! A cluster has many more pods than VMs, so the two are read apart, and of the others nothing else is kept.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use serde_json::{Value, json};
use somersault_coordinator_core::fleet::{self, Resources};
use somersault_coordinator_core::names::{NodeName, Uid};

use super::convert::{self, FieldError};
use super::vm::{controller, node_name, uid_of};

/// Label that tells what a pod is to KubeVirt.
const KUBEVIRT_LABEL: &str = "kubevirt.io";
/// Its value on hotplug pods.
const HOTPLUG_POD: &str = "hotplug-disk";
/// Its value on launchers.
const LAUNCHER_POD: &str = "virt-launcher";
/// Selects the pods that KubeVirt made for VMs.
pub const OF_VMS: &str = "kubevirt.io in (virt-launcher, hotplug-disk)";
/// Selects all others, those without the label included.
pub const NOT_OF_VMS: &str = "kubevirt.io notin (virt-launcher, hotplug-disk)";

/// What a pod is to KubeVirt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The process of a VM.
    Launcher,
    /// It mounts a hotplugged claim for a launcher.
    Hotplug,
    /// A pod that an instance controls, and that says nothing.
    Unsaid,
}

/// What is kept of a pod that may be a VM's: an object of the API's own type takes kilobytes, most of them for what a pod
/// could have besides, and there is one for each VM.
#[derive(Clone, Debug)]
pub(super) struct VmPod {
    /// What it is.
    pub part: Part,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: Uid,
    /// The controlling owner.
    pub controller: Option<OwnerReference>,
    /// When it was made.
    pub created: Option<Time>,
    /// The node that it is bound to.
    pub node: Option<NodeName>,
    /// `status.phase`.
    pub phase: String,
    /// Of a launcher: `status.podIP`.
    pub address: Option<IpAddr>,
    /// What it asks for, or what is wrong with that.
    pub requests: Result<Resources, FieldError>,
    /// Claims that it uses.
    pub claims: Box<[String]>,
}

impl VmPod {
    /// `None` for a pod that is no VM's: by its label, or, in a dump written by hand, by who controls it.
    pub(super) fn of(pod: &core::Pod) -> Option<Self> {
        let controller = controller(&pod.metadata);
        let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(KUBEVIRT_LABEL));
        let part = match label.map(String::as_str) {
            Some(LAUNCHER_POD) => Part::Launcher,
            Some(HOTPLUG_POD) => Part::Hotplug,
            _ if controller.is_some_and(|owner| owner.kind == "VirtualMachineInstance") => Part::Unsaid,
            _ => return None,
        };
        Some(Self {
            part,
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: uid_of(&pod.metadata),
            controller: controller.cloned(),
            created: pod.metadata.creation_timestamp.clone(),
            node: node_name(pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref())),
            phase: pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default(),
            address: if part == Part::Hotplug { None } else { address(pod) },
            requests: requests(pod),
            claims: claims_of(pod).collect(),
        })
    }

    /// The core's value, of the instance with this uid.
    pub(super) fn value(&self, instance: Option<Uid>) -> fleet::Pod {
        fleet::Pod {
            name: self.name.clone(),
            uid: self.uid.clone(),
            node: self.node.clone(),
            phase: self.phase.clone(),
            instance,
            address: self.address,
            claims: self.claims.iter().cloned().collect(),
        }
    }

    /// Whether it has not ended.
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }
}

/// Where a pod is reached; `None` while it has no address, or one that is none.
fn address(pod: &core::Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

/// Requests of a pod, as the scheduler counts them: containers and sidecars add up; an init container that
/// ends counts only where it asks for more than everything that runs later.
fn requests(pod: &core::Pod) -> Result<Resources, FieldError> {
    let Some(spec) = &pod.spec else { return Ok(Resources::default()) };
    let of = |container: &core::Container| {
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        requests.map_or(Ok(Resources::default()), |map| {
            convert::resources(map, &format!("{}: requests", pod.metadata.name.as_deref().unwrap_or("pod")))
        })
    };
    let (mut sum, mut peak) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let asked = of(container)?;
        if container.restart_policy.as_deref() == Some("Always") {
            sum = add(sum, asked);
        } else {
            peak.cpu_millis = peak.cpu_millis.max(asked.cpu_millis);
            peak.memory_bytes = peak.memory_bytes.max(asked.memory_bytes);
        }
    }
    for container in &spec.containers {
        sum = add(sum, of(container)?);
    }
    Ok(Resources {
        cpu_millis: sum.cpu_millis.max(peak.cpu_millis),
        memory_bytes: sum.memory_bytes.max(peak.memory_bytes),
    })
}

fn add(a: Resources, b: Resources) -> Resources {
    Resources {
        cpu_millis: a.cpu_millis.saturating_add(b.cpu_millis),
        memory_bytes: a.memory_bytes.saturating_add(b.memory_bytes),
    }
}

/// Names of the claims that a pod uses, generic ephemeral ones included.
pub(super) fn claims_of(pod: &core::Pod) -> impl Iterator<Item = String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().filter_map(move |volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{name}-{}", volume.name)),
        (None, None) => None,
    })
}

/// Label of claims and pods of ours by which a provisioner makes a volume for a migration.
pub const STAGING_LABEL: &str = "somersault.novasphere.dev/staging";

/// The namespace of those, beside the coordinator's own: only pods that may nothing are admitted there.
pub fn staging_namespace(own: &str) -> String {
    format!("{own}-volumes")
}

/// A pod of ours that holds a claim mounted; `None` for any other.
pub(super) fn holder(pod: &core::Pod) -> Option<fleet::Holder> {
    pod.metadata.labels.as_ref()?.get(STAGING_LABEL)?;
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    Some(fleet::Holder {
        uid: uid_of(&pod.metadata),
        node: node_name(pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref())),
        running: conditions.iter().any(|is| is.type_ == "Ready" && is.status == "True"),
        deleting: pod.metadata.deletion_timestamp.is_some(),
        ended: matches!(phase, Some("Succeeded" | "Failed")),
    })
}

/// What is left of a pod that is no VM's: its name and the claims that it uses; `None` where it uses none. A pod's
/// volumes never change, and where it runs or whether it has ended is nothing to us: as long as it is there,
/// Kubernetes keeps its claims from being deleted. Of one of our holders it matters.
pub fn claims_alone(pod: &Value) -> Option<Value> {
    let volumes = pod["spec"]["volumes"].as_array()?;
    let of_claims = volumes.iter().filter_map(|volume| {
        let claim = &volume["persistentVolumeClaim"]["claimName"];
        if claim.is_string() {
            return Some(json!({ "name": volume["name"], "persistentVolumeClaim": { "claimName": claim } }));
        }
        volume["ephemeral"].is_object().then(|| json!({ "name": volume["name"], "ephemeral": {} }))
    });
    let of_claims: Vec<Value> = of_claims.collect();
    if of_claims.is_empty() {
        return None;
    }
    let metadata = &pod["metadata"];
    let mut kept = json!({
        "apiVersion": pod["apiVersion"],
        "kind": pod["kind"],
        "metadata": { "namespace": metadata["namespace"], "name": metadata["name"] },
        "spec": { "containers": [], "volumes": of_claims },
    });
    if metadata["labels"][STAGING_LABEL].is_string() {
        for field in ["uid", "labels", "deletionTimestamp"] {
            kept["metadata"][field] = metadata[field].clone();
        }
        kept["spec"]["nodeName"] = pod["spec"]["nodeName"].clone();
        let ready = |condition: &&Value| condition["type"] == "Ready";
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        kept["status"] = json!({
            "phase": pod["status"]["phase"],
            "conditions": conditions.filter(ready).map(|is| json!({ "type": is["type"], "status": is["status"] })).collect::<Vec<_>>(),
        });
    }
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(volumes: &Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": "web-0", "labels": { "app": "web" }, "uid": "u" },
            "spec": { "nodeName": "n1", "containers": [{ "name": "web", "image": "web" }], "volumes": volumes },
            "status": { "phase": "Running" },
        })
    }

    #[test]
    fn of_a_pod_that_is_no_vms_its_claims_are_left_and_nothing_else() {
        let left = claims_alone(&pod(&json!([
            { "name": "token", "projected": { "sources": [] } },
            { "name": "data", "persistentVolumeClaim": { "claimName": "web-data", "readOnly": true } },
            { "name": "scratch", "ephemeral": { "volumeClaimTemplate": { "spec": { "accessModes": ["ReadWriteOnce"] } } } },
        ])));
        let left = left.expect("it uses claims");
        assert_eq!(left["metadata"], json!({ "namespace": "shop", "name": "web-0" }));
        assert!(left.get("status").is_none() && left["spec"].get("nodeName").is_none(), "{left}");
        let typed: core::Pod = serde_json::from_value(left).expect("a pod still");
        assert_eq!(claims_of(&typed).collect::<Vec<_>>(), ["web-data", "web-0-scratch"]);
    }

    #[test]
    fn what_is_kept_of_a_launcher_is_small() {
        // A limit of a fifth of the API's own type, its containers and volumes not counted: a cluster has ten thousand.
        let (kept, whole) = (size_of::<VmPod>(), size_of::<core::Pod>());
        assert!(kept * 5 < whole, "{kept} bytes instead of {whole}");
    }

    #[test]
    fn a_launcher_is_where_its_kubelet_says() {
        let address = |label: &str, ip: &Value| {
            let typed = serde_json::from_value(json!({
                "metadata": { "name": "p", "labels": { "kubevirt.io": label } },
                "spec": { "containers": [] },
                "status": { "phase": "Running", "podIP": ip },
            }));
            VmPod::of(&typed.expect("a pod")).expect("a VM's").value(None).address
        };
        assert_eq!(address("virt-launcher", &json!("10.42.0.7")), "10.42.0.7".parse().ok());
        assert_eq!(address("virt-launcher", &json!("fd00::7")), "fd00::7".parse().ok());
        assert_eq!(address("virt-launcher", &json!("example.org")), None);
        assert_eq!(address("virt-launcher", &Value::Null), None);
        assert_eq!(address("hotplug-disk", &json!("10.42.0.8")), None, "no guest is there");
    }

    #[test]
    fn a_pod_is_a_vms_by_its_label_or_by_its_owner() {
        let part = |labels: &Value, owner: &str| {
            let typed = serde_json::from_value(json!({
                "metadata": { "name": "p", "labels": labels, "ownerReferences": [
                    { "apiVersion": "v1", "kind": owner, "name": "o", "uid": "u", "controller": true },
                ] },
                "spec": { "containers": [] },
            }));
            VmPod::of(&typed.expect("a pod")).map(|pod| pod.part)
        };
        let label = |value: &str| json!({ "kubevirt.io": value });
        assert_eq!(part(&label("virt-launcher"), "ReplicaSet"), Some(Part::Launcher));
        assert_eq!(part(&label("hotplug-disk"), "Pod"), Some(Part::Hotplug));
        assert_eq!(part(&Value::Null, "VirtualMachineInstance"), Some(Part::Unsaid));
        assert_eq!(part(&label("virt-handler"), "DaemonSet"), None);
    }

    #[test]
    fn of_a_pod_without_claims_nothing_is_left() {
        assert_eq!(claims_alone(&pod(&Value::Null)), None);
        assert_eq!(claims_alone(&pod(&json!([{ "name": "tmp", "emptyDir": {} }]))), None);
    }
}
