//! What we believe about nodes, disks and VMs: the cluster's objects as valid domain values (`node` has those of
//! nodes), and what the agents report (`report`). Facts only; every judgement is made elsewhere (`locality`,
//! `decision`, `liveness`).

mod node;
mod report;
mod selector;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use self::node::{
    CLOUD_SHUTDOWN_TAINT, EVACUATE_ANNOTATION, FENCING_TAINT, KUBERNETES_UNREACHABLE_TAINT, Node, OS_LABEL,
    OUT_OF_SERVICE_OURS, OUT_OF_SERVICE_TAINT, Taint, Toleration, ZONE_LABEL,
};
pub use self::report::{DiskHealth, DiskImage, Grade, Host, NodeReport, StorageRoot, Usage, folder};
pub use self::selector::{NodeSelector, Requirement};
use crate::names::{BootId, Key, NodeName, Uid, VolumeName};

/// The cluster as last read. The shell replaces it as a whole; maps are ordered so that decisions are
/// deterministic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fleet {
    /// Every Node object.
    pub nodes: BTreeMap<NodeName, Node>,
    /// Every `PersistentVolume`.
    pub volumes: BTreeMap<VolumeName, Volume>,
    /// Every `PersistentVolumeClaim`.
    pub claims: BTreeMap<Key, Claim>,
    /// Every `StorageClass`, by name.
    pub classes: BTreeMap<String, StorageClass>,
    /// Every `VirtualMachine`, with its instance, launchers and owner joined in.
    pub vms: BTreeMap<Key, Vm>,
    /// Claims that pods other than a VM's own launcher or hotplug pod use, with the names of those pods.
    pub claims_used_by_others: BTreeMap<Key, BTreeSet<String>>,
    /// Nodes with a launcher or hotplug pod that belongs to no VM of ours.
    pub stray_launchers: BTreeSet<NodeName>,
    /// Every CDI `DataVolume`.
    pub data_volumes: BTreeMap<Key, DataVolume>,
    /// Every `VolumeSnapshot`, where the cluster has that kind.
    pub snapshots: BTreeMap<Key, Snapshot>,
    /// Every `VirtualMachineInstanceMigration`, which moves a VM while it runs.
    pub live_migrations: BTreeMap<Key, LiveMigration>,
    /// Every `VolumeAttachment`, by name.
    pub attachments: BTreeMap<String, Attachment>,
    /// Nodes whose agent has beaten some time, with the boot of its last beat, as our own objects tell.
    pub agents_seen: BTreeMap<NodeName, BootId>,
    /// Claims of ours for which provisioners make volumes or that read old ones, and the pods that hold those mounted, by
    /// their common name.
    pub staged: BTreeMap<String, Staged>,
    /// Last report of each agent, whether it is alive now or not.
    pub reports: BTreeMap<NodeName, NodeReport>,
}

impl Fleet {
    /// The VMs that name this claim among their disks.
    pub fn vms_with<'a, 'b>(
        &'a self,
        claim: &'b Key,
    ) -> impl Iterator<Item = (&'a Key, &'a Vm)> + use<'a, 'b> {
        let names = |vm: &Vm| vm.claim_names().any(|name| *name == claim.name);
        self.vms.iter().filter(move |(key, vm)| key.namespace == claim.namespace && names(vm))
    }

    /// Folders that no volume has, by the path alone. One that every node sees is one folder, whoever lists it.
    pub fn orphans(&self) -> Vec<(&NodeName, &str, &Usage)> {
        let claimed: BTreeSet<&str> =
            self.volumes.values().filter_map(|volume| volume.source.path()).map(folder).collect();
        let mut found = Vec::new();
        let mut shared = BTreeSet::new();
        for (node, report) in &self.reports {
            for (path, usage) in report.usage.iter().filter(|(path, _)| !claimed.contains(path.as_str())) {
                let is_shared = report.root_of(path).is_some_and(|root| root.shared);
                if !is_shared || shared.insert(path) {
                    found.push((node, path.as_str(), usage));
                }
            }
        }
        found
    }
}

/// CPU and memory, offered or asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// A claim of ours and the pod that holds it mounted, as far as they are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Staged {
    /// Where an old volume is read: the second `PersistentVolume` object of ours for its storage.
    pub alias: Option<Alias>,
    /// The claim.
    pub claim: Option<StagedClaim>,
    /// The pod.
    pub holder: Option<Holder>,
}

