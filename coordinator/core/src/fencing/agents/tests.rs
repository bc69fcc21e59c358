//! Asking fence agents while all is well: when, how many at once, what their answers mean, and what becomes of an
//! agent that looks at another machine.

use std::time::Duration;

use super::{AgentRevision, FenceAnswer, FenceRoster, FencingState};
use crate::coordinator::testkit::{Bench, fast};
use crate::fencing::{FenceStage, ProofKind};
use crate::io::{Effect, FenceResult, Input, Record, RecordKey};
use crate::names::NodeName;
use crate::view::{NodeState, NodeView};

/// One period, and what the bench needs around it.
const PERIOD_MS: u64 = 610_000;

fn shown(bench: &Bench, node: &str) -> NodeView {
    bench.view().nodes[&NodeName::from(node)].clone()
}

fn agent(bench: &Bench, node: &str) -> FencingState {
    shown(bench, node).fence_agent.expect("it has a fence agent").state
}

fn asked(bench: &Bench) -> usize {
    bench.count(|effect| matches!(effect, Effect::AskFence { .. }))
}

fn runs(bench: &Bench) -> usize {
    bench.count(|effect| matches!(effect, Effect::RunFence { .. }))
}

fn roster(nodes: &[(&str, &str)]) -> FenceRoster {
    let entry =
        |(node, revision): &(&str, &str)| (NodeName::from(*node), AgentRevision((*revision).to_owned()));
    FenceRoster { agents: nodes.iter().map(entry).collect(), away: None, problem: None }
}

fn tell(bench: &mut Bench, roster: FenceRoster) {
    bench.give(Input::FenceAgents(Box::new(roster)));
}

/// A fleet with these fence agents, each of which says that its machine is on.
fn answering(nodes: &[(&str, &str)]) -> Bench {
    let mut bench = Bench::new(fast(&[]));
    bench.status = nodes.iter().map(|(node, _)| (NodeName::from(*node), FenceAnswer::On)).collect();
    tell(&mut bench, roster(nodes));
    bench.run_ms(1_000);
    bench
}

/// It answered ten minutes ago; now it was needed, and could not.
#[test]
fn an_agent_that_cannot_switch_its_machine_off_does_not_answer() {
    let mut bench = answering(&[("n1", "a")]);
    bench.fence.insert("n1".into(), FenceResult::Failed("wrong password".to_owned()));
    bench.silence(&["n1"]);
    bench.run_ms(3_000);
    let FencingState::AnswersNot { why } = agent(&bench, "n1") else { panic!("{:?}", agent(&bench, "n1")) };
    assert!(why.contains("wrong password"), "{why}");
    bench.beat("n1", 1);
    bench.run_ms(90_000);
    assert_eq!(agent(&bench, "n1"), FencingState::Answers, "mended, it is asked again soon");
}

/// n1's fence agent looks at another machine, which is off.
fn wrong() -> Bench {
    let mut bench = answering(&[("n1", "a")]);
    bench.status.insert("n1".into(), FenceAnswer::Off);
    bench.fence.insert("n1".into(), FenceResult::ConfirmedOff);
    bench.run_ms(PERIOD_MS);
    assert_eq!(agent(&bench, "n1"), FencingState::WrongMachine);
    bench
}

#[test]
fn each_agent_is_asked_once_a_period_and_nothing_is_switched() {
    let bench = answering(&[("n1", "a"), ("n2", "b")]);
    assert_eq!(asked(&bench), 2);
    let mut bench = bench;
    bench.run_ms(500_000);
    assert_eq!(asked(&bench), 2);
    bench.run_ms(PERIOD_MS - 500_000);
    assert_eq!(asked(&bench), 4);
    assert_eq!((runs(&bench), bench.notices("FenceAnswers")), (0, 0));
    let agent = shown(&bench, "n1").fence_agent.expect("configured");
    assert_eq!(agent.state, FencingState::Answers);
    assert!(agent.answered.is_some_and(|at| at + Duration::from_mins(2) > bench.now), "{agent:?}");
    assert_eq!(shown(&bench, "n3").fence_agent, None);
}

