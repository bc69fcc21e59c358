//! The fields that we read of objects for which no Rust types are published: KubeVirt's, CDI's, Wukong's and those of
//! the snapshot controller. Field names and meanings are those of `kubevirt.io/v1`, `cdi.kubevirt.io/v1beta1`,
//! `vm.novasphere.dev/v1alpha1` and `snapshot.storage.k8s.io/v1`. Everything else in the objects stays as it is, since writers change the raw
//! object and never these.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Deserialize;
use serde_json::{Map, Value};

/// `kubevirt.io/v1` `VirtualMachine`.
#[derive(Clone, Debug, Deserialize)]
pub struct VirtualMachine {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Spec.
    pub spec: VirtualMachineSpec,
}

/// Its spec.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineSpec {
    /// The older start field.
    pub running: Option<bool>,
    /// The newer start field.
    pub run_strategy: Option<String>,
    /// `DataVolume`s that are made with the VM.
    #[serde(default)]
    pub data_volume_templates: Option<Vec<DataVolume>>,
    /// What its instance is made from.
    pub template: Template,
}

/// Template of an instance.
#[derive(Clone, Debug, Deserialize)]
pub struct Template {
    /// Spec of the instance.
    pub spec: InstanceSpec,
}

/// Spec of an instance.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceSpec {
    /// Labels that its node must have.
    #[serde(default)]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Affinity.
    pub affinity: Option<Affinity>,
    /// Tolerations.
    #[serde(default)]
    pub tolerations: Option<Vec<Toleration>>,
    /// The machine.
    #[serde(default)]
    pub domain: Domain,
    /// Its volumes: a name, and one field that says what it is.
    #[serde(default)]
    pub volumes: Option<Vec<Map<String, Value>>>,
}

/// The machine.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Domain {
    /// Virtual CPUs.
    pub cpu: Option<Cpu>,
    /// Memory.
    pub memory: Option<Memory>,
    /// What it asks of the node, where that is said explicitly.
    #[serde(default)]
    pub resources: Option<ResourceRequests>,
    /// Devices.
    #[serde(default)]
    pub devices: Option<Devices>,
}

/// Virtual CPUs: the product of the three.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Cpu {
    /// Cores of a socket.
    pub cores: Option<u32>,
    /// Sockets.
    pub sockets: Option<u32>,
    /// Threads of a core.
    pub threads: Option<u32>,
}

/// Memory.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Memory {
    /// What the guest sees.
    pub guest: Option<Scalar>,
}

/// Explicit requests.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ResourceRequests {
    /// By resource.
    pub requests: Option<BTreeMap<String, Scalar>>,
}

/// A quantity as people write it: text, or a bare number.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// `128Mi`.
    Text(String),
    /// `2`.
    Number(u64),
}

impl Scalar {
    /// As text.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
        }
    }
}

/// Devices.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Devices {
    /// Disks, in their order.
    #[serde(default)]
    pub disks: Option<Vec<DiskDevice>>,
    /// Folders that the guest shares.
    #[serde(default)]
    pub filesystems: Option<Vec<FilesystemDevice>>,
}

/// A folder that the guest shares.
#[derive(Clone, Debug, Deserialize)]
pub struct FilesystemDevice {
    /// Name of its volume.
    pub name: String,
}

/// A disk device.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskDevice {
    /// Name of its volume.
    pub name: String,
    /// Smaller boots first.
    pub boot_order: Option<u32>,
    /// Other VMs have it too.
    pub shareable: Option<bool>,
}

/// `kubevirt.io/v1` `VirtualMachineInstance`.
#[derive(Clone, Debug, Deserialize)]
pub struct VirtualMachineInstance {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Spec.
    #[serde(default)]
    pub spec: InstanceSpec,
    /// Status.
    #[serde(default)]
    pub status: Option<InstanceStatus>,
}

/// Its status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    /// Phase.
    #[serde(default)]
    pub phase: Option<String>,
    /// Node.
    pub node_name: Option<String>,
    /// Conditions.
    #[serde(default)]
    pub conditions: Option<Vec<Condition>>,
    /// Phases that it went through.
    #[serde(default)]
    pub phase_transition_timestamps: Option<Vec<PhaseTransition>>,
    /// The running or last live migration.
    pub migration_state: Option<MigrationState>,
    /// Volumes, hotplugged ones included.
    #[serde(default)]
    pub volume_status: Option<Vec<VolumeStatus>>,
    /// Memory.
    pub memory: Option<MemoryStatus>,
    /// Network interfaces, as libvirt and the guest agent tell them.
    #[serde(default)]
    pub interfaces: Option<Vec<InterfaceStatus>>,
}

