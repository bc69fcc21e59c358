//! Each state and each way out of it, seen from outside.

use std::time::Duration;

use crate::coordinator::testkit::{Bench, boot, fast};
use crate::io::{Effect, Input, Reachability};
use crate::names::NodeName;
use crate::policy::PolicySpec;
use crate::view::{Milestone, NodeState};

const SILENT: (Reachability, Reachability) = (Reachability::Silent, Reachability::Silent);

fn fleet() -> Bench {
    Bench::new(fast(&[]))
}

#[test]
fn a_silent_node_is_declared_within_1200_ms_of_its_last_beat() {
    let mut bench = fleet();
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    let timeline = bench.view().nodes[&NodeName::from("n1")].timeline.clone();
    let at = |what| timeline.iter().find(|(milestone, _)| *milestone == what).expect("there").1;
    assert!(
        at(Milestone::Declared) <= at(Milestone::LastBeat) + Duration::from_millis(1_200),
        "{timeline:?}"
    );
    assert!(at(Milestone::Suspected) >= at(Milestone::LastBeat) + Duration::from_millis(600), "{timeline:?}");
}

#[test]
fn the_safe_profile_takes_its_time() {
    let mut bench = Bench::new(PolicySpec::default());
    bench.silence(&["n1"]);
    bench.run_ms(3_500);
    assert_eq!(bench.state("n1"), NodeState::Suspect);
    bench.run_ms(3_000);
    assert_eq!(bench.state("n1"), NodeState::AwaitingProof);
}

#[test]
fn a_beat_ends_suspicion() {
    let mut bench = fleet();
    bench.silence(&["n1"]);
    bench.run_ms(800);
    assert_eq!(bench.state("n1"), NodeState::Suspect);
    bench.beat("n1", 1);
    bench.run_ms(300);
    assert_eq!(bench.state("n1"), NodeState::Healthy);
    assert_eq!(bench.notices("NodeUnreachable"), 0);
}

#[test]
fn a_suspect_and_three_peers_are_probed_but_no_suspect_is_asked() {
    let mut bench = fleet();
    bench.silence(&["n1"]);
    bench.run_ms(900);
    let probes: Vec<String> = bench
        .effects
        .iter()
        .filter_map(|(_, effect)| match effect {
            Effect::Probe { by, .. } => Some(format!("{by:?}")),
            _ => None,
        })
        .collect();
    assert_eq!(probes.len(), 4, "{probes:?}");
    assert!(probes.iter().all(|by| !by.contains("n1")), "{probes:?}");
}

#[test]
fn a_living_kernel_is_no_node_death_until_it_falls_silent_too() {
    for reach in [(Reachability::Kernel, Reachability::Silent), (Reachability::Silent, Reachability::Kernel)]
    {
        let mut bench = fleet();
        bench.reach.insert("n1".into(), reach);
        bench.silence(&["n1"]);
        bench.run_ms(20_000);
        assert_eq!(bench.state("n1"), NodeState::AgentSilent);
        assert_eq!(bench.notices("AgentSilent"), 1, "on the transition only");
        bench.reach.insert("n1".into(), SILENT);
        bench.run_ms(3_000);
        assert_eq!(bench.state("n1"), NodeState::AwaitingProof);
    }
}

#[test]
fn a_node_that_its_peers_reach_is_partitioned_until_they_lose_it() {
    let mut bench = fleet();
    bench.reach.insert("n1".into(), (Reachability::Silent, Reachability::Agent));
    bench.silence(&["n1"]);
    bench.run_ms(5_000);
    assert_eq!(bench.state("n1"), NodeState::Partitioned);
    bench.beat("n1", 1);
    bench.run_ms(300);
    assert_eq!(bench.state("n1"), NodeState::Healthy);
    bench.silence(&["n1"]);
    bench.run_ms(5_000);
    bench.reach.insert("n1".into(), SILENT);
    bench.run_ms(3_000);
    assert_eq!(bench.state("n1"), NodeState::AwaitingProof);
}

#[test]
fn a_kubelet_that_renews_its_lease_after_the_suspicion_is_alive_until_it_stops() {
    let mut bench = fleet();
    bench.silence(&["n1"]);
    bench.run_ms(800);
    bench.give(Input::KubeletRenewed { node: "n1".into() });
    bench.run_ms(5_000);
    assert_eq!(bench.state("n1"), NodeState::AgentSilent);
    bench.run_ms(20_000);
    assert_eq!(bench.state("n1"), NodeState::AwaitingProof);
}

#[test]
fn a_kubelet_lease_renewed_before_the_suspicion_says_nothing() {
    let mut bench = fleet();
    bench.silence(&["n1"]);
    bench.run_ms(200);
    bench.give(Input::KubeletRenewed { node: "n1".into() });
    bench.run_ms(1_500);
    assert_eq!(bench.state("n1"), NodeState::AwaitingProof);
}

