//! What is done to which VM, and what is not.

mod by_hand;

use crate::coordinator::testkit::{Bench, boot, fast};
use crate::decision::DecisionKind;
use crate::decision::testkit::{key, nfs, running_vm};
use crate::fencing::ProofKind;
use crate::fleet::{Attachment, Pod};
use crate::io::{Action, Effect, FenceResult, Input};
use crate::names::{NodeName, Uid};
use crate::view::RecoveryProgress;

fn fenced() -> Bench {
    let mut bench = Bench::new(fast(&["n1"]));
    bench.fence.insert("n1".into(), FenceResult::ConfirmedOff);
    bench
}

fn progress(bench: &Bench, vm: &str) -> RecoveryProgress {
    bench.view().recoveries[&key(vm)].progress
}

fn add_net_vm(bench: &mut Bench, name: &str) {
    let mut world = crate::decision::testkit::World::bare();
    std::mem::swap(&mut world.fleet, &mut bench.fleet);
    world.fleet.vms.insert(key(name), running_vm(name, "n1"));
    world.add_disk(name, "data", nfs(), None);
    std::mem::swap(&mut world.fleet, &mut bench.fleet);
    bench.show_fleet();
}

#[test]
fn decisions_are_published_at_the_declaration_and_acted_upon_after_the_proof() {
    let mut bench = Bench::new(fast(&[]));
    bench.silence(&["n1"]);
    bench.run_ms(1_500);
    let recoveries = bench.view().recoveries;
    assert_eq!(recoveries[&key("net")].decision.kind, DecisionKind::Recreate);
    assert_eq!(recoveries[&key("local")].decision.kind, DecisionKind::ManualRecovery);
    assert!(recoveries[&key("local")].runbook.is_some() && recoveries[&key("net")].runbook.is_none());
    assert_eq!(progress(&bench, "net"), RecoveryProgress::AwaitingProof);
    assert_eq!(bench.notices("RecoveryDecided"), 2);
    bench.run_ms(60_000);
    assert!(bench.deleted().is_empty());
    bench.attest("n1", 1, "eve");
    bench.run_ms(100);
    assert_eq!(bench.deleted(), ["virt-launcher-net".to_owned()].into());
    assert_eq!(progress(&bench, "net"), RecoveryProgress::Recovered);
    assert_eq!(progress(&bench, "local"), RecoveryProgress::NeedsPerson);
    assert_eq!(bench.notices("RecoveryDecided"), 2, "on transitions only");
}

#[test]
fn a_runbook_follows_the_proof_and_the_recovery() {
    let runbook = |bench: &Bench| bench.view().recoveries[&key("local")].runbook.clone().expect("there");
    let attested = || {
        let mut bench = Bench::new(fast(&[]));
        bench.silence(&["n1"]);
        bench.run_ms(1_500);
        assert!(runbook(&bench).contains("It may still run on `n1`"), "{}", runbook(&bench));
        bench.attest("n1", 1, "eve");
        bench.run_ms(100);
        assert!(runbook(&bench).contains("Node `n1` is proven dead (HumanAttested"), "{}", runbook(&bench));
        assert!(!runbook(&bench).contains("somersault attest"), "{}", runbook(&bench));
        bench
    };
    let (mut bench, mut elsewhere) = (attested(), attested());
    bench.beat("n1", 2);
    bench.run_ms(1_000);
    assert!(runbook(&bench).contains("is back, and nothing of the VM was touched"), "{}", runbook(&bench));
    bench.run_ms(100_000);
    assert!(bench.view().recoveries[&key("local")].ended);
    assert!(runbook(&bench).contains("It is over"), "{}", runbook(&bench));
    let vm = elsewhere.fleet.vms.get_mut(&key("local")).expect("there");
    vm.instance.as_mut().expect("there").node = Some("n3".into());
    vm.pods[0].node = Some("n3".into());
    elsewhere.show_fleet();
    assert_eq!(progress(&elsewhere, "local"), RecoveryProgress::Recovered);
    assert!(runbook(&elsewhere).contains("It runs again, on `n3`"), "{}", runbook(&elsewhere));
    assert!(!runbook(&elsewhere).contains("delete"), "{}", runbook(&elsewhere));
}

