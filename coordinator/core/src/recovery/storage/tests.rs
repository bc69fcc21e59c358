//! What is told of broken storage, when, and what is never told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Elsewhere, KNOWN_AFTER, SETTLE, StorageWatch};
use crate::BootTime;
use crate::coordinator::testkit::{Bench, boot, fast};
use crate::decision::Reason;
use crate::decision::testkit::{World, data_report, key};
use crate::fencing::agents::PowerOff;
use crate::fleet::{DiskImage, Grade, NodeReport, RunStrategy, Usage};
use crate::io::{Effect, Input, Notice, Requests};
use crate::names::{NodeName, Uid};
use crate::policy::Policy;
use crate::scene::{Facts, Scene};
use crate::view::{RecoveryCause, RecoveryProgress, RecoveryView};

/// Folder of the disk of VM `local`.
const FOLDER: &str = "/data/vol";
/// Until the next listing and the report of it.
const A_LISTING_MS: u64 = 60_000;

/// A report of n1, with a listing of this age, or of an agent that has not listed yet.
fn report(listed_s: Option<u64>, folders: &[(&str, DiskImage)]) -> NodeReport {
    let usage = |disk_image| Usage { disk_image, ..Usage::default() };
    data_report(
        listed_s.map(Duration::from_secs),
        Grade::Ok,
        folders.iter().map(|(path, image)| (*path, usage(*image))),
    )
}

fn tell(bench: &mut Bench, report: NodeReport) {
    bench.give(Input::Report { node: "n1".into(), report: Box::new(report) });
}

/// The agent lists anew, and reports it; time passes until all of it has settled.
fn listed(bench: &mut Bench, folders: &[(&str, DiskImage)]) {
    bench.run_ms(A_LISTING_MS);
    tell(bench, report(Some(0), folders));
    bench.run_ms(20_000);
}

fn shown(bench: &Bench, vm: &str) -> Option<RecoveryView> {
    bench.view().recoveries.remove(&key(vm))
}

fn lose_claim(bench: &mut Bench, phase: &str) {
    phase.clone_into(&mut bench.fleet.claims.get_mut(&key("net-data")).expect("there").phase);
    bench.show_fleet();
}

fn assert_untouched(bench: &Bench) {
    let acts =
        bench.count(|effect| matches!(effect, Effect::Act(_) | Effect::Commit(_) | Effect::Order { .. }));
    assert_eq!(acts, 0, "something was done about it");
}

#[test]
fn a_lost_claim_is_told_once_it_has_settled_and_nothing_is_done() {
    let mut bench = Bench::new(fast(&[]));
    lose_claim(&mut bench, "Lost");
    bench.run_ms(9_000);
    assert_eq!(shown(&bench, "net"), None);
    bench.run_ms(10_000);
    let view = shown(&bench, "net").expect("told");
    assert_eq!((view.cause, view.progress), (RecoveryCause::StorageFailed, RecoveryProgress::NeedsPerson));
    assert_eq!((view.node, view.decision.reasons), (Some("n1".into()), vec![Reason::ClaimLost]));
    assert!(view.runbook.expect("a runbook").contains("no node of it died"));
    assert_eq!(shown(&bench, "local"), None);
    bench.run_ms(120_000);
    assert_eq!(bench.notices("StorageFailed"), 1, "on transitions only");
    assert_untouched(&bench);
    let told = bench.effects.iter().find_map(|(_, effect)| match effect {
        Effect::Notify(Notice { reason: "StorageFailed", message, .. }) => Some(message.clone()),
        _ => None,
    });
    let told = told.expect("told");
    assert!(told.contains("claim shop/net-data is Lost") && told.contains("What to do: bring"), "{told}");
}

#[test]
fn what_is_sound_again_in_time_is_never_told() {
    let mut bench = Bench::new(fast(&[]));
    for _ in 0..5 {
        lose_claim(&mut bench, "Lost");
        bench.run_ms(8_000);
        lose_claim(&mut bench, "Bound");
        bench.run_ms(8_000);
    }
    bench.run_ms(60_000);
    assert_eq!((bench.notices("StorageFailed"), shown(&bench, "net")), (0, None));
}

