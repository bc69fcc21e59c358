//! What the API server has told, and how it is read: raw JSON, since most of it only passes through.
//!
//! A write's answer is put here too, so that the next look knows of it before the watch does: an object is only
//! ever replaced by a newer one of the same or a later uid. (Resource versions can be compared by size:
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>.)

use std::collections::{BTreeMap, BTreeSet};

use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

/// Kinds that the stand-in reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `kubevirt.io/v1`.
    VirtualMachine,
    /// `kubevirt.io/v1`.
    VirtualMachineInstance,
    /// `kubevirt.io/v1`.
    VirtualMachineInstanceMigration,
    /// `cdi.kubevirt.io/v1beta1`.
    DataVolume,
    /// `vm.novasphere.dev/v1alpha1`.
    Wukong,
    /// `v1`.
    Pod,
    /// `v1`.
    PersistentVolumeClaim,
    /// `v1`.
    PersistentVolume,
    /// `v1`.
    Node,
    /// `storage.k8s.io/v1`.
    StorageClass,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::VirtualMachine,
        Self::VirtualMachineInstance,
        Self::VirtualMachineInstanceMigration,
        Self::DataVolume,
        Self::Wukong,
        Self::Pod,
        Self::PersistentVolumeClaim,
        Self::PersistentVolume,
        Self::Node,
        Self::StorageClass,
    ];

    /// Group, version and name.
    const fn parts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::VirtualMachine => ("kubevirt.io", "v1", "VirtualMachine"),
            Self::VirtualMachineInstance => ("kubevirt.io", "v1", "VirtualMachineInstance"),
            Self::VirtualMachineInstanceMigration => ("kubevirt.io", "v1", "VirtualMachineInstanceMigration"),
            Self::DataVolume => ("cdi.kubevirt.io", "v1beta1", "DataVolume"),
            Self::Wukong => ("vm.novasphere.dev", "v1alpha1", "Wukong"),
            Self::Pod => ("", "v1", "Pod"),
            Self::PersistentVolumeClaim => ("", "v1", "PersistentVolumeClaim"),
            Self::PersistentVolume => ("", "v1", "PersistentVolume"),
            Self::Node => ("", "v1", "Node"),
            Self::StorageClass => ("storage.k8s.io", "v1", "StorageClass"),
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        self.parts().2
    }

    /// As the client needs it.
    pub fn resource(self) -> ApiResource {
        let (group, version, kind) = self.parts();
        ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
    }

    /// `apiVersion`.
    pub fn api_version(self) -> String {
        self.resource().api_version
    }

    /// Of a raw object.
    pub fn of(object: &Value) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| object["kind"] == kind.name())
    }
}

type Key = (Kind, String, String);

/// Everything that is known.
#[derive(Clone, Debug, Default)]
pub struct Objects(BTreeMap<Key, Value>);

impl Objects {
    /// Takes an object that was read or written.
    pub fn put(&mut self, object: Value) {
        let Some(kind) = Kind::of(&object) else { return };
        let key = (kind, namespace(&object).to_owned(), name(&object).to_owned());
        let is_older = |known: &Value| version(known) > version(&object);
        if !self.0.get(&key).is_some_and(is_older) {
            self.0.insert(key, object);
        }
    }

    /// Forgets an object that is gone, unless another one has its name by now.
    pub fn remove(&mut self, object: &Value) {
        let Some(kind) = Kind::of(object) else { return };
        let key = (kind, namespace(object).to_owned(), name(object).to_owned());
        if self.0.get(&key).is_some_and(|known| uid(known) == uid(object)) {
            self.0.remove(&key);
        }
    }

    /// Forgets every object of a kind but these uids: a watch has begun anew, and lists what there is.
    pub fn retain(&mut self, kind: Kind, uids: &BTreeSet<String>) {
        self.0.retain(|key, object| key.0 != kind || uids.contains(uid(object)));
    }

    /// The objects of a kind.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |(key, _)| key.0 == kind).map(|(_, object)| object)
    }

    /// The object of this name.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Value> {
        self.0.get(&(kind, namespace.to_owned(), name.to_owned()))
    }

    /// The objects of a kind that this one controls.
    pub fn controlled_by<'a>(&'a self, kind: Kind, owner: &'a Value) -> impl Iterator<Item = &'a Value> {
        self.all(kind).filter(move |object| is_controlled_by(object, owner))
    }
}

fn version(object: &Value) -> u64 {
    let version = object["metadata"]["resourceVersion"].as_str();
    version.and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// `metadata.namespace`.
pub fn namespace(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or_default()
}

/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// An annotation.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["annotations"][key].as_str()
}

/// A label.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["labels"][key].as_str()
}

/// `status.phase`.
pub fn phase(object: &Value) -> &str {
    object["status"]["phase"].as_str().unwrap_or_default()
}

/// Whether it has a deletion timestamp.
pub fn is_deleting(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// The elements of a list that may be absent.
pub fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

/// Whether the owner controls the object.
pub fn is_controlled_by(object: &Value, owner: &Value) -> bool {
    controller(object).is_some_and(|reference| reference["uid"] == *uid(owner))
}

/// The reference to its controller.
pub fn controller(object: &Value) -> Option<&Value> {
    list(&object["metadata"]["ownerReferences"]).find(|owner| owner["controller"] == true)
}

/// A reference to an owner that controls.
pub fn owner_reference(owner: &Value) -> Value {
    json!({
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": name(owner), "uid": uid(owner),
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// Whether it has a finalizer.
pub fn has_finalizer(object: &Value, finalizer: &str) -> bool {
    list(&object["metadata"]["finalizers"]).any(|found| found == finalizer)
}

/// Removes a finalizer.
pub fn remove_finalizer(object: &mut Value, finalizer: &str) {
    if let Some(finalizers) = object["metadata"]["finalizers"].as_array_mut() {
        finalizers.retain(|found| found != finalizer);
    }
}

/// Adds a finalizer that is not there.
pub fn add_finalizer(object: &mut Value, finalizer: &str) {
    if !has_finalizer(object, finalizer) {
        let mut all: Vec<_> = list(&object["metadata"]["finalizers"]).cloned().collect();
        all.push(json!(finalizer));
        object["metadata"]["finalizers"] = json!(all);
    }
}

#[cfg(test)]
mod tests {
    //! Shows that neither a late watch event nor a late deletion undoes what a write has answered.

    use super::*;

    fn pod(uid: &str, version: u64) -> Value {
        json!({"kind": "Pod", "metadata": {"namespace": "n", "name": "p", "uid": uid, "resourceVersion": version.to_string()}})
    }

    #[test]
    fn only_newer_objects_replace_and_only_the_same_uid_removes() {
        let mut objects = Objects::default();
        let seen = |objects: &Objects| objects.get(Kind::Pod, "n", "p").map(version);
        objects.put(pod("a", 9));
        objects.put(pod("a", 7));
        assert_eq!(seen(&objects), Some(9));
        objects.put(pod("b", 10));
        objects.remove(&pod("a", 8));
        assert_eq!(seen(&objects), Some(10), "the deletion meant the earlier one");
        objects.remove(&pod("b", 11));
        assert_eq!(seen(&objects), None);
    }
}