/// Each Recovery shows what proved its own incident, whatever becomes of the node later.
#[test]
fn a_recovery_keeps_the_proof_of_its_incident() {
    let proof = |bench: &Bench, vm| bench.view().recoveries[&key(vm)].proof;
    let mut bench = Bench::new(fast(&[]));
    bench.silence(&["n1"]);
    bench.run_ms(1_500);
    assert_eq!(proof(&bench, "net"), None);
    bench.attest("n1", 1, "eve");
    bench.run_ms(1_000);
    assert_eq!(proof(&bench, "net"), Some(ProofKind::HumanAttested));
    bench.beat("n1", 2);
    bench.run_ms(100_000);
    assert_eq!(bench.view().nodes[&NodeName::from("n1")].proof, None, "its incident is over");
    assert!(bench.view().recoveries[&key("net")].ended);
    assert_eq!(proof(&bench, "net"), Some(ProofKind::HumanAttested));
    bench.silence(&["n1"]);
    bench.run_ms(1_500);
    assert_eq!(proof(&bench, "net"), Some(ProofKind::HumanAttested), "it runs elsewhere");
    assert_eq!(proof(&bench, "local"), None, "the second incident is not proven yet");
}

#[test]
fn hotplug_pods_go_with_their_launcher() {
    let mut bench = fenced();
    let vm = bench.fleet.vms.get_mut(&key("net")).expect("there");
    let hotplug =
        Pod { name: "hp-volume-net".to_owned(), uid: Uid("pod-hp".to_owned()), ..vm.pods[0].clone() };
    vm.pods.push(hotplug);
    bench.show_fleet();
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    assert_eq!(bench.deleted(), ["hp-volume-net".to_owned(), "virt-launcher-net".to_owned()].into());
}

#[test]
fn nothing_is_deleted_before_the_taint_is_set() {
    let mut bench = fenced();
    bench.cluster_answers = false;
    bench.silence(&["n1"]);
    bench.run_ms(10_000);
    assert!(
        bench.count(|effect| matches!(effect, Effect::Act(Action::Taint { .. }))) > 1,
        "asked again and again"
    );
    assert!(bench.deleted().is_empty());
    bench.give(Input::Acted(Action::Taint { node: "n1".into() }));
    assert_eq!(bench.deleted().len(), 1);
}

#[test]
fn a_launcher_that_never_ran_is_left_alone() {
    let mut bench = fenced();
    bench.fleet.vms.get_mut(&key("net")).expect("there").instance.as_mut().expect("there").has_run = false;
    bench.show_fleet();
    bench.silence(&["n1"]);
    bench.run_ms(5_000);
    // A late word of the dead node's kubelet, or an early one of its next boot: nobody can tell.
    bench.fleet.vms.get_mut(&key("net")).expect("there").instance.as_mut().expect("there").has_run = true;
    bench.show_fleet();
    bench.run_ms(60_000);
    assert!(bench.deleted().is_empty());
    assert_eq!(progress(&bench, "net"), RecoveryProgress::NeedsPerson);
    assert_eq!(bench.notices("LauncherLeftAlone"), 1);
}

#[test]
fn the_decision_is_made_again_at_the_moment_of_action() {
    let mut bench = Bench::new(fast(&[]));
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    let volume = bench.fleet.volumes.get_mut(&"pv-net-data".into()).expect("there");
    volume.source = crate::decision::testkit::host_path();
    bench.show_fleet();
    bench.attest("n1", 1, "eve");
    bench.run_ms(5_000);
    assert!(bench.deleted().is_empty(), "its disk turned out to be local");
}