/// A second `PersistentVolume` object for the storage of a volume, for a claim of ours. It is none of [`Fleet::volumes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// It has a deletion timestamp.
    pub deleting: bool,
}

/// A claim of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedClaim {
    /// `metadata.uid`.
    pub uid: Uid,
    /// `spec.volumeName`.
    pub volume: Option<VolumeName>,
    /// It has a deletion timestamp.
    pub deleting: bool,
}

/// A pod of ours that does nothing but have a claim mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// `metadata.uid`.
    pub uid: Uid,
    /// The node that it is bound to.
    pub node: Option<NodeName>,
    /// Its volumes are mounted: it is Ready.
    pub running: bool,
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// It has ended, as one that was evicted: it holds nothing any more, and is in the way of the next one.
    pub ended: bool,
}

/// A `PersistentVolume`.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    /// What backs it.
    pub source: VolumeSource,
    /// `spec.nodeAffinity.required`; `None` where there is no affinity at all.
    pub node_affinity: Option<NodeSelector>,
    /// Annotation `pv.kubernetes.io/provisioned-by`.
    pub provisioned_by: Option<String>,
    /// `spec.storageClassName`.
    pub class: String,
    /// `spec.capacity.storage`.
    pub capacity_bytes: u64,
    /// `spec.accessModes`.
    pub access_modes: Vec<String>,
    /// `spec.volumeMode`.
    pub mode: VolumeMode,
    /// `spec.persistentVolumeReclaimPolicy` is Retain.
    pub retained: bool,
    /// `spec.claimRef`.
    pub claim: Option<ClaimRef>,
    /// `status.phase`: Available, Bound, Released, Failed; empty where not yet set.
    pub phase: String,
    /// `metadata.creationTimestamp` (RFC 3339, so that text order is the order of time), where it is told.
    pub created: Option<String>,
    /// It has a deletion timestamp: its object goes for good as soon as no claim is bound to it.
    pub deleting: bool,
}

/// What backs a `PersistentVolume`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeSource {
    /// `spec.local`.
    Local {
        /// Path on the node.
        path: String,
    },
    /// `spec.hostPath`.
    HostPath {
        /// Path on the node.
        path: String,
    },
    /// `spec.csi`.
    Csi {
        /// Driver name.
        driver: String,
        /// Driver's handle.
        handle: String,
    },
    /// An in-tree network volume: `nfs`, `rbd`, `cephfs`, `glusterfs`, `iscsi`, `fc`,
    /// `awsElasticBlockStore`, `azureDisk`, `azureFile`, `gcePersistentDisk`, …; the field's name.
    Network {
        /// The field of `spec` that is set.
        field: String,
    },
    /// None that we know: never taken for network.
    Unknown {
        /// The field of `spec` that is set, or empty.
        field: String,
    },
}

impl VolumeSource {
    /// The path on the node, for sources that have one.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Local { path } | Self::HostPath { path } => Some(path),
            _ => None,
        }
    }
}

/// `spec.claimRef` of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRef {
    /// Namespace and name.
    pub key: Key,
    /// Absent while only pre-bound.
    pub uid: Option<Uid>,
}

/// How a volume is presented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum VolumeMode {
    /// A folder, with `disk.img` in it.
    #[default]
    Filesystem,
    /// A block device.
    Block,
}

/// A `PersistentVolumeClaim`.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// `metadata.uid`.
    pub uid: Uid,
    /// `spec.volumeName`, once bound.
    pub volume: Option<VolumeName>,
    /// `spec.storageClassName`.
    pub class: String,
    /// `spec.resources.requests.storage`.
    pub requested_bytes: u64,
    /// `spec.accessModes`.
    pub access_modes: Vec<String>,
    /// `spec.volumeMode`.
    pub mode: VolumeMode,
    /// `status.phase`: Pending, Bound or Lost; empty where not yet set.
    pub phase: String,
    /// The controlling `DataVolume`, where there is one.
    pub data_volume: Option<String>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// It is deleted, and goes when no pod uses it any more.
    pub deleting: bool,
}

/// A `StorageClass`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageClass {
    /// `provisioner`.
    pub provisioner: String,
    /// `volumeBindingMode` is `WaitForFirstConsumer`.
    pub waits_for_consumer: bool,
    /// `parameters`.
    pub parameters: BTreeMap<String, String>,
    /// `allowedTopologies`; `None` where volumes may be made anywhere.
    pub allowed_topologies: Option<NodeSelector>,
}

