//! A fence agent of n1 that is set to the machine of n3: whoever falls with n3, n1 is not dead by that.

use std::time::Duration;

use crate::coordinator::testkit::{Bench, boot, fast};
use crate::fencing::ProofKind;
use crate::fencing::agents::FenceAnswer;
use crate::io::{Effect, FenceResult, Input, Reachability, RecordKey};
use crate::names::NodeName;
use crate::policy::PolicySpec;
use crate::view::NodeState;

/// n1 is silent, and its fence agent was ordered to switch it off.
fn ordered() -> Bench {
    let mut bench = Bench::new(policy(&["n1"]));
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    assert_eq!(runs(&bench), 1);
    bench
}

/// Two nodes are no storm.
fn policy(agents: &[&str]) -> PolicySpec {
    let mut spec = fast(agents);
    spec.storm.window_percent = 50;
    spec
}

fn runs(bench: &Bench) -> usize {
    bench.count(|effect| matches!(effect, Effect::RunFence { .. }))
}

fn ends(bench: &mut Bench, epoch: u64, result: FenceResult) {
    bench.give(Input::FenceEnded { node: "n1".into(), epoch, result });
}

fn proof(bench: &Bench) -> Option<ProofKind> {
    bench.view().nodes[&NodeName::from("n1")].proof
}

/// It stays so, whoever leads and whatever the agent says, until a person has looked.
fn assert_not_believed(mut bench: Bench, what: &str) {
    bench.run_ms(5_000);
    let before = runs(&bench);
    bench.fence.insert("n1".into(), FenceResult::ConfirmedOff);
    bench.run_ms(60_000);
    assert_eq!((proof(&bench), bench.deleted().len()), (None, 0), "{what}");
    bench.lead(7);
    bench.run_ms(60_000);
    assert_eq!((proof(&bench), bench.deleted().len()), (None, 0), "{what}, under another leader");
    assert_eq!(runs(&bench), before, "{what}: it may switch another one off");
    bench.attest("n1", 1, "eve, who stands beside it");
    bench.run_ms(2_000);
    assert_eq!(proof(&bench), Some(ProofKind::HumanAttested), "{what}");
}

#[test]
fn another_node_that_falls_while_the_agent_runs_keeps_its_word_from_counting() {
    let mut bench = ordered();
    bench.silence(&["n3"]);
    bench.run_ms(500);
    ends(&mut bench, 1, FenceResult::ConfirmedOff);
    bench.run_ms(200);
    assert_eq!(proof(&bench), None, "n3 is not even suspected yet");
    bench.run_ms(5_000);
    assert_eq!(bench.notices("FenceHitAnother"), 1);
    let said = &bench.view().nodes[&NodeName::from("n1")].message;
    assert!(said.contains("n3") && said.contains("attest n1"), "{said}");
    assert_not_believed(bench, "n3 fell");
}

#[test]
fn one_that_went_off_and_came_back_tells_as_much() {
    let mut bench = ordered();
    bench.silence(&["n3"]);
    ends(&mut bench, 1, FenceResult::ConfirmedOff);
    bench.run_ms(600);
    bench.beat("n3", 2);
    bench.run_ms(600);
    assert_not_believed(bench, "n3 has booted");
}

#[test]
fn a_run_that_fails_may_have_switched_it_off_all_the_same() {
    let mut bench = ordered();
    bench.silence(&["n3"]);
    ends(&mut bench, 1, FenceResult::Failed("its answer was lost".to_owned()));
    bench.run_ms(1_500);
    let tried_again = runs(&bench);
    bench.fence.insert("n1".into(), FenceResult::ConfirmedOff);
    bench.run_ms(5_000);
    assert_eq!((proof(&bench), runs(&bench) - tried_again), (None, 0));
    assert_not_believed(bench, "n3 fell in a run that failed");
}

/// In a storm nobody is declared, and who fell in it is not known.
#[test]
fn in_a_storm_it_is_waited_for() {
    let mut bench = Bench::new(fast(&["n1"]));
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.silence(&["n3"]);
    ends(&mut bench, 1, FenceResult::ConfirmedOff);
    bench.run_ms(10_000);
    assert_eq!((bench.state("n3"), proof(&bench)), (NodeState::StormHold, None));
    bench.beat("n3", 1);
    bench.run_ms(600);
    assert_eq!(proof(&bench), Some(ProofKind::PowerOffConfirmed));
}

#[test]
fn one_that_was_only_late_is_waited_for() {
    let mut bench = ordered();
    bench.silence(&["n3"]);
    ends(&mut bench, 1, FenceResult::ConfirmedOff);
    bench.run_ms(700);
    assert_eq!(proof(&bench), None);
    let said = &bench.view().nodes[&NodeName::from("n1")].message;
    assert!(said.contains("as soon as n3 beats"), "{said}");
    bench.beat("n3", 1);
    bench.run_ms(600);
    assert_eq!(proof(&bench), Some(ProofKind::PowerOffConfirmed));
}

/// A machine may go off minutes after a run that failed.
#[test]
fn one_that_falls_long_after_a_failed_run_tells_as_much() {
    let mut bench = ordered();
    let failed = FenceResult::Failed("no route to the BMC".to_owned());
    bench.fence.insert("n1".into(), failed.clone());
    ends(&mut bench, 1, failed);
    bench.run_ms(60_000);
    bench.silence(&["n3"]);
    bench.run_ms(5_000);
    bench.fence.insert("n1".into(), FenceResult::ConfirmedOff);
    bench.run_ms(400_000);
    assert_not_believed(bench, "n3 fell between two runs");
}

