//! The objects, as large as the real ones: fields, labels and lists as kubelets and KubeVirt's controllers write them.
//! What nobody here reads is there for its size.

use serde_json::{Map, Value, json};

use super::plan::{Vm, boot_id, node_name};

/// The class, and what makes its volumes: a driver that the locality table knows as network storage.
pub const CLASS: &str = "ceph-block";
const DRIVER: &str = "rook-ceph.rbd.csi.ceph.com";
const DISK: &str = "30Gi";
const GUEST_MEMORY: &str = "4Gi";
/// Room for a hundred such VMs and more.
const NODE_MEMORY: &str = "1056Gi";
const NODE_CPUS: &str = "192";
/// CPU features that KubeVirt's labeller finds on a server of today.
const CPU_FEATURES: u32 = 90;
/// A kubelet tells of 50 images (`nodeStatusMaxImages`).
const IMAGES: u32 = 50;
const BORN: &str = "2026-06-01T08:00:00Z";

/// A namespace.
pub fn namespace(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

/// The account without which no pod may be made there.
pub fn account(namespace: &str, name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": namespace}})
}

/// The storage class.
pub fn class() -> Value {
    json!({
        "metadata": {"name": CLASS},
        "provisioner": DRIVER,
        "parameters": {"clusterID": "rook-ceph", "pool": "replicapool", "csi.storage.k8s.io/fstype": "ext4"},
        "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate", "allowVolumeExpansion": true,
    })
}

/// The driver.
pub fn driver() -> Value {
    json!({"metadata": {"name": DRIVER}, "spec": {"attachRequired": true, "podInfoOnMount": false}})
}

/// A node.
pub fn node(number: u32) -> Value {
    let name = node_name(number);
    let mut labels: Map<String, Value> = (0..CPU_FEATURES)
        .map(|feature| (format!("cpu-feature.node.kubevirt.io/feature-{feature:03}"), json!("true")))
        .collect();
    for (label, value) in [
        ("kubernetes.io/hostname", name.as_str()),
        ("kubernetes.io/arch", "amd64"),
        ("kubernetes.io/os", "linux"),
        ("kubevirt.io/schedulable", "true"),
        ("machine-type.node.kubevirt.io/q35", "true"),
        ("cpu-vendor.node.kubevirt.io/Intel", "true"),
        ("host-model-cpu.node.kubevirt.io/Icelake-Server", "true"),
        ("node.kubernetes.io/instance-type", "metal.192"),
    ] {
        labels.insert(label.to_owned(), json!(value));
    }
    json!({
        "metadata": {
            "name": name, "labels": labels,
            "annotations": {
                "kubevirt.io/heartbeat": BORN,
                "kubevirt.io/ksm-handler-managed": "false",
                "csi.volume.kubernetes.io/nodeid": format!("{{\"{DRIVER}\":\"{name}\"}}"),
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            },
        },
        "spec": {"podCIDR": format!("10.{}.{}.0/24", 100 + number / 256, number % 256)},
    })
}

/// A node's status.
pub fn node_status(number: u32) -> Value {
    let resources = json!({
        "cpu": NODE_CPUS, "memory": NODE_MEMORY, "pods": "500", "ephemeral-storage": "900Gi",
        "devices.kubevirt.io/kvm": "1k", "devices.kubevirt.io/tun": "1k", "devices.kubevirt.io/vhost-net": "1k",
    });
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": format!("kubelet has told {reason}"),
            "lastHeartbeatTime": BORN, "lastTransitionTime": BORN,
        })
    };
    let images = (0..IMAGES).map(|image| {
        let names = [
            format!(
                "registry.example.com/platform/component-{image:03}@sha256:{:064x}",
                u64::from(image) << 40
            ),
            format!("registry.example.com/platform/component-{image:03}:v1.{image}.0"),
        ];
        json!({"names": names, "sizeBytes": 100_000_000 + image})
    });
    json!({
        "capacity": resources, "allocatable": resources,
        // Nobody connects to it as long as the node's agent tells its own address.
        "addresses": [
            {"type": "InternalIP", "address": format!("127.1.{}.{}", number / 250, 1 + number % 250)},
            {"type": "Hostname", "address": node_name(number)},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID"),
            condition("Ready", "True", "KubeletReady"),
        ],
        "images": images.collect::<Vec<_>>(),
        "nodeInfo": {
            "bootID": boot_id(number), "machineID": format!("{number:032x}"), "systemUUID": format!("{number:032x}"),
            "architecture": "amd64", "operatingSystem": "linux", "kernelVersion": "6.12.0", "osImage": "Debian 13",
            "containerRuntimeVersion": "containerd://2.1.0", "kubeletVersion": "v1.36.3", "kubeProxyVersion": "",
        },
    })
}

