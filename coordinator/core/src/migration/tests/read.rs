//! Old volumes that only kubelets mount: read where the VM's own pod has them, and by an alias once nobody else can; and block
//! devices, which only an alias's holder hands over.

use super::{ROUNDS, assert_whole};
use crate::fleet::{Alias, RunStrategy, Staged, VolumeMode, VolumeSource};
use crate::io::{Action, Effect, Order};
use crate::migration::model::{World, all_to_class, key, to_class};
use crate::migration::{MigrationSpec, Phase};
use crate::names::{Key, VolumeName};

/// Rounds in which Kubernetes brings to its end what was deleted.
const AFTERWARDS: usize = 6;
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Network,
    /// In a folder of their node.
    Local,
    /// A block device of their node.
    Device,
    /// One on the network.
    NetworkDevice,
}
const KINDS: [Kind; 4] = [Kind::Network, Kind::Local, Kind::Device, Kind::NetworkDevice];

fn asked(kind: Kind) -> World {
    let mut world = World::new();
    match kind {
        Kind::Network | Kind::Local => world.put_where_kubelets_mount("vm", kind == Kind::Network),
        Kind::Device | Kind::NetworkDevice => world.put_on_devices("vm", kind == Kind::NetworkDevice),
    }
    world.ask("m", all_to_class("vm", "local-path"));
    world
}

/// Nothing of ours is left but the new volumes where it has succeeded; the old ones are as any migration leaves them.
fn assert_ended(world: &mut World, phase: Phase, what: &str) {
    world.rounds(AFTERWARDS);
    assert_whole(world, phase, what);
    assert!(world.fleet.staged.is_empty(), "{what}: something of ours leaked: {:?}", world.fleet.staged);
    let made: Vec<_> = world.fleet.volumes.keys().filter(|name| name.0.starts_with("smst-")).collect();
    if phase == Phase::Succeeded {
        assert_eq!(made.len(), 2, "{what}: {made:?}");
    } else {
        // Of what a provisioner made, those stay that were kept for the VM's claim already.
        let message = &world.store[&key("m")].message;
        assert!(
            made.iter().all(|name| message.contains(name.as_str())),
            "{what}: a volume leaked: {message}"
        );
        let by_us = made.iter().filter(|name| world.fleet.volumes[**name].provisioned_by.is_none());
        assert_eq!(by_us.count(), 0, "{what}: {made:?}");
    }
    let expected = if phase == Phase::Succeeded { "Released" } else { "Bound" };
    for name in ["pv-vm-system", "pv-vm-data"] {
        let old = &world.fleet.volumes[&VolumeName::from(name)];
        assert_eq!(old.phase, expected, "{what}: {old:?}");
    }
}

/// From where each copy read, and whether it was the last one.
fn sources(world: &World) -> Vec<(String, bool)> {
    let of = |effect: &Effect| match effect {
        Effect::Order { order: Order::Pull { source_node, source_path, final_, .. }, .. } => {
            Some((format!("{source_node}:{source_path}"), *final_))
        }
        _ => None,
    };
    world.effects.iter().filter_map(of).collect()
}

fn aliases_made(world: &World) -> usize {
    let made = |effect: &&Effect| matches!(effect, Effect::Act(Action::Stage(staging)) if staging.alias_of.is_some());
    world.effects.iter().filter(made).count()
}

fn position(world: &World, wanted: impl Fn(&Effect) -> bool) -> usize {
    world.effects.iter().position(wanted).expect("it happened")
}

