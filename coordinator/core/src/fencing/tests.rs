//! Proofs and their rules, records and their order.

mod back;

use std::collections::BTreeMap;

use super::{FenceRecord, FenceStage, ProofKind};
use crate::coordinator::testkit::{Bench, boot, fast};
use crate::fleet::{CLOUD_SHUTDOWN_TAINT, OUT_OF_SERVICE_TAINT};
use crate::io::{Effect, FenceResult, Input, Order, Record, RecordKey};
use crate::names::NodeName;
use crate::policy::Policy;
use crate::view::Milestone::{
    Closed, Decided, Declared, FencingStarted, FirstAction, LastBeat, Proven, Returned, Settled, Suspected,
};
use crate::view::{Milestone, NodeState};

fn dead_n1(fence_agents: &[&str]) -> Bench {
    let mut bench = Bench::new(fast(fence_agents));
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    assert_eq!(bench.state("n1"), NodeState::AwaitingProof);
    bench
}

fn off(bench: &mut Bench) {
    bench.fence.insert("n1".into(), FenceResult::ConfirmedOff);
}

fn fail(bench: &mut Bench) {
    bench.fence.insert("n1".into(), FenceResult::Failed("no route to the BMC".to_owned()));
}

fn proof(bench: &Bench) -> Option<ProofKind> {
    bench.view().nodes[&NodeName::from("n1")].proof
}

fn stages(bench: &Bench) -> Vec<FenceStage> {
    let stage = |effect: &Effect| match effect {
        Effect::Commit(Record::Fence(FenceRecord { stage, .. })) => Some(stage.clone()),
        _ => None,
    };
    bench.effects.iter().filter_map(|(_, effect)| stage(effect)).collect()
}

fn runs(bench: &Bench) -> usize {
    bench.count(|effect| matches!(effect, Effect::RunFence { .. }))
}

#[test]
fn a_fence_agent_that_reads_back_off_proves_it() {
    let mut bench = Bench::new(fast(&["n1"]));
    off(&mut bench);
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    assert_eq!(proof(&bench), Some(ProofKind::PowerOffConfirmed));
    assert_eq!(
        stages(&bench),
        [
            FenceStage::Declared,
            FenceStage::PowerOrdered,
            FenceStage::Fenced { proof: ProofKind::PowerOffConfirmed }
        ]
    );
    assert_eq!(bench.state("n1"), NodeState::Recovering);
}

#[test]
fn nothing_happens_before_the_record_is_stored() {
    let mut bench = Bench::new(fast(&["n1"]));
    off(&mut bench);
    bench.store_answers = false;
    bench.silence(&["n1"]);
    bench.run_ms(60_000);
    assert_eq!(stages(&bench), [FenceStage::Declared]);
    assert_eq!(runs(&bench), 0);
    assert!(bench.deleted().is_empty() && !bench.is_tainted("n1"));
    bench.give(Input::Committed(RecordKey::Fence("n1".into())));
    assert!(bench.is_tainted("n1"));
    assert_eq!(runs(&bench), 0, "the power order is not stored yet");
    bench.give(Input::Committed(RecordKey::Fence("n1".into())));
    assert_eq!(runs(&bench), 1);
    bench.run_ms(600);
    assert!(bench.deleted().is_empty(), "the proof is not stored yet");
    bench.give(Input::Committed(RecordKey::Fence("n1".into())));
    assert_eq!(bench.deleted(), ["virt-launcher-net".to_owned()].into());
}

#[test]
fn a_refused_record_is_tried_again_after_a_while_and_nothing_is_done_before() {
    let mut bench = Bench::new(fast(&["n1"]));
    bench.store_answers = false;
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.give(Input::CommitRefused(RecordKey::Fence("n1".into())));
    bench.run_ms(1_000);
    assert_eq!(stages(&bench).len(), 1);
    bench.run_ms(2_000);
    assert_eq!(stages(&bench), [FenceStage::Declared, FenceStage::Declared]);
    assert_eq!(bench.notices("FenceRecordRefused"), 1);
    assert_eq!(runs(&bench), 0);
}

#[test]
fn a_failing_fence_agent_is_tried_again_with_growing_waits_and_people_are_told() {
    let mut bench = Bench::new(fast(&["n1"]));
    fail(&mut bench);
    bench.silence(&["n1"]);
    bench.run_ms(40_000);
    assert_eq!(runs(&bench), 5, "after 0, 2, 4, 8, 16 s");
    assert_eq!((bench.notices("FencingRunFailed"), bench.notices("FencingFails")), (4, 1));
    let said = &bench.view().nodes[&NodeName::from("n1")].message;
    assert!(said.contains("no route to the BMC") && said.contains("attest n1"), "{said}");
    bench.run_ms(200_000);
    assert_eq!(runs(&bench), 5);
    off(&mut bench);
    bench.run_ms(100_000);
    assert_eq!(proof(&bench), Some(ProofKind::PowerOffConfirmed), "one more run with the reminder");
}

