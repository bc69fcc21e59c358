//! Each state and each way out of it, seen from outside.

use std::time::Duration;

use crate::coordinator::testkit::{Bench, boot, fast};
use crate::fencing::agents::FenceAnswer;
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
fn an_agent_that_answers_and_then_beats_again_is_no_silent_agent_worth_an_event() {
    let mut bench = fleet();
    bench.reach.insert("n1".into(), (Reachability::Agent, Reachability::Agent));
    bench.silence(&["n1"]);
    while bench.state("n1") != NodeState::AgentSilent {
        bench.run_ms(50);
    }
    bench.beat("n1", 1);
    bench.run_ms(300);
    assert_eq!(bench.state("n1"), NodeState::Healthy);
    assert_eq!((bench.notices("AgentSilent"), bench.notices("SuspicionEnded")), (0, 1));
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

/// A coordinator that starts when n1 is dead already, with or without a word of an earlier one.
fn cold(known: &[&str]) -> Bench {
    let mut bench = Bench::cold(fast(&[]));
    for &node in known {
        bench.fleet.agents_seen.insert(node.into(), boot(node, 1));
    }
    bench.silence(&["n1"]);
    bench.show_fleet();
    bench.show_requests();
    bench.lead(1);
    bench
}

#[test]
fn a_node_that_died_before_we_started_is_declared_if_its_agent_was_ever_heard() {
    let mut bench = cold(&["n1", "n2"]);
    bench.run_ms(29_000);
    assert_eq!((bench.state("n1"), bench.state("n2")), (NodeState::NoAgent, NodeState::Healthy));
    bench.run_ms(3_000);
    assert_eq!(bench.state("n1"), NodeState::AwaitingProof);
    assert_eq!(bench.notices("NodeSuspect"), 1);
    bench.attest("n1", 1, "eve");
    bench.run_ms(500);
    assert_eq!(bench.deleted(), ["virt-launcher-net".to_owned()].into());
}

#[test]
fn a_node_without_an_agent_ever_is_never_declared_after_a_cold_start_either() {
    let mut bench = cold(&["n2"]);
    bench.run_ms(600_000);
    assert_eq!(bench.state("n1"), NodeState::NoAgent);
    assert_eq!(bench.notices("NodeSuspect"), 0);
}

#[test]
fn a_kernel_that_answers_contradicts_the_silence_of_an_expected_agent() {
    let mut bench = cold(&["n1"]);
    bench.reach.insert("n1".into(), (Reachability::Kernel, Reachability::Silent));
    bench.run_ms(60_000);
    assert_eq!(bench.state("n1"), NodeState::AgentSilent);
    bench.reach.insert("n1".into(), SILENT);
    bench.give(Input::KubeletRenewed { node: "n1".into() });
    bench.run_ms(10_000);
    assert_eq!(bench.state("n1"), NodeState::AgentSilent, "its kubelet renews its lease");
    bench.run_ms(20_000);
    assert_eq!(bench.state("n1"), NodeState::AwaitingProof);
}

#[test]
fn a_follower_that_never_heard_an_agent_expects_it_anew_when_it_leads() {
    let mut bench = cold(&["n1"]);
    bench.give(Input::Deposed);
    bench.run_ms(100_000);
    bench.lead(2);
    bench.run_ms(29_000);
    assert_eq!(bench.state("n1"), NodeState::NoAgent);
    bench.run_ms(3_000);
    assert_eq!(bench.state("n1"), NodeState::AwaitingProof);
}

#[test]
fn an_expected_agent_that_beats_in_another_boot_is_healthy() {
    let mut bench = cold(&["n1"]);
    bench.run_ms(1_000);
    bench.beat("n1", 2);
    bench.run_ms(1_000);
    assert_eq!(bench.state("n1"), NodeState::Healthy);
    assert_eq!(bench.notices("SuspicionEnded"), 0, "nothing was suspected");
}

#[test]
fn a_node_that_booted_after_its_last_known_beat_is_not_taken_for_dead_in_that_boot() {
    let mut bench = cold(&["n1"]);
    bench.status_boot("n1", 2);
    bench.run_ms(40_000);
    bench.attest("n1", 1, "eve");
    bench.run_ms(5_000);
    assert!(bench.deleted().is_empty(), "its VMs may run in the boot that its Node object names");
}

#[test]
fn a_kubelet_that_is_killed_is_nothing_while_the_agent_beats() {
    let mut bench = Bench::new(fast(&["n1"]));
    // A fence agent that answers not is told of, which is no business of this test.
    bench.status.insert("n1".into(), FenceAnswer::On);
    bench.fleet.nodes.get_mut(&NodeName::from("n1")).expect("there").ready = false;
    bench.show_fleet();
    bench.run_ms(600_000);
    assert_eq!(bench.state("n1"), NodeState::Healthy);
    assert_eq!(bench.count(|effect| matches!(effect, Effect::Notify(_) | Effect::Act(_))), 0);
}

#[test]
fn an_agent_that_is_killed_is_an_alarm_and_no_death() {
    let mut bench = Bench::new(fast(&["n1"]));
    bench.reach.insert("n1".into(), (Reachability::Kernel, Reachability::Kernel));
    bench.silence(&["n1"]);
    for _ in 0..30 {
        bench.run_ms(10_000);
        bench.give(Input::KubeletRenewed { node: "n1".into() });
    }
    assert_eq!(bench.state("n1"), NodeState::AgentSilent);
    assert_eq!(bench.count(|effect| matches!(effect, Effect::RunFence { .. } | Effect::Commit(_))), 0);
}

#[test]
fn packets_lost_on_the_way_to_us_only_are_a_partition() {
    // Its beats do not arrive, and neither does its answer to our probe; its peers speak with it.
    let mut bench = Bench::new(fast(&["n1"]));
    bench.reach.insert("n1".into(), (Reachability::Silent, Reachability::Agent));
    bench.silence(&["n1"]);
    bench.run_ms(600_000);
    assert_eq!(bench.state("n1"), NodeState::Partitioned);
    assert_eq!(bench.count(|effect| matches!(effect, Effect::RunFence { .. } | Effect::Commit(_))), 0);
    bench.beat("n1", 1);
    bench.run_ms(500);
    assert_eq!(bench.state("n1"), NodeState::Healthy);
}

#[test]
fn a_frozen_userland_whose_kernel_accepts_connections_is_no_death() {
    for seconds in [5, 60] {
        let mut bench = Bench::new(fast(&["n1"]));
        bench.reach.insert("n1".into(), (Reachability::Kernel, Reachability::Kernel));
        bench.silence(&["n1"]);
        bench.run_ms(seconds * 1_000);
        assert_eq!(bench.state("n1"), NodeState::AgentSilent);
        bench.beat("n1", 1);
        bench.run_ms(500);
        assert_eq!(bench.state("n1"), NodeState::Healthy);
        assert_eq!(bench.count(|effect| matches!(effect, Effect::Commit(_))), 0);
    }
}

#[test]
fn a_machine_that_stands_still_and_goes_on_is_healthy_if_no_power_order_was_given() {
    let mut bench = fleet();
    bench.silence(&["n1"]);
    bench.run_ms(60_000);
    assert_eq!(bench.state("n1"), NodeState::AwaitingProof);
    bench.beat("n1", 1);
    bench.run_ms(3_000);
    assert_eq!(bench.state("n1"), NodeState::Healthy);
    assert!(bench.deleted().is_empty() && !bench.is_tainted("n1"));
}

#[test]
fn all_nodes_cut_at_once_are_a_storm_and_none_of_them_is_fenced() {
    let all = ["n1", "n2", "n3", "n4", "n5", "n6"];
    let mut bench = Bench::new(fast(&all));
    bench.silence(&all);
    bench.run_ms(120_000);
    for node in all {
        assert_eq!(bench.state(node), NodeState::StormHold);
    }
    assert_eq!(bench.count(|effect| matches!(effect, Effect::RunFence { .. } | Effect::Commit(_))), 0);
    for node in all {
        bench.beat(node, 1);
    }
    bench.run_ms(40_000);
    assert_eq!((bench.state("n1"), bench.view().storm_hold), (NodeState::Healthy, None));
}

/// Three nodes, one of which takes the leader with it: the follower has heard every beat.
#[test]
fn in_a_cluster_of_three_the_follower_recovers_the_node_of_the_dead_leader() {
    let mut bench = Bench::cold(fast(&["n1"]));
    bench.fence.insert("n1".into(), crate::io::FenceResult::ConfirmedOff);
    for node in ["n4", "n5", "n6"] {
        bench.fleet.nodes.remove(&NodeName::from(node));
        bench.silence(&[node]);
    }
    bench.show_fleet();
    bench.run_ms(5_000);
    bench.silence(&["n1"]);
    bench.run_ms(15_000);
    assert!(bench.effects.is_empty(), "a follower waits for the lease");
    bench.lead(2);
    bench.run_ms(2_000);
    assert_eq!(bench.state("n1"), NodeState::Recovering);
    assert_eq!(bench.deleted(), ["virt-launcher-net".to_owned()].into());
}

#[test]
fn two_of_three_nodes_are_a_storm() {
    let mut bench = Bench::cold(fast(&[]));
    for node in ["n4", "n5", "n6"] {
        bench.fleet.nodes.remove(&NodeName::from(node));
        bench.silence(&[node]);
    }
    bench.show_fleet();
    bench.lead(1);
    bench.run_ms(2_000);
    bench.silence(&["n1"]);
    bench.run_ms(300);
    bench.silence(&["n3"]);
    bench.run_ms(20_000);
    assert_eq!(bench.state("n3"), NodeState::StormHold);
    assert!(bench.view().storm_hold.is_some());
}

#[test]
fn a_policy_with_faster_beats_suspects_nobody_before_agents_know_of_it() {
    let mut bench = Bench::new(PolicySpec::default());
    bench.run_ms(900);
    bench.give(Input::Policy(Box::new(fast(&[]).try_into().expect("it holds"))));
    bench.run_ms(1_000);
    assert_eq!(bench.c.policy().detection.beat, Duration::from_millis(200));
    assert_eq!((bench.notices("NodeSuspect"), bench.notices("PolicyChanged")), (0, 1));
    bench.silence(&["n1"]);
    bench.run_ms(1_500);
    assert_eq!(bench.state("n1"), NodeState::AwaitingProof, "declared by the new policy");
}

#[test]
fn a_policy_that_changes_what_only_a_restart_may_change_says_so_once() {
    let mut bench = fleet();
    let mut spec = fast(&[]);
    spec.lease.lease_ms = 60_000;
    for _ in 0..3 {
        bench.give(Input::Policy(Box::new(spec.clone().try_into().expect("it holds"))));
    }
    assert_eq!((bench.notices("PolicyNeedsRestart"), bench.notices("PolicyChanged")), (1, 0));
    assert_eq!(bench.c.policy().lease.lease, Duration::from_secs(30));
}

#[test]
fn a_word_on_a_storage_class_counts_for_vms_that_wait() {
    let mut bench = fleet();
    let volume = bench.fleet.volumes.get_mut(&"pv-net-data".into()).expect("there");
    volume.source = crate::decision::testkit::csi("nobody.knows.it");
    volume.class = "odd".to_owned();
    bench.show_fleet();
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    let decided =
        |bench: &Bench| bench.view().recoveries[&crate::decision::testkit::key("net")].decision.kind;
    assert_eq!(decided(&bench), crate::decision::DecisionKind::ManualRecovery);
    let mut spec = fast(&[]);
    spec.storage_classes =
        serde_json::from_value(serde_json::json!({ "odd": "Network" })).expect("a class override");
    bench.give(Input::Policy(Box::new(spec.try_into().expect("it holds"))));
    assert_eq!(decided(&bench), crate::decision::DecisionKind::Recreate);
}

/// An upgrade replaces every agent, which says goodbye, and beats again a moment later.
#[test]
fn a_goodbye_is_forgotten_with_the_next_beat() {
    let mut bench = Bench::new(fast(&[]));
    let said = |bench: &Bench| bench.view().nodes[&NodeName::from("n1")].message.clone();
    bench.give(Input::Goodbye { node: "n1".into(), boot_id: boot("n1", 1) });
    assert!(said(&bench).contains("goodbye"), "{}", said(&bench));
    bench.run_ms(1_000);
    assert_eq!(said(&bench), "beats arrive");
}