#[test]
fn they_are_read_where_the_vms_pod_has_them_and_at_last_by_an_alias() {
    for kind in KINDS {
        let mut world = asked(kind);
        let phase = world.run(ROUNDS, "m");
        assert_eq!(phase, Phase::Succeeded, "{:?}", world.store);
        assert_ended(&mut world, phase, "undisturbed");
        let (middle, is_device) = match kind {
            Kind::Network => ("/volumes/kubernetes.io~csi/", false),
            Kind::Local => ("/volumes/kubernetes.io~local-volume/", false),
            Kind::Device | Kind::NetworkDevice => {
                ("/volumes/kubernetes.io~empty-dir/somersault-device", true)
            }
        };
        let sources = sources(&world);
        assert_eq!(sources.iter().filter(|(_, is_last)| *is_last).count(), 2, "{sources:?}");
        for (source, is_last) in sources {
            assert!(source.starts_with("n2:/pods/") && source.contains(middle), "{source}");
            assert_eq!(source.contains("pod-of-vmi"), !is_last, "{source}");
            assert!(is_last || !is_device, "{source}");
            assert_eq!(source.contains("-source"), is_last && !is_device, "{source}");
        }
        // The VM's claims are locked before, and the aliases told to go before it may start.
        let is_alias = |effect: &Effect| matches!(effect, Effect::Act(Action::Stage(staging)) if staging.alias_of.is_some());
        let stage = position(&world, is_alias);
        let unstage = position(&world, |effect| matches!(effect, Effect::Act(Action::Unstage { .. })));
        let start = position(&world, |effect| matches!(effect, Effect::Act(Action::RestoreStart { .. })));
        let locked = position(
            &world,
            |effect| matches!(effect, Effect::Act(Action::CreateClaim { volume, .. }) if volume.0.ends_with("-lock")),
        );
        assert!(locked < stage && stage < unstage && unstage < start, "{locked} {stage} {unstage} {start}");
        assert!(world.store[&key("m")].checks[0].message.contains("where its kubelet mounts it"));
    }
}

/// Each round of a migration is a point at which the leader changes, our holders are lost or the VM is started and stopped
/// by somebody.
#[test]
fn whatever_happens_at_whichever_round_nothing_is_lost() {
    let disturb: [fn(&mut World); 4] = [
        |world| world.lose_holders(false),
        |world| world.lose_holders(true),
        World::take_over,
        |world| world.run_unseen("vm"),
    ];
    for kind in KINDS {
        for slow in [0, 3] {
            for at in 0..80 {
                for (number, disturb) in disturb.iter().enumerate() {
                    let mut world = asked(kind);
                    world.faults.slow_stages = slow;
                    world.rounds(at);
                    disturb(&mut world);
                    let phase = world.run(ROUNDS, "m");
                    let what = format!("{kind:?}, slow: {slow}, at {at}, {number}");
                    assert_eq!(phase, Phase::Succeeded, "{what}: {:?}", world.store);
                    assert_ended(&mut world, phase, &what);
                }
            }
        }
    }
}

#[test]
fn cancelled_at_every_round_the_vm_has_its_old_volumes_and_nobody_else_has() {
    for kind in KINDS {
        for slow in [0, 3] {
            for crash in [false, true] {
                let mut ends = Vec::new();
                for at in 0..80 {
                    let mut world = asked(kind);
                    world.faults.slow_stages = slow;
                    world.rounds(at);
                    world.spec("m").cancelled = true;
                    if crash {
                        world.rounds(1);
                        world.take_over();
                    }
                    let phase = world.run(ROUNDS, "m");
                    let what = format!("{kind:?}, slow: {slow}, crash: {crash}, cancelled at {at}");
                    assert!(matches!(phase, Phase::Cancelled | Phase::Succeeded), "{what}: {phase:?}");
                    assert_ended(&mut world, phase, &what);
                    ends.push((phase, aliases_made(&world) > 0));
                }
                for end in [(Phase::Cancelled, false), (Phase::Cancelled, true), (Phase::Succeeded, true)] {
                    assert!(ends.contains(&end), "{ends:?}");
                }
            }
        }
    }
}

#[test]
fn deleted_at_every_round_it_leaves_nothing_of_ours() {
    for at in 0..80 {
        let mut world = asked(Kind::Network);
        world.rounds(at);
        world.delete("m");
        world.rounds(ROUNDS);
        assert!(world.fleet.staged.is_empty(), "deleted at {at}: {:?}", world.fleet.staged);
        assert!(world.fleet.vms[&key("vm")].instance.is_some(), "deleted at {at}: the VM does not run");
    }
}