#[test]
fn only_so_many_vms_are_recreated_at_once() {
    let mut spec = fast(&["n1"]);
    spec.recovery.concurrent_max = 2;
    let mut bench = Bench::new(spec);
    bench.fence.insert("n1".into(), FenceResult::ConfirmedOff);
    for name in ["a", "b", "c", "d"] {
        add_net_vm(&mut bench, name);
    }
    bench.cluster_answers = false;
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.give(Input::Acted(Action::Taint { node: "n1".into() }));
    bench.run_ms(10_000);
    assert_eq!(bench.deleted().len(), 2, "{:?}", bench.deleted());
    bench.cluster_answers = true;
    bench.run_ms(300_000);
    assert_eq!(bench.deleted().len(), 5, "{:?}", bench.deleted());
}

#[test]
fn a_failed_deletion_is_tried_again_and_then_a_person_is_asked() {
    let mut bench = fenced();
    bench.cluster_answers = false;
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.give(Input::Acted(Action::Taint { node: "n1".into() }));
    for _ in 0..10 {
        let last = bench.effects.iter().rev().find_map(|(_, effect)| match effect {
            Effect::Act(action @ Action::DeletePod { .. }) => Some(action.clone()),
            _ => None,
        });
        let action = last.expect("asked for");
        bench.give(Input::ActionFailed { action, why: "the webhook refused".to_owned() });
        bench.run_ms(3_000);
    }
    assert_eq!(bench.count(|effect| matches!(effect, Effect::Act(Action::DeletePod { .. }))), 5);
    assert_eq!(bench.notices("VmRecoveryFailed"), 1);
    assert_eq!(progress(&bench, "net"), RecoveryProgress::NeedsPerson);
}

#[test]
fn a_node_that_returns_keeps_what_was_not_touched() {
    let mut bench = Bench::new(fast(&[]));
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.beat("n1", 2);
    bench.run_ms(1_000);
    assert_eq!(progress(&bench, "net"), RecoveryProgress::NodeReturned);
    assert_eq!(progress(&bench, "local"), RecoveryProgress::NodeReturned);
    assert!(bench.deleted().is_empty());
}

#[test]
fn quarantine_waits_for_deletions_that_are_under_way() {
    let mut bench = fenced();
    bench.cluster_answers = false;
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.give(Input::Acted(Action::Taint { node: "n1".into() }));
    assert_eq!(progress(&bench, "net"), RecoveryProgress::Acting);
    bench.beat("n1", 2);
    bench.run_ms(5_000);
    let shown = bench.view().nodes[&NodeName::from("n1")].clone();
    assert!(!matches!(shown.fence.expect("stored").stage, crate::fencing::FenceStage::Quarantine { .. }));
    let last = bench.effects.iter().rev().find_map(|(_, effect)| match effect {
        Effect::Act(action @ Action::DeletePod { .. }) => Some(action.clone()),
        _ => None,
    });
    bench.give(Input::Acted(last.expect("asked for")));
    let shown = bench.view().nodes[&NodeName::from("n1")].clone();
    let quarantine = crate::fencing::FenceStage::Quarantine { boot_id: boot("n1", 2) };
    assert_eq!(shown.fence.expect("stored").stage, quarantine);
}

#[test]
fn a_stopped_vm_is_nobodys_concern() {
    let mut bench = fenced();
    let vm = bench.fleet.vms.get_mut(&key("net")).expect("there");
    (vm.instance, vm.pods, vm.run) = (None, Vec::new(), crate::fleet::RunStrategy::Halted);
    bench.show_fleet();
    bench.silence(&["n1"]);
    bench.run_ms(5_000);
    assert!(!bench.view().recoveries.contains_key(&key("net")));
}

#[test]
fn a_vm_of_two_incidents_is_shown_in_the_later_one() {
    let mut bench = Bench::new(fast(&[]));
    bench.silence(&["n3"]);
    let vm = bench.fleet.vms.get_mut(&key("net")).expect("there");
    vm.instance.as_mut().expect("there").node = Some("n3".into());
    vm.pods[0].node = Some("n3".into());
    bench.show_fleet();
    bench.run_ms(2_000);
    bench.beat("n3", 2);
    bench.run_ms(500);
    assert_eq!(progress(&bench, "net"), RecoveryProgress::NodeReturned);
    let vm = bench.fleet.vms.get_mut(&key("net")).expect("there");
    vm.instance.as_mut().expect("there").node = Some("n1".into());
    vm.pods[0].node = Some("n1".into());
    bench.show_fleet();
    bench.run_ms(61_000 - 2_500);
    bench.silence(&["n1"]);
    bench.run_ms(1_800);
    assert_eq!(progress(&bench, "net"), RecoveryProgress::AwaitingProof);
    assert_eq!(bench.view().recoveries[&key("net")].node, Some("n1".into()));
}

