//! The kinds of objects that we watch: where the API server has them, which of them, and what of each.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;
use somersault_coordinator_core::fleet::EVACUATE_ANNOTATION;

use crate::cluster::manifest::{NOT_OF_VMS, OF_VMS, REBUILD_ANNOTATION, claims_alone};

/// A kind that we watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// Its name.
    pub name: &'static str,
    /// Name of this watch: some kinds are watched in two parts.
    pub watch: &'static str,
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    /// One namespace only.
    pub namespace: Option<&'static str>,
    /// These labels only.
    pub labels: Option<&'static str>,
    /// May be missing, and appear or go later.
    pub optional: bool,
    /// Pods of which only the claims matter.
    claims_only: bool,
}

const fn builtin(name: &'static str, group: &'static str, plural: &'static str) -> Kind {
    let optional = custom(name, group, "v1", plural);
    Kind { optional: false, ..optional }
}

const fn custom(
    name: &'static str,
    group: &'static str,
    version: &'static str,
    plural: &'static str,
) -> Kind {
    Kind {
        name,
        watch: name,
        group,
        version,
        plural,
        namespace: None,
        labels: None,
        optional: true,
        claims_only: false,
    }
}

/// Ours. They come with us, but a person may apply the definitions after the coordinator.
const fn own(name: &'static str, plural: &'static str) -> Kind {
    custom(name, somersault_crd::GROUP, "v1alpha1", plural)
}

/// Everything that decisions are made of.
pub(super) const WATCHED: [Kind; 20] = [
    builtin("Node", "", "nodes"),
    // The kubelets' only: every controller of a cluster has a Lease.
    Kind { namespace: Some("kube-node-lease"), ..builtin("Lease", "coordination.k8s.io", "leases") },
    builtin("PersistentVolume", "", "persistentvolumes"),
    builtin("PersistentVolumeClaim", "", "persistentvolumeclaims"),
    builtin("StorageClass", "storage.k8s.io", "storageclasses"),
    builtin("CSIDriver", "storage.k8s.io", "csidrivers"),
    builtin("VolumeAttachment", "storage.k8s.io", "volumeattachments"),
    Kind { labels: Some(OF_VMS), ..builtin("Pod", "", "pods") },
    // A cluster has many more pods than VMs: whoever uses none of its claims is dropped as it comes.
    Kind {
        watch: "Pod that is no VM's",
        labels: Some(NOT_OF_VMS),
        claims_only: true,
        ..builtin("Pod", "", "pods")
    },
    custom("VirtualMachine", "kubevirt.io", "v1", "virtualmachines"),
    custom("VirtualMachineInstance", "kubevirt.io", "v1", "virtualmachineinstances"),
    custom("VirtualMachineInstanceMigration", "kubevirt.io", "v1", "virtualmachineinstancemigrations"),
    custom("DataVolume", "cdi.kubevirt.io", "v1beta1", "datavolumes"),
    custom("VolumeSnapshot", "snapshot.storage.k8s.io", "v1", "volumesnapshots"),
    custom("Wukong", "vm.novasphere.dev", "v1alpha1", "wukongs"),
    own("NodeHealth", "nodehealths"),
    // Only that it is there: one that somebody deletes is made again.
    own("Recovery", "recoveries"),
    own("VolumeMigration", "volumemigrations"),
    own("Evacuation", "evacuations"),
    own("RecoveryPolicy", "recoverypolicies"),
];

impl Kind {
    /// As the client needs it.
    pub fn resource(self) -> ApiResource {
        let kind = GroupVersionKind::gvk(self.group, self.version, self.name);
        ApiResource::from_gvk_with_plural(&kind, self.plural)
    }

    /// Whether anything of an object is kept, by its fields beside `metadata`: looked at before it is copied.
    pub fn keeps(self, data: &Value) -> bool {
        !self.claims_only || claims_alone(data).is_some()
    }

    /// What is kept of an object.
    pub fn kept(self, mut object: Value) -> Option<Value> {
        if self.claims_only {
            return claims_alone(&object);
        }
        strip(&mut object);
        Some(object)
    }
}