#[test]
fn a_fence_agent_that_hangs_counts_as_failed() {
    let mut bench = dead_n1(&["n1"]);
    bench.run_ms(100_000);
    assert_eq!(bench.notices("FencingRunFailed"), 1);
    assert_eq!(runs(&bench), 2);
}

#[test]
fn the_end_of_a_run_of_another_epoch_proves_nothing() {
    let mut bench = dead_n1(&["n1"]);
    bench.lead(2);
    bench.give(Input::FenceEnded { node: "n1".into(), epoch: 1, result: FenceResult::ConfirmedOff });
    assert_eq!(proof(&bench), None);
    bench.give(Input::FenceEnded { node: "n1".into(), epoch: 2, result: FenceResult::ConfirmedOff });
    assert_eq!(proof(&bench), None, "nobody else has beaten since");
    bench.run_ms(600);
    assert_eq!(proof(&bench), Some(ProofKind::PowerOffConfirmed));
}

#[test]
fn taints_of_others_prove_it() {
    for (taint, kind) in [
        (CLOUD_SHUTDOWN_TAINT, ProofKind::CloudShutdown),
        (OUT_OF_SERVICE_TAINT, ProofKind::OutOfServiceByOthers),
    ] {
        let mut bench = dead_n1(&[]);
        bench.taint("n1", taint);
        assert_eq!(proof(&bench), Some(kind));
        assert_eq!(bench.deleted(), ["virt-launcher-net".to_owned()].into());
    }
}

#[test]
fn a_taint_left_over_from_another_time_proves_nothing() {
    let mut bench = Bench::new(fast(&[]));
    bench.taint("n1", OUT_OF_SERVICE_TAINT);
    bench.run_ms(500);
    bench.silence(&["n1"]);
    bench.run_ms(10_000);
    assert_eq!(proof(&bench), None);
    bench
        .fleet
        .nodes
        .get_mut(&NodeName::from("n1"))
        .expect("there")
        .taints
        .retain(|t| t.key != OUT_OF_SERVICE_TAINT);
    bench.show_fleet();
    bench.taint("n1", OUT_OF_SERVICE_TAINT);
    assert_eq!(proof(&bench), Some(ProofKind::OutOfServiceByOthers), "set anew since");
}

#[test]
fn a_taint_of_the_last_boot_proves_nothing_of_the_next() {
    let mut bench = dead_n1(&[]);
    bench.taint("n1", OUT_OF_SERVICE_TAINT);
    assert_eq!(proof(&bench), Some(ProofKind::OutOfServiceByOthers));
    bench.status_boot("n1", 2); // back, but its agent does not reach us
    assert_eq!(bench.state("n1"), NodeState::Quarantine);
    bench.run_ms(5_000);
    assert_eq!((proof(&bench), bench.state("n1")), (None, NodeState::AwaitingProof));
}

#[test]
fn a_taint_that_a_new_leader_finds_proves_nothing() {
    let mut bench = Bench::new(fast(&[]));
    bench.taint("n1", OUT_OF_SERVICE_TAINT);
    bench.run_ms(500);
    bench.silence(&["n1"]);
    bench.run_ms(3_000);
    let policy = bench.c.policy().clone();
    bench.c = crate::Coordinator::new(policy);
    bench.show_fleet();
    bench.lead(2);
    bench.run_ms(10_000);
    assert_eq!((proof(&bench), bench.state("n1")), (None, NodeState::AwaitingProof));
}

#[test]
fn a_persons_word_counts_for_the_boot_that_it_names() {
    let mut bench = dead_n1(&[]);
    bench.attest("n1", 0, "eve");
    assert_eq!(proof(&bench), None, "another boot");
    bench.attest("n1", 1, "eve");
    assert_eq!(proof(&bench), Some(ProofKind::HumanAttested));
}

/// A word given to a node that beats was about something else, however long it then stays silent in that boot.
#[test]
fn a_word_given_while_the_node_beats_never_counts() {
    let mut bench = dead_n1(&["n1"]);
    bench.beat("n1", 1); // a run is under way, so that it is not simply healthy again
    bench.run_ms(500);
    bench.attest("n1", 1, "eve");
    bench.run_ms(5_000);
    assert_eq!(proof(&bench), None);
    bench.silence(&["n1"]);
    bench.run_ms(60_000);
    assert_eq!(proof(&bench), None);
    assert_eq!(bench.notices("AttestationTooOld"), 1);
    bench.attest("n1", 1, "eve");
    bench.run_ms(1_000);
    assert_eq!(proof(&bench), Some(ProofKind::HumanAttested), "said again, it is another word");
}

