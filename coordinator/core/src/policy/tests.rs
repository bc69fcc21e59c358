//! Relations between limits.

use proptest::prelude::*;

use super::*;

fn fast() -> PolicySpec {
    PolicySpec { profile: Profile::Fast, ..PolicySpec::default() }
}

#[test]
fn both_profiles_hold() {
    let safe = Policy::default();
    assert_eq!(safe.detection.suspect(), Duration::from_secs(3));
    assert_eq!(safe.detection.declare, Duration::from_secs(5));
    let fast = Policy::try_from(fast()).expect("holds");
    assert_eq!(fast.detection.suspect(), Duration::from_millis(600));
    assert_eq!(fast.detection.declare, Duration::from_secs(1));
    assert_eq!(fast.lease, safe.lease);
    assert!(fast.watchdog_fencing.is_empty());
}

#[test]
fn declaring_sooner_than_suspecting_names_both_values() {
    let mut spec = fast();
    spec.detection.declare_ms = Some(500);
    let said = Policy::try_from(spec).expect_err("500 < 600").to_string();
    assert!(said.contains("detection.declareMs (500 ms)") && said.contains("(600 ms)"), "{said}");
}

#[test]
fn a_lease_shorter_than_a_handover_of_the_leader_is_refused() {
    let mut spec = PolicySpec::default();
    spec.lease.lease_ms = 20_000;
    let said = Policy::try_from(spec).expect_err("20 s < 24 s").to_string();
    assert!(said.contains("lease.leaseMs (20000 ms)"), "{said}");
    assert!(said.contains("(24000 ms)"), "{said}");
}

#[test]
fn a_leader_that_outlives_its_lease_is_refused() {
    let mut spec = PolicySpec::default();
    spec.leader.renew_ms = 14_900; // shorter than 15 s, but not on a clock that is 2 % slower
    assert!(matches!(Policy::try_from(spec), Err(PolicyError::Relation { larger: "leader.leaseMs", .. })));
}

#[test]
fn a_policy_has_no_window() {
    let mut spec = PolicySpec::default();
    spec.evacuation.disruption = Disruption::Window;
    assert!(matches!(Policy::try_from(spec), Err(PolicyError::NoWindow)));
}

#[test]
fn a_watchdog_counts_whole_seconds() {
    let mut spec = PolicySpec::default();
    spec.lease.watchdog_ms = 1_500;
    assert!(matches!(Policy::try_from(spec), Err(PolicyError::Range { name: "lease.watchdogMs", .. })));
}

#[test]
fn a_file_says_it_in_camel_case_and_unknown_fields_are_refused() {
    let spec: PolicySpec =
        serde_json::from_str(r#"{"profile":"fast","fencing":{"nodes":["n1"]},"storm":{"calmMs":5}}"#)
            .expect("reads");
    assert_eq!(spec.profile, Profile::Fast);
    assert!(spec.fencing.nodes.contains(&NodeName::from("n1")));
    assert_eq!((spec.storm.calm_ms, spec.storm.burst_nodes), (5, 3));
    assert!(serde_json::from_str::<PolicySpec>(r#"{"profil":"fast"}"#).is_err());
    assert!(serde_json::from_str::<PolicySpec>(r#"{"watchdogFencing":["n1"]}"#).is_err());
}

#[test]
fn the_hash_tells_leases_apart() {
    let mut spec = PolicySpec::default();
    spec.lease.lease_ms += 1;
    assert_ne!(Policy::try_from(spec).expect("holds").lease_hash(), Policy::default().lease_hash());
}

proptest! {
    /// Whatever numbers are given: a policy that can be built keeps every relation.
    #[test]
    fn what_can_be_built_holds(
        beat in 0..3_000u64, missed in 0..10u32, declare in 0..20_000u64, probe in 0..3_000u64,
        lease in 0..60_000u64, leader in 0..30_000u64, renew in 0..30_000u64, retry in 0..10_000u64,
    ) {
        let spec = PolicySpec {
            detection: DetectionSpec {
                beat_ms: Some(beat), missed_beats: Some(missed), declare_ms: Some(declare),
                probe_timeout_ms: Some(probe), goodbye_ms: None,
            },
            lease: LeaseSpec { lease_ms: lease, ..LeaseSpec::default() },
            leader: LeaderSpec { lease_ms: leader, renew_ms: renew, retry_ms: retry },
            ..PolicySpec::default()
        };
        if let Ok(policy) = Policy::try_from(spec) {
            prop_assert!(policy.detection.suspect() + policy.detection.probe_timeout < policy.detection.declare);
            prop_assert!(policy.leader.retry < policy.leader.renew && policy.leader.renew < policy.leader.lease);
            prop_assert!(policy.lease.lease >= policy.leader.lease + 2 * policy.leader.retry);
        }
    }
}

#[test]
fn a_running_coordinator_takes_over_everything_but_leases_and_leadership() {
    let running = Policy::default();
    let mut spec = PolicySpec { profile: Profile::Fast, ..PolicySpec::default() };
    spec.recovery.concurrent_max = 3;
    spec.fencing.nodes = ["n1".into()].into();
    spec.lease.lease_ms = 60_000;
    spec.leader.lease_ms = 20_000;
    let newer = Policy::try_from(spec).unwrap();
    let (adopted, kept) = running.adopt(&newer).unwrap();
    assert_eq!(kept, ["lease", "leader"]);
    assert_eq!((&adopted.lease, &adopted.leader), (&running.lease, &running.leader));
    assert_eq!((&adopted.detection, &adopted.fencing), (&newer.detection, &newer.fencing));
    assert_eq!(adopted.recovery.concurrent_max, 3);
}

#[test]
fn what_contradicts_the_lease_that_stays_is_refused() {
    let mut spec = PolicySpec::default();
    spec.lease.lease_ms = 90_000;
    spec.detection.declare_ms = Some(45_000);
    let newer = Policy::try_from(spec).unwrap();
    let error = Policy::default().adopt(&newer).unwrap_err();
    assert!(error.to_string().contains("detection.declareMs (45000 ms)"), "{error}");
}