/// Takes out of an object what no decision looks at, and what changes at every touch or with every report of ours:
/// it would be kept in memory and make the whole cluster be joined anew.
fn strip(object: &mut Value) {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    let quiet = quiet_status(&kind);
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        metadata.remove("resourceVersion");
    }
    match kind.as_str() {
        "Pod" => strip_pod(object),
        "VirtualMachine" => {
            without(object, "metadata", &["labels", "finalizers"]);
            only_annotation(object, REBUILD_ANNOTATION);
            strip_volumes(object.pointer_mut("/spec/template/spec/volumes"));
        }
        // Of what it was made from, its VM tells all but the volumes that were plugged in since.
        "VirtualMachineInstance" => {
            without(object, "metadata", &["annotations", "labels", "finalizers"]);
            only(object, "spec", &["volumes"]);
            strip_volumes(object.pointer_mut("/spec/volumes"));
        }
        "Node" => only_annotation(object, EVACUATE_ANNOTATION),
        _ => {}
    }
    // By name: indexing would put a null where there is nothing.
    let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) else { return };
    match quiet {
        Quiet::All => {}
        Quiet::Only(fields) => status.retain(|field, _| fields.contains(&field.as_str())),
        Quiet::AllBut(fields) => status.retain(|field, _| !fields.contains(&field.as_str())),
    }
    let conditions = status.get_mut("conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten().filter_map(Value::as_object_mut) {
        // The kubelet's own sign of life, which its Lease has replaced.
        condition.remove("lastHeartbeatTime");
        condition.remove("lastProbeTime");
    }
    if status.is_empty()
        && let Some(object) = object.as_object_mut()
    {
        object.remove("status");
    }
}

/// A launcher has a page of commands, mounts and volumes; its node, its address, its claims and what it asks for are all
/// that counts. In memory, each volume of a pod takes more than a kilobyte, whatever it is.
fn strip_pod(object: &mut Value) {
    without(object, "metadata", &["annotations"]);
    only(object, "spec", &["nodeName", "containers", "initContainers", "volumes"]);
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            keep(container, &["name", "resources", "restartPolicy"]);
        }
    }
    if let Some(volumes) = spec.get_mut("volumes").and_then(Value::as_array_mut) {
        let has_claim = |volume: &Value| CLAIM_VOLUMES.iter().any(|source| volume.get(source).is_some());
        volumes.retain(has_claim);
    }
}

/// Of what is behind a VM's volumes: a start script alone may have kilobytes, and its being there is all that counts.
fn strip_volumes(volumes: Option<&mut Value>) {
    for volume in volumes.and_then(Value::as_array_mut).into_iter().flatten() {
        for source in volume.as_object_mut().into_iter().flatten().map(|(_, source)| source) {
            keep(source, &SOURCE_FIELDS);
        }
    }
}

/// What tells which data a VM's volume has.
const SOURCE_FIELDS: [&str; 6] =
    ["claimName", "hotpluggable", "name", "path", "persistentVolumeClaim", "readOnly"];

/// Volumes of a pod that are claims.
const CLAIM_VOLUMES: [&str; 2] = ["persistentVolumeClaim", "ephemeral"];

/// Takes these fields out of a part of an object.
fn without(object: &mut Value, part: &str, fields: &[&str]) {
    if let Some(part) = object.get_mut(part).and_then(Value::as_object_mut) {
        part.retain(|field, _| !fields.contains(&field.as_str()));
    }
}

/// Keeps only these fields of a part of an object.
fn only(object: &mut Value, part: &str, fields: &[&str]) {
    if let Some(part) = object.get_mut(part) {
        keep(part, fields);
    }
}

fn only_annotation(object: &mut Value, name: &str) {
    if let Some(metadata) = object.get_mut("metadata") {
        only(metadata, "annotations", &[name]);
    }
}

