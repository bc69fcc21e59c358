//! Objects for tests, as people would write them.
//!
//! ```
//! use somersault_test_kubevirt::{NETWORK_CLASS, builders::{Vm, manifest}};
//!
//! let vm = Vm::new("web").claim("root", NETWORK_CLASS).claim("data", "local-path").on_node("n1");
//! let applied_by_kubectl = manifest(&vm.objects());
//! # assert!(applied_by_kubectl.contains("web-root"));
//! ```

use serde_json::{Value, json};

use crate::names::HOLD;
use crate::objects::Kind;

/// Size of every disk: sparse, and long enough for half an hour of writes.
pub const DISK_SIZE: &str = "16Mi";
const GUEST_MEMORY: &str = "32Mi";

/// A virtual machine in the making. Its disks are in the order in which they were added; the first one boots.
#[derive(Clone, Debug)]
pub struct Vm {
    name: String,
    namespace: String,
    start: (&'static str, Value),
    annotations: Value,
    template: Value,
    templates: Vec<Value>,
    claims: Vec<Value>,
}

impl Vm {
    /// Without disks, in namespace `default`, with runStrategy Always. It ends within its grace period of 1 s.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            start: ("runStrategy", json!("Always")),
            annotations: json!({}),
            template: json!({
                "domain": {"cpu": {"cores": 1}, "memory": {"guest": GUEST_MEMORY}, "devices": {"disks": []}},
                "terminationGracePeriodSeconds": 1,
                "volumes": [],
            }),
            templates: Vec::new(),
            claims: Vec::new(),
        }
    }

    /// Elsewhere than in `default`. Call it before disks are added.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// `spec.runStrategy`.
    #[must_use]
    pub fn run_strategy(mut self, strategy: &str) -> Self {
        self.start = ("runStrategy", json!(strategy));
        self
    }

    /// The older `spec.running` instead.
    #[must_use]
    pub fn running(mut self, running: bool) -> Self {
        self.start = ("running", json!(running));
        self
    }

    /// An annotation of the VM.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations[key] = json!(value);
        self
    }

    /// A disk with a new claim `<vm>-<disk>` of this class.
    #[must_use]
    pub fn claim(self, disk: &str, class: &str) -> Self {
        let name = format!("{}-{disk}", self.name);
        let claim = claim(&self.namespace, &name, class);
        let mut vm = self.existing_claim(disk, &name);
        vm.claims.push(claim);
        vm
    }

    /// The same as a block device.
    #[must_use]
    pub fn device(self, disk: &str, class: &str) -> Self {
        let mut vm = self.claim(disk, class);
        if let Some(claim) = vm.claims.last_mut() {
            claim["spec"]["volumeMode"] = json!("Block");
        }
        vm
    }

    /// A disk with a claim that somebody else makes.
    #[must_use]
    pub fn existing_claim(self, disk: &str, claim: &str) -> Self {
        self.volume(disk, "persistentVolumeClaim", json!({"claimName": claim}))
    }

    /// A disk with a `DataVolume` that somebody else makes.
    #[must_use]
    pub fn data_volume(self, disk: &str, data_volume: &str) -> Self {
        self.volume(disk, "dataVolume", json!({"name": data_volume}))
    }

    /// A disk with a `DataVolume` `<vm>-<disk>` that the VM's own template makes, imported from this address.
    #[must_use]
    pub fn data_volume_template(self, disk: &str, class: &str, url: &str) -> Self {
        let name = format!("{}-{disk}", self.name);
        let mut vm = self.data_volume(disk, &name);
        vm.templates.push(json!({
            "metadata": {"name": name},
            "spec": {"source": {"http": {"url": url}}, "storage": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": class,
                "resources": {"requests": {"storage": DISK_SIZE}},
            }},
        }));
        vm
    }

    /// A disk of any other kind, such as `("scratch", "emptyDisk", {"capacity": "1Gi"})`.
    #[must_use]
    pub fn volume(mut self, disk: &str, field: &str, source: Value) -> Self {
        let device = json!({"name": disk, "disk": {"bus": "virtio"}});
        if let Some(disks) = self.template["domain"]["devices"]["disks"].as_array_mut() {
            disks.push(device);
        }
        let mut volume = json!({"name": disk});
        volume[field] = source;
        if let Some(volumes) = self.template["volumes"].as_array_mut() {
            volumes.push(volume);
        }
        self
    }

    /// What its launcher asks of a CPU, instead of KubeVirt's tenth of one for each core.
    #[must_use]
    pub fn cpu_request(mut self, cpu: &str) -> Self {
        self.template["domain"]["resources"]["requests"]["cpu"] = json!(cpu);
        self
    }

    /// Only on this node.
    #[must_use]
    pub fn on_node(mut self, node: &str) -> Self {
        self.template["nodeSelector"]["kubernetes.io/hostname"] = json!(node);
        self
    }

    /// Preferably on this node, and elsewhere when it cannot be.
    #[must_use]
    pub fn preferring_node(mut self, node: &str) -> Self {
        self.template["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = json!([{
            "weight": 100,
            "preference": {"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]},
            ]},
        }]);
        self
    }

    /// Any other field of the instance's spec, such as `tolerations`.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.template[field] = value;
        self
    }

    /// The VM alone.
    pub fn vm(&self) -> Value {
        let mut spec = json!({"template": {"spec": self.template}});
        spec[self.start.0] = self.start.1.clone();
        if !self.templates.is_empty() {
            spec["dataVolumeTemplates"] = json!(self.templates);
        }
        json!({
            "apiVersion": Kind::VirtualMachine.api_version(), "kind": Kind::VirtualMachine.name(),
            "metadata": {"name": self.name, "namespace": self.namespace, "annotations": self.annotations},
            "spec": spec,
        })
    }

    /// The VM and its claims.
    pub fn objects(&self) -> Vec<Value> {
        self.claims.iter().cloned().chain([self.vm()]).collect()
    }
}

