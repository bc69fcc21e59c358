//! A VM that is rebuilt: in which order, with what stored before, and what becomes of it when something comes between.

use crate::coordinator::testkit::{Bench, fast};
use crate::decision::DecisionKind;
use crate::decision::testkit::{World, key, running_vm};
use crate::fencing::ProofKind;
use crate::fleet::RunStrategy;
use crate::io::{Action, Effect, FenceResult, Input, Record, RecordKey};
use crate::names::NodeName;
use crate::rebuild::{RebuildRecord, RebuildStage};
use crate::view::{NodeState, RecoveryProgress};

const OLD: &str = "pv-image-system";

/// `image` runs on n1 from a local system disk that can be imported anew, and its owner agrees.
fn bench() -> Bench {
    let mut bench = Bench::new(fast(&["n1"]));
    let mut world = World::bare();
    std::mem::swap(&mut world.fleet, &mut bench.fleet);
    world.fleet.vms.insert(key("image"), running_vm("image", "n1"));
    world.add_local_system_disk("image");
    world.vm("image").rebuild_allowed = true;
    std::mem::swap(&mut world.fleet, &mut bench.fleet);
    bench.show_fleet();
    bench.fence.insert("n1".into(), FenceResult::ConfirmedOff);
    bench
}

fn dead_n1() -> Bench {
    let mut bench = bench();
    bench.silence(&["n1"]);
    bench
}

fn record(bench: &Bench) -> Option<RebuildRecord> {
    match bench.store.get(&RecordKey::Rebuild(key("image"))) {
        Some(Record::Rebuild(record)) => Some((**record).clone()),
        _ => None,
    }
}

fn stage(bench: &Bench) -> Option<RebuildStage> {
    record(bench).map(|record| record.stage)
}

fn progress(bench: &Bench) -> RecoveryProgress {
    bench.view().recoveries[&key("image")].progress
}

/// What was done about `image`, and what was stored of it, in order.
fn story(bench: &Bench) -> Vec<String> {
    let line = |effect: &Effect| match effect {
        Effect::Commit(Record::Rebuild(record)) => Some(format!("store {:?}", record.stage)),
        Effect::Act(Action::RetainVolume { volume }) => Some(format!("retain {volume}")),
        Effect::Act(Action::StopVm { vm, .. }) => Some(format!("stop {}", vm.name)),
        Effect::Act(Action::DeletePod { pod, .. }) if pod.name.contains("image") => {
            Some(format!("delete {}", pod.name))
        }
        Effect::Act(Action::ReimportClaim { claim, .. }) => Some(format!("reimport {}", claim.name)),
        Effect::Act(Action::RestoreStart { vm, .. }) => Some(format!("start {}", vm.name)),
        _ => None,
    };
    bench.effects.iter().filter_map(|(_, effect)| line(effect)).collect()
}

fn until(bench: &mut Bench, wanted: RebuildStage) {
    for _ in 0..1_000 {
        if stage(bench) == Some(wanted) {
            return;
        }
        bench.run_ms(10);
    }
    panic!("not {wanted:?} but {:?}: {:#?}", stage(bench), story(bench));
}

#[test]
fn each_step_is_stored_before_it_is_done() {
    let mut bench = dead_n1();
    bench.run_ms(3_000);
    assert_eq!(
        story(&bench),
        [
            "store Retaining",
            "retain pv-image-system",
            "store Stopping",
            "stop image",
            "delete virt-launcher-image",
            "store Replacing",
            "reimport image-system",
            "store Starting",
            "start image",
            "store Importing",
        ]
    );
    assert_eq!(progress(&bench), RecoveryProgress::Restarting);
    bench.import_ends("image");
    assert_eq!((stage(&bench), progress(&bench)), (Some(RebuildStage::Rebuilt), RecoveryProgress::Recovered));
    let vm = &bench.fleet.vms[&key("image")];
    assert_eq!((vm.run, &vm.start), (RunStrategy::Always, &running_vm("image", "n1").start));
    let old = &bench.fleet.volumes[&OLD.into()];
    assert!(old.retained && old.phase == "Released", "{old:?}");
    assert_eq!((bench.notices("VmRebuilding"), bench.notices("VmRecovered")), (1, 2), "image and net");
    let shown = bench.view().recoveries[&key("image")].clone();
    let runbook = shown.runbook.expect("told");
    assert!(runbook.contains("cloud-init") && runbook.contains(OLD), "{runbook}");
    assert_eq!(shown.decision.kind, DecisionKind::Rebuild);
}

#[test]
fn nothing_is_done_before_the_proof() {
    let mut bench = dead_n1();
    bench.fence.clear();
    bench.run_ms(60_000);
    assert_eq!(progress(&bench), RecoveryProgress::AwaitingProof);
    assert_eq!(story(&bench), Vec::<String>::new());
}

#[test]
fn nothing_is_deleted_while_the_old_volume_is_not_shown_on_retain() {
    let mut bench = tainted();
    bench.give(Input::Acted(Action::RetainVolume { volume: OLD.into() }));
    bench.run_ms(60_000);
    assert_eq!(stage(&bench), Some(RebuildStage::Retaining), "an answer is no reading");
    assert!(story(&bench).iter().all(|line| line.starts_with("store") || line.starts_with("retain")));
}

