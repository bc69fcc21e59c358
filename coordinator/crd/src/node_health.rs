//! `NodeHealth`: what is known about a node, how far its fencing has come, and a person's word about it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::Proof;

/// Health of one node, as its agent and the coordinator see it. Named like the node; made by the coordinator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "somersault.novasphere.dev",
    version = "v1alpha1",
    kind = "NodeHealth",
    plural = "nodehealths",
    shortname = "nh",
    category = "somersault",
    status = "NodeHealthStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Health of one node as its agent and the coordinator see it, how far its fencing has come, and a \
           person's word about it. Named like the node; made by the coordinator.",
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Since", type_ = "date", json_path = ".status.since"),
    printcolumn(name = "Proof", type_ = "string", json_path = ".status.proof"),
    printcolumn(
        name = "Fencing",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="FencingAnswers")].reason"#
    ),
    printcolumn(
        name = "Disks",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="DisksHealthy")].reason"#
    ),
    printcolumn(
        name = "Possible",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="ProofPossible")].message"#,
        priority = 1
    ),
    printcolumn(name = "Agent", type_ = "string", json_path = ".status.agent.version", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeHealthSpec {
    /// A person's word that nothing on this node runs or writes any more. It permits the coordinator to start
    /// the node's VMs elsewhere; given wrongly, a VM may run twice and ruin its disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<Attestation>,
}

/// A person's word about one boot of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attestation {
    /// The boot that it is about: it never covers a later one.
    #[serde(rename = "bootID")]
    #[schemars(length(min = 1, max = 64))]
    pub boot_id: String,
    /// Who gives it.
    #[schemars(length(min = 1, max = 253))]
    pub by: String,
    /// When it is given, in any form: only a word that is given while the node is silent counts, and the same word said
    /// again must differ from the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub at: Option<String>,
}

/// What is known about the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeHealthStatus {
    /// State of the node.
    #[serde(default)]
    pub state: NodeState,
    /// Since when it is in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Why it is in this state, and what to do about it.
    #[serde(default)]
    pub message: String,
    /// Kernel boot id as last told by the agent.
    #[serde(rename = "bootID", default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// The proof at hand that nothing on the node can run or write any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// The proofs that this node could offer if it died now.
    #[serde(default)]
    pub proofs_possible: Vec<Proof>,
    /// Record: how far the fencing of the node has come. Never edit it: it is what keeps a VM from running
    /// twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<FenceRecord>,
    /// What happened when in the running or last incident.
    #[serde(default)]
    pub timeline: Vec<TimelineEntry>,
    /// The agent, as it last reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentInfo>,
    /// The machine, as last reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostInfo>,
    /// Physical disks, as last reported.
    #[serde(default)]
    pub disks: Vec<DiskInfo>,
    /// Folders that hold volumes, as last reported.
    #[serde(default)]
    pub roots: Vec<RootInfo>,
    /// Volumes below these folders, as last reported.
    #[serde(default)]
    pub volumes: Vec<VolumeInfo>,
    /// `Reachable`: beats arrive. `DisksHealthy`: no disk fails; its reason is the worst grade, and it is
    /// `Unknown` where no disk tells anything. `ProofPossible`: if the node died now, something could prove it; its
    /// message names the proofs. `FencingAnswers`, where the node has a fence agent, or a mistake in the fence
    /// configuration may be why it has none: it answers, for a machine that is on. It holds with the reason
    /// `ChangeRefused` while the agent answers by a configuration whose change is not in use.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// `metadata.generation` that this status takes into account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// State of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum NodeState {
    /// No agent was ever heard from: nothing is known, and nothing is done.
    #[default]
    NoAgent,
    /// Heartbeats arrive.
    Healthy,
    /// Heartbeats are missing; probes are out.
    Suspect,
    /// The agent is silent, the kernel or the kubelet is not.
    AgentSilent,
    /// Other nodes reach it, the coordinator does not.
    Partitioned,
    /// Too many nodes went silent at once: the coordinator suspects itself and acts on nothing.
    StormHold,
    /// Declared unreachable; waits for a proof.
    AwaitingProof,
    /// Proven; recovery is about to act.
    Fenced,
    /// Its VMs are being started elsewhere.
    Recovering,
    /// Back in a new boot, watched before it is trusted.
    Quarantine,
    /// A fenced boot sends heartbeats: somebody must look at once.
    FenceContradicted,
}

