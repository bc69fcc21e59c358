//! Limits and time-outs, each with its reason.
//!
//! ```text
//!   PolicySpec (what a file says) ──► Policy::try_from ──► Policy (every relation holds; read-only)
//!                                           │
//!                                           └──► PolicyError, which names both values
//! ```
//!
//! A [`Policy`] dereferences to its [`Limits`] and cannot be changed, so whoever holds one knows that, say, a
//! node is suspect before it is declared.

mod spec;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::ops::Deref;
use std::time::Duration;

pub use self::spec::{
    CopiesSpec, DetectionSpec, EvacuationPolicySpec, FencingSpec, LeaderSpec, LeaseSpec, PolicySpec, Profile,
    RecoverySpec, StormSpec,
};
use crate::evacuation::Disruption;
use crate::locality::ClassOverrides;
use crate::names::NodeName;

/// A policy whose relations hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy(Limits);

impl Deref for Policy {
    type Target = Limits;

    fn deref(&self) -> &Limits {
        &self.0
    }
}

impl Default for Policy {
    /// The safe profile, without fence agents.
    fn default() -> Self {
        Self::try_from(PolicySpec::default()).expect("the default policy holds; a test says so")
    }
}

/// Everything that a policy limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// The profile that it came from.
    pub profile: Profile,
    /// How soon a silent node is declared unreachable.
    pub detection: Detection,
    /// The lease that a grant extends.
    pub lease: Lease,
    /// Leader election.
    pub leader: Leader,
    /// When we suspect ourselves rather than the nodes.
    pub storm: Storm,
    /// Fence agents.
    pub fencing: Fencing,
    /// What happens after a proof.
    pub recovery: Recovery,
    /// Evacuation without a person's order.
    pub evacuation: AutomaticEvacuation,
    /// How fast volumes may be copied.
    pub copies: Copies,
    /// What people say of storage classes.
    pub class_overrides: ClassOverrides,
    /// Nodes enrolled for watchdog fencing. No policy file can fill it: it exists for the simulation until
    /// the guard, which arms the watchdog and reads it back, exists.
    pub watchdog_fencing: BTreeSet<NodeName>,
}

/// How fast volumes may be copied, in bytes of content per second; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copies {
    /// All copies from and to a node together.
    pub node: Option<NonZeroU64>,
    /// Each copy.
    pub copy: Option<NonZeroU64>,
}

fn bytes_per_s(mib: u32) -> Option<NonZeroU64> {
    NonZeroU64::new(u64::from(mib) << 20)
}

/// How soon a silent node is declared unreachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detection {
    /// Time between two beats of a node.
    pub beat: Duration,
    /// Beats that may be missed before a node is suspect.
    pub missed_beats: u32,
    /// Silence after which a node is declared unreachable, if no probe says otherwise.
    pub declare: Duration,
    /// How long one probe may take.
    pub probe_timeout: Duration,
    /// How long a planned stop of an agent may last before its silence counts: a rollout pulls an image.
    pub goodbye: Duration,
}

impl Detection {
    /// Silence after which a node is suspect.
    pub fn suspect(&self) -> Duration {
        self.beat * self.missed_beats
    }

    /// How long we wait for a peer's answer: its probe, and an eighth for the way there and back.
    pub fn probe_deadline(&self) -> Duration {
        self.probe_timeout + self.probe_timeout / 8
    }
}

/// The lease that a grant extends.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// Length, from the send time of the granted beat.
    pub lease: Duration,
    /// Time-out of the node's watchdog.
    pub watchdog: Duration,
    /// How long queued writes may arrive after a reset.
    pub io: Duration,
    /// How much two clocks may differ in speed, 0..1.
    pub drift: f64,
    /// Added to every wait.
    pub margin: Duration,
}

/// Leader election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Length of the leader's lease.
    pub lease: Duration,
    /// The leader gives up after it could not renew for this long.
    pub renew: Duration,
    /// Time between two tries.
    pub retry: Duration,
}

/// When we suspect ourselves rather than the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storm {
    /// This many suspects within `burst` are a storm.
    pub burst_nodes: usize,
    /// See `burst_nodes`.
    pub burst: Duration,
    /// More than this share of the nodes within `window` is a storm.
    pub window_percent: usize,
    /// See `window_percent`.
    pub window: Duration,
    /// The hold ends when the suspects stayed below the limits for this long.
    pub calm: Duration,
}

impl Storm {
    /// How many of `nodes` may be suspect within the window.
    pub fn window_nodes(&self, nodes: usize) -> usize {
        (nodes * self.window_percent / 100).max(1)
    }
}

