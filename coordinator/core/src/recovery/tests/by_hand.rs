//! A VM that a person moves off a dead node, or that starts away from its disks: told of to the end, and nothing that is in
//! use is ordered to go.

use super::progress;
use crate::coordinator::testkit::{Bench, fast};
use crate::decision::testkit::{key, on_host};
use crate::fencing::ProofKind;
use crate::fleet::Claim;
use crate::names::{NodeName, Uid};
use crate::view::{RecoveryCause, RecoveryProgress, RecoveryView};

/// KubeVirt makes the next launcher, which waits for a node.
fn delete_its_pod(bench: &mut Bench) {
    let vm = bench.fleet.vms.get_mut(&key("local")).expect("there");
    let instance = vm.instance.as_mut().expect("there");
    (instance.node, instance.phase, instance.has_run) = (None, "Scheduling".to_owned(), false);
    (vm.pods[0].name, vm.pods[0].uid) = ("virt-launcher-local-2".to_owned(), Uid("pod-local-2".to_owned()));
    vm.pods[0].node = None;
    bench.show_fleet();
}

/// The new volume is made in advance, on n3.
fn create_the_new_volume(bench: &mut Bench) {
    let mut new = bench.fleet.volumes[&"pv-local-data".into()].clone();
    new.phase = "Available".to_owned();
    new.claim.as_mut().expect("there").uid = None;
    new.node_affinity = on_host(&["n3"]);
    bench.fleet.volumes.insert("pv-local-data-restored".into(), new);
    bench.show_fleet();
}

/// The claim, for the one who makes it anew.
fn delete_its_claim(bench: &mut Bench) -> Claim {
    bench.fleet.volumes.get_mut(&"pv-local-data".into()).expect("there").phase = "Released".to_owned();
    let claim = bench.fleet.claims.remove(&key("local-data")).expect("there");
    bench.show_fleet();
    claim
}

fn create_its_claim(bench: &mut Bench, claim: Claim) {
    let volume = "pv-local-data-restored".into();
    let uid = Uid("claim-local-data-2".to_owned());
    let bound = bench.fleet.volumes.get_mut(&volume).expect("there");
    bound.phase = "Bound".to_owned();
    bound.claim.as_mut().expect("there").uid = Some(uid.clone());
    bench.fleet.claims.insert(key("local-data"), Claim { volume: Some(volume), uid, ..claim });
    bench.show_fleet();
}

/// The VM, as its runbook has a person do it: its launcher deleted, and its claim pointed at a volume on n3.
fn move_by_hand(bench: &mut Bench) {
    create_the_new_volume(bench);
    delete_its_pod(bench);
    let claim = delete_its_claim(bench);
    create_its_claim(bench, claim);
}

/// n1 is proven dead, and a person is at work on the VM.
fn moved_by_hand() -> Bench {
    let mut bench = proven_dead();
    move_by_hand(&mut bench);
    bench
}

fn proven_dead() -> Bench {
    let mut bench = Bench::new(fast(&[]));
    bench.silence(&["n1"]);
    bench.run_ms(1_500);
    bench.attest("n1", 1, "eve");
    bench.run_ms(100);
    bench
}

fn run_by_hand(bench: &mut Bench) {
    let vm = bench.fleet.vms.get_mut(&key("local")).expect("there");
    let instance = vm.instance.as_mut().expect("there");
    (instance.node, instance.phase) = (Some("n3".into()), "Running".to_owned());
    vm.pods[0].node = Some("n3".into());
    bench.show_fleet();
}

fn recovery(bench: &Bench) -> RecoveryView {
    bench.view().recoveries[&key("local")].clone()
}

fn runbook(bench: &Bench) -> String {
    recovery(bench).runbook.expect("there")
}

/// However long a person takes for a step, the next one is still to be read, and nothing else is told.
#[test]
fn a_runbook_stays_while_somebody_does_what_it_says() {
    let mut bench = proven_dead();
    let before = runbook(&bench);
    let steps = before.split_once("\n\n").expect("a title").1;
    let at_work = |bench: &Bench| {
        let recovery = recovery(bench);
        assert_eq!(
            (recovery.cause, recovery.progress),
            (RecoveryCause::NodeDied, RecoveryProgress::NeedsPerson)
        );
        assert_eq!((recovery.node, recovery.proof), (Some("n1".into()), Some(ProofKind::HumanAttested)));
        let text = recovery.runbook.expect("there");
        assert!(text.contains("go on with the step that comes next") && text.ends_with(steps), "{text}");
    };
    create_the_new_volume(&mut bench);
    assert_eq!(runbook(&bench), before, "the new volume is no copy of anything");
    delete_its_pod(&mut bench);
    at_work(&bench);
    let claim = delete_its_claim(&mut bench);
    at_work(&bench);
    bench.run_ms(120_000);
    at_work(&bench);
    assert_eq!(bench.notices("RecoveryDecided"), 2, "one of each VM");
    create_its_claim(&mut bench, claim);
    assert_eq!(progress(&bench, "local"), RecoveryProgress::Unaffected);
    let text = runbook(&bench);
    assert!(
        text.contains("pv-local-data") && !text.contains("delete pv") && !text.contains("rm -r"),
        "{text}"
    );
    run_by_hand(&mut bench);
    assert!(runbook(&bench).contains("kubectl delete pv pv-local-data"), "{}", runbook(&bench));
}