#[test]
fn no_more_than_four_are_asked_at_once_and_all_are_in_the_end() {
    let mut bench = Bench::new(fast(&[]));
    tell(&mut bench, roster(&["n1", "n2", "n3", "n4", "n5", "n6"].map(|node| (node, "a"))));
    bench.run_ms(1_000);
    assert_eq!(asked(&bench), 4, "none has answered yet");
    bench.give(Input::FenceAnswered { node: "n1".into(), answer: FenceAnswer::On });
    assert_eq!(asked(&bench), 5);
    bench.give(Input::FenceAnswered { node: "n2".into(), answer: FenceAnswer::On });
    assert_eq!(asked(&bench), 6);
}

/// Whoever has changed an entry is not told that it answers before it was asked.
#[test]
fn an_entry_that_is_changed_is_asked_at_once_and_vouched_for_by_no_answer_of_the_one_before() {
    let mut bench = answering(&[("n1", "a"), ("n2", "b")]);
    assert_eq!(agent(&bench, "n1"), FencingState::Answers);
    bench.status.remove(&NodeName::from("n1"));
    tell(&mut bench, roster(&[("n1", "changed"), ("n2", "b")]));
    bench.run_ms(1_000);
    assert_eq!((asked(&bench), agent(&bench, "n1")), (3, FencingState::Untested));
    assert_eq!(agent(&bench, "n2"), FencingState::Answers);

    // Changed again while the question is out: the answer is the one before's.
    tell(&mut bench, roster(&[("n1", "again"), ("n2", "b")]));
    bench.run_ms(1_000);
    bench.give(Input::FenceAnswered { node: "n1".into(), answer: FenceAnswer::On });
    assert_eq!((asked(&bench), agent(&bench, "n1")), (4, FencingState::Untested));
    bench.give(Input::FenceAnswered { node: "n1".into(), answer: FenceAnswer::On });
    assert_eq!(agent(&bench, "n1"), FencingState::Answers);
}

#[test]
fn a_node_that_is_not_well_is_not_asked() {
    let mut bench = answering(&[("n1", "a")]);
    bench.silence(&["n1"]);
    bench.run_ms(PERIOD_MS);
    assert_eq!(asked(&bench), 1);
}

#[test]
fn a_node_whose_object_comes_later_is_asked_soon_after() {
    let mut bench = answering(&[("n1", "a"), ("n7", "b")]);
    assert_eq!(asked(&bench), 1);
    let node = bench.fleet.nodes[&NodeName::from("n1")].clone();
    bench.fleet.nodes.insert("n7".into(), node);
    bench.beat("n7", 1);
    bench.show_fleet();
    bench.run_ms(12_000);
    assert_eq!(asked(&bench), 2);
}

#[test]
fn an_agent_that_does_not_answer_is_told_once_and_again_when_it_does() {
    let mut bench = answering(&[("n1", "a")]);
    bench.status.insert("n1".into(), FenceAnswer::Failed("no route to the controller".to_owned()));
    bench.run_ms(2 * PERIOD_MS);
    assert_eq!(agent(&bench, "n1").name(), "AnswersNot");
    assert_eq!((bench.notices("FenceAnswersNot"), bench.notices("FenceUntested")), (1, 0));
    assert!(
        shown(&bench, "n1").proofs_possible.contains(&ProofKind::PowerOffConfirmed),
        "it may answer again"
    );
    bench.status.insert("n1".into(), FenceAnswer::On);
    bench.run_ms(PERIOD_MS);
    assert_eq!((agent(&bench, "n1"), bench.notices("FenceAnswers")), (FencingState::Answers, 1));
}

#[test]
fn an_agent_that_hangs_from_the_first_is_untested_and_its_place_is_given_to_others() {
    let mut bench = Bench::new(fast(&[]));
    tell(&mut bench, roster(&["n1", "n2", "n3", "n4", "n5"].map(|node| (node, "a"))));
    bench.run_ms(1_000);
    assert_eq!(agent(&bench, "n5"), FencingState::Untested);
    bench.run_ms(95_000);
    assert_eq!(asked(&bench), 5);
    assert_eq!(bench.notices("FenceUntested"), 4);
}

#[test]
fn off_of_a_node_that_beats_on_is_another_machine() {
    let bench = wrong();
    assert_eq!(bench.notices("FenceWrongMachine"), 1);
    assert!(!shown(&bench, "n1").proofs_possible.contains(&ProofKind::PowerOffConfirmed));
}

