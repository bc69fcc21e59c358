//! Hotplugged volumes: each is mounted on the launcher's node by a pod that the launcher controls
//! (pkg/virt-controller/services/template.go, `RenderHotplugAttachmentPodTemplate`). The garbage collector takes it
//! with the launcher, which on a dead node means: it stays Terminating.

use serde_json::{Value, json};

use crate::change::Change;
use crate::launcher;
use crate::names::{HOTPLUG, IMAGE, PART_LABEL};
use crate::objects::{
    Kind, Objects, annotation, is_controlled_by, is_deleting, label, namespace, owner_reference, phase, uid,
};
use crate::volumes::{self, Volume};

/// On the pod: which volume it is for. The stand-in's own.
const VOLUME: &str = "kubevirt-standin/volume";

pub(crate) fn reconcile(objects: &Objects) -> Vec<Change> {
    objects.all(Kind::VirtualMachineInstance).flat_map(|vmi| one(objects, vmi)).collect()
}

fn one(objects: &Objects, vmi: &Value) -> Vec<Change> {
    let launchers = launcher::all(objects, vmi);
    let Some(launcher) = launcher::current(vmi, &launchers) else { return Vec::new() };
    if phase(vmi) != "Running" || is_deleting(vmi) || launcher::is_going_down(launcher) {
        return Vec::new();
    }
    let wanted: Vec<_> = volumes::of(&vmi["spec"]).filter(|volume| volume.hotplugged).collect();
    let missing = wanted.iter().filter(|volume| {
        volumes::claim(objects, vmi, **volume).is_some() && pod_of(objects, launcher, volume.name).is_none()
    });
    let unplugged = objects.controlled_by(Kind::Pod, launcher).filter(|pod| {
        !is_deleting(pod) && !wanted.iter().any(|volume| annotation(pod, VOLUME) == Some(volume.name))
    });
    let missing = missing.map(|volume| Change::Create(pod(launcher, *volume)));
    missing.chain(unplugged.map(Change::delete)).collect()
}

/// The pod of a volume of the launcher's VMI.
pub(crate) fn pod_of<'a>(objects: &'a Objects, launcher: &Value, volume: &str) -> Option<&'a Value> {
    objects.all(Kind::Pod).find(|pod| {
        label(pod, PART_LABEL) == Some(HOTPLUG)
            && is_controlled_by(pod, launcher)
            && annotation(pod, VOLUME) == Some(volume)
    })
}

fn pod(launcher: &Value, volume: Volume<'_>) -> Value {
    let on_its_node = json!([{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [launcher["spec"]["nodeName"]]},
    ]}]);
    let id: String = uid(launcher).chars().take(8).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("hp-volume-{id}-{}", volume.name), "namespace": namespace(launcher),
            "labels": {PART_LABEL: HOTPLUG}, "annotations": {VOLUME: volume.name},
            "ownerReferences": [owner_reference(launcher)],
        },
        "spec": {
            "containers": [{
                "name": HOTPLUG, "image": IMAGE, "imagePullPolicy": "Never", "args": ["pause"],
                "volumeMounts": [{"name": "hotplug", "mountPath": "/hotplug"}],
            }],
            "volumes": [{"name": "hotplug", "persistentVolumeClaim": {"claimName": volume.claim}}],
            "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": on_its_node},
            }},
            "tolerations": launcher["spec"]["tolerations"],
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
        },
    })
}

#[cfg(test)]
mod tests {
    //! Shows when a hotplug pod comes and goes.

    use super::*;
    use crate::names::LAUNCHER;
    use crate::objects::name;

    fn world(volumes: &Value, pods: Vec<Value>) -> Objects {
        let mut objects = Objects::default();
        objects.put(json!({
            "kind": "VirtualMachineInstance", "metadata": {"namespace": "n", "name": "web", "uid": "vmi"},
            "spec": {"volumes": volumes}, "status": {"phase": "Running", "nodeName": "n1"},
        }));
        objects
            .put(json!({"kind": "PersistentVolumeClaim", "metadata": {"namespace": "n", "name": "extra"}}));
        objects.put(launcher());
        for pod in pods {
            objects.put(pod);
        }
        objects
    }

    fn launcher() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": "n", "name": "launcher", "uid": "launcher", "labels": {PART_LABEL: LAUNCHER},
                "ownerReferences": [{"kind": "VirtualMachineInstance", "uid": "vmi", "controller": true}],
            },
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running"},
        })
    }

    #[test]
    fn a_pod_comes_with_a_hotplugged_volume_and_goes_with_it() {
        let plugged =
            json!([{"name": "extra", "persistentVolumeClaim": {"claimName": "extra", "hotpluggable": true}}]);
        let changes = reconcile(&world(&plugged, Vec::new()));
        let [Change::Create(pod)] = changes.as_slice() else { panic!("{changes:?}") };
        assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], "launcher");
        assert_eq!(reconcile(&world(&plugged, vec![pod.clone()])), []);
        let changes = reconcile(&world(&json!([]), vec![pod.clone()]));
        assert!(matches!(changes.as_slice(), [Change::Delete { object, .. }] if name(object) == name(pod)));
        let fixed = json!([{"name": "extra", "persistentVolumeClaim": {"claimName": "extra"}}]);
        assert_eq!(reconcile(&world(&fixed, Vec::new())), []);
    }
}