/// A network interface of a guest.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    /// Its first address, once one is known.
    #[serde(default)]
    pub ip_address: Option<String>,
}

/// A condition, whose times may be null.
#[derive(Clone, Debug, Deserialize)]
pub struct Condition {
    /// Type.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Reason.
    pub reason: Option<String>,
    /// For people.
    #[serde(default)]
    pub message: Option<String>,
}

/// A phase that was entered.
#[derive(Clone, Debug, Deserialize)]
pub struct PhaseTransition {
    /// Which.
    pub phase: String,
}

/// A live migration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationState {
    /// Whereto.
    pub target_node: Option<String>,
    /// It is over, well or not.
    #[serde(default)]
    pub completed: bool,
    /// It failed.
    #[serde(default)]
    pub failed: bool,
    /// Why.
    #[serde(default)]
    pub failure_reason: Option<String>,
}

/// A volume of an instance.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Its claim.
    pub persistent_volume_claim_info: Option<ClaimInfo>,
    /// How far its attachment is; `Ready` at last.
    #[serde(default)]
    pub phase: Option<String>,
    /// Set while it is hotplugged.
    pub hotplug_volume: Option<Value>,
    /// Set for memory dumps.
    pub memory_dump_volume: Option<Value>,
}

/// The claim of a volume.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimInfo {
    /// Its name.
    pub claim_name: Option<String>,
}

/// Memory of an instance.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryStatus {
    /// What the launcher asks beside the guest's memory.
    pub memory_overhead: Option<Scalar>,
}

/// `kubevirt.io/v1` `VirtualMachineInstanceMigration`.
#[derive(Clone, Debug, Deserialize)]
pub struct InstanceMigration {
    /// Spec.
    pub spec: InstanceMigrationSpec,
    /// Status.
    pub status: Option<InstanceMigrationStatus>,
}

/// Its spec.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceMigrationSpec {
    /// Which instance.
    pub vmi_name: String,
}

/// Its status.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceMigrationStatus {
    /// `Succeeded` and `Failed` are the last ones.
    pub phase: Option<String>,
    /// The live migration.
    pub migration_state: Option<MigrationState>,
}

/// `cdi.kubevirt.io/v1beta1` `DataVolume`, or a template of one.
#[derive(Clone, Debug, Deserialize)]
pub struct DataVolume {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Spec.
    #[serde(default)]
    pub spec: DataVolumeSpec,
    /// Status; a template has none.
    #[serde(default)]
    pub status: Option<DataVolumeStatus>,
}

/// Its status.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct DataVolumeStatus {
    /// Phase.
    #[serde(default)]
    pub phase: Option<String>,
}

/// Its spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataVolumeSpec {
    /// Where its content comes from: one field, such as `http`.
    pub source: Option<BTreeMap<String, Value>>,
    /// A named source.
    pub source_ref: Option<SourceRef>,
}

/// A named source.
#[derive(Clone, Debug, Deserialize)]
pub struct SourceRef {
    /// `DataSource`.
    pub kind: String,
    /// Its namespace; the `DataVolume`'s own where absent.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// `snapshot.storage.k8s.io/v1` `VolumeSnapshot`.
#[derive(Clone, Debug, Deserialize)]
pub struct VolumeSnapshot {
    /// Spec.
    pub spec: VolumeSnapshotSpec,
    /// Status; absent before its controller has seen it.
    #[serde(default)]
    pub status: Option<VolumeSnapshotStatus>,
}

/// Its spec.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct VolumeSnapshotSpec {
    /// What it is taken of.
    #[serde(default)]
    pub source: VolumeSnapshotSource,
}

/// What a snapshot is taken of.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotSource {
    /// A claim of its namespace; absent where the snapshot was there before Kubernetes knew of it.
    #[serde(default)]
    pub persistent_volume_claim_name: Option<String>,
}

/// Its status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotStatus {
    /// It can be restored from.
    #[serde(default)]
    pub ready_to_use: Option<bool>,
    /// When it was taken.
    #[serde(default)]
    pub creation_time: Option<Time>,
}

/// `vm.novasphere.dev/v1alpha1` `Wukong`.
#[derive(Clone, Debug, Deserialize)]
pub struct Wukong {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// Spec.
    pub spec: WukongSpec,
}

/// Its spec.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WukongSpec {
    /// Disks; the claim of each is `<wukong>-<disk>`.
    #[serde(default)]
    pub disks: Option<Vec<WukongDisk>>,
}

/// A disk of a Wukong.
#[derive(Clone, Debug, Deserialize)]
pub struct WukongDisk {
    /// Its name.
    pub name: String,
    /// The VM boots from it.
    #[serde(default)]
    pub boot: bool,
    /// What its content is imported from.
    pub image: Option<String>,
}