fn attach(bench: &mut Bench, name: &str, node: &str, volume: &str) {
    let attachment = Attachment {
        uid: Uid(format!("uid-{name}")),
        node: node.into(),
        volume: Some(volume.into()),
        attached: true,
        deleting: false,
    };
    bench.fleet.attachments.insert(name.to_owned(), attachment);
    bench.show_fleet();
}

#[test]
fn volumes_of_a_recreated_vm_are_detached_once_its_launcher_is_gone() {
    let mut bench = fenced();
    for (name, node, volume) in [
        ("net", "n1", "pv-net-data"),
        ("local", "n1", "pv-local-data"),
        ("somebodys", "n1", "pv-of-a-database"),
        ("elsewhere", "n3", "pv-net-data"),
    ] {
        attach(&mut bench, name, node, volume);
    }
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    let left: Vec<&str> = bench.fleet.attachments.keys().map(String::as_str).collect();
    assert_eq!(left, ["elsewhere", "local", "somebodys"]);
    let at = |wanted: fn(&Action) -> bool| {
        bench.effects.iter().position(|(_, effect)| matches!(effect, Effect::Act(action) if wanted(action)))
    };
    let deleted = at(|action| matches!(action, Action::DeletePod { .. })).expect("deleted");
    let detached = at(|action| matches!(action, Action::DeleteAttachment { .. })).expect("detached");
    assert!(deleted < detached);
}

#[test]
fn a_new_leader_detaches_what_an_earlier_one_left_attached() {
    let mut bench = fenced();
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.cluster_answers = false;
    attach(&mut bench, "net", "n1", "pv-net-data");
    bench.restart();
    bench.cluster_answers = true;
    bench.run_ms(15_000);
    assert!(!bench.fleet.attachments.contains_key("net"));
}

#[test]
fn an_attachment_that_goes_already_is_not_asked_to_go() {
    let mut bench = fenced();
    attach(&mut bench, "net", "n1", "pv-net-data");
    bench.fleet.attachments.get_mut("net").expect("there").deleting = true;
    bench.show_fleet();
    bench.silence(&["n1"]);
    bench.run_ms(5_000);
    assert_eq!(bench.deleted().len(), 1);
    assert_eq!(bench.count(|effect| matches!(effect, Effect::Act(Action::DeleteAttachment { .. }))), 0);
}

#[test]
fn an_attachment_that_stays_is_asked_for_again_and_left_when_the_node_is_back() {
    let mut bench = fenced();
    attach(&mut bench, "net", "n1", "pv-net-data");
    bench.silence(&["n1"]);
    bench.run_ms(1_500);
    let asked =
        |bench: &Bench| bench.count(|effect| matches!(effect, Effect::Act(Action::DeleteAttachment { .. })));
    assert_eq!(asked(&bench), 1);
    // Made again, by an attach-detach controller that had not noticed.
    bench.cluster_answers = false;
    attach(&mut bench, "net", "n1", "pv-net-data");
    bench.run_ms(25_000);
    let before = asked(&bench);
    assert!((3..=4).contains(&before), "{before}");
    bench.beat("n1", 2);
    bench.run_ms(60_000);
    assert_eq!(asked(&bench), before, "no proof, no deletion");
}

fn with_out_of_service() -> Bench {
    let mut spec = fast(&["n1"]);
    spec.recovery.out_of_service = true;
    let mut bench = Bench::new(spec);
    bench.fence.insert("n1".into(), FenceResult::ConfirmedOff);
    bench
}

