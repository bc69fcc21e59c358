//! What holds of every decision, whatever the cluster looks like.

use proptest::prelude::*;

use crate::decision::testkit::{World, csi, host_path, key, nfs, on_host, on_label, running_vm};
use crate::decision::{Decision, DecisionKind, Locality, Reason};
use crate::fleet::{ClaimUse, DataVolume, DiskSource, NodeSelector, RunStrategy, StorageClass, VolumeSource};
use crate::names::NodeName;

/// A disk as a test draws it.
#[derive(Clone, Debug)]
struct Drawn {
    source: VolumeSource,
    affinity: Option<NodeSelector>,
    use_: ClaimUse,
    phase: &'static str,
    boot: bool,
    image: bool,
}

fn any_source() -> impl Strategy<Value = VolumeSource> {
    prop_oneof![
        Just(nfs()),
        Just(host_path()),
        Just(VolumeSource::Local { path: "/data/l".to_owned() }),
        Just(VolumeSource::Unknown { field: "odd".to_owned() }),
        prop::sample::select(vec![
            "rbd.csi.ceph.com",
            "ebs.csi.aws.com",
            "topolvm.io",
            "driver.longhorn.io",
            "nobody.knows.it"
        ])
        .prop_map(csi),
    ]
}

fn any_affinity() -> impl Strategy<Value = Option<NodeSelector>> {
    prop_oneof![
        Just(None),
        prop::sample::subsequence(vec!["n1", "n2", "n3", "n9"], 0..=4).prop_map(|hosts| on_host(&hosts)),
        prop::sample::select(vec!["a", "b", "c"])
            .prop_map(|zone| on_label("topology.kubernetes.io/zone", &[zone])),
        Just(Some(NodeSelector::default())),
    ]
}

fn any_disk() -> impl Strategy<Value = Drawn> {
    let uses = vec![
        ClaimUse::Disk,
        ClaimUse::Folder,
        ClaimUse::Hotplugged,
        ClaimUse::State,
        ClaimUse::EphemeralBacking,
        ClaimUse::MemoryDump,
    ];
    (
        any_source(),
        any_affinity(),
        prop::sample::select(uses),
        prop::sample::select(vec!["Bound", "Bound", "Bound", "", "Pending", "Lost"]),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(source, affinity, use_, phase, boot, image)| Drawn {
            source,
            affinity,
            use_,
            phase,
            boot,
            image,
        })
}

fn world(disks: &[Drawn], run: RunStrategy, ready: [bool; 2], rebuild: bool) -> World {
    let mut world = World::bare();
    world.fleet.vms.insert(key("web"), running_vm("web", "n1"));
    for (index, drawn) in disks.iter().enumerate() {
        world.add_disk("web", &format!("d{index}"), drawn.source.clone(), drawn.affinity.clone());
        world.set_use("web", index, drawn.use_);
        world.claim(&format!("web-d{index}")).phase = drawn.phase.to_owned();
        let disk = &mut world.vm("web").disks[index];
        disk.boot = drawn.boot;
        disk.image = drawn.image.then(|| "https://images.example/i".to_owned());
        if drawn.image {
            let claim = format!("web-d{index}");
            world.claim(&claim).data_volume = Some(claim.clone());
            let data_volume =
                DataVolume { image: Some("https://images.example/i".to_owned()), ..DataVolume::default() };
            world.fleet.data_volumes.insert(key(&claim), data_volume);
        }
    }
    let class =
        StorageClass { provisioner: "p".to_owned(), waits_for_consumer: true, ..StorageClass::default() };
    world.fleet.classes.insert("gold".to_owned(), class);
    world.vm("web").run = run;
    world.vm("web").rebuild_allowed = rebuild;
    for (name, ready) in ["n2", "n3"].into_iter().zip(ready) {
        world.node(name).ready = ready;
    }
    world
}

fn any_run() -> impl Strategy<Value = RunStrategy> {
    prop::sample::select(vec![
        RunStrategy::Always,
        RunStrategy::RerunOnFailure,
        RunStrategy::Manual,
        RunStrategy::Once,
        RunStrategy::Halted,
    ])
}

