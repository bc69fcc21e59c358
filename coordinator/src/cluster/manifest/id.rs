//! Which object a manifest is: kind, namespace, name; and which kinds we know.

use std::fmt;

use serde_json::Value;
use somersault_coordinator_core::names::Key;

/// Longest name of an object in Kubernetes.
const NAME_BYTES_MAX: usize = 253;

/// Identity of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// `kind`; kinds of other groups that share a name with one we know are prefixed by their group.
    pub kind: String,
    /// `metadata.namespace`; empty for cluster-scoped objects.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

/// Kinds that we read or write: kind, group, whether namespaced.
const KNOWN: [(&str, &str, bool); 18] = [
    ("Node", "", false),
    ("PersistentVolume", "", false),
    ("PersistentVolumeClaim", "", true),
    ("Pod", "", true),
    ("Event", "", true),
    ("StorageClass", "storage.k8s.io", false),
    ("VolumeAttachment", "storage.k8s.io", false),
    ("Lease", "coordination.k8s.io", true),
    ("VirtualMachine", "kubevirt.io", true),
    ("VirtualMachineInstance", "kubevirt.io", true),
    ("VirtualMachineInstanceMigration", "kubevirt.io", true),
    ("DataVolume", "cdi.kubevirt.io", true),
    ("Wukong", "vm.novasphere.dev", true),
    ("NodeHealth", "somersault.novasphere.dev", false),
    ("Recovery", "somersault.novasphere.dev", true),
    ("RecoveryPolicy", "somersault.novasphere.dev", false),
    ("VolumeMigration", "somersault.novasphere.dev", true),
    ("Evacuation", "somersault.novasphere.dev", false),
];

impl ObjectId {
    /// A namespaced object.
    pub fn namespaced(kind: &str, key: &Key) -> Self {
        Self { kind: kind.to_owned(), namespace: key.namespace.clone(), name: key.name.clone() }
    }

    /// A cluster-scoped object.
    pub fn cluster(kind: &str, name: &str) -> Self {
        Self { kind: kind.to_owned(), namespace: String::new(), name: name.to_owned() }
    }

    /// Namespace and name.
    pub fn key(&self) -> Key {
        Key::new(self.namespace.clone(), self.name.clone())
    }

    /// The identity of a manifest. A namespaced object without a namespace is in `default`, as `kubectl apply`
    /// has it.
    pub fn of(object: &Value) -> Result<Self, String> {
        let text = |field: &str, value: &Value| {
            value.as_str().map(str::to_owned).ok_or_else(|| match value {
                Value::Null => format!("{field}: missing"),
                _ => format!("{field}: must be a string"),
            })
        };
        if !object.is_object() {
            return Err("not an object with apiVersion, kind and metadata".to_owned());
        }
        let api_version = text("apiVersion", &object["apiVersion"])?;
        let kind = text("kind", &object["kind"])?;
        let name = text("metadata.name", &object["metadata"]["name"])?;
        check_name("metadata.name", &name)?;
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let known = KNOWN.iter().find(|(known, ..)| *known == kind);
        let foreign = known.is_some_and(|(_, known_group, _)| *known_group != group);
        let namespaced = known.is_some_and(|(.., namespaced)| *namespaced) && !foreign;
        let mut namespace = match &object["metadata"]["namespace"] {
            Value::Null => String::new(),
            value => text("metadata.namespace", value)?,
        };
        if !namespace.is_empty() {
            check_name("metadata.namespace", &namespace)?;
        }
        if namespaced && namespace.is_empty() {
            "default".clone_into(&mut namespace);
        }
        if known.is_some() && !foreign && !namespaced {
            namespace.clear();
        }
        let kind = if foreign { format!("{group}/{kind}") } else { kind };
        Ok(Self { kind, namespace, name })
    }

    /// Refuses a name or namespace that no object can have, and that would lead elsewhere as a part of a path.
    pub fn check_name(name: &str) -> Result<(), String> {
        check_name("name", name)
    }

    /// `Kind namespace/name`, as far as it can be read.
    pub fn describe(object: &Value) -> String {
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let name = text(&object["metadata"]["name"]);
        let name = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name,
        };
        format!("{} {name}", text(&object["kind"]))
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// Names become parts of file names and of paths on nodes: nothing in them may lead elsewhere. Kubernetes
/// itself refuses `/`, `%`, `.` and `..` as path segments for every kind.
fn check_name(field: &str, name: &str) -> Result<(), String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '_');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.starts_with('.') || !name.chars().all(legal) {
        return Err(format!("{field}: not a valid name: letters, digits, '-', '.', at most 253 of them"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_the_object_and_its_default_namespace() {
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}});
        assert_eq!(ObjectId::of(&claim).unwrap().to_string(), "PersistentVolumeClaim default/c");
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "namespace": "x"}});
        assert_eq!(ObjectId::of(&node).unwrap(), ObjectId::cluster("Node", "n1"));
    }

    #[test]
    fn a_foreign_group_is_another_kind() {
        let foreign = json!({"apiVersion": "example.org/v1", "kind": "Node", "metadata": {"name": "n1"}});
        assert_eq!(ObjectId::of(&foreign).unwrap().kind, "example.org/Node");
    }

    #[test]
    fn refuses_names_that_lead_elsewhere() {
        for name in ["", "../x", "a/b", ".hidden", "a b", "ä"] {
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
            assert!(ObjectId::of(&node).unwrap_err().starts_with("metadata.name"), "{name:?}");
        }
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "../x"}});
        assert!(ObjectId::of(&pod).unwrap_err().starts_with("metadata.namespace"));
    }

    #[test]
    fn says_which_field_is_missing() {
        assert_eq!(ObjectId::of(&json!({"kind": "Node"})).unwrap_err(), "apiVersion: missing");
        assert_eq!(
            ObjectId::of(&json!({"apiVersion": "v1", "kind": 3})).unwrap_err(),
            "kind: must be a string"
        );
        assert!(ObjectId::of(&json!([1])).is_err());
    }
}