/// A claim.
pub fn claim(namespace: &str, name: &str, class: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": DISK_SIZE}},
        },
    })
}

/// A `DataVolume` that imports from this address.
pub fn data_volume(namespace: &str, name: &str, class: &str, url: &str) -> Value {
    json!({
        "apiVersion": Kind::DataVolume.api_version(), "kind": Kind::DataVolume.name(),
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"source": {"http": {"url": url}}, "pvc": claim(namespace, name, class)["spec"]},
    })
}

/// A Wukong with a system disk that is imported and a data disk that is blank, both of this class. Its VM is
/// `<name>-vm`, its claims are `<name>-system` and `<name>-data`.
pub fn wukong(namespace: &str, name: &str, class: &str) -> Value {
    let image = "http://images.invalid/ubuntu.img";
    json!({
        "apiVersion": Kind::Wukong.api_version(), "kind": Kind::Wukong.name(),
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "cpu": 1, "memory": GUEST_MEMORY,
            "disks": [
                {"name": "system", "size": DISK_SIZE, "storageClassName": class, "boot": true, "image": image},
                {"name": "data", "size": DISK_SIZE, "storageClassName": class},
            ],
        },
    })
}

/// A live migration of this VM that is in flight until its annotation [`HOLD`] or itself is taken away; then it
/// fails.
pub fn live_migration(namespace: &str, name: &str, vm: &str) -> Value {
    let kind = Kind::VirtualMachineInstanceMigration;
    json!({
        "apiVersion": kind.api_version(), "kind": kind.name(),
        "metadata": {"name": name, "namespace": namespace, "annotations": {HOLD: "true"}},
        "spec": {"vmiName": vm},
    })
}

/// A static volume without affinity on a folder that every node sees, for the claim of this name: what
/// `nfs-standin` makes by itself, by hand.
pub fn shared_volume(name: &str, namespace: &str, claim: &str, class: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": DISK_SIZE}, "storageClassName": class,
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": namespace, "name": claim},
            "hostPath": {"path": format!("/mnt/network/{name}"), "type": "DirectoryOrCreate"},
        },
    })
}

/// For `kubectl apply -f`.
pub fn manifest(objects: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}
