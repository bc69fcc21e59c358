//! `VolumeMigration`: the disks of one VM, or one claim, move to another node or storage class.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{Destination, NAME_LENGTH_MAX, ObjectKey};

/// Finalizer on each one at work: deleted in the middle, it is cancelled first.
pub const FINALIZER: &str = "somersault.novasphere.dev/migration";

/// The longest path of a question over HTTP: several times what any health check has, and part of a check's message.
pub const HTTP_PATH_LENGTH_MAX: usize = 512;
/// The longest name that Kubernetes lets a `CronJob` have.
pub const CRON_JOB_NAME_LENGTH_MAX: usize = 52;

/// Moves disks; the claims keep their names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "somersault.novasphere.dev",
    version = "v1alpha1",
    kind = "VolumeMigration",
    plural = "volumemigrations",
    shortname = "vmig",
    category = "somersault",
    namespaced,
    status = "VolumeMigrationStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Moves the local disks of a VM, or one claim that no VM uses, to another node or storage class. The \
           claims keep their names, all disks of the VM switch together, and the old volumes are kept until somebody asks \
           for their removal.",
    printcolumn(name = "VM", type_ = "string", json_path = ".spec.vm"),
    printcolumn(name = "Claim", type_ = "string", json_path = ".spec.claim"),
    printcolumn(name = "To-node", type_ = "string", json_path = ".spec.destination.node"),
    printcolumn(name = "To-class", type_ = "string", json_path = ".spec.destination.storageClass"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Done", type_ = "integer", json_path = ".status.progress.doneBytes", priority = 1),
    printcolumn(name = "Total", type_ = "integer", json_path = ".status.progress.totalBytes", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.vm) != has(self.claim)").message("set exactly one of vm and claim"),
    validation = Rule::new(
        "has(self.vm) == has(oldSelf.vm) && (!has(self.vm) || self.vm == oldSelf.vm) && \
         (!has(self.claim) || self.claim == oldSelf.claim)"
    ).message("what is moved cannot change: create another VolumeMigration"),
    validation = Rule::new("self.disks == 'Local' || has(self.destination.storageClass)")
        .message("disks on network storage move to another storage class, not to a node"),
    validation = Rule::new("has(self.vm) || !has(self.probe)")
        .message("a probe asks the guest of a VM, and a claim alone has none")
)]
pub struct VolumeMigrationSpec {
    /// The VM, of this namespace, whose disks move together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = NAME_LENGTH_MAX))]
    pub vm: Option<String>,
    /// A claim of this namespace that no VM uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = NAME_LENGTH_MAX))]
    pub claim: Option<String>,
    /// Where to.
    #[x_kube(
        validation = Rule::new("self == oldSelf").message("destination cannot change: create another VolumeMigration")
    )]
    pub destination: Destination,
    /// Which disks move. Those on network storage only by All, to a storageClass, and where agents reach them: below a
    /// storage root that nodes share, or where kubelets mount them (CSI and NFS, component movers).
    #[serde(default)]
    #[x_kube(
        validation = Rule::new("self == oldSelf").message("what is moved cannot change: create another VolumeMigration")
    )]
    pub disks: DisksToMove,
    /// Copy while the VM runs and keep the copy fresh; the VM is not stopped before this turns false.
    #[serde(default)]
    pub pre_copy_only: bool,
    /// Set it to end the migration; before the claims are swapped, everything is put back as it was, but for
    /// the old volumes, which stay on Retain.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self || !oldSelf").message("a cancelled VolumeMigration stays cancelled"))]
    pub cancelled: bool,
    /// Set it to remove the old volumes, objects and folders, once the migration has succeeded and each disk was seen to be
    /// sound where it is now. What they hold is gone for good then.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self || !oldSelf").message("what was to be removed may be gone already"))]
    pub remove_old_volumes: bool,
    /// What becomes of what the old disk cannot read, block by block, in a second try either.
    #[serde(default)]
    pub unreadable: UnreadableData,
    /// A question of your own to the guest, asked once it runs on its new volumes and has all that it had before, and
    /// again until it is answered or ten minutes have passed. Unanswered, the migration has succeeded all the same, with
    /// reason GuestNotConfirmed, and its old volumes are not removed while the question stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// The Evacuation that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = NAME_LENGTH_MAX))]
    pub evacuation: Option<String>,
}

/// What becomes of what a disk cannot read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UnreadableData {
    /// The copy fails, and says which files and ranges of bytes it is.
    #[default]
    Fail,
    /// The copy has zeroes there, and status.disks.copied.unreadable says where. What guests kept there is lost to them.
    Zeroes,
}