fn called(bench: &Bench) -> usize {
    bench.count(|effect| matches!(effect, Effect::Act(Action::OutOfService { .. })))
}

#[test]
fn a_node_is_called_out_of_service_only_where_that_is_wanted_and_every_vm_on_it_is_recreated() {
    for (wanted, local, stray) in
        [(true, false, false), (true, true, false), (true, false, true), (false, false, false)]
    {
        let mut bench = if wanted { with_out_of_service() } else { fenced() };
        if !local {
            bench.fleet.vms.remove(&key("local"));
        }
        if stray {
            bench.fleet.stray_launchers.insert("n1".into());
        }
        bench.show_fleet();
        bench.silence(&["n1"]);
        bench.run_ms(5_000);
        assert_eq!(called(&bench), usize::from(wanted && !local && !stray), "{wanted} {local} {stray}");
        assert_eq!(bench.deleted().len(), 1, "and its VM is recreated at once, whatever the taint");
    }
}

#[test]
fn the_out_of_service_taint_waits_for_vms_that_wait_for_a_place() {
    let mut spec = fast(&["n1"]);
    spec.recovery.out_of_service = true;
    spec.recovery.concurrent_max = 1;
    let mut bench = Bench::new(spec);
    bench.fence.insert("n1".into(), FenceResult::ConfirmedOff);
    bench.fleet.vms.remove(&key("local"));
    add_net_vm(&mut bench, "second");
    bench.cluster_answers = false;
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.do_by_hand(&Action::Taint { node: "n1".into() });
    bench.run_ms(5_000);
    assert_eq!((bench.deleted().len(), called(&bench)), (1, 0));
    bench.cluster_answers = true;
    bench.run_ms(300_000);
    assert_eq!((bench.deleted().len(), called(&bench)), (2, 1));
}

#[test]
fn the_out_of_service_taint_goes_when_the_node_is_back_and_proves_nothing() {
    let mut bench = with_out_of_service();
    bench.fleet.vms.remove(&key("local"));
    bench.show_fleet();
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    let is_set = |bench: &Bench| bench.fleet.nodes[&NodeName::from("n1")].is_out_of_service_by_us();
    assert!(is_set(&bench));
    bench.show_fleet();
    bench.beat("n1", 2);
    bench.run_ms(1_000);
    assert!(!is_set(&bench));
    assert!(bench.is_tainted("n1"), "our other taint stays until the end of quarantine");
    bench.run_ms(62_000);
    bench.fence.clear();
    bench.silence(&["n1"]);
    bench.run_ms(60_000);
    assert_eq!(bench.state("n1"), crate::view::NodeState::AwaitingProof);
    let node = bench.fleet.nodes.get_mut(&NodeName::from("n1")).expect("there");
    node.taints.push(crate::fleet::Taint {
        key: crate::fleet::OUT_OF_SERVICE_TAINT.to_owned(),
        value: crate::fleet::OUT_OF_SERVICE_OURS.to_owned(),
        effect: "NoExecute".to_owned(),
    });
    bench.show_fleet();
    bench.run_ms(2_000);
    assert!(!is_set(&bench), "left over from another leader: taken away");
    assert_eq!(bench.state("n1"), crate::view::NodeState::AwaitingProof, "our own word is no proof");
}

#[test]
fn a_vm_that_migrates_live_needs_the_proof_of_both_nodes() {
    let mut bench = Bench::new(fast(&[]));
    let vm = bench.fleet.vms.get_mut(&key("net")).expect("there");
    vm.instance.as_mut().expect("there").migrating = Some(Some("n3".into()));
    bench.show_fleet();
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.attest("n1", 1, "eve");
    bench.run_ms(5_000);
    assert!(bench.deleted().is_empty(), "its target lives");
    assert_eq!(progress(&bench, "net"), RecoveryProgress::NeedsPerson);
    bench.run_ms(60_000);
    bench.silence(&["n3"]);
    bench.run_ms(40_000);
    assert!(bench.deleted().is_empty(), "its target is only declared");
    bench.attest("n3", 1, "eve");
    bench.run_ms(2_000);
    assert_eq!(bench.deleted(), ["virt-launcher-net".to_owned()].into());
}