#[test]
fn what_was_brought_back_is_told_once_it_has_settled() {
    let mut bench = Bench::new(fast(&[]));
    lose_claim(&mut bench, "Lost");
    bench.run_ms(20_000);
    lose_claim(&mut bench, "Bound");
    bench.run_ms(6_000);
    assert_eq!(shown(&bench, "net").expect("told").progress, RecoveryProgress::NeedsPerson);
    bench.run_ms(15_000);
    assert_eq!(shown(&bench, "net").expect("told").progress, RecoveryProgress::Recovered);
    assert_eq!(bench.notices("StorageSound"), 1);
    lose_claim(&mut bench, "Lost");
    bench.run_ms(20_000);
    assert_eq!(shown(&bench, "net").expect("told").progress, RecoveryProgress::NeedsPerson);
    assert_eq!(bench.notices("StorageFailed"), 2);
}

/// A volume that was made since the agent last listed its folders is in no report.
#[test]
fn a_fresh_volume_is_not_called_missing() {
    let mut bench = Bench::new(fast(&[]));
    tell(&mut bench, report(Some(50), &[("/data/other", DiskImage::Present)]));
    bench.run_ms(30_000);
    // Its next report tells of the same listing, or of one that was made before the volume.
    tell(&mut bench, report(Some(60), &[("/data/other", DiskImage::Present)]));
    bench.run_ms(30_000);
    assert_eq!(shown(&bench, "local"), None);
    listed(&mut bench, &[(FOLDER, DiskImage::Present)]);
    assert_eq!((shown(&bench, "local"), bench.notices("StorageFailed")), (None, 0));
}

#[test]
fn a_folder_that_a_newer_listing_lacks_is_missing() {
    let mut bench = Bench::new(fast(&[]));
    tell(&mut bench, report(Some(0), &[]));
    bench.run_ms(30_000);
    assert_eq!(shown(&bench, "local"), None, "only one listing lacks it");
    listed(&mut bench, &[]);
    let view = shown(&bench, "local").expect("told");
    assert_eq!((view.decision.reasons, view.node), (vec![Reason::VolumePathMissing], Some("n1".into())));
    assert_untouched(&bench);
}

#[test]
fn a_lost_image_of_a_running_vm_is_told_and_stays_told_when_the_vm_is_stopped() {
    let mut bench = Bench::new(fast(&[]));
    tell(&mut bench, report(Some(0), &[(FOLDER, DiskImage::Absent)]));
    listed(&mut bench, &[(FOLDER, DiskImage::Absent)]);
    let view = shown(&bench, "local").expect("told");
    assert_eq!(view.decision.reasons, [Reason::DiskImageMissing]);
    assert!(view.runbook.expect("a runbook").contains("Do not stop, restart or migrate it"));
    stop(&mut bench, "local");
    listed(&mut bench, &[(FOLDER, DiskImage::Absent)]);
    let view = shown(&bench, "local").expect("told");
    assert_eq!(view.progress, RecoveryProgress::NeedsPerson);
    assert!(view.runbook.expect("a runbook").contains("Keep it stopped"));
    listed(&mut bench, &[(FOLDER, DiskImage::Present)]);
    assert_eq!(shown(&bench, "local").expect("told").progress, RecoveryProgress::Recovered);
    assert_eq!((bench.notices("StorageFailed"), bench.notices("StorageSound")), (1, 1));
}

fn stop(bench: &mut Bench, vm: &str) {
    let vm = bench.fleet.vms.get_mut(&key(vm)).expect("there");
    (vm.run, vm.instance) = (RunStrategy::Halted, None);
    vm.pods.clear();
    bench.show_fleet();
}

/// Its image is made when it starts for the first time.
#[test]
fn a_vm_that_never_started_has_no_image_and_that_is_no_failure() {
    let mut bench = Bench::new(fast(&[]));
    stop(&mut bench, "local");
    for _ in 0..4 {
        listed(&mut bench, &[(FOLDER, DiskImage::Absent)]);
    }
    // Nor does an older agent say anything.
    listed(&mut bench, &[(FOLDER, DiskImage::Untold)]);
    assert_eq!((shown(&bench, "local"), bench.notices("StorageFailed")), (None, 0));
}

