//! What an Event says of a notice: about which object, under which name, how much of it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use somersault_coordinator_core::io::{Notice, Severity, Subject};
use somersault_coordinator_core::names::Key;
use somersault_crd as crd;

use super::manifest::ObjectId;

/// Who speaks.
pub(super) const CONTROLLER: &str = "somersault-coordinator";
/// Where Events about cluster-scoped objects live.
pub(super) const CLUSTER_NAMESPACE: &str = "default";
/// Longest note of an Event in Kubernetes.
const NOTE_BYTES_MAX: usize = 1024;
/// Of the object's name in the Event's: with the hash it stays below the 253 bytes of a name.
const NAME_BYTES_MAX: usize = 200;

/// The object that a notice is about, and its `apiVersion`. `namespace` is the coordinator's own.
pub(super) fn subject(notice: &Notice, namespace: &str) -> (&'static str, ObjectId) {
    match &notice.subject {
        Subject::Node(node) => ("v1", ObjectId::cluster("Node", node.as_str())),
        Subject::Vm(key) => ("kubevirt.io/v1", ObjectId::namespaced("VirtualMachine", key)),
        Subject::Migration(key) => (crd::API_VERSION, ObjectId::namespaced("VolumeMigration", key)),
        Subject::Evacuation(name) => (crd::API_VERSION, ObjectId::cluster("Evacuation", name)),
        Subject::Coordinator => {
            ("apps/v1", ObjectId::namespaced("Deployment", &Key::new(namespace, CONTROLLER)))
        }
    }
}

/// The Event's identity: the same for the same notice about the same object, so that one that is repeated counts up.
pub(super) fn event_id(notice: &Notice, subject: &ObjectId) -> ObjectId {
    let namespace = if subject.namespace.is_empty() { CLUSTER_NAMESPACE } else { &subject.namespace };
    let mut hasher = DefaultHasher::new();
    (&subject.kind, notice.reason, &notice.message).hash(&mut hasher);
    let name = format!("{}.{:016x}", cut(&subject.name, NAME_BYTES_MAX), hasher.finish());
    ObjectId::namespaced("Event", &Key::new(namespace, name))
}

/// `type` of the Event.
pub(super) fn event_type(notice: &Notice) -> &'static str {
    if notice.severity == Severity::Info { "Normal" } else { "Warning" }
}

/// As much of the message as an Event holds.
pub(super) fn note(notice: &Notice) -> &str {
    cut(&notice.message, NOTE_BYTES_MAX)
}

/// At most so many bytes, at a character's boundary.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}
