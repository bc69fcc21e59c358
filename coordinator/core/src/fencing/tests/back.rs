//! A node that is back, in the same boot or in another one.

use super::*;

#[test]
fn a_new_boot_proves_it_by_a_beat_or_by_the_node_object_and_touches_nothing() {
    for by_beat in [true, false] {
        let mut bench = dead_n1(&[]);
        if by_beat {
            bench.beat("n1", 2);
            bench.run_ms(400);
        } else {
            bench.status_boot("n1", 2);
        }
        assert_eq!(proof(&bench), Some(ProofKind::NewBootId));
        assert_eq!(bench.state("n1"), NodeState::Quarantine);
        bench.run_ms(500);
        assert!(bench.deleted().is_empty(), "the kubelet of the new boot knows better what runs there");
    }
}

#[test]
fn an_old_reading_of_the_node_object_is_no_new_boot() {
    let mut bench = Bench::new(fast(&[]));
    bench.status_boot("n1", 0); // the kubelet has not yet written its present boot
    bench.run_ms(500);
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.status_boot("n1", 1);
    bench.status_boot("n1", 0);
    assert_eq!((proof(&bench), bench.state("n1")), (None, NodeState::AwaitingProof));
}

#[test]
fn a_late_beat_of_an_ended_boot_is_ignored() {
    let mut bench = Bench::new(fast(&[]));
    bench.beat("n1", 2);
    bench.run_ms(400);
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.give(Input::Beat { node: "n1".into(), boot_id: boot("n1", 1), sequence: 7 });
    assert_eq!((proof(&bench), bench.state("n1")), (None, NodeState::AwaitingProof));
}

#[test]
fn the_same_boot_without_a_power_order_is_healthy_again() {
    let mut bench = dead_n1(&[]);
    assert!(bench.is_tainted("n1"));
    bench.beat("n1", 1);
    bench.run_ms(500);
    assert_eq!(bench.state("n1"), NodeState::Healthy);
    assert!(!bench.is_tainted("n1"));
    assert_eq!(stages(&bench), [FenceStage::Declared, FenceStage::Closed]);
    bench.effects.clear();
    bench.run_ms(400);
    assert!(bench.count(|effect| matches!(effect, Effect::Grant { node, .. } if node.as_str() == "n1")) > 0);
}

fn grants(bench: &Bench) -> usize {
    bench.count(|effect| matches!(effect, Effect::Grant { node, .. } if node.as_str() == "n1"))
}

/// A run takes a minute at the most, and half of that again for what is around it.
#[test]
fn the_same_boot_is_not_trusted_while_a_run_is_under_way_and_healthy_after_it() {
    let mut bench = dead_n1(&["n1"]);
    bench.beat("n1", 1);
    bench.effects.clear();
    bench.run_ms(80_000);
    assert_eq!((bench.state("n1"), grants(&bench)), (NodeState::AwaitingProof, 0));
    bench.run_ms(20_000);
    assert_eq!(bench.state("n1"), NodeState::Healthy);
    assert!(grants(&bench) > 0 && !bench.is_tainted("n1"));
    assert_eq!(runs(&bench), 0, "it lives, and was to be switched off again");
}

/// A short cut and a fence agent that fails: nobody switches the node off once it is back.
#[test]
fn a_node_that_is_back_is_not_switched_off() {
    let mut bench = Bench::new(fast(&["n1"]));
    fail(&mut bench);
    bench.silence(&["n1"]);
    bench.run_ms(5_000);
    let before = runs(&bench);
    assert!(before > 0);
    bench.beat("n1", 1);
    off(&mut bench);
    bench.run_ms(2_000);
    assert_eq!(bench.state("n1"), NodeState::Healthy);
    bench.run_ms(400_000);
    assert_eq!(runs(&bench), before);
    // Silent again, it is judged anew, and that counts.
    bench.silence(&["n1"]);
    bench.run_ms(3_000);
    assert_eq!(proof(&bench), Some(ProofKind::PowerOffConfirmed));
}

/// Its kubelet speaks for it before its agent does.
#[test]
fn a_node_whose_kubelet_is_back_is_not_switched_off() {
    let mut bench = Bench::new(fast(&["n1"]));
    fail(&mut bench);
    bench.silence(&["n1"]);
    bench.run_ms(5_000);
    let before = runs(&bench);
    for _ in 0..10 {
        bench.give(Input::KubeletRenewed { node: "n1".into() });
        bench.run_ms(10_000);
    }
    assert_eq!(runs(&bench), before);
    bench.run_ms(10_000);
    assert!(runs(&bench) > before, "it is silent for longer than a kubelet would be");
}