/// Which disks move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DisksToMove {
    /// Local ones: those on network storage are reached from every node as they are.
    #[default]
    Local,
    /// Those on network storage too, as far as they are not of the destination's class already.
    All,
}

/// A question to a guest, at the address of its launcher pod: what the pod's network passes on to the guest is reached. The
/// coordinator asks from its own pod, or makes a Job of your own that asks. Exactly one of the three is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.tcp), has(self.http), has(self.job)].filter(set, set).size() == 1")
        .message("set exactly one of tcp, http and job")
)]
pub struct Probe {
    /// It accepts a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpProbe>,
    /// It answers a GET with a status from 200 to 399; where a redirect leads to is not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpProbe>,
    /// A Job of your own completes. Needs component probe-jobs of Somersault's deploy/.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobProbe>,
}

/// A connection over TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TcpProbe {
    /// The port.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,
}

/// A request over HTTP, without TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct HttpProbe {
    /// The port.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,
    /// The path, with a query where one is needed.
    #[serde(default = "root")]
    #[schemars(length(min = 1, max = HTTP_PATH_LENGTH_MAX))]
    #[x_kube(
        validation = Rule::new("self.matches('^/[A-Za-z0-9._~!$&()*+,;=:@%/?-]*$')")
            .message("path must begin with / and have no characters but those of a path and a query: no spaces, no fragment")
    )]
    pub path: String,
}

/// A Job, made once for each run of the guest of the template of a CronJob, which may be suspended. The annotations
/// somersault.novasphere.dev/vm and somersault.novasphere.dev/address of its pods say whom it is to look at. It has ten
/// minutes, or activeDeadlineSeconds of the template where that is less, and goes with the VolumeMigration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct JobProbe {
    /// The CronJob, of this namespace. It must have the label somersault.novasphere.dev/probe=true, by which whoever may
    /// change it lets everybody use it so who may ask for a migration.
    #[schemars(length(min = 1, max = CRON_JOB_NAME_LENGTH_MAX))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')")
            .message("name must be that of a CronJob: lower case letters, digits, - and .")
    )]
    pub name: String,
}

/// Where no path is named.
fn root() -> String {
    "/".to_owned()
}

/// How far the migration is. Everything here but `progress`, `conditions` and
/// `observedGeneration` is the record from which it goes on after a crash.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMigrationStatus {
    /// Phase.
    #[serde(default)]
    pub phase: Phase,
    /// Why it failed, was refused or is put back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same for people, and what to do.
    #[serde(default)]
    pub message: String,
    /// Record: epoch of the leader that wrote it.
    #[serde(default)]
    pub epoch: u64,
    /// Record: `metadata.uid` of the object that it was written for. One that came here with another object, out of a
    /// backup, is of another migration.
    #[serde(default, rename = "objectUID")]
    pub object_uid: String,
    /// Record: who starts and stops the VM, and its start field as it was before the VM was stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
    /// Record: the guest as it ran before it was stopped. All of it must be seen again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<Guest>,
    /// Record: the disks that move.
    #[serde(default)]
    pub disks: Vec<DiskMove>,
    /// Checks made before and after, in order.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// Progress of the copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<CopyProgress>,
    /// Record: milliseconds from the stop of the VM to its start, once the migration has ended. Absent where it was not
    /// stopped, and where the coordinator's leader changed while it stood still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<u64>,
    /// `Complete`: the migration has ended; its reason is the phase in which, or why; before it
    /// begins, what it waits for. `Succeeded`: it has ended, and the disks are where they should be.
    /// `OldVolumesRemoved`, where that was asked: objects and folders are gone, or why not yet.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// `metadata.generation` that this status takes into account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Phase of a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Seen, not yet looked at.
    #[default]
    Pending,
    /// Pre-flight checks.
    Checking,
    /// Target volumes are made.
    Provisioning,
    /// Copied while the VM runs.
    PreCopying,
    /// The owner stops the VM.
    Stopping,
    /// What differs is copied.
    FinalCopying,
    /// The copy is compared with the source.
    Verifying,
    /// The claims change volumes.
    Swapping,
    /// The owner starts the VM.
    Starting,
    /// Checks after the start.
    Confirming,
    /// Done; the old volumes are kept.
    Succeeded,
    /// Refused, or failed before anything was changed.
    Failed,
    /// Everything is being put back.
    RollingBack,
    /// Everything is as it was.
    RolledBack,
    /// Ended by somebody's word; everything is as it was.
    Cancelled,
}

