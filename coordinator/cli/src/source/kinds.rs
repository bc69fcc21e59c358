//! The kinds that a command reads from an API server, and how to ask for one.

use serde_json::Value;
use somersault_coordinator::cluster::manifest::{NOT_OF_VMS, OF_VMS, claims_alone};

/// What it means that a cluster does not know a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// Every Kubernetes has it.
    Never,
    /// Somersault's own definitions are not installed.
    Somersault,
    /// `KubeVirt` is not installed.
    KubeVirt,
    /// Nothing: there are no such objects then.
    Nothing,
}

/// A kind.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub name: &'static str,
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    /// Only these, by label; all where empty.
    pub selector: &'static str,
    pub absent: Absent,
}

const fn kind(
    name: &'static str,
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    absent: Absent,
) -> Kind {
    Kind { name, group, version, plural, selector: "", absent }
}

/// Pods that hold a VM's disks.
const PODS: Kind = Kind { selector: OF_VMS, ..kind("Pod", "", "v1", "pods", Absent::Never) };
/// All others, of which there may be many: they may use a VM's claims.
const OTHER_PODS: Kind = Kind { selector: NOT_OF_VMS, ..PODS };

const STORAGE: &str = "storage.k8s.io";
const KUBEVIRT: &str = "kubevirt.io";
const OURS: &str = somersault_crd::GROUP;

/// Everything that decisions are made from.
pub const READ: [Kind; 18] = [
    kind("Node", "", "v1", "nodes", Absent::Never),
    kind("PersistentVolume", "", "v1", "persistentvolumes", Absent::Never),
    kind("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims", Absent::Never),
    PODS,
    OTHER_PODS,
    kind("StorageClass", STORAGE, "v1", "storageclasses", Absent::Never),
    kind("VolumeAttachment", STORAGE, "v1", "volumeattachments", Absent::Never),
    kind("VirtualMachine", KUBEVIRT, "v1", "virtualmachines", Absent::KubeVirt),
    kind("VirtualMachineInstance", KUBEVIRT, "v1", "virtualmachineinstances", Absent::KubeVirt),
    kind(
        "VirtualMachineInstanceMigration",
        KUBEVIRT,
        "v1",
        "virtualmachineinstancemigrations",
        Absent::KubeVirt,
    ),
    kind("DataVolume", "cdi.kubevirt.io", "v1beta1", "datavolumes", Absent::Nothing),
    kind("VolumeSnapshot", "snapshot.storage.k8s.io", "v1", "volumesnapshots", Absent::Nothing),
    kind("Wukong", "vm.novasphere.dev", "v1alpha1", "wukongs", Absent::Nothing),
    kind("NodeHealth", OURS, somersault_crd::VERSION, "nodehealths", Absent::Somersault),
    kind("Recovery", OURS, somersault_crd::VERSION, "recoveries", Absent::Somersault),
    kind("RecoveryPolicy", OURS, somersault_crd::VERSION, "recoverypolicies", Absent::Somersault),
    kind("VolumeMigration", OURS, somersault_crd::VERSION, "volumemigrations", Absent::Somersault),
    kind("Evacuation", OURS, somersault_crd::VERSION, "evacuations", Absent::Somersault),
];

impl Kind {
    /// The kind of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        READ.iter().find(|kind| kind.name == name)
    }

    /// What is kept of an object, if anything.
    pub fn kept(&self, object: Value) -> Option<Value> {
        if self.selector == NOT_OF_VMS { claims_alone(&object) } else { Some(object) }
    }

    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// As kubectl takes it: `nodes`, `virtualmachines.kubevirt.io`.
    pub fn resource(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// Path of the collection: in a namespace, or in all of them where it is empty.
    pub fn path(&self, namespace: &str) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        let api_version = self.api_version();
        match namespace {
            "" => format!("{root}/{api_version}/{}", self.plural),
            namespace => format!("{root}/{api_version}/namespaces/{namespace}/{}", self.plural),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_api() {
        let path = |name, namespace| Kind::named(name).map(|kind| kind.path(namespace));
        assert_eq!(path("Node", "").as_deref(), Some("/api/v1/nodes"));
        assert_eq!(path("Pod", "shop").as_deref(), Some("/api/v1/namespaces/shop/pods"));
        assert_eq!(
            path("VolumeMigration", "shop").as_deref(),
            Some("/apis/somersault.novasphere.dev/v1alpha1/namespaces/shop/volumemigrations")
        );
    }
}