/// How far the fencing of a node has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FenceRecord {
    /// The boot that is fenced, where it is known.
    #[serde(rename = "bootID", default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Epoch of the leader that wrote it; an older leader's write is refused.
    pub epoch: u64,
    /// How far.
    pub stage: FenceStage,
    /// By what, in stage `Fenced`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// The boot in which the node came back, in stage `Quarantine`.
    #[serde(rename = "returnedBootID", default, skip_serializing_if = "Option::is_none")]
    pub returned_boot_id: Option<String>,
    /// The node's fence agent looks at another machine: in this incident its word proves nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub agent_distrusted: bool,
}

/// Stage of a fence record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum FenceStage {
    /// Declared unreachable, nothing ordered.
    Declared,
    /// A power order may have been given: only a new boot, or a person, clears the node.
    PowerOrdered,
    /// Proven; VMs may be started elsewhere.
    Fenced,
    /// The node is back and watched.
    Quarantine,
    /// The incident is over.
    Closed,
}

/// Something that happened in an incident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TimelineEntry {
    /// What: `LastBeat`, `Suspected`, `Declared`, `Decided`, `FencingStarted`, `Proven`, `FirstAction`,
    /// `Settled`, `Returned` or `Closed`.
    pub milestone: String,
    /// When, by the coordinator's clock.
    pub at: MicroTime,
}

/// The agent of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentInfo {
    /// `host:port` of its own server.
    pub address: String,
    /// Its version.
    pub version: String,
    /// When the certificate with which it reports ends; it is renewed after two thirds of its life.
    #[serde(rename = "certificateNotAfter", default, skip_serializing_if = "Option::is_none")]
    pub certificate_not_after: Option<Time>,
    /// Where the kubelet mounts the volumes of pods, where the agent copies from and to there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<String>,
}

/// A machine. Nothing of it is required: what several writers have left of it must not keep the rest of the status from being
/// written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HostInfo {
    /// Share of the CPUs in use, 0 to 1.
    pub cpu_ratio: f64,
    /// Installed memory.
    pub memory_total_bytes: u64,
    /// Memory to be had.
    pub memory_available_bytes: u64,
    /// Load average of one minute.
    pub load1: f64,
    /// Share of time in which some task waited for IO, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_pressure_ratio: Option<f64>,
}

/// A physical disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskInfo {
    /// Kernel name.
    pub name: String,
    /// Health.
    pub grade: DiskGrade,
    /// Why it is graded so.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// Model, where known.
    #[serde(default)]
    pub model: String,
    /// Serial number, where known.
    #[serde(default)]
    pub serial: String,
}

/// Health of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum DiskGrade {
    /// No signal.
    #[default]
    Unknown,
    /// No complaint.
    Ok,
    /// Worth a look.
    Warning,
    /// Still readable: move the data away.
    Failing,
    /// What it reads cannot be trusted.
    Failed,
}

/// A folder that holds volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RootInfo {
    /// Absolute path on the node.
    pub path: String,
    /// Storage class whose volumes live there.
    pub class: String,
    /// How many folders deep the volumes lie; absent where they lie directly below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u8>,
    /// Every node with this root sees the same content.
    #[serde(default)]
    pub shared: bool,
    /// Size of the filesystem.
    pub size_bytes: u64,
    /// Room left on it.
    pub available_bytes: u64,
    /// It cannot be written.
    #[serde(default)]
    pub read_only: bool,
    /// The physical disk below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// How old the last complete listing of its folders was when the agent reported. Absent where a folder that is not
    /// among `volumes` may be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listed_age_ms: Option<u64>,
}

/// A volume's folder, measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeInfo {
    /// Absolute path on the node.
    pub path: String,
    /// The PersistentVolume that lives there; absent for an orphan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// The claim bound to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// Blocks really taken.
    pub allocated_bytes: u64,
    /// Sum of the file sizes.
    pub apparent_bytes: u64,
    /// Files and folders.
    pub inodes: u64,
    /// Whether `disk.img` is in it; absent where nobody could look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_image: Option<DiskImage>,
}

/// Whether a volume's folder holds the file in which KubeVirt keeps a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum DiskImage {
    /// It is there.
    Present,
    /// It is not there; a volume that no VM was ever started with has none.
    Absent,
    /// It is not there, and was there before.
    Vanished,
}
