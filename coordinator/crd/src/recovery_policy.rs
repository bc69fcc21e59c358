//! `RecoveryPolicy`: what the coordinator may do, and how soon. Every field may be absent; the coordinator then takes
//! its own defaults, therefore none are written here.

// The unit is part of each name on purpose: YAML has no durations. (The derive copies the structs without their
// attributes, so the allowance must stand here.)
#![allow(clippy::struct_field_names)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::NAME_LENGTH_MAX;
use crate::evacuation::Disruption;
use crate::relations;

/// The name of the one policy that counts.
pub const POLICY_NAME: &str = "default";
/// Nodes that Kubernetes supports in one cluster (<https://kubernetes.io/docs/setup/best-practices/cluster-large/>).
const NODES_MAX: usize = 5_000;
/// Storage classes that a cluster may have and a person may have an opinion of.
const CLASSES_MAX: usize = 1_000;

/// What the coordinator may do, and how soon. Every field may be absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "somersault.novasphere.dev",
    version = "v1alpha1",
    kind = "RecoveryPolicy",
    plural = "recoverypolicies",
    shortname = "rpol",
    category = "somersault",
    status = "RecoveryPolicyStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "What the coordinator may do, and how soon. There is one, named `default`. Without it, and for \
           every field that is absent, the coordinator takes the safe defaults.",
    validation = Rule::new("self.metadata.name == 'default'").message("the one policy is named default"),
    printcolumn(name = "Profile", type_ = "string", json_path = ".spec.profile"),
    printcolumn(name = "Accepted", type_ = "string", json_path = r#".status.conditions[?(@.type=="Accepted")].status"#),
    printcolumn(name = "Auto-evacuation", type_ = "boolean", json_path = ".spec.evacuation.automatic"),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Accepted")].reason"#, priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = relations::suspect_before_declared(),
    validation = relations::probed_before_declared(),
    validation = relations::declared_before_the_lease_ends(),
    validation = relations::burst_within_window(),
    validation = relations::retry_before_giving_up(),
    validation = relations::give_up_before_the_takeover(),
    validation = relations::leases_survive_a_takeover(),
    validation = relations::waits_grow(),
    validation = relations::watched_long_enough()
)]
pub struct RecoveryPolicySpec {
    /// How soon a silent node is declared unreachable; `Safe` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    // The API server fills it in, so that whoever reads the object sees what is in force.
    #[schemars(extend("default" = Profile::Safe))]
    pub profile: Option<Profile>,
    /// Changes to the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detection: Option<DetectionPolicy>,
    /// The lease that a grant extends; every host must use the same values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeasePolicy>,
    /// Leader election.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<LeaderPolicy>,
    /// When the coordinator suspects itself rather than the nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storm: Option<StormPolicy>,
    /// Fence agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fencing: Option<FencingPolicy>,
    /// What happens after a proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<RecoveryLimits>,
    /// Evacuation without a person's order, when a disk starts to fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evacuation: Option<EvacuationPolicy>,
    /// How fast volumes may be copied; as fast as disks and links are, where absent. A change counts for copies that run, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copies: Option<CopiesPolicy>,
    /// Where the data of a storage class is, by the class's name, for drivers that cannot be known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = CLASSES_MAX))]
    pub storage_classes: BTreeMap<String, ClassLocality>,
    /// Any change to this text releases a storm hold: nodes that are still silent are then judged one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub hold_release: Option<String>,
}

/// Whether the coordinator follows the policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryPolicyStatus {
    /// `Accepted`: the coordinator follows this policy. Where it is `False`, the policy before it stays in
    /// force, and the message names the values that contradict each other.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// `metadata.generation` that this status takes into account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// How soon a silent node is declared unreachable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Profile {
    /// A beat each second, suspect after 3 missed, declared after 5 s.
    #[default]
    Safe,
    /// A beat each 200 ms, suspect after 3 missed, declared after 1 s.
    Fast,
}

/// Where the data of a storage class is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ClassLocality {
    /// On one node only.
    Local,
    /// Reached from every node that the volume's affinity admits.
    Network,
}

/// Changes to the profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DetectionPolicy {
    /// Time between two beats of a node, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 50, max = 60_000))]
    pub beat_ms: Option<u64>,
    /// Beats that may be missed before a node is suspect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 100))]
    pub missed_beats: Option<u32>,
    /// Silence after which a node is declared unreachable, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub declare_ms: Option<u64>,
    /// How long one probe may take, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 50, max = 60_000))]
    pub probe_timeout_ms: Option<u64>,
    /// How long a planned stop of an agent may last before its silence counts, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub goodbye_ms: Option<u64>,
}