/// Nobody was heard for a while, so nobody beats at the moment of the order.
#[test]
fn after_a_stall_of_our_own_everybody_counts() {
    let mut bench = Bench::new(policy(&["n1"]));
    bench.store_answers = false;
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.store_answers = true;
    bench.now += Duration::from_secs(20);
    bench.give(Input::Stalled(Duration::from_secs(20)));
    bench.silence(&["n3"]);
    bench.give(Input::Committed(RecordKey::Fence("n1".into())));
    bench.run_ms(100);
    assert_eq!(runs(&bench), 1, "ordered at once");
    ends(&mut bench, 1, FenceResult::ConfirmedOff);
    bench.run_ms(10_000);
    assert_not_believed(bench, "n3 fell in a stall");
}

#[test]
fn a_node_object_that_is_gone_clears_nobody() {
    let mut bench = ordered();
    bench.silence(&["n3"]);
    ends(&mut bench, 1, FenceResult::ConfirmedOff);
    let object = bench.fleet.nodes.remove(&NodeName::from("n3"));
    bench.show_fleet();
    bench.run_ms(60_000);
    assert_eq!(proof(&bench), None);
    bench.fleet.nodes.insert("n3".into(), object.expect("there"));
    bench.show_fleet();
    bench.run_ms(600);
    assert_not_believed(bench, "n3 was out of sight");
}

/// A node whose agent has crashed lives all the same.
#[test]
fn one_whose_agent_is_silent_is_cleared_by_an_answer() {
    let mut bench = Bench::new(policy(&["n1"]));
    bench.reach.insert("n3".into(), (Reachability::Kernel, Reachability::Kernel));
    bench.silence(&["n3"]);
    bench.run_ms(5_000);
    assert_eq!(bench.state("n3"), NodeState::AgentSilent);
    bench.fence.insert("n1".into(), FenceResult::ConfirmedOff);
    bench.silence(&["n1"]);
    bench.run_ms(15_000);
    assert_eq!(proof(&bench), Some(ProofKind::PowerOffConfirmed));
}

/// Whoever falls together with it has fallen before the order, and an order waits until that is known.
#[test]
fn an_order_waits_until_nobody_is_suspect() {
    let mut bench = Bench::new(policy(&["n1"]));
    bench.fence.insert("n1".into(), FenceResult::ConfirmedOff);
    bench.silence(&["n1"]);
    bench.run_ms(400);
    bench.silence(&["n3"]);
    bench.run_ms(5_000);
    assert_eq!(bench.state("n3"), NodeState::AwaitingProof);
    assert_eq!(proof(&bench), Some(ProofKind::PowerOffConfirmed));
}

/// What was doubted stays so when the node falls again before its agent was asked.
#[test]
fn a_doubt_outlives_the_incident_until_the_agent_says_on() {
    let mut bench = ordered();
    bench.silence(&["n3"]);
    ends(&mut bench, 1, FenceResult::ConfirmedOff);
    bench.run_ms(5_000);
    assert_eq!(bench.notices("FenceHitAnother"), 1);
    bench.beat("n1", 2);
    bench.run_ms(1_000);
    bench.silence(&["n1"]);
    bench.fence.insert("n1".into(), FenceResult::ConfirmedOff);
    bench.run_ms(30_000);
    assert_eq!(
        (bench.state("n1"), runs(&bench)),
        (NodeState::AwaitingProof, 1),
        "n3 is off, and n1's agent says so"
    );
    bench.beat("n1", 3);
    bench.status.insert("n1".into(), FenceAnswer::On);
    bench.run_ms(90_000);
    bench.silence(&["n1"]);
    bench.run_ms(5_000);
    assert_eq!(proof(&bench), Some(ProofKind::PowerOffConfirmed));
}

#[test]
fn one_that_fell_before_is_no_bystander() {
    let mut bench = Bench::new(policy(&["n1", "n3"]));
    bench.fence.insert("n1".into(), FenceResult::ConfirmedOff);
    bench.fence.insert("n3".into(), FenceResult::ConfirmedOff);
    bench.silence(&["n1", "n3"]);
    bench.run_ms(3_000);
    for node in ["n1", "n3"] {
        assert_eq!(
            bench.view().nodes[&NodeName::from(node)].proof,
            Some(ProofKind::PowerOffConfirmed),
            "{node}"
        );
    }
}

/// The machine that goes off is the one that the leader was on.
#[test]
fn a_new_leader_waits_for_everybody_where_an_order_was_given_before_it() {
    let mut bench = ordered();
    bench.silence(&["n3"]);
    bench.c = crate::Coordinator::new(bench.c.policy().clone());
    // As the nodes' own objects tell.
    bench.fleet.agents_seen =
        bench.fleet.nodes.keys().map(|name| (name.clone(), boot(name.as_str(), 1))).collect();
    bench.show_fleet();
    bench.show_requests();
    bench.fence.insert("n1".into(), FenceResult::ConfirmedOff);
    bench.lead(2);
    bench.run_ms(31_000);
    assert_eq!(proof(&bench), None);
    bench.run_ms(60_000);
    assert_eq!(bench.state("n1"), NodeState::AwaitingProof);
    assert_not_believed(bench, "n3 fell with its leader");
}