#[test]
fn the_launcher_is_deleted_only_once_the_vm_is_seen_stopped() {
    let mut bench = tainted();
    bench.do_by_hand(&Action::RetainVolume { volume: OLD.into() });
    bench.give(Input::Acted(Action::StopVm { vm: key("image"), owner: crate::fleet::Owner::Itself }));
    bench.run_ms(60_000);
    assert!(!story(&bench).iter().any(|line| line.starts_with("delete")), "{:#?}", story(&bench));
}

/// Whatever was the last thing that our process did, another one goes on from what is stored.
#[test]
fn a_crash_after_any_step_changes_nothing_in_the_end() {
    let whole = {
        let mut bench = dead_n1();
        bench.run_ms(3_000);
        bench.count(|effect| matches!(effect, Effect::Commit(_) | Effect::Act(_)))
    };
    assert!(whole > 10);
    for step in 1..=whole {
        let mut bench = dead_n1();
        bench.dies_after = Some(step);
        bench.run_ms(60_000);
        assert_eq!(stage(&bench), Some(RebuildStage::Importing), "step {step}: {:#?}", story(&bench));
        assert_eq!(progress(&bench), RecoveryProgress::Restarting, "step {step}");
        bench.import_ends("image");
        assert_eq!(stage(&bench), Some(RebuildStage::Rebuilt), "step {step}");
        let vm = &bench.fleet.vms[&key("image")];
        assert_eq!(
            (vm.run, &vm.start),
            (RunStrategy::Always, &running_vm("image", "n1").start),
            "step {step}"
        );
        assert!(bench.fleet.volumes[&OLD.into()].retained, "step {step}");
        let claim = &bench.fleet.claims[&key("image-system")];
        assert_eq!(claim.uid.0, format!("uid-{OLD}-anew"), "step {step}: made anew once");
        let shown = bench.view().recoveries[&key("image")].clone();
        assert!(shown.runbook.expect("told").contains(OLD), "step {step}");
    }
}

/// n1 is proven dead, the cluster has done nothing yet but to set the taint.
fn tainted() -> Bench {
    let mut bench = dead_n1();
    bench.cluster_answers = false;
    bench.run_ms(2_000);
    bench.do_by_hand(&Action::Taint { node: "n1".into() });
    bench
}

#[test]
fn a_node_that_is_back_before_a_claim_was_deleted_gets_its_vm_back() {
    let by_hand = [
        Action::RetainVolume { volume: OLD.into() },
        Action::StopVm { vm: key("image"), owner: crate::fleet::Owner::Itself },
    ];
    for done in 0..=by_hand.len() {
        let mut bench = tainted();
        for action in &by_hand[..done] {
            bench.do_by_hand(action);
        }
        let reached = [RebuildStage::Retaining, RebuildStage::Stopping, RebuildStage::Stopping][done];
        assert_eq!(stage(&bench), Some(reached));
        bench.cluster_answers = true;
        bench.beat("n1", 2);
        bench.run_ms(30_000);
        assert_eq!(stage(&bench), Some(RebuildStage::GivenBack));
        let vm = &bench.fleet.vms[&key("image")];
        assert_eq!((vm.run, &vm.start), (RunStrategy::Always, &running_vm("image", "n1").start));
        assert!(!story(&bench).iter().any(|line| line.starts_with("reimport")), "{:#?}", story(&bench));
        assert_eq!(progress(&bench), RecoveryProgress::NodeReturned);
    }
}

/// The stop takes effect, and is seen, only after the node is back.
#[test]
fn a_start_field_is_given_back_whatever_an_old_reading_says() {
    let mut bench = tainted();
    bench.do_by_hand(&Action::RetainVolume { volume: OLD.into() });
    assert_eq!(story(&bench).last().map(String::as_str), Some("stop image"));
    bench.beat("n1", 2);
    bench.run_ms(1_000);
    assert_eq!(story(&bench).last().map(String::as_str), Some("start image"));
    assert_eq!(stage(&bench), Some(RebuildStage::GivingBack), "nobody has answered");
    bench.do_by_hand(&Action::StopVm { vm: key("image"), owner: crate::fleet::Owner::Itself });
    bench.cluster_answers = true;
    bench.run_ms(30_000);
    assert_eq!(stage(&bench), Some(RebuildStage::GivenBack));
    assert_eq!(bench.fleet.vms[&key("image")].run, RunStrategy::Always);
}

#[test]
fn a_node_that_is_back_after_a_claim_was_deleted_keeps_the_old_volume() {
    let mut bench = dead_n1();
    bench.run_ms(700);
    until(&mut bench, RebuildStage::Importing);
    bench.beat("n1", 2);
    bench.run_ms(100_000);
    assert_eq!(bench.state("n1"), NodeState::Healthy, "it waits for no import");
    assert_eq!(stage(&bench), Some(RebuildStage::Importing));
    bench.import_ends("image");
    assert_eq!(stage(&bench), Some(RebuildStage::Rebuilt));
    assert!(bench.fleet.volumes[&OLD.into()].retained);
}