impl StorageClass {
    /// Whether a volume of it can be told to Kubernetes by its folder alone: where the class names the export that its folders
    /// are of. Else only its provisioner knows what a volume of it is.
    pub fn names_its_export(&self) -> bool {
        let named = |parameter: &str| self.parameters.contains_key(parameter);
        named("server") && (named("share") || named("path"))
    }
}

/// A CDI `DataVolume`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataVolume {
    /// `status.phase`.
    pub phase: String,
    /// Annotation `cdi.kubevirt.io/storage.prePopulated`: CDI never fills its claim again.
    pub pre_populated: bool,
    /// The image that CDI would import again, as it would the first time; `None` where the content came from an
    /// upload, a clone, a snapshot, another hypervisor, or is blank.
    pub image: Option<String>,
}

/// A `VolumeSnapshot`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// `spec.source.persistentVolumeClaimName`, of its own namespace; `None` for one that was not taken of a claim.
    pub claim: Option<String>,
    /// `status.readyToUse`.
    pub ready: bool,
    /// `status.creationTime` as it was written (RFC 3339, so that text order is the order of time); `None` before it
    /// was taken.
    pub taken: Option<String>,
}

/// A `VolumeAttachment`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// `metadata.uid`.
    pub uid: Uid,
    /// `spec.nodeName`.
    pub node: NodeName,
    /// `spec.source.persistentVolumeName`.
    pub volume: Option<VolumeName>,
    /// `status.attached`.
    pub attached: bool,
    /// It is being deleted already.
    pub deleting: bool,
}

/// A `VirtualMachine` with what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Vm {
    /// `metadata.uid`.
    pub uid: Uid,
    /// Who decides whether it runs.
    pub owner: Owner,
    /// When it should run.
    pub run: RunStrategy,
    /// The owner's start field exactly as it is now: what [`crate::io::Action::StopVm`] changes and
    /// [`crate::io::Action::RestoreStart`] gives back.
    pub start: SavedStart,
    /// Volumes of its template, and those hotplugged or kept for its state.
    pub disks: Vec<Disk>,
    /// Claims whose disks must stay as they are, and why.
    pub fixed: BTreeMap<String, Fixed>,
    /// `nodeSelector` of its template.
    pub node_selector: BTreeMap<String, String>,
    /// Required node affinity of its template.
    pub node_affinity: Option<NodeSelector>,
    /// `tolerations` of its template.
    pub tolerations: Vec<Toleration>,
    /// What its launcher asks for.
    pub requests: Resources,
    /// Whether its owner allows its system disks to be imported anew (`Rebuild`).
    pub rebuild_allowed: bool,
    /// Its `VirtualMachineInstance`.
    pub instance: Option<Instance>,
    /// Its launcher and hotplug pods.
    pub pods: Vec<Pod>,
}

impl Vm {
    /// The node that it runs on, or last ran on as far as its instance or launcher tells.
    pub fn node(&self) -> Option<&NodeName> {
        self.instance
            .as_ref()
            .and_then(|instance| instance.node.as_ref())
            .or_else(|| self.pods.iter().find_map(|pod| pod.node.as_ref()))
    }

    /// Names of the claims of its disks, in their order.
    pub fn claim_names(&self) -> impl Iterator<Item = &String> {
        self.disks.iter().filter_map(|disk| match &disk.source {
            DiskSource::Claim { name, .. } => Some(name),
            _ => None,
        })
    }

    /// The same with their namespace, which is the VM's.
    pub fn claims(&self, namespace: &str) -> impl Iterator<Item = Key> {
        self.claim_names().map(move |name| Key::new(namespace, name))
    }
}

/// Who decides whether a VM runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Owner {
    /// Nobody above the VM object.
    Itself,
    /// A Wukong of the same namespace (`vm.novasphere.dev`).
    Wukong {
        /// Its name.
        name: String,
    },
    /// A controller that we do not know how to stop: refused by name.
    Unknown {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
}

/// The field by which an owner starts and stops a VM, byte for byte as it was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SavedStart {
    /// `spec.running` of the VM.
    Running(bool),
    /// `spec.runStrategy` of the VM.
    RunStrategy(String),
    /// `spec.startStrategy` of the Wukong, as JSON; `None` where the field is absent.
    WukongStartStrategy(Option<String>),
}