/// A kubelet's Lease.
pub fn lease(number: u32, renewed: &str) -> Value {
    let name = node_name(number);
    json!({
        "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": renewed},
    })
}

/// The claim of a VM's disk, bound.
pub fn claim(vm: Vm) -> (Value, Value) {
    let object = json!({
        "metadata": {
            "name": vm.claim(), "namespace": vm.namespace(),
            "labels": {"app.kubernetes.io/managed-by": "tenant", "vm": vm.name()},
            "annotations": {
                "pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes",
                "volume.kubernetes.io/storage-provisioner": DRIVER,
            },
        },
        "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": DISK}},
            "storageClassName": CLASS, "volumeMode": "Filesystem", "volumeName": vm.volume(),
        },
    });
    (object, json!({"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": DISK}}))
}

/// The volume that it is bound to.
pub fn volume(vm: Vm, claim_uid: &str) -> (Value, Value) {
    let object = json!({
        "metadata": {
            "name": vm.volume(),
            "annotations": {
                "pv.kubernetes.io/provisioned-by": DRIVER,
                "volume.kubernetes.io/provisioner-deletion-secret-name": "rook-csi-rbd-provisioner",
                "volume.kubernetes.io/provisioner-deletion-secret-namespace": "rook-ceph",
            },
        },
        "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": DISK}, "storageClassName": CLASS,
            "persistentVolumeReclaimPolicy": "Delete", "volumeMode": "Filesystem",
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": vm.namespace(), "name": vm.claim(), "uid": claim_uid,
            },
            "csi": {
                "driver": DRIVER, "fsType": "ext4",
                "volumeHandle": format!("0001-0009-rook-ceph-0000000000000001-{}", vm.volume()),
                "volumeAttributes": {
                    "clusterID": "rook-ceph", "pool": "replicapool", "imageName": format!("csi-vol-{}", vm.volume()),
                    "storage.kubernetes.io/csiProvisionerIdentity": "1767225600000-8081-rook-ceph.rbd.csi.ceph.com",
                },
                "nodeStageSecretRef": {"name": "rook-csi-rbd-node", "namespace": "rook-ceph"},
                "controllerExpandSecretRef": {"name": "rook-csi-rbd-provisioner", "namespace": "rook-ceph"},
            },
        },
    });
    (object, json!({"phase": "Bound"}))
}

/// The volume's attachment to the node of the VM's `life`-th life.
pub fn attachment(vm: Vm, life: u32, node: u32) -> (Value, Value) {
    let object = json!({
        "metadata": {"name": vm.attachment(life), "annotations": {"csi.alpha.kubernetes.io/node-id": node_name(node)}},
        "spec": {
            "attacher": DRIVER, "nodeName": node_name(node), "source": {"persistentVolumeName": vm.volume()},
        },
    });
    (object, json!({"attached": true}))
}

/// A VM that should run.
pub fn vm(vm: Vm) -> (Value, Value) {
    let object = json!({
        "metadata": {
            "name": vm.name(), "namespace": vm.namespace(), "labels": {"app": vm.name()},
            "annotations": {
                "kubevirt.io/latest-observed-api-version": "v1", "kubevirt.io/storage-observed-api-version": "v1",
            },
            "finalizers": ["kubevirt.io/virtualMachineControllerFinalize"],
        },
        "spec": {
            "runStrategy": "Always",
            "template": {"metadata": {"labels": {"app": vm.name()}}, "spec": machine(vm)},
        },
    });
    let status = json!({
        "created": true, "ready": true, "printableStatus": "Running", "runStrategy": "Always",
        "observedGeneration": 1, "desiredGeneration": 1,
        "conditions": [
            {"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": BORN},
            {"type": "LiveMigratable", "status": "False", "lastProbeTime": null, "lastTransitionTime": null,
             "reason": "DisksNotLiveMigratable", "message": "cannot migrate VMI: the claim is not shared"},
        ],
        "volumeSnapshotStatuses": [{"name": "root", "enabled": true}],
    });
    (object, status)
}

