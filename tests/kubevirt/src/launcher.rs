//! Launcher pods: what KubeVirt's template makes of a VMI (pkg/virt-controller/services/template.go), as far as the
//! scheduler, the kubelet and Somersault care. In it runs `toolbox guest`, which makes disks that are missing, locks
//! them as QEMU does and writes on them; it answers on a port once it runs, which the kubelet's startup probe sees.

use serde_json::{Value, json};

use crate::names::{
    CREATED_BY_LABEL, DOMAIN_ANNOTATION, IMAGE, LAUNCHER, MIGRATION_LABEL, PART_LABEL, SCHEDULABLE_LABEL,
};
use crate::objects::{Kind, Objects, is_deleting, label, list, name, namespace, owner_reference, phase, uid};
use crate::volumes;

/// api/core/v1/types.go, `DefaultGracePeriodSeconds`.
const DEFAULT_GRACE_SECONDS: u64 = 30;
/// template.go adds 15 s for the guest and 15 s for the launcher.
const GRACE_MARGIN_SECONDS: u64 = 15 + 15;
/// What KubeVirt 1.9.0 adds to the memory of a guest with one virtual CPU.
pub const MEMORY_OVERHEAD: &str = "268Mi";
const MEMORY_OVERHEAD_BYTES: u64 = 268 << 20;
/// Of a guest that names none.
const DEFAULT_GUEST_BYTES: u64 = 64 << 20;
/// `cpuAllocationRatio` of 10.
const MILLIS_PER_CPU: u64 = 100;
/// Where the guest answers.
pub const GUEST_PORT: u16 = 8107;
/// The probe never gives up: as long as its disks are held, a guest waits.
const PROBE_FAILURES_MAX: u32 = 1_000_000;

/// The launchers of a VMI, targets of migrations included.
pub fn all<'a>(objects: &'a Objects, vmi: &'a Value) -> Vec<&'a Value> {
    let pods = objects.controlled_by(Kind::Pod, vmi);
    pods.filter(|pod| label(pod, PART_LABEL) == Some(LAUNCHER)).collect()
}

/// The launcher that counts: the newest one on the VMI's node, once it has one (pkg/controller/controller.go,
/// `CurrentVMIPod`).
pub fn current<'a>(vmi: &Value, launchers: &[&'a Value]) -> Option<&'a Value> {
    let node = vmi["status"]["nodeName"].as_str().filter(|node| !node.is_empty());
    let fits = |pod: &&&Value| node.is_none_or(|node| pod["spec"]["nodeName"] == node);
    let created = |pod: &&&Value| pod["metadata"]["creationTimestamp"].as_str().map(str::to_owned);
    launchers
        .iter()
        .filter(|pod| node.is_some() || label(pod, MIGRATION_LABEL).is_none())
        .filter(fits)
        .max_by_key(created)
        .copied()
}

/// Ended, or about to (pkg/controller, `IsPodDownOrGoingDown`).
pub fn is_going_down(pod: &Value) -> bool {
    is_deleting(pod) || matches!(phase(pod), "Failed" | "Succeeded")
}

/// The compute container's process is there.
pub fn is_up(pod: &Value) -> bool {
    list(&pod["status"]["containerStatuses"]).any(|container| !container["state"]["running"].is_null())
}

/// The guest has its disks.
pub fn is_started(pod: &Value) -> bool {
    is_up(pod) && list(&pod["status"]["containerStatuses"]).all(|container| container["started"] == true)
}

/// A new launcher. Its name follows from the VMI's uid, so that one whose creation was not heard of is not made
/// twice.
pub fn pod(objects: &Objects, vmi: &Value) -> Value {
    let disks = volumes::of(&vmi["spec"]).filter(|volume| !volume.hotplugged).filter_map(|volume| {
        let claim = volumes::claim(objects, vmi, volume)?;
        let lock = if volumes::has_no_lock(objects, claim) { ",nolock" } else { "" };
        let path = if volumes::is_block(claim) {
            device_path(volume.name)
        } else {
            format!("{}/disk.img", mount_path(volume.name))
        };
        Some(format!("{path},{}{lock}", volumes::bytes(claim)?))
    });
    let arguments = ["guest", "-instance", uid(vmi), "-node", "$(NODE_NAME)", "-port"].map(str::to_owned);
    let arguments = arguments.into_iter().chain([GUEST_PORT.to_string()]).chain(disks);
    let mut pod = frame(objects, vmi, &short(uid(vmi)));
    pod["spec"]["containers"][0]["args"] = json!(arguments.collect::<Vec<_>>());
    pod["spec"]["containers"][0]["startupProbe"] = json!({
        "tcpSocket": {"port": GUEST_PORT}, "periodSeconds": 1, "failureThreshold": PROBE_FAILURES_MAX,
    });
    pod
}