#[test]
fn an_image_that_was_there_is_missed_under_the_same_claim_only() {
    let mut bench = Bench::new(fast(&[]));
    stop(&mut bench, "local");
    listed(&mut bench, &[(FOLDER, DiskImage::Present)]);
    // The folder is emptied and given to the next claim.
    let given = |bench: &mut Bench, uid: &str| {
        bench.fleet.claims.get_mut(&key("local-data")).expect("there").uid = Uid::from(uid);
        let volume = bench.fleet.volumes.get_mut(&"pv-local-data".into()).expect("there");
        volume.claim.as_mut().expect("bound").uid = Some(Uid::from(uid));
        bench.show_fleet();
    };
    given(&mut bench, "next");
    for _ in 0..2 {
        listed(&mut bench, &[(FOLDER, DiskImage::Absent)]);
    }
    assert_eq!(shown(&bench, "local"), None);
    listed(&mut bench, &[(FOLDER, DiskImage::Present)]);
    for _ in 0..2 {
        listed(&mut bench, &[(FOLDER, DiskImage::Absent)]);
    }
    let view = shown(&bench, "local").expect("told");
    assert_eq!(view.decision.reasons, [Reason::DiskImageMissing]);
    let report = bench.view().nodes[&NodeName::from("n1")].report.clone().expect("reported");
    assert_eq!(report.usage[FOLDER].disk_image, DiskImage::Vanished);
}

/// What a dead node is known to have lost: before our eyes, and not merely never listed.
#[test]
fn a_folder_that_a_later_listing_lacks_is_gone_until_it_is_listed_again() {
    let mut bench = Bench::new(fast(&[]));
    let gone = |bench: &Bench| {
        let report = bench.view().nodes[&NodeName::from("n1")].report.clone().expect("reported");
        report.gone.contains(FOLDER)
    };
    listed(&mut bench, &[]);
    assert!(!gone(&bench), "it was never there");
    listed(&mut bench, &[(FOLDER, DiskImage::Present)]);
    tell(&mut bench, report(None, &[]));
    assert!(!gone(&bench), "silence is no listing");
    listed(&mut bench, &[(FOLDER, DiskImage::Present)]);
    listed(&mut bench, &[]);
    tell(&mut bench, report(None, &[]));
    assert!(gone(&bench));
    listed(&mut bench, &[(FOLDER, DiskImage::Present)]);
    assert!(!gone(&bench));
}

/// An agent that has just started knows nothing yet: that makes nothing sound.
#[test]
fn silence_clears_nothing() {
    let mut bench = Bench::new(fast(&[]));
    tell(&mut bench, report(Some(0), &[]));
    listed(&mut bench, &[]);
    assert!(shown(&bench, "local").is_some());
    stop(&mut bench, "local");
    tell(&mut bench, report(None, &[]));
    bench.run_ms(120_000);
    let view = shown(&bench, "local").expect("told");
    assert_eq!(view.progress, RecoveryProgress::NeedsPerson);
    assert_eq!(view.decision.reasons, [Reason::VolumePathMissing], "as it was told");
    assert_eq!(bench.notices("StorageSound"), 0);
    listed(&mut bench, &[(FOLDER, DiskImage::Present)]);
    assert_eq!(shown(&bench, "local").expect("told").progress, RecoveryProgress::Recovered);
}

/// An agent that cannot list all of its folders never confirms that one is missing: that keeps nothing open for ever.
#[test]
fn a_suspicion_that_cannot_settle_holds_up_what_was_told_for_a_while_only() {
    let mut bench = Bench::new(fast(&[]));
    let claim = |bench: &mut Bench, phase: &str| {
        phase.clone_into(&mut bench.fleet.claims.get_mut(&key("local-data")).expect("there").phase);
        bench.show_fleet();
    };
    tell(&mut bench, report(None, &[("/data/other", DiskImage::Present)]));
    claim(&mut bench, "Lost");
    bench.run_ms(20_000);
    assert_eq!(shown(&bench, "local").expect("told").decision.reasons, [Reason::ClaimLost]);
    claim(&mut bench, "Bound");
    bench.run_ms(60_000);
    assert_eq!(shown(&bench, "local").expect("told").progress, RecoveryProgress::NeedsPerson);
    for _ in 0..10 {
        bench.run_ms(30_000);
        bench.show_fleet();
    }
    assert_eq!(shown(&bench, "local").expect("told").progress, RecoveryProgress::Recovered);
    assert_eq!(bench.notices("StorageFailed"), 1);
}