/// Its own provisioner makes the new volumes too: from one driver to another.
#[test]
fn from_where_kubelets_mount_them_to_where_kubelets_mount_them() {
    let made = |world: &World| {
        let classes = world.fleet.volumes.values().filter(|volume| volume.class == "nfs");
        classes.filter(|volume| matches!(volume.source, VolumeSource::Csi { .. })).count()
    };
    for at in (0..90).step_by(3) {
        let mut world = World::new();
        world.put_where_kubelets_mount("vm", true);
        for report in world.fleet.reports.values_mut() {
            report.roots.retain(|root| !root.shared);
        }
        world.ask("m", all_to_class("vm", "nfs"));
        world.rounds(at);
        world.take_over();
        let phase = world.run(ROUNDS, "m");
        assert_eq!(phase, Phase::Succeeded, "at {at}: {:?}", world.store);
        world.rounds(AFTERWARDS);
        assert!(world.fleet.staged.is_empty(), "at {at}: {:?}", world.fleet.staged);
        assert_eq!(made(&world), 2, "at {at}");
        for disk in &world.store[&key("m")].disks {
            let new = &world.fleet.volumes[&disk.new.name];
            assert!(new.capacity_bytes > 4 << 30, "what nobody looks into may be full: {new:?}");
        }
    }
}

/// Nobody has it mounted, and a holder of ours would keep the VM from starting elsewhere: there is no pre-copy.
#[test]
fn of_a_vm_that_does_not_run_nothing_is_copied_before_its_claims_are_locked() {
    let mut world = asked(Kind::Network);
    world.set_run("vm", RunStrategy::Halted);
    world.unseen(1);
    world.spec("m").pre_copy_only = true;
    world.rounds(30);
    assert_eq!((world.phase("m"), sources(&world)), (Phase::PreCopying, vec![]));
    assert!(world.machine.waits_for_word(&key("m")), "whoever asks is told that it waits");
    assert_eq!(aliases_made(&world), 0);
    // It is started again: there is something to copy now.
    world.set_run("vm", RunStrategy::Always);
    world.rounds(1);
    assert!(!world.machine.waits_for_word(&key("m")));
    world.rounds(20);
    assert!(world.machine.waits_for_word(&key("m")));
    assert!(!sources(&world).is_empty() && aliases_made(&world) == 0);
    world.set_run("vm", RunStrategy::Halted);
    world.spec("m").pre_copy_only = false;
    let phase = world.run(ROUNDS, "m");
    assert_eq!(phase, Phase::Succeeded, "{:?}", world.store);
    world.rounds(AFTERWARDS);
    assert!(world.fleet.staged.is_empty() && world.fleet.vms[&key("vm")].instance.is_none());
}

#[test]
fn a_bare_claim_is_read_by_the_target_where_that_can() {
    let mut world = World::new();
    world.add_vm("other", "n2", &["spare"]);
    world.put_where_kubelets_mount("other", true);
    world.fleet.vms.remove(&key("other"));
    let spec =
        MigrationSpec { vm: None, claim: Some("other-spare".into()), ..all_to_class("", "local-path") };
    world.ask("m", spec);
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded, "{:?}", world.store);
    world.rounds(AFTERWARDS);
    assert!(world.fleet.staged.is_empty(), "{:?}", world.fleet.staged);
    let disk = &world.store[&key("m")].disks[0];
    assert_eq!((&disk.source_node, sources(&world).len()), (&disk.target_node, 1));
}

/// A kubelet cannot unmount what an agent reads, and keeps the pod until it can.
#[test]
fn a_copy_is_broken_off_when_the_vms_pod_has_ended() {
    let mut world = asked(Kind::Network);
    world.faults.copies_hang = true;
    while sources(&world).is_empty() {
        world.round();
    }
    world.rounds(3);
    for pod in &mut world.fleet.vms.get_mut(&key("vm")).expect("there").pods {
        pod.phase = "Succeeded".into();
    }
    world.input(crate::Input::Tick);
    let is_broken_off = |effect: &&Effect| {
        matches!(effect, Effect::Order { order: Order::CancelPull { drop_partial: false, .. }, .. })
    };
    assert_eq!(world.effects.iter().filter(is_broken_off).count(), 2, "one for each disk");
    // The model's KubeVirt has it running again.
    world.faults.copies_hang = false;
    let phase = world.run(ROUNDS, "m");
    assert_eq!(phase, Phase::Succeeded, "{:?}", world.store);
    assert_ended(&mut world, phase, "broken off");
}