#[test]
fn a_node_that_returns_before_the_order_left_is_spared() {
    let mut bench = Bench::new(fast(&["n1"]));
    bench.store_answers = false;
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.give(Input::Committed(RecordKey::Fence("n1".into())));
    bench.beat("n1", 1);
    bench.run_ms(300);
    bench.give(Input::Committed(RecordKey::Fence("n1".into())));
    assert_eq!(stages(&bench), [FenceStage::Declared, FenceStage::PowerOrdered, FenceStage::Closed]);
    assert_eq!(runs(&bench), 0);
}

#[test]
fn quarantine_ends_after_a_minute_of_beats_and_begins_anew_with_each_gap() {
    let mut bench = Bench::new(fast(&["n1"]));
    off(&mut bench);
    bench.silence(&["n1"]);
    bench.run_ms(3_000);
    bench.beat("n1", 2);
    bench.run_ms(50_000);
    assert_eq!(bench.state("n1"), NodeState::Quarantine);
    assert!(bench.is_tainted("n1"));
    bench.silence(&["n1"]);
    bench.run_ms(800);
    assert_eq!(bench.state("n1"), NodeState::Suspect);
    bench.beat("n1", 2);
    bench.run_ms(50_000);
    assert_eq!(bench.state("n1"), NodeState::Quarantine);
    bench.run_ms(15_000);
    assert_eq!(bench.state("n1"), NodeState::Healthy);
    assert!(!bench.is_tainted("n1"));
    let timeline = bench.view().nodes[&NodeName::from("n1")].timeline.clone();
    let order: Vec<Milestone> = timeline.iter().map(|(what, _)| *what).collect();
    assert_eq!(
        order,
        [
            LastBeat,
            Suspected,
            Declared,
            Decided,
            FencingStarted,
            Proven,
            FirstAction,
            Settled,
            Returned,
            Closed
        ]
    );
    assert!(timeline.is_sorted_by_key(|(_, at)| *at), "{timeline:?}");
}

#[test]
fn a_node_in_quarantine_that_dies_again_is_a_new_incident() {
    let mut bench = Bench::new(fast(&["n1"]));
    off(&mut bench);
    bench.silence(&["n1"]);
    bench.run_ms(3_000);
    bench.beat("n1", 2);
    bench.run_ms(5_000);
    bench.silence(&["n1"]);
    bench.run_ms(3_000);
    let Some(Record::Fence(record)) = bench.store.get(&RecordKey::Fence("n1".into())) else {
        panic!("stored")
    };
    assert_eq!(record.boot_id, Some(boot("n1", 2)));
    assert_eq!(proof(&bench), Some(ProofKind::PowerOffConfirmed));
}

#[test]
fn a_beat_of_the_fenced_boot_contradicts_the_proof_and_stops_everything() {
    let mut bench = Bench::new(fast(&[]));
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.attest("n1", 1, "eve");
    bench.run_ms(2_000);
    bench.effects.clear();
    bench.beat("n1", 1);
    bench.run_ms(3_000);
    assert_eq!(bench.state("n1"), NodeState::FenceContradicted);
    assert_eq!(bench.notices("FenceContradicted"), 1);
    let message = |bench: &Bench| bench.view().nodes[&NodeName::from("n1")].message.clone();
    assert!(message(&bench).contains("and beats: its VMs may run twice"), "{}", message(&bench));
    let stop = |effect: &Effect| match effect {
        Effect::Order { order: Order::StopLaunchers { pods }, .. } => {
            pods.iter().any(|pod| pod.0 == "pod-net")
        }
        _ => false,
    };
    assert_eq!(bench.count(stop), 1);
    assert_eq!(
        bench.count(|effect| matches!(effect, Effect::Grant { node, .. } if node.as_str() == "n1")),
        0
    );
    bench.silence(&["n1"]);
    bench.run_ms(5_000);
    assert_eq!(bench.state("n1"), NodeState::FenceContradicted, "silence is no excuse, nor is the old word");
    assert!(message(&bench).contains("is silent now"), "{}", message(&bench));
    bench.attest("n1", 1, "eve, who has pulled the plug");
    bench.run_ms(500);
    assert_eq!(bench.state("n1"), NodeState::Recovering);
}

#[test]
fn a_beat_that_was_under_way_when_the_power_went_is_no_contradiction() {
    let mut bench = Bench::new(fast(&["n1"]));
    off(&mut bench);
    bench.silence(&["n1"]);
    bench.run_ms(1_600);
    assert_eq!(proof(&bench), Some(ProofKind::PowerOffConfirmed));
    bench.give(Input::Beat { node: "n1".into(), boot_id: boot("n1", 1), sequence: 7 });
    bench.run_ms(5_000);
    assert_eq!(bench.state("n1"), NodeState::Recovering);
}