#[test]
fn an_agent_of_another_machine_is_neither_run_nor_believed() {
    let mut bench = wrong();
    bench.silence(&["n1"]);
    bench.run_ms(400_000);
    assert_eq!((runs(&bench), bench.state("n1")), (0, NodeState::AwaitingProof));
    assert!(bench.deleted().is_empty());
    bench.attest("n1", 1, "eve");
    assert_eq!(shown(&bench, "n1").proof, Some(ProofKind::HumanAttested), "other proofs count as ever");
}

#[test]
fn a_proof_that_was_under_way_is_not_believed_either() {
    let mut bench = answering(&[("n1", "a")]);
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    assert_eq!(runs(&bench), 1);
    bench.beat("n1", 1);
    bench.run_ms(500);
    bench.give(Input::FenceEnded { node: "n1".into(), epoch: 1, result: FenceResult::ConfirmedOff });
    bench.run_ms(3_000);
    assert_eq!(agent(&bench, "n1"), FencingState::WrongMachine, "it said off, and the node beats on");
    bench.silence(&["n1"]);
    bench.run_ms(400_000);
    assert_eq!((runs(&bench), shown(&bench, "n1").proof), (1, None));
}

#[test]
fn off_of_a_node_that_dies_or_boots_is_the_truth() {
    let mut dies = answering(&[("n1", "a")]);
    dies.status.insert("n1".into(), FenceAnswer::Off);
    dies.run_ms(PERIOD_MS - 60_000 - 1_000);
    dies.give(Input::FenceAnswered { node: "n1".into(), answer: FenceAnswer::Off });
    dies.silence(&["n1"]);
    dies.run_ms(5_000);
    assert_ne!(agent(&dies, "n1"), FencingState::WrongMachine);

    let mut boots = Bench::new(fast(&[]));
    tell(&mut boots, roster(&[("n1", "a")]));
    boots.run_ms(500);
    boots.give(Input::FenceAnswered { node: "n1".into(), answer: FenceAnswer::Off });
    boots.beat("n1", 2);
    boots.run_ms(5_000);
    assert_ne!(agent(&boots, "n1"), FencingState::WrongMachine, "the boot that was asked about has ended");
}

#[test]
fn on_mends_only_an_entry_that_was_changed() {
    let mut bench = wrong();
    bench.status.insert("n1".into(), FenceAnswer::On);
    bench.run_ms(PERIOD_MS);
    assert_eq!(agent(&bench, "n1"), FencingState::WrongMachine, "somebody switched the other machine on");
    tell(&mut bench, roster(&[("n1", "b")]));
    bench.run_ms(1_000);
    assert_eq!((agent(&bench, "n1"), bench.notices("FenceAgentMended")), (FencingState::Answers, 1));
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    assert_eq!(shown(&bench, "n1").proof, Some(ProofKind::PowerOffConfirmed));
}

#[test]
fn taking_the_entry_away_for_a_while_mends_nothing() {
    let mut bench = wrong();
    tell(&mut bench, roster(&[]));
    bench.run_ms(1_000);
    bench.status.insert("n1".into(), FenceAnswer::On);
    tell(&mut bench, roster(&[("n1", "a")]));
    bench.run_ms(PERIOD_MS);
    assert_eq!(agent(&bench, "n1"), FencingState::WrongMachine);
}

#[test]
fn the_next_leader_knows_it_from_its_own_asking_or_from_the_record() {
    let mut bench = wrong();
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    let Some(Record::Fence(record)) = bench.store.get(&RecordKey::Fence("n1".into())) else {
        panic!("stored")
    };
    assert!(record.agent_distrusted);
    assert_eq!(record.stage, FenceStage::Declared);
    // A process that was started after the node had died.
    bench.c = crate::Coordinator::new(bench.c.policy().clone());
    bench.show_fleet();
    tell(&mut bench, roster(&[("n1", "a")]));
    bench.lead(2);
    bench.run_ms(60_000);
    assert_eq!((runs(&bench), bench.state("n1")), (0, NodeState::AwaitingProof));
}

#[test]
fn a_follower_asks_and_tells_nobody_before_it_leads() {
    let mut bench = wrong();
    bench.give(Input::Deposed);
    bench.c = crate::Coordinator::new(bench.c.policy().clone());
    bench.effects.clear();
    bench.show_fleet();
    tell(&mut bench, roster(&[("n1", "a")]));
    for _ in 0..40 {
        bench.run_ms(200);
        bench.give(Input::Tick);
    }
    assert_eq!((asked(&bench), bench.notices("FenceWrongMachine")), (1, 0));
    bench.lead(2);
    bench.run_ms(500);
    assert_eq!(bench.notices("FenceWrongMachine"), 1);
}