#[test]
fn a_word_is_void_once_the_node_beats() {
    let mut bench = dead_n1(&[]);
    bench.cluster_answers = false;
    bench.attest("n1", 1, "eve");
    bench.beat("n1", 1);
    bench.run_ms(5_000);
    bench.silence(&["n1"]);
    bench.run_ms(10_000);
    assert_ne!(bench.state("n1"), NodeState::Recovering);

    // Nor does it for a leader that was not there when it was given.
    let mut bench = dead_n1(&[]);
    bench.give(Input::Deposed);
    bench.attest("n1", 1, "eve");
    bench.c = crate::Coordinator::new(bench.c.policy().clone());
    bench.show_fleet();
    bench.show_requests();
    bench.lead(2);
    bench.run_ms(60_000);
    assert_eq!((proof(&bench), bench.notices("AttestationTooOld")), (None, 1));
}

#[test]
fn a_fence_agent_that_switches_another_machine_is_found_out() {
    let mut bench = dead_n1(&["n1"]);
    bench.beat("n1", 1);
    bench.run_ms(500);
    bench.give(Input::FenceEnded { node: "n1".into(), epoch: 1, result: FenceResult::ConfirmedOff });
    bench.run_ms(3_000);
    assert_eq!(proof(&bench), None);
    assert_eq!(bench.notices("FencingRunFailed"), 1);
    assert!(bench.deleted().is_empty());
}

/// Every coordinator was started anew and one finds an order in a record: the node may have come back meanwhile.
#[test]
fn a_leader_that_has_heard_nobody_listens_before_it_switches_a_node_off() {
    for back in [true, false] {
        let mut bench = Bench::new(fast(&["n1"]));
        fail(&mut bench);
        bench.silence(&["n1"]);
        bench.run_ms(3_000);
        off(&mut bench);
        bench.restart();
        bench.effects.clear();
        bench.run_ms(20_000);
        assert_eq!(runs(&bench), 0);
        if back {
            bench.beat("n1", 1);
        }
        bench.run_ms(100_000);
        let (state, expected) = if back { (NodeState::Healthy, 0) } else { (NodeState::Recovering, 1) };
        assert_eq!((bench.state("n1"), runs(&bench)), (state, expected), "back: {back}");
    }
}

/// One that has listened as a follower loses no time.
#[test]
fn a_leader_that_has_heard_the_silence_goes_on_at_once() {
    let mut bench = Bench::new(fast(&["n1"]));
    fail(&mut bench);
    bench.silence(&["n1"]);
    bench.run_ms(3_000);
    bench.give(Input::Deposed);
    off(&mut bench);
    bench.lead(2);
    bench.run_ms(1_000);
    assert_eq!(proof(&bench), Some(ProofKind::PowerOffConfirmed));
}

#[test]
fn a_storm_keeps_the_power_on() {
    let mut bench = Bench::new(fast(&["n1"]));
    fail(&mut bench);
    bench.silence(&["n1"]);
    bench.run_ms(1_500);
    bench.silence(&["n3", "n4", "n5"]);
    bench.run_ms(1_000);
    let before = runs(&bench);
    bench.run_ms(60_000);
    assert_eq!(runs(&bench), before);
}

#[test]
fn a_new_leader_takes_the_records_over_before_it_acts_on_them() {
    let mut bench = Bench::new(fast(&[]));
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.cluster_answers = false; // the old leader dies before its deletion is performed
    bench.attest("n1", 1, "eve");
    bench.effects.clear();
    bench.store_answers = false;
    bench.lead(2);
    assert_eq!(stages(&bench), [FenceStage::Fenced { proof: ProofKind::HumanAttested }]);
    assert!(bench.deleted().is_empty());
    bench.give(Input::Committed(RecordKey::Fence("n1".into())));
    assert_eq!(bench.deleted(), ["virt-launcher-net".to_owned()].into());
}

#[test]
fn a_new_leader_believes_the_boot_that_it_hears_more_than_the_one_in_quarantine() {
    let mut bench = Bench::new(fast(&[]));
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.beat("n1", 2);
    bench.run_ms(1_000);
    assert_eq!(bench.state("n1"), NodeState::Quarantine);
    bench.give(Input::Deposed);
    bench.beat("n1", 3); // heard as a follower only
    bench.run_ms(1_000);
    bench.lead(2);
    bench.run_ms(1_000);
    let Some(Record::Fence(record)) = bench.store.get(&RecordKey::Fence("n1".into())) else {
        panic!("stored")
    };
    assert_eq!(record.stage, FenceStage::Quarantine { boot_id: boot("n1", 3) });
    bench.run_ms(61_000);
    assert_eq!(bench.state("n1"), NodeState::Healthy);
}