/// `spec.runStrategy`, with `running: true` as Always and `running: false` as Halted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunStrategy {
    /// Restarted whatever happens.
    Always,
    /// Restarted when it fails.
    RerunOnFailure,
    /// Started and stopped by hand.
    Manual,
    /// Runs once.
    Once,
    /// Stopped.
    Halted,
}

/// One volume of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Volume name in the VM.
    pub name: String,
    /// What it is.
    pub source: DiskSource,
    /// The VM boots from it (`bootOrder` 1, else the first disk; `boot: true` of a Wukong).
    pub boot: bool,
    /// Where its content can be had again (an image URL), for system disks.
    pub image: Option<String>,
}

/// Why a disk is not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fixed {
    /// `shareable`: other VMs write to it at the same time.
    Shareable,
    /// `readOnly` of its claim: whoever filled it is not this VM.
    ReadOnly,
}

/// What a VM's volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSource {
    /// A claim of the VM's namespace, named directly or through its `DataVolume`.
    Claim {
        /// The claim's name.
        name: String,
        /// What is kept there.
        use_: ClaimUse,
    },
    /// `hostDisk`: local data outside any claim.
    HostDisk {
        /// Path on the node.
        path: String,
    },
    /// Made anew at every start: `containerDisk`, `cloudInit*`, `sysprep`, `configMap`, `secret`, …
    Rebuildable {
        /// The field's name.
        field: String,
    },
    /// `emptyDisk`: lost at every stop anyway.
    Empty,
    /// A source that we do not know: never taken for network.
    Unknown {
        /// The field's name, or empty.
        field: String,
    },
}

/// What a claim holds for a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimUse {
    /// A disk of the VM.
    Disk,
    /// A folder that the guest shares (virtiofs): files of its own, and no disk image.
    Folder,
    /// A disk attached while running (`hotpluggable`, or only in the instance's volume status).
    Hotplugged,
    /// `persistent-state-for-*`: TPM and EFI state.
    State,
    /// Read-only backing of an `ephemeral` disk.
    EphemeralBacking,
    /// `memoryDump`: expendable.
    MemoryDump,
}

/// Pods that use a claim, named; of many the first few, which tell what they belong to.
pub(crate) fn pods_words(pods: &BTreeSet<String>) -> String {
    const NAMED: usize = 3;
    let names: Vec<&str> = pods.iter().take(NAMED).map(String::as_str).collect();
    let (noun, names) = (if pods.len() == 1 { "pod" } else { "pods" }, names.join(", "));
    match pods.len().saturating_sub(NAMED) {
        0 => format!("{noun} {names}"),
        more => format!("{noun} {names} and {more} more"),
    }
}

/// A `VirtualMachineInstance`.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// `metadata.uid`.
    pub uid: Uid,
    /// `status.nodeName`.
    pub node: Option<NodeName>,
    /// `status.phase`.
    pub phase: String,
    /// It has reached Running at least once.
    pub has_run: bool,
    /// A live migration is in flight, to this node where it is known.
    pub migrating: Option<Option<NodeName>>,
    /// Condition Paused is True, with its reason.
    pub paused: Option<String>,
    /// Condition `LiveMigratable` is False: KubeVirt's own reason and words.
    pub not_migratable: Option<String>,
    /// Names of the claims that it was started with, or that were attached to it since.
    pub claims: BTreeSet<String>,
    /// Condition `AgentConnected` is True: a guest agent answers.
    pub agent_connected: bool,
    /// `status.interfaces` has an address.
    pub has_address: bool,
}

/// A `VirtualMachineInstanceMigration`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveMigration {
    /// Name of the instance, in the same namespace, and of its VM.
    pub vm: String,
    /// How far it is.
    pub state: LiveMigrationState,
}

/// How far a live migration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LiveMigrationState {
    /// Neither ended well nor failed.
    UnderWay,
    /// The VM runs on another node.
    Succeeded,
    /// The VM runs where it did; KubeVirt's reason, where it gives one.
    Failed(String),
}

/// A launcher or hotplug pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.name`, in the VM's namespace.
    pub name: String,
    /// `metadata.uid`.
    pub uid: Uid,
    /// `spec.nodeName`.
    pub node: Option<NodeName>,
    /// `status.phase`.
    pub phase: String,
    /// The instance that it was created for.
    pub instance: Option<Uid>,
    /// Of a launcher: `status.podIP`, which its kubelet sets, and no guest.
    pub address: Option<IpAddr>,
    /// Names of the claims that it has mounted.
    pub claims: BTreeSet<String>,
}