fn keep(part: &mut Value, fields: &[&str]) {
    if let Some(part) = part.as_object_mut() {
        part.retain(|field, _| fields.contains(&field.as_str()));
    }
}

/// What of a kind's status is kept.
enum Quiet {
    All,
    Only(&'static [&'static str]),
    AllBut(&'static [&'static str]),
}

/// What [`crate::cluster::manifest`] reads is kept: a test compares what becomes of stripped and whole objects.
fn quiet_status(kind: &str) -> Quiet {
    match kind {
        // Lists of what a node has on its disks, long and changing with every pod.
        "Node" => Quiet::AllBut(&["images", "volumesAttached", "volumesInUse"]),
        "Pod" => Quiet::Only(&["phase", "podIP"]),
        // A VM is judged by its instance, a migration by its record, and of a recovery only its being there counts.
        "VirtualMachine" | "VolumeMigration" | "Recovery" => Quiet::Only(&[]),
        // What the guest's agent tells every few seconds.
        "VirtualMachineInstance" => Quiet::AllBut(&["activePods", "guestOSInfo"]),
        // How far an import has come.
        "DataVolume" => Quiet::AllBut(&["progress"]),
        // What agents report comes from the agents.
        "NodeHealth" => Quiet::AllBut(&[
            "host",
            "roots",
            "volumes",
            "disks",
            "timeline",
            "conditions",
            "message",
            "since",
        ]),
        _ => Quiet::All,
    }
}