/// The lease that a grant extends; every host must use the same values.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.watchdogMs) || self.watchdogMs % 1000 == 0").message("watchdogs count whole seconds")
)]
pub struct LeasePolicy {
    /// Length of the lease from the send time of the granted beat, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub lease_ms: Option<u64>,
    /// Time-out of the node's watchdog in milliseconds: whole seconds, as the drivers count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1000, max = 86_400_000))]
    pub watchdog_ms: Option<u64>,
    /// How long writes that a node has queued may still arrive after its reset, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub io_ms: Option<u64>,
    /// How much two clocks may differ in speed, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10))]
    pub drift_percent: Option<f64>,
    /// Added to every wait, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub margin_ms: Option<u64>,
    /// How long an agent may need to reach a new leader, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub reconnect_ms: Option<u64>,
}

/// Leader election.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeaderPolicy {
    /// A candidate may take over after the lease was not renewed for this long, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 60_000))]
    pub lease_ms: Option<u64>,
    /// The leader gives up after it could not renew for this long, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub renew_ms: Option<u64>,
    /// Time between two tries, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub retry_ms: Option<u64>,
}

/// When the coordinator suspects itself rather than the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StormPolicy {
    /// This many nodes suspect within `burstMs` are a storm; so is a whole zone of two nodes or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 10_000))]
    pub burst_nodes: Option<u32>,
    /// See `burstNodes`; in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub burst_ms: Option<u64>,
    /// More than this share of the nodes, but at least one node, suspect within `windowMs` is a storm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub window_percent: Option<u32>,
    /// See `windowPercent`; in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub window_ms: Option<u64>,
    /// The hold ends when the suspects stayed below the limits for this long, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub calm_ms: Option<u64>,
}

/// Fence agents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FencingPolicy {
    /// Nodes that a fence agent is configured for, besides those that the coordinator's own configuration names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = NODES_MAX), inner(length(min = 1, max = NAME_LENGTH_MAX)))]
    pub nodes: Vec<String>,
    /// How long `off` and `status` may take together, in milliseconds: no management controller answers within less than
    /// a second for sure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1_000, max = 86_400_000))]
    pub timeout_ms: Option<u64>,
    /// Runs in a row before people are told that fencing fails; afterwards one more at each reminder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub attempts_max: Option<u32>,
    /// Wait before the second run, doubled for each further one, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub retry_first_ms: Option<u64>,
    /// The wait is never longer than this, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub retry_max_ms: Option<u64>,
    /// How often people are reminded of a node that waits for a proof, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub reminder_ms: Option<u64>,
    /// How often each fence agent is asked for its status while all is well, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub status_ms: Option<u64>,
}

/// What happens after a proof.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryLimits {
    /// VMs that are recreated at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000))]
    pub concurrent_max: Option<u32>,
    /// Wait before a failed action is tried again, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub retry_ms: Option<u64>,
    /// Tries of one VM's actions before a person is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub attempts_max: Option<u32>,
    /// A VM that was not seen running elsewhere for this long no longer holds its place, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub restart_timeout_ms: Option<u64>,
    /// How long a node that came back must beat before it is trusted, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub quarantine_ms: Option<u64>,
    /// Also set the out-of-service taint on a proven node, where every launcher on it is to be recreated. It empties
    /// the whole node, pods that are no VM's included. Off where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_service: Option<bool>,
}

/// How fast volumes may be copied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CopiesPolicy {
    /// All copies from and to a node together, in MiB of content per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub node_mib_per_s: Option<u32>,
    /// Each copy, in MiB of content per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub copy_mib_per_s: Option<u32>,
}

/// Evacuation without a person's order, when a disk starts to fail or a node has come back from the dead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvacuationPolicy {
    /// Off unless somebody turns it on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automatic: Option<bool>,
    /// Only tell what would be done; this is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
    /// How long a disk must have been bad before anything is moved, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub hold_ms: Option<u64>,
    /// Independent signals that a disk must show, unless it shows one that leaves no doubt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub sources_min: Option<u32>,
    /// If more than this share of all disks turns bad together, the sensing is suspected and nothing is moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub guard_percent: Option<u32>,
    /// What it may do to running VMs. A policy has no window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self != 'Window'").message("a policy has no window: PreCopyOnly or Now"))]
    pub disruption: Option<Disruption>,
    /// Storage class that the volumes go to; absent: the same class on any node that fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = NAME_LENGTH_MAX))]
    pub destination_class: Option<String>,
    /// Also evacuate a node that was dead and has come back, once it is trusted again. Off where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_return: Option<bool>,
    /// Migrations of one evacuation at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub concurrent_max: Option<u32>,
}