/// The listing of a failed disk may hang for ever.
#[test]
fn a_failed_disk_needs_no_listing() {
    let mut bench = Bench::new(fast(&[]));
    let mut failed = report(None, &[]);
    failed.disks.get_mut("sda").expect("there").grade = Grade::Failed;
    tell(&mut bench, failed.clone());
    bench.run_ms(20_000);
    assert_eq!(shown(&bench, "local").expect("told").decision.reasons, [Reason::DiskFailed]);
    failed.disks.get_mut("sda").expect("there").grade = Grade::Unknown;
    tell(&mut bench, failed);
    bench.run_ms(60_000);
    assert_eq!(shown(&bench, "local").expect("told").progress, RecoveryProgress::NeedsPerson);
}

#[test]
fn a_vm_that_was_just_made_waits_for_its_claim_and_one_that_had_it_misses_it() {
    let mut bench = Bench::new(fast(&[]));
    stop(&mut bench, "net");
    let claim = bench.fleet.claims.remove(&key("net-data")).expect("there");
    bench.fleet.vms.get_mut(&key("net")).expect("there").uid = Uid::from("another-vm-of-that-name");
    bench.show_fleet();
    bench.run_ms(60_000);
    assert_eq!(shown(&bench, "net"), None);
    bench.fleet.claims.insert(key("net-data"), claim);
    bench.show_fleet();
    bench.run_ms(10_000);
    bench.fleet.claims.remove(&key("net-data"));
    bench.show_fleet();
    bench.run_ms(20_000);
    assert_eq!(shown(&bench, "net").expect("told").decision.reasons, [Reason::ClaimMissing]);
}

#[test]
fn a_node_incident_takes_the_vm_over() {
    let mut bench = Bench::new(fast(&[]));
    lose_claim(&mut bench, "Lost");
    bench.run_ms(20_000);
    bench.silence(&["n1"]);
    bench.run_ms(2_000);
    let view = shown(&bench, "net").expect("told");
    assert_eq!((view.cause, view.decision.reasons), (RecoveryCause::NodeDied, vec![Reason::ClaimLost]));
    bench.run_ms(120_000);
    assert_eq!(bench.notices("StorageFailed"), 1, "the incident tells it");
    // Back in a new boot, and watched: the incident is over, the claim still Lost.
    bench.beat("n1", 2);
    bench.status_boot("n1", 2);
    bench.run_ms(300_000);
    bench.show_fleet();
    bench.run_ms(20_000);
    assert_eq!(shown(&bench, "net").expect("told").cause, RecoveryCause::StorageFailed);
    assert_eq!(bench.notices("StorageFailed"), 2);
}

#[test]
fn a_new_leader_finds_it_by_itself_and_ends_nothing_before() {
    let mut bench = Bench::new(fast(&[]));
    lose_claim(&mut bench, "Lost");
    bench.run_ms(20_000);
    bench.restart();
    bench.run_ms(2_000);
    assert_eq!((shown(&bench, "net"), bench.view().storage_in_doubt), (None, None));
    bench.run_ms(18_000);
    assert_eq!(shown(&bench, "net").expect("told").progress, RecoveryProgress::NeedsPerson);
    bench.run_ms(u64::try_from(KNOWN_AFTER.as_millis()).expect("short"));
    assert_eq!(bench.view().storage_in_doubt, Some([key("net")].into()));
}

/// A watch with the facts that it looks at, and no coordinator around.
struct Alone {
    watch: StorageWatch,
    facts: Facts,
    now: BootTime,
}

impl Alone {
    fn of(world: World) -> Self {
        let facts = Facts {
            policy: Policy::default(),
            fleet: world.fleet,
            fleet_read: true,
            requests: Requests::default(),
            power_off: PowerOff::default(),
            epoch: Some(1),
        };
        let mut watch = StorageWatch::default();
        watch.begin_leading(BootTime::from_secs(1));
        Self { watch, facts, now: BootTime::from_secs(1) }
    }

