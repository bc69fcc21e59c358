//! What the kind of a volume and the name of its driver say: the second vote, after the node affinity.
//!
//! Names are those of the drivers' own documentation and of the list in the Kubernetes CSI documentation
//! (kubernetes-csi.github.io/docs/drivers.html). A name that is missing here costs a look, never a disk.

use crate::fleet::{Fleet, Volume, VolumeSource};

/// What kind and driver say, each with the words for it.
pub(super) enum Vote {
    /// The data is on one node.
    OnNode(String),
    /// The data is on the network.
    Network(String),
    /// The votes contradict each other: somebody is wrong, and no other evidence counts.
    Contradiction(String),
    /// Nothing is known.
    Unknown(String),
}

/// Provisioners and CSI drivers that keep a volume on one node.
const NODE_LOCAL: &[&str] = &[
    "rancher.io/local-path",
    "docker.io/hostpath",
    "k8s.io/minikube-hostpath",
    "microk8s.io/hostpath",
    "kubernetes.io/host-path",
    "kubevirt.io/hostpath-provisioner",
    "kubevirt.io.hostpath-provisioner",
    "hostpath.csi.kubevirt.io",
    "hostpath.csi.k8s.io",
    "openebs.io/local",
    "local.csi.openebs.io",
    "zfs.csi.openebs.io",
    "device.csi.openebs.io",
    "rawfile.csi.openebs.io",
    "topolvm.io",
    "topolvm.cybozu.com",
    "directpv-min-io",
    "direct-csi-min-io",
    "lvm.csi.metal-stack.io",
    "local.csi.alibaba.com",
    "pmem-csi.intel.com",
    "local.storage.hwameistor.io",
    "lvm.hwameistor.io",
    "disk.hwameistor.io",
];

/// CSI drivers of network storage.
const NETWORK: &[&str] = &[
    "nfs.csi.k8s.io",
    "smb.csi.k8s.io",
    "iscsi.csi.k8s.io",
    "org.gluster.glusterfs",
    "driver.longhorn.io",
    "linstor.csi.linbit.com",
    "io.openebs.csi-mayastor",
    "cstor.csi.openebs.io",
    "pxd.portworx.com",
    "csi.weka.io",
    "csi.juicefs.com",
    "beegfs.csi.netapp.com",
    "csi.trident.netapp.io",
    "csi.vsphere.vmware.com",
    "cinder.csi.openstack.org",
    "nfs.manila.csi.openstack.org",
    "ebs.csi.aws.com",
    "efs.csi.aws.com",
    "fsx.csi.aws.com",
    "disk.csi.azure.com",
    "file.csi.azure.com",
    "pd.csi.storage.gke.io",
    "filestore.csi.storage.gke.io",
    "csi.hetzner.cloud",
    "dobs.csi.digitalocean.com",
    "linodebs.csi.linode.com",
    "block.csi.vultr.com",
    "csi.scaleway.com",
    "diskplugin.csi.alibabacloud.com",
    "nasplugin.csi.alibabacloud.com",
    "blockvolume.csi.oraclecloud.com",
    "vpc.block.csi.ibm.io",
    "block.csi.ibm.com",
    "spectrumscale.csi.ibm.com",
    "csi.hpe.com",
    "hspc.csi.hitachi.com",
    "csi.huawei.com",
    "csi-isilon.dellemc.com",
    "csi-powermax.dellemc.com",
    "csi-powerstore.dellemc.com",
    "csi-unity.dellemc.com",
    "csi-vxflexos.dellemc.com",
    "infinibox-csi-driver",
];

/// Ceph's drivers carry the operator's namespace before their name (`rook-ceph.rbd.csi.ceph.com`).
const CEPH: &[&str] = &["rbd.csi.ceph.com", "cephfs.csi.ceph.com", "nfs.csi.ceph.com"];