#[test]
fn an_old_volume_that_nothing_mounts_for_us_goes_back_to_its_vm() {
    let mut world = asked(Kind::Network);
    world.faults.nothing_mounts = true;
    let phase = world.run(ROUNDS, "m");
    let record = &world.store[&key("m")];
    assert_eq!((phase, record.reason.as_deref()), (Phase::RolledBack, Some("CopyStalled")));
    for words in ["pod smst-", "-source", "does not run on node n2", "kubectl describe"] {
        assert!(record.message.contains(words), "{words}: {}", record.message);
    }
    assert_ended(&mut world, phase, "nothing mounts");
}

/// While its holder is there, the VM does not get its old volume back; of a node that is dead nobody waits for that.
#[test]
fn a_holder_that_does_not_go_is_waited_for_unless_its_node_is_dead() {
    for dies in [false, true] {
        let mut world = asked(Kind::Network);
        while world.fleet.staged.values().filter(|staged| staged.holder.is_some()).count() < 2 {
            world.round();
        }
        world.faults.target_dead = true;
        world.spec("m").cancelled = true;
        world.rounds(100);
        assert_eq!(world.phase("m"), Phase::RollingBack);
        assert!(world.fleet.vms[&key("vm")].instance.is_none(), "it runs while we have its disk");
        if dies {
            world.usable.remove(&"n2".into());
            world.dead.insert("n2".into());
        } else {
            world.faults.target_dead = false;
        }
        let phase = world.run(20, "m");
        assert_eq!(phase, Phase::Cancelled, "{:?}", world.store);
        world.faults.target_dead = false;
        assert_ended(&mut world, phase, "at last");
    }
}

/// Kubernetes itself takes the volume from the node then, and the VM is down for nothing.
#[test]
fn a_holder_that_never_goes_is_waited_for_for_minutes() {
    let mut world = asked(Kind::Network);
    while world.phase("m") != Phase::FinalCopying || world.fleet.staged.is_empty() {
        world.round();
    }
    world.faults.target_dead = true;
    world.spec("m").cancelled = true;
    world.rounds(355);
    assert_eq!(world.phase("m"), Phase::RollingBack);
    assert!(world.fleet.vms[&key("vm")].instance.is_none(), "it runs while we have its disk");
    world.faults.taken_by_force = true;
    assert_eq!(world.run(60, "m"), Phase::Cancelled);
    world.faults.target_dead = false;
    assert_ended(&mut world, Phase::Cancelled, "by force");
}

/// Whoever takes a lock off may have the VM run on what our holder has mounted: that goes, and the last copy is made anew.
#[test]
fn a_lock_that_is_taken_away_has_the_aliases_go_first() {
    let mut world = asked(Kind::Network);
    while world.phase("m") != Phase::Verifying {
        world.round();
    }
    world.fleet.claims.remove(&key("vm-data"));
    while world.phase("m") != Phase::FinalCopying {
        world.round();
    }
    let unstaged = |effect: &&Effect| matches!(effect, Effect::Act(Action::Unstage { .. }));
    assert_eq!(world.effects.iter().filter(unstaged).count(), 2);
    let phase = world.run(ROUNDS, "m");
    assert_eq!((phase, aliases_made(&world)), (Phase::Succeeded, 4), "{:?}", world.store);
    assert_ended(&mut world, phase, "a lock taken away");
}

/// A deposed leader's last request arrives while another one has the VM run again.
#[test]
fn an_alias_that_nobody_needs_is_swept() {
    let mut world = asked(Kind::Network);
    world.spec("m").pre_copy_only = true;
    while world.phase("m") != Phase::PreCopying {
        world.round();
    }
    let name = world.store[&key("m")].disks[0].reading.clone().expect("only kubelets mount it");
    let late = Staged { alias: Some(Alias { deleting: false }), ..Staged::default() };
    world.fleet.staged.insert(name, late);
    world.rounds(130);
    assert!(world.fleet.staged.is_empty(), "{:?}", world.fleet.staged);
    assert!(world.fleet.vms[&key("vm")].instance.is_some());
}

type Spoil = fn(&mut World);

