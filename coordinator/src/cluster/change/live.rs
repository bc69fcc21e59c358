//! Live migrations that we ask KubeVirt for: made once, and known again by what they move.

use serde_json::{Value, json};
use somersault_coordinator_core::names::Key;

use super::volume::HOSTNAME_LABEL;
use super::{MANAGED_BY, MANAGER, check_stays};
use crate::cluster::ClusterError;
use crate::cluster::error::{conflict, refused};
use crate::cluster::manifest::ObjectId;

/// Its identity.
pub(in crate::cluster) fn id(key: &Key) -> ObjectId {
    ObjectId::namespaced("VirtualMachineInstanceMigration", key)
}

/// Its manifest. `host` is the host name label of the one node where it may go. `KubeVirt` adds this selector to the VM's
/// own: it can restrict where the VM goes, and nothing else.
pub(in crate::cluster) fn migration(id: &ObjectId, vm: &str, host: Option<&str>) -> Value {
    let mut spec = json!({ "vmiName": vm });
    if let Some(host) = host {
        spec["addedNodeSelector"] = json!({ HOSTNAME_LABEL: host });
    }
    json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": id.kind,
        "metadata": { "name": id.name, "namespace": id.namespace, "labels": { MANAGED_BY: MANAGER } },
        "spec": spec,
    })
}

/// Refuses where the API server would drop the node: `KubeVirt` knows the field since 1.6, and would move the VM anywhere.
pub(in crate::cluster) fn check_kept(id: &ObjectId, accepted: &Value) -> Result<(), ClusterError> {
    if accepted["spec"]["addedNodeSelector"].is_object() {
        return Ok(());
    }
    let why =
        "this KubeVirt cannot be told where a VM goes (addedNodeSelector, since 1.6): let it choose the node";
    Err(refused(id, why))
}

/// Whether one of this name, which exists, is this very one.
pub(in crate::cluster) fn check_same(id: &ObjectId, stored: &Value, vm: &str) -> Result<(), ClusterError> {
    check_stays(id, stored)?;
    if stored["spec"]["vmiName"] == vm { Ok(()) } else { Err(conflict(id, "it exists and moves another VM")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubevirt_that_would_drop_the_node_is_not_asked() {
        let id = id(&Key::new("shop", "web-live"));
        let mut accepted = migration(&id, "web", Some("n1"));
        assert!(check_kept(&id, &accepted).is_ok());
        accepted["spec"].as_object_mut().expect("a spec").remove("addedNodeSelector");
        let why = check_kept(&id, &accepted).expect_err("it would go anywhere").to_string();
        assert!(why.contains("since 1.6"), "{why}");
    }
}