fn machine(vm: Vm) -> Value {
    let uuid = format!("a8ae0063-f4e8-4aaa-87f0-{:012x}", vm.0);
    json!({
        "architecture": "amd64",
        "domain": {
            "cpu": {"cores": 2, "sockets": 1, "threads": 1, "model": "host-model"},
            "devices": {
                "disks": [
                    {"name": "root", "disk": {"bus": "virtio"}, "bootOrder": 1},
                    {"name": "cloudinit", "disk": {"bus": "virtio"}},
                ],
                "interfaces": [{"name": "default", "masquerade": {}, "macAddress": format!("02:00:00:00:{:02x}:{:02x}", vm.0 >> 8 & 0xff, vm.0 & 0xff)}],
                "rng": {},
            },
            "features": {"acpi": {"enabled": true}},
            "firmware": {"uuid": uuid, "serial": uuid},
            "machine": {"type": "q35"},
            "memory": {"guest": GUEST_MEMORY},
            "resources": {"requests": {"memory": GUEST_MEMORY, "cpu": "500m"}},
        },
        "evictionStrategy": "None",
        "networks": [{"name": "default", "pod": {}}],
        "terminationGracePeriodSeconds": 180,
        "volumes": [
            {"name": "root", "persistentVolumeClaim": {"claimName": vm.claim()}},
            {"name": "cloudinit", "cloudInitNoCloud": {"userData": "#cloud-config\nhostname: vm\nssh_authorized_keys:\n- ssh-ed25519 AAAA\n"}},
        ],
    })
}

/// Its instance on a node, in this phase.
pub fn instance(vm: Vm, vm_uid: &str, node: u32, phase: &str) -> Value {
    let owner = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": vm.name(), "uid": vm_uid,
        "controller": true, "blockOwnerDeletion": true,
    });
    let node = node_name(node);
    let transitions = ["Pending", "Scheduling", "Scheduled", phase]
        .map(|phase| json!({"phase": phase, "phaseTransitionTimestamp": BORN}));
    json!({
        "metadata": {
            "name": vm.name(), "namespace": vm.namespace(), "ownerReferences": [owner],
            "labels": {"app": vm.name(), "kubevirt.io/nodeName": node},
            "annotations": {
                "kubevirt.io/latest-observed-api-version": "v1", "kubevirt.io/storage-observed-api-version": "v1",
                "kubevirt.io/vm-generation": "1",
            },
        },
        "spec": machine(vm),
        "status": {
            "phase": phase, "nodeName": node, "qosClass": "Burstable", "runtimeUser": 107,
            "guestOSInfo": {"id": "debian", "kernelRelease": "6.12.0-amd64", "prettyName": "Debian GNU/Linux 13"},
            "interfaces": [{
                "name": "default", "mac": "02:00:00:00:00:01", "ipAddress": "10.0.2.2", "ipAddresses": ["10.0.2.2"],
                "infoSource": "domain, guest-agent", "interfaceName": "eth0", "queueCount": 1,
            }],
            "conditions": [
                {"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": BORN},
                {"type": "AgentConnected", "status": "True", "lastProbeTime": BORN, "lastTransitionTime": null},
                {"type": "LiveMigratable", "status": "False", "lastProbeTime": null, "lastTransitionTime": null,
                 "reason": "DisksNotLiveMigratable", "message": "cannot migrate VMI: the claim is not shared"},
            ],
            "currentCPUTopology": {"cores": 2, "sockets": 1, "threads": 1},
            "machine": {"type": "pc-q35-10.0"},
            "memory": {"guestAtBoot": GUEST_MEMORY, "guestCurrent": GUEST_MEMORY, "guestRequested": GUEST_MEMORY, "memoryOverhead": "268Mi"},
            "phaseTransitionTimestamps": transitions,
            "volumeStatus": [
                {"name": "root", "target": "vda", "persistentVolumeClaimInfo": {
                    "claimName": vm.claim(), "accessModes": ["ReadWriteOnce"], "capacity": {"storage": DISK},
                    "requests": {"storage": DISK}, "filesystemOverhead": "0.06", "volumeMode": "Filesystem",
                }},
                {"name": "cloudinit", "target": "vdb", "size": 1_048_576},
            ],
        },
    })
}