/// Progress of a copy, all disks together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CopyProgress {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all; 0 while unknown.
    pub total_bytes: u64,
    /// Bytes per second.
    pub rate_bytes_per_second: u64,
    /// Seconds that the rest takes at this rate; absent while nothing moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    /// The same for each volume.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["claim".into()]))]
    pub volumes: Vec<VolumeProgress>,
}

/// Progress of the copy of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeProgress {
    /// Its claim.
    pub claim: String,
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all; 0 while unknown.
    pub total_bytes: u64,
    /// Bytes per second.
    pub rate_bytes_per_second: u64,
}

/// How the VM was stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stopped {
    /// Who starts and stops it.
    pub owner: Owner,
    /// The owner's start field, exactly as it was found.
    pub start: SavedStart,
}

/// A guest that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Guest {
    /// Its guest agent answered.
    #[serde(default)]
    pub agent_connected: bool,
    /// It had an address.
    #[serde(default)]
    pub has_address: bool,
    /// Claims that were attached to it.
    #[serde(default)]
    pub claims: Vec<String>,
}

/// Who starts and stops a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Owner {
    /// `VirtualMachine` where nothing stands above the VM, else the owner's kind, such as `Wukong`.
    pub kind: String,
    /// The owner's name; empty for `VirtualMachine`.
    #[serde(default)]
    pub name: String,
}

/// An owner's start field, exactly as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SavedStart {
    /// `spec.running` of the VM.
    Running(bool),
    /// `spec.runStrategy` of the VM.
    RunStrategy(String),
    /// `spec.startStrategy` of the Wukong.
    Wukong(WukongStart),
}

/// `spec.startStrategy` of a Wukong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WukongStart {
    /// The field as JSON; absent where the Wukong does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_strategy: Option<String>,
}

/// One disk that moves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskMove {
    /// The claim, which keeps its name.
    pub claim: ObjectKey,
    /// Its uid before the swap.
    #[serde(rename = "claimUID")]
    pub claim_uid: String,
    /// What the claim asks when it is created again.
    pub template: ClaimTemplate,
    /// The PersistentVolume that holds the data now.
    pub old_volume: String,
    /// The node whose agent reads the old volume.
    pub source_node: String,
    /// Its path there; empty where only kubelets mount it.
    pub source_path: String,
    /// Where only kubelets mount the old volume: our second PersistentVolume for its storage, and our claim and our pod in
    /// the namespace for such, by which the last copy reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reading: Option<String>,
    /// The PersistentVolume that will hold the data.
    pub new_volume: NewVolume,
    /// Where the class's own provisioner makes the new volume: our claim and our pod in the namespace for such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staging: Option<String>,
    /// The node whose agent fetches the data.
    pub target_node: String,
    /// Result of the final copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied: Option<Copied>,
    /// Record: what became of the old volume.
    #[serde(default)]
    pub old_volume_state: OldVolume,
}

/// What became of an old volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum OldVolume {
    /// It is there.
    #[default]
    Kept,
    /// Object and folder are being removed.
    Removing,
    /// Both are gone.
    Removed,
}

/// What a claim asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimTemplate {
    /// `spec.storageClassName`.
    pub class: String,
    /// `spec.resources.requests.storage`.
    pub requested_bytes: u64,
    /// `spec.accessModes`.
    #[serde(default)]
    pub access_modes: Vec<String>,
    /// `spec.volumeMode`.
    #[serde(default)]
    pub mode: VolumeMode,
    /// `metadata.labels`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`, without those of the binder, the provisioner and CDI.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// A PersistentVolume that the migration makes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// Its storage class.
    pub class: String,
    /// The one node that it is on; absent where every node reaches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Absolute path below a storage root.
    pub path: String,
    /// `spec.capacity.storage`.
    pub capacity_bytes: u64,
    /// `spec.accessModes`.
    #[serde(default)]
    pub access_modes: Vec<String>,
    /// `spec.volumeMode`.
    #[serde(default)]
    pub mode: VolumeMode,
    /// The claim that it is pre-bound to.
    pub claim: ObjectKey,
}

/// How a volume is presented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum VolumeMode {
    /// A folder, with `disk.img` in it.
    #[default]
    Filesystem,
    /// A block device.
    Block,
}

/// Result of a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Copied {
    /// BLAKE3 root of the volume's content, in hex.
    pub root_hash: String,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that crossed the wire.
    pub sent_bytes: u64,
    /// Milliseconds that it took.
    pub elapsed_ms: u64,
    /// What the old disk could not read, by file and range of bytes: the new one has zeroes there. Absent where all was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// One check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// Whether it held.
    pub passed: bool,
    /// What was found, and what to do where it did not hold.
    #[serde(default)]
    pub message: String,
}