/// A new leader does not know what was in the claim that is missing; what was shown stays.
#[test]
fn a_new_leader_leaves_what_is_shown_while_a_claim_is_made_anew() {
    let mut bench = proven_dead();
    create_the_new_volume(&mut bench);
    delete_its_pod(&mut bench);
    let claim = delete_its_claim(&mut bench);
    bench.restart();
    bench.run_ms(240_000);
    assert_eq!(bench.view().recoveries.get(&key("local")), None, "nothing is written over it");
    create_its_claim(&mut bench, claim);
    run_by_hand(&mut bench);
    assert_eq!(progress(&bench, "local"), RecoveryProgress::Recovered);
}

/// One that takes over after the pods were deleted writes the steps anew: nothing of them speaks to a living node, or
/// of the launcher that KubeVirt has made since.
#[test]
fn a_new_leader_knows_the_proof_of_a_vm_without_pods() {
    let mut bench = proven_dead();
    delete_its_pod(&mut bench);
    bench.restart();
    bench.run_ms(1_000);
    let text = runbook(&bench);
    assert!(text.contains("Node `n1` is proven dead (HumanAttested"), "{text}");
    assert!(text.contains("kubectl delete pvc -n shop local-data"), "{text}");
    for wrong in ["While the node lives", "somersault attest", "virt-launcher-local-2"] {
        assert!(!text.contains(wrong), "{wrong}: {text}");
    }
}

/// Its pods are gone, and its node is back with everything: it is the node's own again.
#[test]
fn a_node_that_returns_before_a_claim_was_touched_has_its_vm_again() {
    let mut bench = proven_dead();
    delete_its_pod(&mut bench);
    bench.beat("n1", 2);
    bench.run_ms(1_000);
    assert_eq!(progress(&bench, "local"), RecoveryProgress::NodeReturned);
    assert!(!runbook(&bench).contains("delete p"), "{}", runbook(&bench));
}

/// Nobody has read the cluster between the last step and the VM's start.
#[test]
fn a_vm_that_is_seen_running_is_nobodys_work_any_more() {
    let mut bench = proven_dead();
    delete_its_pod(&mut bench);
    run_by_hand(&mut bench);
    assert_eq!(progress(&bench, "local"), RecoveryProgress::Recovered);
    assert!(!runbook(&bench).contains("delete pvc"), "{}", runbook(&bench));
}

/// A person took the disk out of the VM instead of replacing its claim: what is decided now counts.
#[test]
fn a_claim_that_the_vm_does_not_have_any_more_holds_nothing_up() {
    let mut bench = proven_dead();
    bench.fleet.vms.get_mut(&key("local")).expect("there").disks.clear();
    bench.fleet.claims.remove(&key("local-data"));
    bench.show_fleet();
    assert_ne!(progress(&bench, "local"), RecoveryProgress::NeedsPerson);
}

/// The node comes back while its claim is away: nobody says that nothing was touched.
#[test]
fn a_node_that_returns_in_the_middle_does_not_call_its_vm_untouched() {
    let mut bench = proven_dead();
    delete_its_pod(&mut bench);
    delete_its_claim(&mut bench);
    bench.beat("n1", 2);
    bench.run_ms(100_000);
    assert_eq!(bench.notices("NodeReturned"), 1, "of the node alone");
    assert!(!runbook(&bench).contains("was touched"), "{}", runbook(&bench));
}

/// A Recovery that nobody writes any more goes on to tell people to delete the launcher and the claim that are in use.
#[test]
fn a_vm_that_is_moved_by_hand_is_told_of_to_the_end() {
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
    let uid = claim.uid.clone();
    let old = bench.fleet.volumes.get_mut(&"pv-local-data".into()).expect("there");
    old.phase = "Bound".to_owned();
    old.claim.as_mut().expect("there").uid = Some(uid);
    bench.show_fleet();
    assert_eq!(progress(&bench, "local"), RecoveryProgress::NeedsPerson);
}

/// As Kubernetes does when somebody sets the out-of-service taint: the dead node is emptied, and the VM started anew.
#[test]
fn a_vm_that_others_start_away_from_its_disks_is_not_called_recovered() {
    let mut bench = Bench::new(fast(&[]));
    bench.fleet.volumes.get_mut(&"pv-local-data".into()).expect("there").node_affinity = None;
    bench.show_fleet();
    bench.silence(&["n1"]);
    bench.run_ms(1_500);
    assert_eq!(progress(&bench, "local"), RecoveryProgress::NeedsPerson);
    run_by_hand(&mut bench);
    bench.show_fleet();
    assert_eq!(bench.notices("VmStartedAwayFromDisks"), 1);
    let text = bench.view().recoveries[&key("local")].runbook.clone().expect("there");
    assert!(text.contains("It runs on `n3`, and its disks were on `n1`"), "{text}");
    assert!(!text.contains("leave it alone"), "{text}");
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