/// Tells whether an object differs from one seen before, without keeping either.
pub(super) fn fingerprint(object: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.to_string().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::directory::read_objects;
    use crate::cluster::manifest::Inventory;

    fn print_of(mut object: Value) -> u64 {
        strip(&mut object);
        fingerprint(&object)
    }

    #[test]
    fn a_touch_is_no_change_and_a_taint_is_one() {
        let node = |version: &str, beat: &str, taints: Value| {
            json!({
                "kind": "Node",
                "metadata": {"name": "n1", "resourceVersion": version, "managedFields": [{"time": beat}]},
                "spec": {"taints": taints},
                "status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": beat}]},
            })
        };
        let first = print_of(node("1", "12:00", json!([])));
        assert_eq!(first, print_of(node("2", "12:05", json!([]))));
        assert_ne!(first, print_of(node("2", "12:05", json!([{"key": "a"}]))));
    }

    #[test]
    fn what_is_not_there_stays_away() {
        let policy = json!({"kind": "RecoveryPolicy", "metadata": {"name": "default"}, "spec": {}});
        let mut stripped = policy.clone();
        strip(&mut stripped);
        assert_eq!(stripped, policy);
    }

    #[test]
    fn a_nodes_mark_is_kept() {
        let mut node = json!({"kind": "Node", "metadata": {"name": "n1", "annotations": {EVACUATE_ANNOTATION: "Now", "a": "b"}}});
        strip(&mut node);
        assert_eq!(node["metadata"]["annotations"], json!({EVACUATE_ANNOTATION: "Now"}));
    }

    #[test]
    fn our_own_report_is_no_change_and_a_persons_word_is_one() {
        let health = |used: u64, spec: Value| {
            json!({"kind": "NodeHealth", "metadata": {"name": "n1"}, "spec": spec,
                "status": {"bootID": "b", "volumes": [{"allocatedBytes": used}]}})
        };
        let first = print_of(health(1, json!({})));
        assert_eq!(first, print_of(health(2, json!({}))));
        assert_ne!(first, print_of(health(2, json!({"attestation": {"bootID": "b", "by": "me"}}))));
    }

    #[test]
    fn what_is_taken_out_is_looked_at_by_nobody() {
        let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cluster");
        let objects = read_objects(&fixtures).unwrap();
        let (mut whole, mut stripped) = (Inventory::default(), Inventory::default());
        let mut is_less = false;
        for (_, entry) in objects.iter() {
            let label = entry.value["metadata"]["labels"]["kubevirt.io"].as_str();
            let of_vm = entry.id.kind != "Pod" || matches!(label, Some("virt-launcher" | "hotplug-disk"));
            let mut watches = WATCHED.iter().filter(|kind| kind.name == entry.id.kind);
            let kind = watches.find(|kind| kind.claims_only != of_vm);
            whole.add("", 0, &entry.id, &entry.value);
            // What nobody watches is of no kind that we know.
            if let Some(kept) = kind.and_then(|kind| kind.kept(entry.value.clone())) {
                is_less |= kept != entry.value;
                stripped.add("", 0, &entry.id, &kept);
            }
        }
        assert!(is_less, "nothing was taken out");
        assert_eq!(stripped.snapshot(), whole.snapshot());
    }

    #[test]
    fn of_a_vm_its_owners_word_and_its_claims_are_kept_and_no_start_script() {
        let mut vm = json!({
            "kind": "VirtualMachine",
            "metadata": {
                "name": "db", "labels": {"app": "db"}, "finalizers": ["f"],
                "annotations": {REBUILD_ANNOTATION: "true", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
            },
            "spec": {"template": {"spec": {"volumes": [
                {"name": "root", "dataVolume": {"name": "db-root", "hotpluggable": true}},
                {"name": "old", "ephemeral": {"persistentVolumeClaim": {"claimName": "c"}}},
                {"name": "fixed", "persistentVolumeClaim": {"claimName": "d", "readOnly": true}},
                {"name": "init", "cloudInitNoCloud": {"userData": "#cloud-config"}},
            ]}}},
        });
        strip(&mut vm);
        assert_eq!(vm["metadata"], json!({"name": "db", "annotations": {REBUILD_ANNOTATION: "true"}}));
        assert_eq!(
            vm["spec"]["template"]["spec"]["volumes"],
            json!([
                {"name": "root", "dataVolume": {"name": "db-root", "hotpluggable": true}},
                {"name": "old", "ephemeral": {"persistentVolumeClaim": {"claimName": "c"}}},
                {"name": "fixed", "persistentVolumeClaim": {"claimName": "d", "readOnly": true}},
                {"name": "init", "cloudInitNoCloud": {}},
            ])
        );
    }

    #[test]
    fn progress_is_no_change() {
        let import = |progress: &str| {
            json!({"kind": "DataVolume", "metadata": {"name": "d"},
                "status": {"phase": "ImportInProgress", "progress": progress}})
        };
        assert_eq!(print_of(import("1%")), print_of(import("2%")));
        let pod = |ready: &str| {
            json!({"kind": "Pod", "metadata": {"name": "p"},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}})
        };
        assert_eq!(print_of(pod("True")), print_of(pod("False")));
    }

    #[test]
    fn each_object_is_watched_once() {
        let names: std::collections::BTreeSet<_> = WATCHED.iter().map(|kind| kind.watch).collect();
        assert_eq!(names.len(), WATCHED.len());
        let of = |name: &str| WATCHED.into_iter().filter(|kind| kind.name == name).collect::<Vec<_>>();
        let selectors: Vec<_> = of("Pod").into_iter().filter_map(|kind| kind.labels).collect();
        assert_eq!(selectors, [OF_VMS, NOT_OF_VMS], "one of them, and never both");
        assert!(WATCHED.into_iter().filter(|kind| kind.name != "Pod").all(|kind| of(kind.name).len() == 1));
    }

    #[test]
    fn a_pod_that_uses_no_claim_is_dropped_before_it_is_copied() {
        let others = WATCHED.into_iter().find(|kind| kind.claims_only).expect("other pods");
        let data = |volumes: Value| json!({"spec": {"volumes": volumes}});
        assert!(!others.keeps(&data(json!([{"name": "a", "configMap": {}}]))));
        assert!(others.keeps(&data(json!([{"name": "a", "persistentVolumeClaim": {"claimName": "c"}}]))));
        let of_vms = WATCHED.into_iter().find(|kind| kind.name == "Pod").expect("pods");
        assert!(of_vms.keeps(&data(json!([]))), "a launcher without claims is one of its VM's pods still");
    }
}