#[test]
fn a_new_leader_that_finds_another_boot_in_the_node_object_touches_nothing() {
    let mut bench = Bench::new(fast(&[]));
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.cluster_answers = false;
    bench.attest("n1", 1, "eve");
    bench.fleet.nodes.get_mut(&NodeName::from("n1")).expect("there").boot_id = Some(boot("n1", 2));
    let (fleet, requests, store) = (bench.fleet.clone(), bench.requests.clone(), bench.store.clone());
    let mut fresh = Bench::new(fast(&[]));
    fresh.silence(&["n1"]);
    fresh.c = crate::Coordinator::new(fresh.c.policy().clone());
    (fresh.fleet, fresh.requests, fresh.store) = (fleet, requests, store);
    fresh.effects.clear();
    fresh.show_fleet();
    fresh.show_requests();
    fresh.lead(2);
    fresh.run_ms(400_000);
    assert!(fresh.deleted().is_empty(), "its VMs may run again in boot 2");
    assert!(fresh.notices("BootInDoubt") >= 1);
}

#[test]
fn a_removed_node_ends_its_incident() {
    let mut bench = dead_n1(&[]);
    bench.fleet.nodes.remove(&NodeName::from("n1"));
    bench.show_fleet();
    bench.run_ms(5_000);
    assert_eq!(bench.notices("NodeRemoved"), 0, "it may come back with the next reading");
    bench.run_ms(10_000);
    assert_eq!(bench.notices("NodeRemoved"), 1);
    assert!(!bench.view().nodes.contains_key(&NodeName::from("n1")));
    assert_eq!(stages(&bench).last(), Some(&FenceStage::Closed));
}

#[test]
fn every_node_says_beforehand_what_could_prove_its_death() {
    let bench = Bench::new(fast(&["n1"]));
    let view = bench.view();
    let possible: BTreeMap<&str, bool> = view
        .nodes
        .iter()
        .map(|(node, shown)| (node.as_str(), shown.proofs_possible.contains(&ProofKind::PowerOffConfirmed)))
        .collect();
    assert_eq!((possible["n1"], possible["n2"]), (true, false));
    assert!(view.nodes.values().all(|shown| !shown.proofs_possible.contains(&ProofKind::LeaseExpired)));
}

#[test]
fn a_lease_proves_only_for_enrolled_nodes_and_after_the_whole_wait() {
    let nodes = ["n1", "n2", "n3"].map(NodeName::from);
    let policy = Policy::try_from(fast(&[])).expect("holds").with_watchdog_fencing(nodes.into());
    let mut bench = Bench::with_policy(policy);
    let hold = |bench: &mut Bench, seconds: u64| {
        for _ in 0..seconds {
            for node in ["n2", "n3"] {
                bench.give(Input::GrantHeld { node: node.into(), boot_id: boot(node, 1), sequence: 1 });
            }
            bench.run_ms(1_000);
        }
    };
    hold(&mut bench, 2);
    bench.give(Input::GrantHeld { node: "n1".into(), boot_id: boot("n1", 1), sequence: 1 });
    bench.silence(&["n1"]);
    hold(&mut bench, 55);
    assert_eq!(proof(&bench), None);
    hold(&mut bench, 4);
    assert_eq!(proof(&bench), Some(ProofKind::LeaseExpired));
}

/// Its guard arms the watchdog with the first grant: one of the boot before says nothing about this one.
#[test]
fn a_lease_proves_nothing_for_a_boot_in_which_no_grant_ever_arrived() {
    let nodes = ["n1", "n2", "n3"].map(NodeName::from);
    let policy = Policy::try_from(fast(&[])).expect("holds").with_watchdog_fencing(nodes.into());
    let mut bench = Bench::with_policy(policy);
    bench.give(Input::GrantHeld { node: "n1".into(), boot_id: boot("n1", 1), sequence: 1 });
    bench.silence(&["n1"]);
    bench.run_ms(5_000);
    // It boots anew, its kubelet works, its agent is never heard.
    bench.status_boot("n1", 2);
    for _ in 0..200 {
        for node in ["n2", "n3"] {
            bench.give(Input::GrantHeld { node: node.into(), boot_id: boot(node, 1), sequence: 1 });
        }
        bench.run_ms(1_000);
    }
    assert_eq!(
        bench.state("n1"),
        NodeState::AwaitingProof,
        "declared again, in the boot that Node.status names"
    );
    assert!(bench.deleted().is_empty(), "its VMs may run in that boot");
}
