//! A VM that a person moves off a dead node, or that starts away from its disks: told of to the end, and nothing that is in
//! use is ordered to go.

use super::progress;
use crate::coordinator::testkit::{Bench, fast};
use crate::decision::testkit::{key, on_host};
use crate::names::{NodeName, Uid};
use crate::view::RecoveryProgress;

/// The VM, as its runbook has a person do it: its launcher deleted, and its claim pointed at a volume on n3.
fn move_by_hand(bench: &mut Bench) {
    let vm = bench.fleet.vms.get_mut(&key("local")).expect("there");
    let instance = vm.instance.as_mut().expect("there");
    (instance.node, instance.phase, instance.has_run) = (None, "Scheduling".to_owned(), false);
    vm.pods[0].uid = Uid("pod-local-2".to_owned());
    vm.pods[0].node = None;
    bench.show_fleet();
    let old = bench.fleet.volumes.get_mut(&"pv-local-data".into()).expect("there");
    let mut new = old.clone();
    old.phase = "Released".to_owned();
    new.node_affinity = on_host(&["n3"]);
    bench.fleet.volumes.insert("pv-local-data-restored".into(), new);
    let claim = bench.fleet.claims.get_mut(&key("local-data")).expect("there");
    claim.volume = Some("pv-local-data-restored".into());
    bench.show_fleet();
}

/// n1 is proven dead, and a person is at work on the VM.
fn moved_by_hand() -> Bench {
    let mut bench = Bench::new(fast(&[]));
    bench.silence(&["n1"]);
    bench.run_ms(1_500);
    bench.attest("n1", 1, "eve");
    bench.run_ms(100);
    move_by_hand(&mut bench);
    bench
}

fn run_by_hand(bench: &mut Bench) {
    let vm = bench.fleet.vms.get_mut(&key("local")).expect("there");
    let instance = vm.instance.as_mut().expect("there");
    (instance.node, instance.phase) = (Some("n3".into()), "Running".to_owned());
    vm.pods[0].node = Some("n3".into());
    bench.show_fleet();
}

/// A Recovery that nobody writes any more goes on to tell people to delete the launcher and the claim that are in use.
#[test]
fn a_vm_that_is_moved_by_hand_is_told_of_to_the_end() {
    let runbook = |bench: &Bench| bench.view().recoveries[&key("local")].runbook.clone().expect("there");
    let harmless = |bench: &Bench| {
        let text = runbook(bench);
        assert!(!text.contains("delete pod") && !text.contains("delete pvc"), "{text}");
    };
    let mut bench = moved_by_hand();
    assert_eq!(progress(&bench, "local"), RecoveryProgress::Unaffected);
    harmless(&bench);
    run_by_hand(&mut bench);
    assert_eq!(progress(&bench, "local"), RecoveryProgress::Recovered);
    harmless(&bench);
    bench.fleet.nodes.get_mut(&NodeName::from("n1")).expect("there").unschedulable = true;
    bench.show_fleet();
    bench.beat("n1", 2);
    bench.run_ms(100_000);
    let recovery = bench.view().recoveries[&key("local")].clone();
    assert!(recovery.ended && recovery.progress == RecoveryProgress::Recovered, "{recovery:?}");
    harmless(&bench);
    let text = runbook(&bench);
    assert!(
        text.contains("kubectl uncordon n1") && text.contains("kubectl delete pv pv-local-data\n"),
        "{text}"
    );
}

/// A new leader has seen nothing of what was decided before; the Recovery is still there.
#[test]
fn what_a_leader_has_shown_the_next_one_shows_to_its_end() {
    let mut bench = moved_by_hand();
    bench.restart();
    bench.run_ms(1_000);
    let recovery = bench.view().recoveries[&key("local")].clone();
    assert_eq!(recovery.progress, RecoveryProgress::Unaffected);
    assert!(!recovery.runbook.expect("there").contains("delete p"));
    run_by_hand(&mut bench);
    assert_eq!(progress(&bench, "local"), RecoveryProgress::Recovered);
    assert!(!bench.view().recoveries.contains_key(&key("net")), "it was recovered before");
}

/// Undone, or not done yet: its disks are on the dead node again.
#[test]
fn a_vm_that_is_the_dead_nodes_own_again_needs_a_person_again() {
    let mut bench = moved_by_hand();
    let claim = bench.fleet.claims.get_mut(&key("local-data")).expect("there");
    claim.volume = Some("pv-local-data".into());
    bench.fleet.volumes.get_mut(&"pv-local-data".into()).expect("there").phase = "Bound".to_owned();
    bench.show_fleet();
    assert_eq!(progress(&bench, "local"), RecoveryProgress::NeedsPerson);
}

/// Nothing tells the scheduler where its disks are, and nobody may stop what KubeVirt started.
#[test]
fn a_vm_that_started_away_from_its_disks_is_told_of() {
    let mut bench = Bench::new(fast(&[]));
    bench.fleet.volumes.get_mut(&"pv-local-data".into()).expect("there").node_affinity = None;
    bench.show_fleet();
    bench.silence(&["n1"]);
    bench.run_ms(1_500);
    bench.beat("n1", 2);
    bench.run_ms(1_000);
    assert_eq!(progress(&bench, "local"), RecoveryProgress::NodeReturned);
    run_by_hand(&mut bench);
    bench.show_fleet();
    assert_eq!(bench.notices("VmStartedAwayFromDisks"), 1);
    let text = bench.view().recoveries[&key("local")].runbook.clone().expect("there");
    assert!(
        text.contains("It runs on `n3`, and its disks were on `n1`") && text.contains("Tie its disks"),
        "{text}"
    );
}