#[test]
fn what_cannot_be_read_is_refused_with_what_to_do() {
    fn old(world: &mut World) -> &mut crate::fleet::Volume {
        world.fleet.volumes.get_mut(&"pv-vm-data".into()).expect("there")
    }
    let table: [(&str, &str, Spoil); 5] = [
        ("VolumeNotReachable", "component movers", |world| {
            world.fleet.reports.get_mut(&"n2".into()).expect("there").pods = None;
        }),
        ("VolumeNotReachable", "of kind rbd", |world| {
            old(world).source = VolumeSource::Network { field: "rbd".into() };
        }),
        ("VolumeModeDiffers", "another volume mode", |world| old(world).mode = VolumeMode::Block),
        ("SourceNotUsable", "status", |world| {
            world.usable.remove(&"n2".into());
        }),
        ("DestinationTooSmall", "choose another destination", |world| {
            for report in world.fleet.reports.values_mut() {
                // What is taken is not seen: all of it must fit.
                report.roots[0].available_bytes = 12 << 30;
            }
        }),
    ];
    for (reason, words, spoil) in table {
        let mut world = asked(Kind::Network);
        spoil(&mut world);
        assert_eq!(world.run(ROUNDS, "m"), Phase::Failed, "{reason}");
        let record = &world.store[&key("m")];
        assert_eq!(record.reason.as_deref(), Some(reason), "{record:?}");
        assert!(record.message.contains(words), "{words}: {}", record.message);
        assert!(!world.effects.iter().any(|effect| matches!(effect, Effect::Act(_))), "{reason}");
    }
}

#[test]
fn nobody_is_asked_to_read_it_who_cannot_use_it() {
    let mut world = World::new();
    world.add_vm("other", "n2", &["spare"]);
    world.put_where_kubelets_mount("other", true);
    world.fleet.vms.remove(&key("other"));
    for node in ["n1", "n3"] {
        world.fleet.reports.get_mut(&node.into()).expect("there").pods = None;
    }
    let spec =
        MigrationSpec { vm: None, claim: Some("other-spare".into()), ..all_to_class("", "local-path") };
    world.ask("m", spec);
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded, "{:?}", world.store);
    assert_eq!(world.store[&key("m")].disks[0].source_node.0, "n2");
}

/// No agent can remove it, and nothing could mount it any more once its object is gone.
#[test]
fn an_old_volume_is_kept_and_whoever_wants_it_gone_is_told_how() {
    for provisioner in [None, Some("rbd.csi.ceph.com")] {
        let mut world = asked(Kind::Network);
        for name in ["pv-vm-system", "pv-vm-data"] {
            let old = world.fleet.volumes.get_mut(&name.into()).expect("there");
            old.provisioned_by = provisioner.map(str::to_owned);
        }
        assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
        world.spec("m").remove_old = true;
        world.rounds(30);
        let view = &world.machine.views()[&key("m")];
        let Some(crate::view::RemovalView::Kept(why)) = &view.removal else { panic!("{:?}", view.removal) };
        assert_eq!(why.reason, "NotRemovedByAgents");
        let words =
            if provisioner.is_some() { "kubectl patch pv pv-vm-" } else { "kubectl delete pv pv-vm-" };
        assert!(why.message.contains(words), "{}", why.message);
        assert!(world.fleet.volumes.contains_key(&"pv-vm-data".into()));
    }
}

/// Local disks, some of which no root covers: all of them move together.
#[test]
fn a_root_covers_one_disk_and_only_kubelets_mount_the_other() {
    let mut world = World::new();
    let volume = world.fleet.volumes.get(&"pv-vm-system".into()).expect("there").clone();
    world.put_where_kubelets_mount("vm", false);
    let path = volume.source.path().expect("a folder").to_owned();
    let from = "n2:/elsewhere/pv-vm-system";
    world.fleet.volumes.insert("pv-vm-system".into(), volume);
    let generation = world.content.remove(from).expect("there");
    world.content.insert(format!("n2:{path}"), generation);
    let report = world.fleet.reports.get_mut(&"n2".into()).expect("there");
    report.usage.insert(path.clone(), crate::fleet::Usage { allocated_bytes: 1 << 30, ..Default::default() });
    world.ask("m", to_class("vm", "local-path"));
    let phase = world.run(ROUNDS, "m");
    assert_eq!(phase, Phase::Succeeded, "{:?}", world.store);
    assert_ended(&mut world, phase, "of both kinds");
    let of: Vec<bool> = world.store[&key("m")].disks.iter().map(|disk| disk.reading.is_some()).collect();
    assert_eq!(of, [false, true]);
    let claim = Key::new("default", "vm-system");
    assert_eq!(world.store[&key("m")].disks[0].claim, claim);
}