/// Localities of the disks that hold data.
fn data_localities(world: &World, decision: &Decision) -> Vec<Locality> {
    let disks = world.fleet.vms[&key("web")].disks.iter().zip(&decision.disks);
    disks
        .filter(|(disk, _)| !matches!(disk.source, DiskSource::Claim { use_: ClaimUse::MemoryDump, .. }))
        .map(|(_, finding)| finding.locality.clone())
        .collect()
}

proptest! {
    #[test]
    fn recreates_from_network_disks_only(
        disks in prop::collection::vec(any_disk(), 0..5),
        run in any_run(),
        ready in any::<[bool; 2]>(),
        rebuild in any::<bool>(),
    ) {
        let world = world(&disks, run, ready, rebuild);
        let decision = world.decide("web");
        prop_assert!(!decision.reasons.is_empty());
        let localities = data_localities(&world, &decision);
        match decision.kind {
            DecisionKind::Recreate => {
                prop_assert!(localities.iter().all(|locality| *locality == Locality::Network), "{decision:#?}");
                prop_assert!(matches!(run, RunStrategy::Always | RunStrategy::RerunOnFailure));
            }
            DecisionKind::Rebuild => {
                prop_assert!(!localities.contains(&Locality::Unknown), "{decision:#?}");
                prop_assert!(rebuild);
            }
            DecisionKind::ManualRecovery | DecisionKind::NothingToDo => {}
        }
    }

    /// Judged here by other means than the decision's own: every network volume admits a ready node.
    #[test]
    fn acts_only_where_a_node_fits(
        disks in prop::collection::vec(any_disk(), 0..4),
        ready in any::<[bool; 2]>(),
    ) {
        let world = world(&disks, RunStrategy::Always, ready, true);
        let decision = world.decide("web");
        let admits = |name: &str| {
            let name = NodeName::from(name);
            let node = &world.fleet.nodes[&name];
            node.ready && decision.disks.iter().zip(&disks).all(|(finding, drawn)| {
                finding.locality != Locality::Network
                    || drawn.use_ == ClaimUse::MemoryDump
                    || drawn.affinity.as_ref().is_none_or(|affinity| affinity.matches(&name, node))
            })
        };
        let fits = admits("n2") || admits("n3");
        match decision.kind {
            DecisionKind::Recreate | DecisionKind::Rebuild => prop_assert!(fits, "{decision:#?}"),
            _ => prop_assert!(!decision.reasons.contains(&Reason::NoFittingNode) || !fits, "{decision:#?}"),
        }
    }

    #[test]
    fn the_order_of_disks_changes_nothing(
        (disks, shuffled) in prop::collection::vec(any_disk(), 0..5)
            .prop_flat_map(|disks| (Just(disks.clone()), Just((0..disks.len()).collect::<Vec<_>>()).prop_shuffle())),
        run in any_run(),
        rebuild in any::<bool>(),
    ) {
        let mut world = world(&disks, run, [true, true], rebuild);
        let before = world.decide("web");
        let original = world.vm("web").disks.clone();
        world.vm("web").disks = shuffled.iter().map(|index| original[*index].clone()).collect();
        let after = world.decide("web");
        prop_assert_eq!((before.kind, &before.reasons, &before.details, &before.remedy),
            (after.kind, &after.reasons, &after.details, &after.remedy));
    }

    /// A path on a node is never network storage, nor is what nobody knows, but by the driver's own zones.
    #[test]
    fn unknown_is_never_network(affinity in any_affinity(), field in "[a-z]{0,6}") {
        let mut world = World::bare();
        world.fleet.vms.insert(key("web"), running_vm("web", "n1"));
        let zones = affinity.as_ref().is_some_and(|affinity| {
            affinity.terms.iter().flatten().any(|requirement| requirement.key.ends_with("/zone"))
        });
        prop_assume!(!zones);
        for (name, source) in [
            ("a", VolumeSource::Unknown { field }),
            ("b", csi("nobody.knows.it")),
            ("c", host_path()),
            ("d", VolumeSource::Local { path: "/data/l".to_owned() }),
            ("e", csi("topolvm.io")),
        ] {
            world.add_disk("web", name, source, affinity.clone());
        }
        let decision = world.decide("web");
        prop_assert!(decision.disks.iter().all(|disk| disk.locality != Locality::Network), "{decision:#?}");
    }
}
