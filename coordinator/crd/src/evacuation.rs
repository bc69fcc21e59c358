//! `Evacuation`: everything of a node, or of one of its disks, moves away.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{Destination, NAME_LENGTH_MAX, ObjectKey};

/// Many migrations with one cause.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "somersault.novasphere.dev",
    version = "v1alpha1",
    kind = "Evacuation",
    plural = "evacuations",
    shortname = "evac",
    category = "somersault",
    status = "EvacuationStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Moves every local volume of a node, or of one of its disks, elsewhere: one VolumeMigration for each \
           VM and each unused claim.",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node"),
    printcolumn(name = "Disk", type_ = "string", json_path = ".spec.disk"),
    printcolumn(name = "Disruption", type_ = "string", json_path = ".spec.disruption"),
    printcolumn(name = "Dry-run", type_ = "boolean", json_path = ".spec.dryRun"),
    printcolumn(name = "Complete", type_ = "boolean", json_path = ".status.complete"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.disk) == has(oldSelf.disk) && (!has(self.disk) || self.disk == oldSelf.disk)")
        .message("disk cannot change: create another Evacuation"),
    validation = Rule::new("self.disruption != 'Window' || has(self.window)")
        .message("disruption Window needs a window: when it opens and closes")
)]
pub struct EvacuationSpec {
    /// The node to empty.
    #[schemars(length(min = 1, max = NAME_LENGTH_MAX))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("node cannot change: create another Evacuation"))]
    pub node: String,
    /// Only volumes on this physical disk of it, by the kernel's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub disk: Option<String>,
    /// Where the volumes go; absent: to any node that fits, in the same storage class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// What it may do to running VMs.
    #[serde(default)]
    pub disruption: Disruption,
    /// With disruption Window: when VMs may be stopped. What was stopped in time is finished after it, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Only tell what would be done.
    #[serde(default)]
    pub dry_run: bool,
    /// Set it to end the evacuation: migrations that have not swapped their claims yet are put back.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self || !oldSelf").message("a cancelled Evacuation stays cancelled"))]
    pub cancelled: bool,
}

/// What an evacuation may do to running VMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Disruption {
    /// Copy while they run, keep the copy fresh, wait for a word.
    #[default]
    PreCopyOnly,
    /// Copy while they run, keep the copy fresh, and stop each VM while the window is open.
    Window,
    /// Stop each VM once for its final copy, and start it on the new disks.
    Now,
}

/// When VMs may be stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// Time of day when it opens, such as `22:00`.
    #[schemars(regex(pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub opens: String,
    /// Time of day when it closes; not after the other one: on the next day.
    #[schemars(regex(pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub closes: String,
    /// Days on which it opens; absent: every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 7))]
    pub days: Vec<Day>,
    /// Time zone by its IANA name, such as `Europe/Berlin`; absent: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: Option<String>,
}

/// Day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Day {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

/// How far the evacuation is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvacuationStatus {
    /// Record: epoch of the leader that wrote it.
    #[serde(default)]
    pub epoch: u64,
    /// Record: each migration, in the order of the plan.
    #[serde(default)]
    pub plan: Vec<PlannedMigration>,
    /// Record: every migration has ended.
    #[serde(default)]
    pub complete: bool,
    /// How it stands, and what to do.
    #[serde(default)]
    pub message: String,
    /// `Complete`: every migration has ended. `Succeeded`: each of them well, and there was one.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// `metadata.generation` that this status takes into account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// One migration of an evacuation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlannedMigration {
    /// The VolumeMigration; of a VM that moves while it runs, the VirtualMachineInstanceMigration.
    pub migration: ObjectKey,
    /// The VM, or the claim that no VM uses.
    pub subject: ObjectKey,
    /// Whether the subject is a VM.
    #[serde(default)]
    pub is_vm: bool,
    /// The VM has no disk there and moves while it runs, by KubeVirt's own migration.
    #[serde(default)]
    pub live: bool,
    /// Bytes to move.
    pub bytes: u64,
    /// What became of it.
    #[serde(default)]
    pub state: PlanState,
    /// Why it failed or waits.
    #[serde(default)]
    pub message: String,
}

/// What became of one migration of an evacuation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum PlanState {
    /// Its turn has not come, or no destination has room.
    #[default]
    Waiting,
    /// The VolumeMigration exists.
    Running,
    /// Copied, and waiting for a person's word to stop the VM.
    PreCopied,
    /// Done.
    Succeeded,
    /// It failed, was refused, cancelled or rolled back.
    Failed,
}