/// Fence agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fencing {
    /// Nodes that a fence agent is configured for.
    pub nodes: BTreeSet<NodeName>,
    /// How long a run may take.
    pub timeout: Duration,
    /// Runs in a row before people are told that fencing fails.
    pub attempts_max: u32,
    /// Wait before the second run; doubled for each further one.
    pub retry_first: Duration,
    /// The wait is never longer than this.
    pub retry_max: Duration,
    /// How often people are reminded of a node that waits for a proof.
    pub reminder: Duration,
    /// How often each fence agent is asked for its status while all is well.
    pub status: Duration,
}

/// What happens after a proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// VMs that are recreated at the same time.
    pub concurrent_max: usize,
    /// Wait before a failed action is tried again.
    pub retry: Duration,
    /// Tries of one VM's actions before a person is asked.
    pub attempts_max: u32,
    /// A VM that was not seen running elsewhere for this long no longer holds its place.
    pub restart_timeout: Duration,
    /// How long a node that came back must beat before it is trusted.
    pub quarantine: Duration,
    /// Set the out-of-service taint too, where every launcher of a proven node is to be recreated.
    pub out_of_service: bool,
}

/// Evacuation without a person's order, when a disk starts to fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AutomaticEvacuation {
    /// Off unless somebody turns it on.
    pub automatic: bool,
    /// Only tell what would be done.
    pub dry_run: bool,
    /// How long a disk must have been bad before anything is moved.
    pub hold: Duration,
    /// Independent signals that a disk must show, unless it shows one that leaves no doubt.
    pub sources_min: usize,
    /// More than this share of all disks bad together: suspect the sensing, move nothing.
    pub guard_percent: usize,
    /// What it may do to running VMs.
    pub disruption: Disruption,
    /// Storage class that the volumes go to; `None`: the same class on any node that fits.
    pub destination_class: Option<String>,
    /// Migrations of one evacuation at the same time.
    pub concurrent_max: usize,
    /// Also evacuate a node that was dead and has come back.
    pub after_return: bool,
}

/// Why a policy cannot be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// Two values contradict each other.
    #[error("{smaller} ({smaller_ms} ms) must {rule} {larger} ({larger_ms} ms): {why}")]
    Relation {
        /// What must be shorter.
        smaller: &'static str,
        /// How long it is.
        smaller_ms: u128,
        /// `be shorter than` or `not be longer than`.
        rule: &'static str,
        /// Than what.
        larger: &'static str,
        /// How long that is.
        larger_ms: u128,
        /// What would go wrong.
        why: &'static str,
    },
    /// What nobody asked for has no window.
    #[error("evacuation.disruption is Window, and a policy has no window: PreCopyOnly or Now")]
    NoWindow,
    /// A value that cannot work on its own.
    #[error("{name} is {value}, but must be from {min} to {max}: {why}")]
    Range {
        /// Which.
        name: &'static str,
        /// What it is.
        value: f64,
        /// Smallest value that works.
        min: f64,
        /// Largest value that works.
        max: f64,
        /// Why.
        why: &'static str,
    },
}

impl TryFrom<PolicySpec> for Policy {
    type Error = PolicyError;

    fn try_from(spec: PolicySpec) -> Result<Self, PolicyError> {
        check_ranges(&spec)?;
        let limits = limits(spec.clone());
        check_detection(&limits)?;
        check_leases(&limits, &spec)?;
        check_waits(&limits)?;
        Ok(Self(limits))
    }
}

impl Policy {
    /// Enrols nodes for watchdog fencing. Only the simulation may: nothing arms and reads back a real
    /// watchdog yet.
    #[must_use]
    pub fn with_watchdog_fencing(mut self, nodes: BTreeSet<NodeName>) -> Self {
        self.0.watchdog_fencing = nodes;
        self
    }

    /// This policy, changed to `newer` as far as it may change while we run; and the names of what stays as it is
    /// until the coordinator starts anew:
    /// - `lease`: hosts still hold grants of the old length, and waiting shorter than they hold would be fatal;
    /// - `leader`: a term ends by the times under which it began;
    /// - `watchdogFencing`, which no policy file can fill.
    ///
    /// Everything else takes effect with the next look at it; what is under way (a run of a fence agent, a deletion)
    /// ends by the rules under which it began.
    pub fn adopt(&self, newer: &Self) -> Result<(Self, Vec<&'static str>), PolicyError> {
        let mut limits = newer.0.clone();
        let mut kept = Vec::new();
        if limits.lease != self.lease {
            limits.lease = self.lease.clone();
            kept.push("lease");
        }
        if limits.leader != self.leader {
            limits.leader = self.leader.clone();
            kept.push("leader");
        }
        limits.watchdog_fencing.clone_from(&self.watchdog_fencing);
        // What held of the new values together need not hold of new ones beside old ones.
        check_detection(&limits)?;
        check_waits(&limits)?;
        Ok((Self(limits), kept))
    }

