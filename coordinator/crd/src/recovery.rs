//! `Recovery`: what becomes of one VM whose node died, or whose storage broke.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{DiskFinding, NAME_LENGTH_MAX, Proof};
use crate::volume_migration::Stopped;

/// Finalizer on each one whose rebuild has stopped the VM: deleted then, it stays until the VM has its start field back.
pub const FINALIZER: &str = "somersault.novasphere.dev/rebuild";

/// One VM of an incident. Named like the VM, in its namespace; made by the coordinator when the node is
/// declared unreachable, before anything is done, or when its storage is found broken while its node lives.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "somersault.novasphere.dev",
    version = "v1alpha1",
    kind = "Recovery",
    plural = "recoveries",
    namespaced,
    shortname = "rcv",
    category = "somersault",
    status = "RecoveryStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "What becomes of one VM whose node died or whose storage broke: the decision, its reasons, how far it is, \
           and the runbook where a person is needed. Named like the VM; made by the coordinator.",
    validation = Rule::new("self.metadata.name == self.spec.vm").message("a Recovery is named like its VM"),
    printcolumn(name = "Cause", type_ = "string", json_path = ".status.cause"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node"),
    printcolumn(name = "Decision", type_ = "string", json_path = ".status.decision"),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.progress"),
    printcolumn(name = "Proof", type_ = "string", json_path = ".status.proof"),
    printcolumn(name = "Over", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ended")].status"#),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reasons[0]"),
    printcolumn(name = "Remedy", type_ = "string", json_path = ".status.remedy", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct RecoverySpec {
    /// The VM, of this namespace.
    #[schemars(length(min = 1, max = NAME_LENGTH_MAX))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a Recovery stays with its VM"))]
    pub vm: String,
}

/// What becomes of the VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryStatus {
    /// Why the VM has to be recovered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The node that died. For broken storage the node that the VM runs on, else where its disk is; empty where that is
    /// not known.
    #[serde(default)]
    pub node: String,
    /// What becomes of the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<DecisionKind>,
    /// Why, the most telling first.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// What to do: while its node is dead what helps then, else what lets the VM fare better next time.
    #[serde(default)]
    pub remedy: String,
    /// Each disk, judged.
    #[serde(default)]
    pub disks: Vec<DiskFinding>,
    /// How far the recovery is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The proof that permitted acting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// What a person has to do, as Markdown, where one is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runbook: Option<String>,
    /// How far a rebuild is: the coordinator's own record, from which it goes on after a crash. Its old volumes are
    /// kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuild: Option<RebuildRecord>,
    /// `Decided`: what becomes of the VM is known. `Recovered`: it was seen running again, or its storage sound again;
    /// its reason is how far the recovery is. `Ended`: the node's incident is over, or nothing is broken any more.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// `metadata.generation` that this status takes into account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Why a VM has to be recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Cause {
    /// Its node died.
    NodeDied,
    /// A claim, a volume, a folder or a disk of it broke while its node lives. Nothing is acted upon.
    StorageFailed,
}

/// What becomes of a VM whose node died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum DecisionKind {
    /// Started elsewhere from its disks on network storage.
    Recreate,
    /// System disk imported anew elsewhere, data disks attached.
    Rebuild,
    /// A person follows the runbook; nothing is touched.
    ManualRecovery,
    /// It should not run: nothing to do.
    NothingToDo,
}

/// How far a recovery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Progress {
    /// Decided; the proof is missing.
    AwaitingProof,
    /// Proven; the old launcher is being removed.
    Acting,
    /// The old launcher is gone; the VM has not been seen running elsewhere yet.
    Restarting,
    /// Seen running elsewhere; for broken storage: nothing of it is broken any more.
    Recovered,
    /// A person must act: see the runbook.
    NeedsPerson,
    /// The node came back with the VM untouched.
    NodeReturned,
    /// The dead node holds nothing of it any more: a person moved its disks, or stopped it. It has not been seen running
    /// elsewhere.
    Unaffected,
}

/// How far the rebuilding of a VM is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RebuildRecord {
    /// `metadata.uid` of the VM.
    #[serde(rename = "vmUID")]
    pub vm_uid: String,
    /// The node that died.
    pub node: String,
    /// Epoch of the leader that wrote it.
    pub epoch: u64,
    /// What proved that the node is dead; absent in older records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// How far.
    pub stage: RebuildStage,
    /// The VM's owner and start field before the coordinator stopped it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
    /// Launcher and hotplug pods that died with the node.
    #[serde(default)]
    pub pods: Vec<DeadPod>,
    /// The disks that are imported anew.
    #[serde(default)]
    pub disks: Vec<RebuiltDisk>,
}

/// A pod that died with its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeadPod {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// A disk that is imported anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RebuiltDisk {
    /// Volume name in the VM.
    pub disk: String,
    /// Its claim.
    pub claim: String,
    /// The claim's uid before it was deleted.
    #[serde(rename = "claimUID")]
    pub claim_uid: String,
    /// The DataVolume that makes the claim anew.
    pub data_volume: String,
    /// The PersistentVolume with the old content. It is kept, on reclaim policy Retain.
    pub old_volume: String,
    /// The claim's storage class.
    pub class: String,
}

/// How far a rebuild is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum RebuildStage {
    /// The old volumes are set on reclaim policy Retain.
    Retaining,
    /// The owner stops the VM, and its dead launchers are deleted.
    Stopping,
    /// Its claims are deleted, and made anew by their DataVolumes.
    Replacing,
    /// The owner's start field is given back.
    Starting,
    /// The image is imported, and the VM starts.
    Importing,
    /// The VM runs on its new disks.
    Rebuilt,
    /// The node is back before a claim was deleted: the start field is given back.
    GivingBack,
    /// Everything is as it was.
    GivenBack,
}
