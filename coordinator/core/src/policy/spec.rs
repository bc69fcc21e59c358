//! The policy as a configuration file says it: every field may be absent, nothing is checked yet.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::evacuation::Disruption;
use crate::locality::ClassOverrides;
use crate::names::NodeName;

/// What a policy file may say. Absent fields take the profile's or the general defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PolicySpec {
    /// How soon a silent node is declared unreachable.
    pub profile: Profile,
    /// Changes to the profile.
    pub detection: DetectionSpec,
    /// The lease that a grant extends.
    pub lease: LeaseSpec,
    /// Leader election.
    pub leader: LeaderSpec,
    /// When we suspect ourselves rather than the nodes.
    pub storm: StormSpec,
    /// Fence agents.
    pub fencing: FencingSpec,
    /// What happens after a proof.
    pub recovery: RecoverySpec,
    /// Evacuation without a person's order.
    pub evacuation: EvacuationPolicySpec,
    /// How fast volumes may be copied.
    pub copies: CopiesSpec,
    /// What people say of storage classes that nobody can know, by name.
    pub storage_classes: ClassOverrides,
}

/// How soon a silent node is declared unreachable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Profile {
    /// A beat each second, suspect after 3 missed, declared after 5 s.
    #[default]
    #[serde(alias = "Safe")]
    Safe,
    /// A beat each 200 ms, suspect after 3 missed, declared after 1 s.
    #[serde(alias = "Fast")]
    Fast,
}

/// Changes to the profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct DetectionSpec {
    /// Time between two beats of a node.
    pub beat_ms: Option<u64>,
    /// Beats that may be missed before a node is suspect.
    pub missed_beats: Option<u32>,
    /// Silence after which a node is declared unreachable, if no probe says otherwise.
    pub declare_ms: Option<u64>,
    /// How long one probe may take.
    pub probe_timeout_ms: Option<u64>,
    /// How long a planned stop of an agent may last before its silence counts.
    pub goodbye_ms: Option<u64>,
}

/// The lease that a grant extends; every host must use the same values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LeaseSpec {
    /// Length of the lease, from the send time of the granted beat.
    pub lease_ms: u64,
    /// Time-out of the node's watchdog; whole seconds, as the drivers count.
    pub watchdog_ms: u64,
    /// How long writes that a node has queued may still arrive after its reset.
    pub io_ms: u64,
    /// How much two clocks may differ in speed.
    pub drift_percent: f64,
    /// Added to every wait.
    pub margin_ms: u64,
    /// How long an agent may need to reach a new leader.
    pub reconnect_ms: u64,
}

impl Default for LeaseSpec {
    fn default() -> Self {
        Self {
            lease_ms: 30_000,
            watchdog_ms: 10_000,
            io_ms: 5_000,
            drift_percent: 1.0,
            margin_ms: 500,
            reconnect_ms: 5_000,
        }
    }
}

/// Leader election, with the defaults of client-go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LeaderSpec {
    /// A candidate may take over after the lease was not renewed for this long, by its own clock.
    pub lease_ms: u64,
    /// The leader gives up after it could not renew for this long.
    pub renew_ms: u64,
    /// Time between two tries.
    pub retry_ms: u64,
}

impl Default for LeaderSpec {
    fn default() -> Self {
        Self { lease_ms: 15_000, renew_ms: 10_000, retry_ms: 2_000 }
    }
}

/// When we suspect ourselves rather than the nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct StormSpec {
    /// This many nodes suspect within `burstMs` are a storm; so is a whole zone of two nodes or more.
    pub burst_nodes: u32,
    /// See `burstNodes`.
    pub burst_ms: u64,
    /// More than this share of the nodes (but at least one node) suspect within `windowMs` is a storm.
    pub window_percent: u32,
    /// See `windowPercent`.
    pub window_ms: u64,
    /// The hold ends when the suspects stayed below the limits for this long.
    pub calm_ms: u64,
}

impl Default for StormSpec {
    fn default() -> Self {
        Self { burst_nodes: 3, burst_ms: 2_000, window_percent: 20, window_ms: 60_000, calm_ms: 30_000 }
    }
}

/// Fence agents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct FencingSpec {
    /// Nodes that a fence agent is configured for. The shell adds those that its own configuration names.
    pub nodes: BTreeSet<NodeName>,
    /// How long `off` and `status` may take together before the run counts as failed.
    pub timeout_ms: u64,
    /// Runs in a row before people are told that fencing fails; afterwards one more run at each reminder.
    pub attempts_max: u32,
    /// Wait before the second run; doubled for each further one.
    pub retry_first_ms: u64,
    /// The wait is never longer than this.
    pub retry_max_ms: u64,
    /// How often people are reminded of a node that waits for a proof.
    pub reminder_ms: u64,
    /// How often each fence agent is asked for its status while all is well.
    pub status_ms: u64,
}

impl Default for FencingSpec {
    fn default() -> Self {
        Self {
            nodes: BTreeSet::new(),
            timeout_ms: 60_000,
            attempts_max: 5,
            retry_first_ms: 2_000,
            retry_max_ms: 60_000,
            reminder_ms: 300_000,
            status_ms: 600_000,
        }
    }
}

/// What happens after a proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RecoverySpec {
    /// VMs that are recreated at the same time.
    pub concurrent_max: u32,
    /// Wait before a failed action is tried again.
    pub retry_ms: u64,
    /// Tries of one VM's actions before a person is asked.
    pub attempts_max: u32,
    /// A VM that was not seen running elsewhere for this long no longer holds its place.
    pub restart_timeout_ms: u64,
    /// How long a node that came back must beat before it is trusted.
    pub quarantine_ms: u64,
    /// Set the out-of-service taint too, where every launcher of a proven node is to be recreated.
    pub out_of_service: bool,
}

impl Default for RecoverySpec {
    fn default() -> Self {
        Self {
            concurrent_max: 10,
            retry_ms: 2_000,
            attempts_max: 5,
            restart_timeout_ms: 120_000,
            quarantine_ms: 60_000,
            out_of_service: false,
        }
    }
}

/// Evacuation without a person's order, when a disk starts to fail or a node has come back from the dead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct EvacuationPolicySpec {
    /// Off unless somebody turns it on.
    pub automatic: bool,
    /// Only tell what would be done.
    pub dry_run: bool,
    /// How long a disk must have been bad before anything is moved.
    pub hold_ms: u64,
    /// Independent signals that a disk must show, unless it shows one that leaves no doubt.
    pub sources_min: u32,
    /// More than this share of all disks bad together: suspect the sensing, move nothing.
    pub guard_percent: u32,
    /// What it may do to running VMs.
    pub disruption: Disruption,
    /// Storage class that the volumes go to; absent: the same class on any node that fits.
    pub destination_class: Option<String>,
    /// Migrations of one evacuation at the same time.
    pub concurrent_max: u32,
    /// Also evacuate a node that was dead and has come back.
    pub after_return: bool,
}

impl Default for EvacuationPolicySpec {
    fn default() -> Self {
        Self {
            automatic: false,
            dry_run: true,
            hold_ms: 600_000,
            sources_min: 2,
            guard_percent: 25,
            disruption: Disruption::PreCopyOnly,
            destination_class: None,
            concurrent_max: 1,
            after_return: false,
        }
    }
}

/// How fast volumes may be copied, in MiB of content per second. Absent: as fast as disks and links are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct CopiesSpec {
    /// All copies from and to a node together.
    pub node_mib_per_s: Option<u32>,
    /// Each copy.
    pub copy_mib_per_s: Option<u32>,
}