#[test]
fn three_nodes_at_once_are_a_storm_in_which_nobody_is_declared() {
    let mut bench = Bench::new(fast(&["n1", "n3", "n5"]));
    bench.silence(&["n1", "n3", "n5"]);
    bench.run_ms(600_000);
    for node in ["n1", "n3", "n5"] {
        assert_eq!(bench.state(node), NodeState::StormHold);
    }
    assert!(bench.view().storm_hold.is_some());
    assert_eq!(bench.notices("StormHold"), 1);
    assert_eq!(bench.count(|effect| matches!(effect, Effect::RunFence { .. })), 0);
}

#[test]
fn a_whole_zone_is_a_storm() {
    let mut bench = fleet();
    bench.silence(&["n3", "n4"]);
    bench.run_ms(5_000);
    assert_eq!(bench.state("n3"), NodeState::StormHold);
}

#[test]
fn two_of_six_within_a_minute_are_more_than_a_fifth() {
    let mut bench = fleet();
    bench.silence(&["n1"]);
    bench.run_ms(20_000);
    assert_eq!(bench.state("n1"), NodeState::AwaitingProof);
    bench.silence(&["n3"]);
    bench.run_ms(20_000);
    assert_eq!(bench.state("n3"), NodeState::StormHold);
    bench.run_ms(30_000);
    assert_eq!(bench.state("n3"), NodeState::AwaitingProof, "one suspect for 30 s is calm");
}

#[test]
fn a_storm_ends_when_the_suspects_are_few_for_30_s() {
    let mut bench = fleet();
    bench.silence(&["n1", "n3", "n5"]);
    bench.run_ms(5_000);
    bench.beat("n3", 1);
    bench.beat("n5", 1);
    bench.run_ms(20_000);
    assert_eq!((bench.state("n1"), bench.state("n3")), (NodeState::StormHold, NodeState::Healthy));
    bench.run_ms(12_000);
    assert_eq!(bench.state("n1"), NodeState::AwaitingProof);
    assert_eq!(bench.notices("StormHoldOver"), 1);
}

#[test]
fn a_person_releases_a_storm_hold_and_it_does_not_begin_anew() {
    let mut bench = fleet();
    bench.requests.hold_release = Some("last year".to_owned());
    bench.show_requests();
    bench.silence(&["n1", "n3", "n5"]);
    bench.run_ms(5_000);
    assert_eq!(bench.state("n1"), NodeState::StormHold, "an old word releases nothing");
    bench.requests.hold_release = Some("now".to_owned());
    bench.show_requests();
    bench.run_ms(3_000);
    for node in ["n1", "n3", "n5"] {
        assert_eq!(bench.state(node), NodeState::AwaitingProof);
    }
}

#[test]
fn a_proof_by_others_leads_out_of_a_storm() {
    let mut bench = fleet();
    bench.silence(&["n1", "n3", "n5"]);
    bench.run_ms(5_000);
    bench.attest("n1", 1, "eve");
    bench.run_ms(1_000);
    assert_eq!(bench.state("n1"), NodeState::Recovering);
    assert_eq!(bench.state("n3"), NodeState::StormHold);
}

#[test]
fn a_goodbye_excuses_silence_for_a_while() {
    let mut bench = fleet();
    bench.give(Input::Goodbye { node: "n1".into(), boot_id: boot("n1", 1) });
    bench.silence(&["n1"]);
    bench.run_ms(119_000);
    assert_eq!(bench.state("n1"), NodeState::Healthy);
    bench.run_ms(5_000);
    assert_eq!(bench.state("n1"), NodeState::AwaitingProof);
}

#[test]
fn a_new_leader_and_a_stall_start_the_timers_anew() {
    let mut bench = fleet();
    bench.silence(&["n1"]);
    bench.run_ms(700);
    bench.lead(2);
    bench.run_ms(900);
    assert_eq!(bench.state("n1"), NodeState::Suspect);
    bench.give(Input::Stalled(Duration::from_secs(3)));
    assert_eq!(bench.state("n1"), NodeState::Healthy);
    bench.run_ms(900);
    assert_eq!(bench.state("n1"), NodeState::Suspect);
    bench.run_ms(300);
    assert_eq!(bench.state("n1"), NodeState::AwaitingProof);
}

#[test]
fn a_node_without_an_agent_or_without_an_object_is_never_judged() {
    let mut bench = fleet();
    bench.fleet.nodes.insert("quiet".into(), crate::decision::testkit::node("quiet", "z"));
    bench.beat("ghost", 1);
    bench.show_fleet();
    bench.run_ms(1_000);
    bench.silence(&["ghost"]);
    bench.run_ms(60_000);
    assert_eq!(bench.state("quiet"), NodeState::NoAgent);
    assert_eq!(bench.notices("NodeSuspect"), 0);
}

#[test]
fn a_follower_says_and_does_nothing() {
    let mut bench = fleet();
    bench.give(Input::Deposed);
    bench.effects.clear();
    bench.silence(&["n1", "n3"]);
    bench.run_ms(60_000);
    assert!(bench.effects.is_empty(), "{:?}", bench.effects);
}

#[test]
fn beats_are_granted_by_the_leader_only() {
    let mut bench = fleet();
    bench.effects.clear();
    bench.run_ms(1_000);
    assert_eq!(bench.count(|effect| matches!(effect, Effect::Grant { .. })), 30);
}