/// Fields of `PersistentVolumeSource` that are network storage. `flexVolume` is not among them: it may be
/// anything.
const NETWORK_FIELDS: &[&str] = &[
    "nfs",
    "rbd",
    "cephfs",
    "glusterfs",
    "iscsi",
    "fc",
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "gcePersistentDisk",
    "cinder",
    "vsphereVolume",
    "portworxVolume",
    "quobyte",
    "scaleIO",
    "storageos",
    "photonPersistentDisk",
];

/// Class parameters with which a driver of network storage keeps one copy only: driver, parameter, value.
/// Longhorn's `strict-local` even demands that the copy is on the node of the workload.
const SINGLE_REPLICA: &[(&str, &str, &str)] = &[
    ("driver.longhorn.io", "dataLocality", "strict-local"),
    ("driver.longhorn.io", "numberOfReplicas", "1"),
    ("io.openebs.csi-mayastor", "repl", "1"),
    ("pxd.portworx.com", "repl", "1"),
    ("linstor.csi.linbit.com", "autoPlace", "1"),
    ("linstor.csi.linbit.com", "placementCount", "1"),
    ("linstor.csi.linbit.com", "linstor.csi.linbit.com/autoPlace", "1"),
    ("linstor.csi.linbit.com", "linstor.csi.linbit.com/placementCount", "1"),
];

/// What the volume's source, its provisioner and its class's provisioner say together.
pub(super) fn vote(fleet: &Fleet, class: &str, volume: &Volume) -> Vote {
    // A class may have been re-created with another provisioner since: it can warn of a local disk, but it is
    // no evidence of a network one.
    let provisioners =
        [volume.provisioned_by.as_deref(), fleet.classes.get(class).map(|class| class.provisioner.as_str())];
    let local_by = provisioners.into_iter().flatten().find(|name| NODE_LOCAL.contains(name));
    match &volume.source {
        VolumeSource::Local { path } => Vote::OnNode(format!("a local volume at {path}")),
        VolumeSource::HostPath { path } => Vote::OnNode(format!("a hostPath at {path}")),
        VolumeSource::Csi { driver, .. } if NODE_LOCAL.contains(&driver.as_str()) => {
            Vote::OnNode(format!("CSI driver {driver}, which keeps data on one node"))
        }
        source => match (network_words(source), local_by) {
            (Some(what), None) => Vote::Network(what),
            (Some(what), Some(name)) => {
                Vote::Contradiction(format!("{what}, but made by {name}, which keeps data on one node"))
            }
            (None, Some(name)) => Vote::OnNode(format!("made by {name}, which keeps data on one node")),
            (None, None) => Vote::Unknown(unknown_words(source)),
        },
    }
}

/// Why a volume of network storage has one copy only, where its class says so.
pub(super) fn single_replica(fleet: &Fleet, class: &str, volume: &Volume) -> Option<String> {
    let VolumeSource::Csi { driver, .. } = &volume.source else { return None };
    let parameters = &fleet.classes.get(class)?.parameters;
    SINGLE_REPLICA
        .iter()
        .find(|(of, key, value)| of == driver && parameters.get(*key).is_some_and(|have| have == value))
        .map(|(_, key, value)| format!("class {class} sets {key}: {value}"))
}

fn network_words(source: &VolumeSource) -> Option<String> {
    match source {
        VolumeSource::Csi { driver, .. } if is_network_driver(driver) => Some(format!("CSI driver {driver}")),
        VolumeSource::Network { field } if NETWORK_FIELDS.contains(&field.as_str()) => {
            Some(format!("a volume of kind {field}"))
        }
        _ => None,
    }
}

fn is_network_driver(driver: &str) -> bool {
    let ceph =
        |name: &&str| driver == *name || driver.strip_suffix(*name).is_some_and(|rest| rest.ends_with('.'));
    NETWORK.contains(&driver) || CEPH.iter().any(ceph)
}

fn unknown_words(source: &VolumeSource) -> String {
    match source {
        VolumeSource::Csi { driver, .. } => format!("a CSI driver {driver}"),
        VolumeSource::Network { field } | VolumeSource::Unknown { field } if !field.is_empty() => {
            format!("a volume of kind {field}")
        }
        _ => "a volume of a kind".to_owned(),
    }
}