    /// Differs when the values differ that every host must share (FNV-1a over them).
    pub fn lease_hash(&self) -> u64 {
        let Lease { lease, watchdog, io, drift, margin } = &self.0.lease;
        let drift = Duration::from_secs_f64(*drift);
        [*lease, *watchdog, *io, drift, *margin, self.0.detection.beat]
            .iter()
            .flat_map(|value| value.as_nanos().to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

fn limits(spec: PolicySpec) -> Limits {
    let ms = Duration::from_millis;
    // Probes start at suspicion (3 beats) and must have ended when the node may be declared.
    let (beat, declare, probe) = match spec.profile {
        Profile::Fast => (200, 1_000, 300),
        Profile::Safe => (1_000, 5_000, 1_500),
    };
    let DetectionSpec { beat_ms, missed_beats, declare_ms, probe_timeout_ms, goodbye_ms } = spec.detection;
    Limits {
        profile: spec.profile,
        detection: Detection {
            beat: ms(beat_ms.unwrap_or(beat)),
            missed_beats: missed_beats.unwrap_or(3),
            declare: ms(declare_ms.unwrap_or(declare)),
            probe_timeout: ms(probe_timeout_ms.unwrap_or(probe)),
            goodbye: ms(goodbye_ms.unwrap_or(120_000)),
        },
        lease: Lease {
            lease: ms(spec.lease.lease_ms),
            watchdog: ms(spec.lease.watchdog_ms),
            io: ms(spec.lease.io_ms),
            drift: spec.lease.drift_percent / 100.0,
            margin: ms(spec.lease.margin_ms),
        },
        leader: Leader {
            lease: ms(spec.leader.lease_ms),
            renew: ms(spec.leader.renew_ms),
            retry: ms(spec.leader.retry_ms),
        },
        storm: Storm {
            burst_nodes: spec.storm.burst_nodes as usize,
            burst: ms(spec.storm.burst_ms),
            window_percent: spec.storm.window_percent as usize,
            window: ms(spec.storm.window_ms),
            calm: ms(spec.storm.calm_ms),
        },
        fencing: Fencing {
            nodes: spec.fencing.nodes,
            timeout: ms(spec.fencing.timeout_ms),
            attempts_max: spec.fencing.attempts_max,
            retry_first: ms(spec.fencing.retry_first_ms),
            retry_max: ms(spec.fencing.retry_max_ms),
            reminder: ms(spec.fencing.reminder_ms),
            status: ms(spec.fencing.status_ms),
        },
        recovery: Recovery {
            concurrent_max: spec.recovery.concurrent_max as usize,
            retry: ms(spec.recovery.retry_ms),
            attempts_max: spec.recovery.attempts_max,
            restart_timeout: ms(spec.recovery.restart_timeout_ms),
            quarantine: ms(spec.recovery.quarantine_ms),
            out_of_service: spec.recovery.out_of_service,
        },
        evacuation: AutomaticEvacuation {
            automatic: spec.evacuation.automatic,
            dry_run: spec.evacuation.dry_run,
            hold: ms(spec.evacuation.hold_ms),
            sources_min: spec.evacuation.sources_min as usize,
            guard_percent: spec.evacuation.guard_percent as usize,
            disruption: spec.evacuation.disruption,
            destination_class: spec.evacuation.destination_class,
            concurrent_max: spec.evacuation.concurrent_max as usize,
            after_return: spec.evacuation.after_return,
        },
        copies: Copies {
            node: spec.copies.node_mib_per_s.and_then(bytes_per_s),
            copy: spec.copies.copy_mib_per_s.and_then(bytes_per_s),
        },
        class_overrides: spec.storage_classes,
        watchdog_fencing: BTreeSet::new(),
    }
}

/// A day: nothing here has a reason to take longer, and sums of such values cannot overflow.
const DAY_MS: u64 = 86_400_000;

/// The longest `leader.leaseMs`. A Lease that somebody deleted tells nothing of who led, so it is waited for as long as
/// any leader may count; and longer than this, a cluster should not be without one.
pub const LEADER_LEASE_MAX: Duration = Duration::from_millis(LEADER_LEASE_MAX_MS);
const LEADER_LEASE_MAX_MS: u64 = 60_000;

fn check_ranges(spec: &PolicySpec) -> Result<(), PolicyError> {
    let times = [
        ("detection.goodbyeMs", spec.detection.goodbye_ms.unwrap_or(1)),
        ("detection.declareMs", spec.detection.declare_ms.unwrap_or(1)),
        ("lease.leaseMs", spec.lease.lease_ms),
        ("lease.watchdogMs", spec.lease.watchdog_ms),
        ("lease.ioMs", spec.lease.io_ms),
        ("lease.marginMs", spec.lease.margin_ms),
        ("lease.reconnectMs", spec.lease.reconnect_ms),
        ("leader.leaseMs", spec.leader.lease_ms),
        ("leader.renewMs", spec.leader.renew_ms),
        ("leader.retryMs", spec.leader.retry_ms),
        ("storm.burstMs", spec.storm.burst_ms),
        ("storm.windowMs", spec.storm.window_ms),
        ("storm.calmMs", spec.storm.calm_ms),
        ("fencing.retryFirstMs", spec.fencing.retry_first_ms),
        ("fencing.retryMaxMs", spec.fencing.retry_max_ms),
        ("fencing.reminderMs", spec.fencing.reminder_ms),
        ("fencing.statusMs", spec.fencing.status_ms),
        ("recovery.retryMs", spec.recovery.retry_ms),
        ("recovery.restartTimeoutMs", spec.recovery.restart_timeout_ms),
        ("recovery.quarantineMs", spec.recovery.quarantine_ms),
        ("evacuation.holdMs", spec.evacuation.hold_ms),
    ];
    for (name, value) in times {
        range(name, value, 1, DAY_MS, "a time-out of nothing or of more than a day is a mistake")?;
    }
    range(
        "leader.leaseMs",
        spec.leader.lease_ms,
        1,
        LEADER_LEASE_MAX_MS,
        "a leader that died is missed for as long, and one whose Lease was deleted for as long as any may count",
    )?;
    range(
        "fencing.timeoutMs",
        spec.fencing.timeout_ms,
        1_000,
        DAY_MS,
        "a management controller needs about a second to answer, so that every run would fail",
    )?;
    let beat = spec.detection.beat_ms.unwrap_or(1_000);
    range(
        "detection.beatMs",
        beat,
        50,
        60_000,
        "faster beats only measure the scheduler, slower ones nothing",
    )?;
    let probe = spec.detection.probe_timeout_ms.unwrap_or(1_000);
    range("detection.probeTimeoutMs", probe, 50, 60_000, "a busy node needs tens of milliseconds to answer")?;
    let missed = spec.detection.missed_beats.unwrap_or(3);
    range("detection.missedBeats", missed, 2, 100, "one late beat says nothing")?;
    if spec.evacuation.disruption == Disruption::Window {
        return Err(PolicyError::NoWindow);
    }
    let drift = spec.lease.drift_percent;
    if !(0.0..=10.0).contains(&drift) {
        let why = "clocks that differ more are broken";
        return Err(PolicyError::Range {
            name: "lease.driftPercent",
            value: drift,
            min: 0.0,
            max: 10.0,
            why,
        });
    }
    if !spec.lease.watchdog_ms.is_multiple_of(1_000) {
        let value = f64::from(u32::try_from(spec.lease.watchdog_ms).unwrap_or(u32::MAX));
        let why = "watchdogs count whole seconds, and drivers round what they are given";
        return Err(PolicyError::Range {
            name: "lease.watchdogMs",
            value,
            min: 1_000.0,
            max: 86_400_000.0,
            why,
        });
    }
    range("storm.burstNodes", spec.storm.burst_nodes, 2, 10_000, "one node is no storm")?;
    range("storm.windowPercent", spec.storm.window_percent, 1, 100, "it is a share of the nodes")?;
    range("fencing.attemptsMax", spec.fencing.attempts_max, 1, 100, "somebody must be told at some time")?;
    range("recovery.attemptsMax", spec.recovery.attempts_max, 1, 100, "somebody must be told at some time")?;
    range("recovery.concurrentMax", spec.recovery.concurrent_max, 1, 1_000, "none would never end")?;
    range("evacuation.concurrentMax", spec.evacuation.concurrent_max, 1, 100, "none would never end")?;
    range("evacuation.guardPercent", spec.evacuation.guard_percent, 1, 100, "it is a share of the disks")?;
    range("evacuation.sourcesMin", spec.evacuation.sources_min, 1, 10, "there must be a reason")?;
    let rates = [
        ("copies.nodeMibPerS", spec.copies.node_mib_per_s),
        ("copies.copyMibPerS", spec.copies.copy_mib_per_s),
    ];
    let said = rates.into_iter().filter_map(|(name, rate)| Some((name, rate?)));
    for (name, rate) in said {
        let why = "a chunk of 1 MiB that takes longer than seconds counts as a copy that stands still";
        range(name, rate, 1, 100_000, why)?;
    }
    Ok(())
}

fn check_detection(limits: &Limits) -> Result<(), PolicyError> {
    let detection = &limits.detection;
    shorter(
        ("detection.missedBeats * detection.beatMs", detection.suspect()),
        ("detection.declareMs", detection.declare),
        "a node must be suspect before it is declared",
    )?;
    shorter(
        ("suspicion and detection.probeTimeoutMs", detection.suspect() + detection.probe_deadline()),
        ("detection.declareMs", detection.declare),
        "the probes sent on suspicion must have been answered before the verdict",
    )?;
    shorter(
        ("detection.declareMs", detection.declare),
        ("lease.leaseMs", limits.lease.lease),
        "a node whose lease runs out before it is even declared would fence itself for nothing",
    )?;
    shorter(
        ("storm.burstMs", limits.storm.burst),
        ("storm.windowMs", limits.storm.window),
        "the burst is the short window of the two",
    )
}

fn check_leases(limits: &Limits, spec: &PolicySpec) -> Result<(), PolicyError> {
    let leader = &limits.leader;
    shorter(
        ("leader.retryMs", leader.retry),
        ("leader.renewMs", leader.renew),
        "a leader must be able to try again before it gives up",
    )?;
    let drift = (1.0 + limits.lease.drift) / (1.0 - limits.lease.drift);
    shorter(
        ("leader.renewMs, on the slowest clock", leader.renew.mul_f64(drift)),
        ("leader.leaseMs", leader.lease),
        "the old leader must have given up before a new one takes over",
    )?;
    let handover = leader.lease + 2 * leader.retry + Duration::from_millis(spec.lease.reconnect_ms);
    at_most(
        ("leader.leaseMs + 2 * leader.retryMs + lease.reconnectMs", handover),
        ("lease.leaseMs", limits.lease.lease),
        "a change of leader must not let the leases of healthy nodes run out",
    )
}

fn check_waits(limits: &Limits) -> Result<(), PolicyError> {
    at_most(
        ("fencing.retryFirstMs", limits.fencing.retry_first),
        ("fencing.retryMaxMs", limits.fencing.retry_max),
        "the waits between runs of a fence agent grow",
    )?;
    at_most(
        ("detection.declareMs", limits.detection.declare),
        ("recovery.quarantineMs", limits.recovery.quarantine),
        "a node that came back must be watched at least as long as it takes to miss it",
    )
}

fn shorter(
    smaller: (&'static str, Duration),
    larger: (&'static str, Duration),
    why: &'static str,
) -> Result<(), PolicyError> {
    relation(smaller.1 < larger.1, smaller, "be shorter than", larger, why)
}

fn at_most(
    smaller: (&'static str, Duration),
    larger: (&'static str, Duration),
    why: &'static str,
) -> Result<(), PolicyError> {
    relation(smaller.1 <= larger.1, smaller, "not be longer than", larger, why)
}

fn relation(
    holds: bool,
    (smaller, time): (&'static str, Duration),
    rule: &'static str,
    (larger, limit): (&'static str, Duration),
    why: &'static str,
) -> Result<(), PolicyError> {
    if holds {
        return Ok(());
    }
    let (smaller_ms, larger_ms) = (time.as_millis(), limit.as_millis());
    Err(PolicyError::Relation { smaller, smaller_ms, rule, larger, larger_ms, why })
}

fn range<T>(name: &'static str, value: T, min: T, max: T, why: &'static str) -> Result<(), PolicyError>
where
    T: Copy + PartialOrd + TryInto<u32>,
{
    if value >= min && value <= max {
        return Ok(());
    }
    // A value beyond u32 is far beyond every maximum; the message shows the largest number that it can.
    let shown = |number: T| f64::from(number.try_into().unwrap_or(u32::MAX));
    Err(PolicyError::Range { name, value: shown(value), min: shown(min), max: shown(max), why })
}