/// The instance's launcher in its `life`-th life.
pub fn launcher(vm: Vm, life: u32, instance_uid: &str, node: u32) -> Value {
    const MOUNTS: [(&str, &str); 6] = [
        ("private", "/var/run/kubevirt-private"),
        ("public", "/var/run/kubevirt"),
        ("ephemeral-disks", "/var/run/kubevirt-ephemeral-disks"),
        ("libvirt-runtime", "/var/run/libvirt"),
        ("sockets", "/var/run/kubevirt/sockets"),
        ("hotplug-disks", "/var/run/kubevirt/hotplug-disks"),
    ];
    let mounts = MOUNTS.map(|(name, path)| json!({"name": name, "mountPath": path}));
    let mut mounts = mounts.to_vec();
    mounts.push(json!({"name": "root", "mountPath": "/var/run/kubevirt-private/vmi-disks/root"}));
    let mut volumes = MOUNTS.map(|(name, _)| json!({"name": name, "emptyDir": {}})).to_vec();
    volumes.push(json!({"name": "root", "persistentVolumeClaim": {"claimName": vm.claim()}}));
    let owner = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": vm.name(), "uid": instance_uid,
        "controller": true, "blockOwnerDeletion": true,
    });
    let command = [
        "/usr/bin/virt-launcher-monitor",
        "--qemu-timeout",
        "316s",
        "--name",
        "vm",
        "--uid",
        instance_uid,
        "--namespace",
        "tenant",
        "--kubevirt-share-dir",
        "/var/run/kubevirt",
        "--ephemeral-disk-dir",
        "/var/run/kubevirt-ephemeral-disks",
        "--container-disk-dir",
        "/var/run/kubevirt/container-disks",
        "--grace-period-seconds",
        "195",
        "--hook-sidecars",
        "0",
        "--ovmf-path",
        "/usr/share/OVMF",
        "--disk-memory-limit",
        "2097152000",
        "--run-as-nonroot",
        "--hypervisor",
        "kvm",
    ];
    json!({
        "metadata": {
            "name": vm.launcher(life), "namespace": vm.namespace(), "ownerReferences": [owner],
            "labels": {
                "app": vm.name(), "kubevirt.io": "virt-launcher", "kubevirt.io/created-by": instance_uid,
                "kubevirt.io/nodeName": node_name(node), "vm.kubevirt.io/name": vm.name(), "vmi.kubevirt.io/id": vm.name(),
            },
            "annotations": {
                "kubevirt.io/domain": vm.name(), "kubectl.kubernetes.io/default-container": "compute",
                "kubevirt.io/migrationTransportUnix": "true", "kubevirt.io/vm-generation": "1",
                "descheduler.alpha.kubernetes.io/request-evict-only": "",
                "post.hook.backup.velero.io/command": "[\"/usr/bin/virt-freezer\", \"--unfreeze\"]",
                "pre.hook.backup.velero.io/command": "[\"/usr/bin/virt-freezer\", \"--freeze\"]",
            },
        },
        "spec": {
            "nodeName": node_name(node),
            "containers": [{
                "name": "compute", "image": "registry.example.com/kubevirt/virt-launcher:v1.9.0", "command": command,
                "env": [
                    {"name": "XDG_CACHE_HOME", "value": "/var/run/kubevirt-private"},
                    {"name": "XDG_CONFIG_HOME", "value": "/var/run/kubevirt-private"},
                    {"name": "XDG_RUNTIME_DIR", "value": "/var/run"},
                    {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                ],
                "resources": {
                    "requests": {"cpu": "500m", "memory": "4364Mi", "ephemeral-storage": "50M"},
                    "limits": {"devices.kubevirt.io/kvm": "1", "devices.kubevirt.io/tun": "1"},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": false, "runAsGroup": 107, "runAsNonRoot": true, "runAsUser": 107,
                    "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
                },
                "volumeMounts": mounts,
            }],
            "volumes": volumes,
            "restartPolicy": "Never", "automountServiceAccountToken": false, "enableServiceLinks": false,
            "hostname": vm.name(), "terminationGracePeriodSeconds": 210,
            "nodeSelector": {
                "kubernetes.io/arch": "amd64", "kubevirt.io/schedulable": "true",
                "machine-type.node.kubevirt.io/q35": "true",
            },
            "readinessGates": [{"conditionType": "kubevirt.io/virtual-machine-unpaused"}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "node-labeller.kubevirt.io/obsolete-host-model", "operator": "DoesNotExist"}]},
            ]}}},
            "securityContext": {"fsGroup": 107, "runAsGroup": 107, "runAsNonRoot": true, "runAsUser": 107},
        },
    })
}

/// The status of a launcher that runs.
pub fn launcher_status() -> Value {
    let conditions = [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
        "PodScheduled",
        "kubevirt.io/virtual-machine-unpaused",
    ]
    .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": BORN}));
    json!({
        "phase": "Running", "qosClass": "Burstable", "startTime": BORN,
        "hostIP": "127.1.0.1", "podIP": "10.0.2.2", "podIPs": [{"ip": "10.0.2.2"}],
        "conditions": conditions,
        "containerStatuses": [{
            "name": "compute", "ready": true, "started": true, "restartCount": 0,
            "image": "registry.example.com/kubevirt/virt-launcher:v1.9.0", "imageID": format!("sha256:{:064x}", 1),
            "containerID": format!("containerd://{:064x}", 2), "state": {"running": {"startedAt": BORN}},
        }],
    })
}