#[test]
fn a_data_volume_that_was_marked_as_filled_meanwhile_stops_it() {
    let mut bench = dead_n1();
    let data_volume = bench.fleet.data_volumes.get_mut(&key("image-system")).expect("there");
    data_volume.pre_populated = true;
    bench.show_fleet();
    bench.run_ms(5_000);
    assert_eq!(bench.view().recoveries[&key("image")].decision.kind, DecisionKind::ManualRecovery);
    assert_eq!(story(&bench), Vec::<String>::new());
}

#[test]
fn a_vm_is_not_started_while_its_data_volume_still_counts_as_filled() {
    let mut bench = dead_n1();
    // CDI has made the claim anew and not looked at the DataVolume since.
    until(&mut bench, RebuildStage::Importing);
    let mut late = dead_n1();
    late.store.insert(RecordKey::Rebuild(key("image")), {
        let stored = record(&bench).expect("stored");
        Record::Rebuild(Box::new(RebuildRecord { stage: RebuildStage::Replacing, ..stored }))
    });
    late.fleet = bench.fleet.clone();
    let vm = late.fleet.vms.get_mut(&key("image")).expect("there");
    (vm.run, vm.instance) = (RunStrategy::Halted, None);
    late.fleet.data_volumes.get_mut(&key("image-system")).expect("there").phase = "Succeeded".to_owned();
    late.restart();
    late.run_ms(60_000);
    assert_eq!(stage(&late), Some(RebuildStage::Replacing));
    late.fleet.data_volumes.get_mut(&key("image-system")).expect("there").phase = "Pending".to_owned();
    late.show_fleet();
    late.run_ms(1_000);
    assert_eq!(stage(&late), Some(RebuildStage::Importing));
}

#[test]
fn a_step_that_fails_is_tried_again_and_a_person_is_told() {
    let mut bench = tainted();
    for _ in 0..6 {
        let action = Action::RetainVolume { volume: OLD.into() };
        bench.give(Input::ActionFailed { action, why: "no route".to_owned() });
        bench.run_ms(2_500);
    }
    assert_eq!(progress(&bench), RecoveryProgress::NeedsPerson);
    assert_eq!(bench.notices("VmRecoveryFailed"), 1);
    bench.cluster_answers = true;
    bench.run_ms(400_000);
    assert_eq!(progress(&bench), RecoveryProgress::Restarting, "it goes on by itself");
}

#[test]
fn an_import_that_takes_long_is_told_once_and_not_given_up() {
    let mut bench = dead_n1();
    bench.run_ms(3_000);
    bench.run_ms(4_000_000);
    assert_eq!(bench.notices("VmRebuildSlow"), 1);
    bench.import_ends("image");
    assert_eq!(progress(&bench), RecoveryProgress::Recovered);
}

#[test]
fn an_agent_that_turns_out_to_live_is_told_to_stop_the_launcher_of_a_rebuilt_vm() {
    for over in [false, true] {
        let mut bench = dead_n1();
        bench.run_ms(3_000);
        if over {
            bench.import_ends("image");
        }
        bench.beat("n1", 1);
        bench.run_ms(1_000);
        assert_eq!(bench.state("n1"), NodeState::FenceContradicted);
        let told = bench.count(|effect| match effect {
            Effect::Order { node, order: crate::io::Order::StopLaunchers { pods }, .. } => {
                *node == NodeName::from("n1") && pods.contains(&"pod-image".into())
            }
            _ => false,
        });
        assert_eq!(told, 1, "rebuild over: {over}");
    }
}

/// At no stage may a person be told to replace the claim that is being made anew, or is in use already.
#[test]
fn its_runbook_touches_no_claim_and_names_the_old_volume_in_the_end() {
    let runbook = |bench: &Bench| bench.view().recoveries[&key("image")].runbook.clone().expect("there");
    for inherited in [false, true] {
        let mut bench = tainted();
        for wanted in [RebuildStage::Retaining, RebuildStage::Importing] {
            assert_eq!(stage(&bench), Some(wanted));
            let text = runbook(&bench);
            assert!(text.contains("The coordinator brings it back") && text.contains(OLD), "{text}");
            assert!(!text.contains("kubectl delete") && !text.contains("attest"), "{text}");
            bench.cluster_answers = true;
            bench.run_ms(15_000);
        }
        if inherited {
            bench.restart();
        }
        bench.import_ends("image");
        bench.run_ms(1_000);
        assert_eq!(stage(&bench), Some(RebuildStage::Rebuilt));
        let proof = bench.view().recoveries[&key("image")].proof;
        assert_eq!(proof, Some(ProofKind::PowerOffConfirmed), "inherited: {inherited}");
        let text = runbook(&bench);
        assert!(text.contains("It is over") && text.contains("It runs again, on"), "{text}");
        assert!(text.contains("kubectl delete pv pv-image-system\n"), "{text}");
        assert!(!text.contains("pvc") && !text.contains("attest"), "{text}");
    }
}