    fn look(&mut self, seconds: u64, switching: &[&str], rebuilt: bool) -> usize {
        self.now += Duration::from_secs(seconds);
        self.watch.fleet_read();
        let marked = self.watch.remember(self.now, &self.facts.fleet);
        assert!(marked.is_empty());
        let claims: Vec<_> = switching.iter().map(|&name| key(name)).collect();
        let elsewhere = Elsewhere {
            incident: &|_| false,
            rebuilt: &|_| rebuilt,
            switching: claims.iter().collect::<BTreeSet<_>>(),
        };
        let mut fx = Vec::new();
        self.watch.look(&Scene { now: self.now, facts: &self.facts }, &elsewhere, &mut fx);
        fx.len()
    }
}

#[test]
fn a_vm_whose_disks_change_hands_is_left_as_it_is() {
    let settle = SETTLE.as_secs();
    let mut world = World::new();
    world.claim("web-data").phase = "Lost".to_owned();
    let mut alone = Alone::of(world);
    for (switching, rebuilt) in [(&["web-data"][..], false), (&[][..], true)] {
        for _ in 0..3 {
            assert_eq!(alone.look(settle, switching, rebuilt), 0, "{switching:?}");
        }
    }
    // What was suspected before counts for nothing: it must hold from the end of the move.
    assert_eq!(alone.look(1, &["another-claim"], false), 0);
    assert_eq!(alone.look(settle - 1, &["web-data"], false), 0);
    assert_eq!(alone.look(1, &[], false), 0);
    assert_eq!(alone.look(settle, &[], false), 1);
    // What was told before another move stays.
    assert_eq!(alone.look(settle, &["web-data"], false), 0);
    assert_eq!(alone.watch.views(&alone.facts.fleet).count(), 1);
}

/// Beside the five seconds between two looks, a look at ten thousand VMs must be nothing.
#[test]
fn ten_thousand_vms_are_looked_at_in_a_moment() {
    let mut world = World::bare();
    for n in 0..97 {
        let name = format!("node{n}");
        world.fleet.nodes.insert(NodeName::from(name.as_str()), crate::decision::testkit::node(&name, "a"));
    }
    for n in 0..10_000 {
        let (name, node) = (format!("vm{n}"), format!("node{}", n % 97));
        world.fleet.vms.insert(key(&name), crate::decision::testkit::running_vm(&name, &node));
        let affinity = crate::decision::testkit::on_host(&[node.as_str()]);
        let source = crate::fleet::VolumeSource::Local { path: format!("/data/{name}") };
        world.add_disk(&name, "x", source, affinity);
        let told = world.fleet.reports.entry(node.as_str().into()).or_insert_with(|| report(Some(1), &[]));
        let usage = Usage { disk_image: DiskImage::Present, ..Usage::default() };
        told.usage.insert(format!("/data/{name}"), usage);
    }
    let mut alone = Alone::of(world);
    alone.look(1, &[], false);
    let began = std::time::Instant::now();
    alone.look(5, &[], false);
    // Unoptimized, on a busy machine of two cores: 0.11 s.
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(alone.watch.suspects, BTreeMap::new());
}

#[test]
fn the_agent_of_a_fenced_node_that_is_back_is_heard_again() {
    // The boot is another one, the folder is gone: no listing of the old boot counts.
    let mut bench = Bench::new(fast(&[]));
    tell(&mut bench, report(Some(0), &[(FOLDER, DiskImage::Present)]));
    bench.silence(&["n1"]);
    bench.run_ms(5_000);
    bench.beating.insert("n1".into(), boot("n1", 2));
    bench.status_boot("n1", 2);
    bench.run_ms(300_000);
    tell(&mut bench, report(Some(0), &[]));
    listed(&mut bench, &[]);
    let view = shown(&bench, "local").expect("told");
    assert_eq!(
        (view.cause, view.decision.reasons),
        (RecoveryCause::StorageFailed, vec![Reason::VolumePathMissing])
    );
}
