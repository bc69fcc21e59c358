//! Disks that are held by somebody else, or not QEMU's own.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use somersault_test_kubevirt::IMAGE;
use somersault_test_kubevirt::builders::Vm;

use crate::bed::Bed;

/// KubeVirt's user for QEMU.
const QEMU: u32 = 107;
/// The guest tries once a second.
const TWO_ATTEMPTS: Duration = Duration::from_millis(2500);

/// Started early, for others to start beside it.
pub fn begin(bed: &Bed) -> Result<()> {
    bed.apply(&Vm::new("locked").claim("root", "local-path").on_node("n1").objects())
}

pub fn locked_and_forbidden(bed: &Bed) -> Result<()> {
    bed.say("a lock, and a disk that is root's");
    bed.wait_vm("locked", "Running")?;
    let path = bed.disk_path("locked-root")?;
    let found = path.metadata()?;
    ensure!((found.uid(), found.gid(), found.mode() & 0o777) == (QEMU, QEMU, 0o644), "{found:?}");
    ensure!(found.blocks() * 512 < found.len(), "it is not sparse");

    bed.apply(&[json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "intruder"},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": "n1"}, "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "guest", "image": IMAGE, "imagePullPolicy": "Never",
                "args": ["guest", "-instance", "intruder", "-node", "n1", "-port", "8107", "/data/disk.img,16777216"],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "locked-root"}}],
        },
    })])?;
    bed.wait("pod", "intruder", "Running", |pod| (pod["status"]["phase"] == "Running").then_some(()))?;
    std::thread::sleep(TWO_ATTEMPTS);
    let disk = bed.disk("locked-root")?;
    ensure!(disk.faults.is_empty() && disk.instances().len() == 1, "{disk}");
    let said = bed.cluster.ask(&["logs", "intruder"])?;
    ensure!(said.contains("failed to get \"write\" lock"), "the intruder says {said:?}");
    bed.delete("pod", "intruder")?;
    bed.wait_gone("pod", "intruder")?;

    bed.patch("vm", "locked", &json!({"spec": {"runStrategy": "Halted"}}))?;
    bed.wait_vm("locked", "Stopped")?;
    let before = bed.disk("locked-root")?;
    chown(&path, Some(0), Some(0))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    bed.patch("vm", "locked", &json!({"spec": {"runStrategy": "Always"}}))?;
    bed.wait_vmi("locked", "Scheduled")?;
    std::thread::sleep(TWO_ATTEMPTS);
    bed.wait_vmi("locked", "Scheduled")?;
    bed.wait_vm("locked", "Starting")?;
    chown(&path, Some(QEMU), Some(QEMU))?;
    bed.wait_vm("locked", "Running")?;
    let now = bed.wait_disk("locked-root", "it goes on", |disk| disk.runs.len() > 1)?;
    ensure!(now.continues(&before).is_empty(), "{now}");
    bed.delete("vm", "locked")
}