#[test]
fn agents_that_cannot_be_run_prove_nothing_and_are_run_as_soon_as_they_can() {
    let mut bench = answering(&[("n1", "a")]);
    bench.fence.insert("n1".into(), FenceResult::Failed("the runner is gone".to_owned()));
    bench.silence(&["n1"]);
    bench.run_ms(40_000);
    assert_eq!((runs(&bench), bench.notices("FencingFails")), (5, 1), "and now a long wait");
    let away = FenceRoster { away: Some("no runner answers".to_owned()), ..roster(&[("n1", "a")]) };
    tell(&mut bench, away);
    assert_eq!(agent(&bench, "n1").name(), "RunnerAway");
    assert!(!shown(&bench, "n1").proofs_possible.contains(&ProofKind::PowerOffConfirmed));
    bench.run_ms(10_000);
    bench.fence.insert("n1".into(), FenceResult::ConfirmedOff);
    tell(&mut bench, roster(&[("n1", "a")]));
    bench.run_ms(600);
    assert_eq!(shown(&bench, "n1").proof, Some(ProofKind::PowerOffConfirmed));
    assert_eq!((bench.notices("FenceRunnerAway"), bench.notices("FenceRunnerBack")), (1, 1));
}

#[test]
fn a_node_that_is_given_an_agent_while_it_is_dead_is_switched_off() {
    let mut bench = answering(&[]);
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    assert_eq!((runs(&bench), bench.state("n1")), (0, NodeState::AwaitingProof));
    bench.fence.insert("n1".into(), FenceResult::ConfirmedOff);
    tell(&mut bench, roster(&[("n1", "a")]));
    bench.run_ms(600);
    assert_eq!(shown(&bench, "n1").proof, Some(ProofKind::PowerOffConfirmed));
}

#[test]
fn a_configuration_that_cannot_be_used_is_told_once_for_each_reason() {
    let mut bench = answering(&[("n1", "a")]);
    for why in ["line 3", "line 3", "line 4"] {
        tell(&mut bench, FenceRoster { problem: Some(why.to_owned()), ..roster(&[("n1", "a")]) });
    }
    assert_eq!(bench.notices("FenceConfigRefused"), 2);
    assert!(
        shown(&bench, "n1").proofs_possible.contains(&ProofKind::PowerOffConfirmed),
        "the old one is in use"
    );
    let refused = shown(&bench, "n1").fence_agent.expect("configured").change_refused;
    assert_eq!(refused.as_deref(), Some("line 4"));
    let FencingState::NotConfigured { why } = agent(&bench, "n2") else {
        panic!("{:?}", agent(&bench, "n2"))
    };
    assert!(why.contains("line 4"), "it may be the line that would give n2 its agent: {why}");
    tell(&mut bench, roster(&[("n1", "a")]));
    assert_eq!(bench.notices("FenceConfigMended"), 1);
}

#[test]
fn a_name_that_no_node_has_is_told_to_whoever_has_no_agent() {
    let mut bench = answering(&[("n1", "a")]);
    assert_eq!(shown(&bench, "n2").fence_agent, None);
    tell(&mut bench, roster(&[("n1", "a"), ("m2", "b")]));
    bench.run_ms(1_000);
    let FencingState::NotConfigured { why } = agent(&bench, "n2") else {
        panic!("{:?}", agent(&bench, "n2"))
    };
    assert!(why.contains("but m2"), "{why}");
    bench.run_ms(60_000);
    assert_eq!(bench.notices("FenceNodeUnknown"), 1);
    assert_eq!(agent(&bench, "n1"), FencingState::Answers);
}

#[test]
fn a_dead_node_that_a_mistake_left_without_an_agent_is_told_of_with_the_mistake() {
    let mut bench = answering(&[("n1", "a")]);
    tell(&mut bench, roster(&[("n1", "a"), ("m2", "b")]));
    bench.run_ms(1_000);
    bench.silence(&["n2"]);
    bench.run_ms(20_000);
    let said = bench.messages("NodeUnreachable");
    assert!(
        said.len() == 1 && said[0].contains("has no fence agent") && said[0].contains("but m2"),
        "{said:?}"
    );
}
