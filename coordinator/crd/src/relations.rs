//! Relations between the values of a `RecoveryPolicy`, as rules that the API server checks.
//!
//! A value that is absent counts as what the coordinator takes for it, so a rule sees what the coordinator would
//! see. The coordinator checks the same relations again when it reads the object (`Policy::try_from`): an API
//! server that checks no rules must not be able to make it follow a policy that cannot hold. A test on a real API
//! server compares the two.
//!
//! The rules use nothing newer than the first version of Kubernetes that knows them (1.25).

use kube::core::Rule;

/// Where profiles differ: `(safe, fast)`.
const BEAT_MS: (u64, u64) = (1_000, 200);
const DECLARE_MS: (u64, u64) = (5_000, 1_000);
const PROBE_MS: (u64, u64) = (1_500, 300);

/// A node is suspect before it is declared.
pub fn suspect_before_declared() -> Rule {
    let rule = format!("{} < {}", suspect(), declare());
    Rule::new(rule).message(
        "detection.missedBeats * detection.beatMs must be shorter than detection.declareMs: a node must be \
         suspect before it is declared",
    )
}

/// Probes, and an eighth of their time for the way there and back, have ended before the verdict.
pub fn probed_before_declared() -> Rule {
    let probe = detection("probeTimeoutMs", PROBE_MS);
    let rule = format!("{} * 8 + {probe} * 9 < {} * 8", suspect(), declare());
    Rule::new(rule).message(
        "detection.missedBeats * detection.beatMs and 9/8 of detection.probeTimeoutMs together must be shorter \
         than detection.declareMs: the probes sent on suspicion must have been answered before the verdict",
    )
}

/// A lease outlives the verdict.
pub fn declared_before_the_lease_ends() -> Rule {
    let rule = format!("{} < {}", declare(), number("lease", "leaseMs", 30_000));
    Rule::new(rule).message(
        "detection.declareMs must be shorter than lease.leaseMs: a node whose lease runs out before it is even \
         declared would fence itself for nothing",
    )
}

/// The burst is the shorter window.
pub fn burst_within_window() -> Rule {
    let rule = format!("{} < {}", number("storm", "burstMs", 2_000), number("storm", "windowMs", 60_000));
    Rule::new(rule).message(
        "storm.burstMs must be shorter than storm.windowMs: the burst is the short window of the two",
    )
}

/// A leader can try again before it gives up.
pub fn retry_before_giving_up() -> Rule {
    let rule = format!("{} < {}", number("leader", "retryMs", 2_000), renew());
    Rule::new(rule).message(
        "leader.retryMs must be shorter than leader.renewMs: a leader must be able to try again before it gives up",
    )
}

/// The old leader has given up, by the slowest clock, before another takes over.
pub fn give_up_before_the_takeover() -> Rule {
    let drift = "(has(self.lease) && has(self.lease.driftPercent) ? self.lease.driftPercent : 1.0)";
    let lease = number("leader", "leaseMs", 15_000);
    let rule = format!("double({}) * (100.0 + {drift}) < double({lease}) * (100.0 - {drift})", renew());
    Rule::new(rule).message(
        "leader.renewMs, on a clock that is slower by lease.driftPercent, must be shorter than leader.leaseMs: the \
         old leader must have given up before a new one takes over",
    )
}

/// The leases of healthy nodes survive a change of leader.
pub fn leases_survive_a_takeover() -> Rule {
    let rule = format!(
        "{} + 2 * {} + {} <= {}",
        number("leader", "leaseMs", 15_000),
        number("leader", "retryMs", 2_000),
        number("lease", "reconnectMs", 5_000),
        number("lease", "leaseMs", 30_000),
    );
    Rule::new(rule).message(
        "leader.leaseMs + 2 * leader.retryMs + lease.reconnectMs must not be longer than lease.leaseMs: a change of \
         leader must not let the leases of healthy nodes run out",
    )
}

/// The waits between runs of a fence agent grow.
pub fn waits_grow() -> Rule {
    let first = number("fencing", "retryFirstMs", 2_000);
    let rule = format!("{first} <= {}", number("fencing", "retryMaxMs", 60_000));
    Rule::new(rule).message(
        "fencing.retryFirstMs must not be longer than fencing.retryMaxMs: the waits between runs of a fence agent \
         grow",
    )
}

/// A returned node is watched for as long as it takes to miss it.
pub fn watched_long_enough() -> Rule {
    let rule = format!("{} <= {}", declare(), number("recovery", "quarantineMs", 60_000));
    Rule::new(rule).message(
        "detection.declareMs must not be longer than recovery.quarantineMs: a node that came back must be watched at \
         least as long as it takes to miss it",
    )
}

fn suspect() -> String {
    format!("{} * {}", detection("beatMs", BEAT_MS), number("detection", "missedBeats", 3))
}

fn declare() -> String {
    detection("declareMs", DECLARE_MS)
}

fn renew() -> String {
    number("leader", "renewMs", 10_000)
}

/// A value whose default is the profile's.
fn detection(field: &str, (safe, fast): (u64, u64)) -> String {
    either("detection", field, &format!("(has(self.profile) && self.profile == 'Fast' ? {fast} : {safe})"))
}

/// A value with one default.
fn number(section: &str, field: &str, default: u64) -> String {
    either(section, field, &default.to_string())
}

fn either(section: &str, field: &str, otherwise: &str) -> String {
    let value = format!("self.{section}.{field}");
    format!("(has(self.{section}) && has({value}) ? {value} : {otherwise})")
}