/// The launcher on a migration's target (pkg/virt-controller/watch/migration/migration.go, `createTargetPod`): it
/// holds the claims and waits, as QEMU does for the incoming guest.
pub fn migration_target(objects: &Objects, vmi: &Value, migration: &Value) -> Value {
    let mut pod = frame(objects, vmi, &format!("{}-{}", short(uid(vmi)), short(uid(migration))));
    pod["metadata"]["labels"][MIGRATION_LABEL] = json!(uid(migration));
    pod["spec"]["containers"][0]["args"] = json!(["pause"]);
    let elsewhere = json!({
        "labelSelector": {"matchLabels": {CREATED_BY_LABEL: uid(vmi)}}, "topologyKey": "kubernetes.io/hostname",
    });
    pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
        json!([elsewhere]);
    pod
}

/// What KubeVirt has in the label that is named after the VM: the guest's host name, else the instance's name up to its first
/// dot (virt-controller's `SanitizeHostname`). It tells nobody which VM it is.
fn host_name(vmi: &Value) -> &str {
    let told = vmi["spec"]["hostname"].as_str().filter(|told| !told.is_empty());
    told.unwrap_or_else(|| name(vmi).split('.').next().unwrap_or_default())
}

fn frame(objects: &Objects, vmi: &Value, suffix: &str) -> Value {
    let spec = &vmi["spec"];
    let mut labels = vmi["metadata"]["labels"].clone();
    for (key, value) in [
        (PART_LABEL, LAUNCHER),
        (CREATED_BY_LABEL, uid(vmi)),
        ("vm.kubevirt.io/name", host_name(vmi)),
        ("vmi.kubevirt.io/id", name(vmi)),
    ] {
        labels[key] = json!(value);
    }
    let mut selector = spec["nodeSelector"].clone();
    selector[SCHEDULABLE_LABEL] = json!("true");
    let grace = spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(DEFAULT_GRACE_SECONDS);
    let names: Vec<_> = volumes::of(spec).filter(|volume| !volume.hotplugged).collect();
    let is_block =
        |volume: &volumes::Volume<'_>| volumes::claim(objects, vmi, *volume).is_some_and(volumes::is_block);
    let (devices, folders): (Vec<&volumes::Volume<'_>>, Vec<_>) =
        names.iter().partition(|volume| is_block(volume));
    let mounts: Vec<_> = folders
        .iter()
        .map(|volume| json!({"name": volume.name, "mountPath": mount_path(volume.name)}))
        .collect();
    let devices: Vec<_> = devices
        .iter()
        .map(|volume| json!({"name": volume.name, "devicePath": device_path(volume.name)}))
        .collect();
    let claims: Vec<_> = names
        .iter()
        .map(|volume| json!({"name": volume.name, "persistentVolumeClaim": {"claimName": volume.claim}}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{LAUNCHER}-{}-{suffix}", name(vmi)), "namespace": namespace(vmi), "labels": labels,
            "annotations": {DOMAIN_ANNOTATION: name(vmi), "kubectl.kubernetes.io/default-container": "compute"},
            "ownerReferences": [owner_reference(vmi)],
        },
        "spec": {
            "containers": [{
                "name": "compute", "image": IMAGE, "imagePullPolicy": "Never",
                "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                "resources": {"requests": requests(spec)},
                "volumeMounts": mounts, "volumeDevices": devices,
            }],
            "volumes": claims,
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": grace + GRACE_MARGIN_SECONDS,
            // template.go: only the VMI's own. Kubernetes adds 300 s for unreachable and not-ready nodes.
            "tolerations": spec["tolerations"],
            "affinity": spec["affinity"],
            "nodeSelector": selector,
        },
    })
}

fn requests(spec: &Value) -> Value {
    let domain = &spec["domain"];
    let explicit = |name: &str| Some(domain["resources"]["requests"][name].clone()).filter(|v| !v.is_null());
    let count = |field: &str| domain["cpu"][field].as_u64().unwrap_or(1).max(1);
    let cpus = count("cores") * count("sockets") * count("threads");
    let guest = domain["memory"]["guest"].as_str().and_then(volumes::quantity).unwrap_or(DEFAULT_GUEST_BYTES);
    json!({
        "cpu": explicit("cpu").unwrap_or_else(|| json!(format!("{}m", cpus * MILLIS_PER_CPU))),
        "memory": explicit("memory").unwrap_or_else(|| json!((guest + MEMORY_OVERHEAD_BYTES).to_string())),
    })
}

fn mount_path(volume: &str) -> String {
    format!("/var/run/kubevirt-private/vmi-disks/{volume}")
}

/// KubeVirt has a volume in Block mode there.
fn device_path(volume: &str) -> String {
    format!("/dev/{volume}")
}

fn short(uid: &str) -> String {
    uid.chars().filter(char::is_ascii_alphanumeric).take(5).collect()
}