/// The other way round: first the node to which it moves. It runs on at its source, and is not called recovered; once that dies
/// too, both of its launchers go, else KubeVirt would wait for the one that is left for ever.
#[test]
fn a_vm_whose_target_dies_first_loses_both_launchers_once_its_source_is_dead_too() {
    let mut bench = Bench::new(fast(&[]));
    let vm = bench.fleet.vms.get_mut(&key("net")).expect("there");
    vm.instance.as_mut().expect("there").migrating = Some(Some("n3".into()));
    let target = Pod {
        name: "virt-launcher-net-target".to_owned(),
        uid: "target".into(),
        node: Some("n3".into()),
        ..vm.pods[0].clone()
    };
    vm.pods.push(target);
    bench.show_fleet();
    bench.silence(&["n3"]);
    bench.run_ms(2_000);
    bench.attest("n3", 1, "eve");
    bench.run_ms(5_000);
    assert!(bench.deleted().is_empty(), "its source lives");
    assert_eq!((progress(&bench, "net"), bench.notices("VmRecovered")), (RecoveryProgress::NeedsPerson, 0));
    bench.run_ms(60_000);
    bench.silence(&["n1"]);
    bench.run_ms(40_000);
    bench.attest("n1", 1, "eve");
    bench.run_ms(5_000);
    let both = ["virt-launcher-net", "virt-launcher-net-target"].map(str::to_owned);
    assert_eq!(bench.deleted(), both.into());
}

#[test]
fn a_node_object_that_is_deleted_while_vms_wait_for_a_proof_ends_the_incident() {
    let mut bench = Bench::new(fast(&[]));
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    bench.fleet.nodes.remove(&NodeName::from("n1"));
    bench.show_fleet();
    bench.run_ms(12_000);
    assert_eq!(bench.notices("NodeRemoved"), 1);
    assert!(bench.deleted().is_empty());
    assert!(!bench.view().nodes.contains_key(&NodeName::from("n1")));
}

/// `local` has its disk in a folder, and its volume does not say on which node.
fn with_a_loose_volume(fence_agents: &[&str]) -> Bench {
    let mut bench = Bench::new(fast(fence_agents));
    let volumes = bench.fleet.volumes.values_mut();
    volumes.for_each(|volume| volume.node_affinity = None);
    bench.show_fleet();
    bench
}

#[test]
fn a_vm_that_may_start_anywhere_is_not_kept_from_its_own_node_by_our_taint() {
    let mut bench = with_a_loose_volume(&[]);
    bench.fleet.vms.remove(&key("net"));
    bench.show_fleet();
    bench.silence(&["n1"]);
    bench.run_ms(5_000);
    assert_eq!(progress(&bench, "local"), RecoveryProgress::NeedsPerson);
    assert!(!bench.is_tainted("n1"));
    bench.beat("n1", 2);
    bench.run_ms(30_000);
    assert_eq!(progress(&bench, "local"), RecoveryProgress::NodeReturned);
    assert!(!bench.is_tainted("n1"), "in quarantine neither");
}

#[test]
fn the_taint_stays_for_those_that_start_elsewhere_until_kubernetes_keeps_them_away() {
    let mut bench = with_a_loose_volume(&[]);
    bench.silence(&["n1"]);
    bench.run_ms(5_000);
    assert!(bench.is_tainted("n1"), "net waits for a proof");
    bench.attest("n1", 1, "eve");
    bench.run_ms(5_000);
    bench.show_fleet();
    bench.run_ms(2_000);
    assert_eq!(progress(&bench, "net"), RecoveryProgress::Recovered);
    assert!(bench.is_tainted("n1"), "a pod could still be put on the dead node");
    bench.taint("n1", crate::fleet::KUBERNETES_UNREACHABLE_TAINT);
    bench.show_fleet();
    bench.run_ms(5_000);
    assert!(!bench.is_tainted("n1"));
}
