//! What a runbook must say, must leave open, and must never advise.

use std::time::Duration;

use crate::decision::testkit::{World, bound_volume, host_path, key, nfs, on_host, running_vm};
use crate::fencing::ProofKind;
use crate::fleet::{DiskHealth, DiskSource, Grade, NodeReport, StorageRoot, Usage, VolumeSource};
use crate::names::{NodeName, VolumeName};
use crate::runbook::{Progress, Standing, runbook, shell_word, storage_over};

/// VM `web` with a local disk on n1, whose agent told everything before it died.
fn told_world() -> World {
    let mut world = World::new();
    world.add_disk("web", "x", host_path(), on_host(&["n1"]));
    world.claim("web-x").data_volume = Some("web-x".to_owned());
    let report = NodeReport {
        roots: vec![StorageRoot {
            path: "/data".to_owned(),
            class: "gold".to_owned(),
            depth: 1,
            shared: false,
            size_bytes: 100 << 30,
            available_bytes: 50 << 30,
            read_only: false,
            disk: Some("nvme0n1".to_owned()),
            listed_age: Some(Duration::ZERO),
        }],
        usage: [("/data/vol".to_owned(), Usage { allocated_bytes: 3 << 29, ..Usage::default() })].into(),
        disks: [(
            "nvme0n1".to_owned(),
            DiskHealth {
                grade: Grade::Failing,
                reasons: vec!["MediaErrors".to_owned()],
                model: "Disk 9000".to_owned(),
                serial: "S123".to_owned(),
            },
        )]
        .into(),
        ..NodeReport::default()
    };
    world.fleet.reports.insert(NodeName::from("n1"), report);
    world
}

fn written(world: &World) -> String {
    at(world, Progress::Untouched)
}

fn at(world: &World, progress: Progress) -> String {
    runbook(&world.fleet, &world.decide("web"), &Standing::at(progress))
}

/// The same with n1 proven dead.
fn proven(world: &World) -> String {
    let proven = [("n1".into(), ProofKind::PowerOffConfirmed)].into();
    let standing = Standing { proven, ..Standing::at(Progress::Untouched) };
    runbook(&world.fleet, &world.decide("web"), &standing)
}

fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn tells_disks_sizes_health_and_options() {
    assert_has(
        &written(&told_world()),
        &[
            "# Runbook: VM `shop/web`",
            "(LocalDisk)",
            "It may still run on `n1`",
            "| `x` | node `n1` | `web-x`, `pv-web-x`, `gold` | `/data/vol` | 10.0 GiB | 1.5 GiB | `nvme0n1` Failing (MediaErrors) |",
            "- `x`: no copy is known",
            "whether there are any is unknown",
            "Bring node `n1` back",
            "kubectl somersault attest n1",
            "kubectl somersault migrate web -n shop --to-node NEW_NODE",
            "model Disk 9000, serial S123",
        ],
    );
}

#[test]
fn says_unknown_where_nobody_told() {
    let mut world = told_world();
    world.fleet.reports.clear();
    assert_has(
        &written(&world),
        &["| 10.0 GiB | unknown | unknown |", "physical disk unknown", "(address: `unknown`)"],
    );
}

/// A person goes to the machine, and not to its kubelet.
#[test]
fn tells_the_address_of_the_node_without_a_port() {
    let mut world = told_world();
    for (known, told) in [
        ("10.9.0.1:10250", "(address: `10.9.0.1`)"),
        ("[fd00::3]:10250", "(address: `fd00::3`)"),
        ("10.9.0.1", "(address: `10.9.0.1`)"),
    ] {
        world.fleet.nodes.get_mut(&"n1".into()).expect("it is there").address = Some(known.to_owned());
        assert_has(&written(&world), &[told]);
    }
}

/// The order is what keeps the data.
#[test]
fn points_a_claim_elsewhere_in_the_only_safe_order() {
    let text = written(&told_world());
    let mut rest = text.as_str();
    for step in [
        "kubectl cordon n1",
        r#"kubectl patch pv pv-web-x -p '{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}'"#,
        "kubectl annotate pvc -n shop web-x cdi.kubevirt.io/storage.populatedFor=web-x",
        "storage\\.prePopulated",
        "kind: PersistentVolume\n",
        "claimRef:",
        "kubectl delete pod -n shop --force --grace-period=0 virt-launcher-web",
        "kubectl delete pvc -n shop web-x",
        "kind: PersistentVolumeClaim\n",
        "volumeName: \"pv-web-x-restored\"",
        "storage: \"10737418240\"",
        "kubectl uncordon n1",
    ] {
        let at = rest.find(step).unwrap_or_else(|| panic!("{step:?} is missing, or too early, in:\n{text}"));
        rest = &rest[at..];
    }
}

#[test]
fn a_claim_without_a_data_volume_needs_no_handshake() {
    let mut world = told_world();
    world.claim("web-x").data_volume = None;
    assert!(!written(&world).contains("cdi.kubevirt.io"));
}

/// With the local disk elsewhere the VM would start there, and the other one would boot blank.
#[test]
fn does_not_start_a_vm_beside_a_disk_that_nobody_can_place() {
    let mut world = told_world();
    world.volume("pv-web-data").source = host_path();
    let text = written(&world);
    assert_has(
        &text,
        &[
            "LocalityUnknown: tie volume pv-web-data to the one node that holds its folder",
            "The VM then starts there by itself",
        ],
    );
    assert!(!text.contains("kubectl delete pvc"), "{text}");
}

/// A hostPath volume without affinity is where nobody told the scheduler.
fn untied_world() -> World {
    let mut world = told_world();
    world.vm("web").disks.pop();
    world.volume("pv-web-data").source = host_path();
    world.node("n1").labels.insert("kubernetes.io/hostname".to_owned(), "host-1".to_owned());
    world
}

#[test]
fn a_vm_that_nothing_ties_to_its_disk_does_not_come_back_by_itself() {
    assert_has(
        &written(&untied_world()),
        &[
            "Tie its disks to the node that holds them",
            "- `data`: `/data/vol`, which the agent of node `n1` lists.",
            r#"kubectl patch pv pv-web-data --type=merge -p '{"spec":{"nodeAffinity":{"required":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"kubernetes.io/hostname","operator":"In","values":["host-1"]}]}]}}}}'"#,
            "starts by itself, on whichever node the scheduler likes:** nothing ties it to the node that holds `data`",
        ],
    );
    // Pasted for a class that is not shared it would lose the disk.
    assert!(!written(&untied_world()).contains("recoverypolicy"));
    let mut world = untied_world();
    world.vm("web").node_selector.insert("kubernetes.io/hostname".to_owned(), "host-1".to_owned());
    assert_has(&written(&world), &["The VM then starts there by itself"]);
}

#[test]
fn a_folder_of_which_nobody_told_or_that_all_see_is_tied_to_no_node_by_guess() {
    let mut world = untied_world();
    world.fleet.reports.get_mut(&NodeName::from("n1")).expect("there").usage.clear();
    assert_has(&written(&world), &["set `NODE` to the hostname label", r#""values":["'"${NODE:?"#]);
    world.fleet.reports.get_mut(&NodeName::from("n1")).expect("there").roots[0].shared = true;
    let text = written(&world);
    assert_has(
        &text,
        &[
            "which every node sees, as an agent tells",
            r#"kubectl patch recoverypolicy default --type=merge -p '{"spec":{"storageClasses":{"gold":"Network"}}}'"#,
        ],
    );
    assert!(!text.contains("kubectl patch pv"), "{text}");
}

#[test]
fn a_host_disk_is_tied_through_its_vm() {
    let mut world = untied_world();
    world.vm("web").disks[0].source = DiskSource::HostDisk { path: "/data/disk.img".to_owned() };
    assert_has(
        &written(&world),
        &[
            r#"kubectl patch vm web -n shop --type=merge -p '{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":"host-1"}}}}}'"#,
            "on whichever node the scheduler likes",
        ],
    );
}

#[test]
fn names_the_copies_that_are_known() {
    let mut world = told_world();
    let mut kept = bound_volume("web-x", host_path(), on_host(&["n2"]));
    kept.phase = "Released".to_owned();
    world.fleet.volumes.insert(VolumeName::from("pv-before"), kept);
    assert_has(&written(&world), &["- `x`: volume `pv-before` (phase Released, node `n2`, age unknown)"]);
}

#[test]
fn without_a_local_volume_there_is_nothing_to_point_elsewhere() {
    let mut world = World::new();
    world.claim("web-data").phase = "Lost".to_owned();
    let text = written(&world);
    assert_has(&text, &["Restore from a copy or a backup", "boots a blank disk"]);
    assert!(!text.contains("NEW_PATH"), "{text}");
}

/// Manifests are hostile: a path must not end its code span, a name must not add a command.
#[test]
fn hostile_names_stay_words() {
    let mut world = told_world();
    world.volume("pv-web-x").source = VolumeSource::HostPath { path: "/data/`|x\n# owned".to_owned() };
    world.vm("web").pods[0].name = "a; rm -rf /".to_owned();
    let text = written(&world);
    assert_has(&text, &[r"`/data/'\|x# owned`", "--grace-period=0 'a; rm -rf /'"]);
    assert!(!text.contains("\n# owned"));
}

#[test]
fn shell_words_are_quoted_where_needed() {
    assert_eq!(shell_word("web-1.example"), "web-1.example");
    assert_eq!(shell_word(""), "''");
    assert_eq!(shell_word("it's\n"), r"'it'\''s'");
    assert_eq!(shell_word("$(x)"), "'$(x)'");
}

#[test]
fn with_a_proof_nothing_is_left_to_attest() {
    let text = proven(&told_world());
    assert_has(
        &text,
        &[
            "Node `n1` is proven dead (PowerOffConfirmed: its fence agent switched it off and read that back)",
            "Put the physical disk into another node",
            "Remove the VM's pods: they died with their node",
            "kubectl delete pod -n shop --force --grace-period=0 virt-launcher-web",
        ],
    );
    for gone in ["may still run", "attest", "somersault migrate", "Only when the node is proven dead"] {
        assert!(!text.contains(gone), "{gone:?} is in:\n{text}");
    }
}

#[test]
fn the_proof_of_one_node_says_nothing_of_another() {
    let mut world = told_world();
    let mut other = world.vm("web").pods[0].clone();
    (other.name, other.node) = ("virt-launcher-web-2".to_owned(), Some("n2".into()));
    world.vm("web").pods.push(other);
    let text = proven(&world);
    assert_has(
        &text,
        &["Node `n1` is proven dead", "It may still run on `n2`", "kubectl somersault attest n2"],
    );
    assert_has(&text, &["Begin only once each of these nodes is proven dead: `n2`"]);
    assert!(!text.contains("attest n1"), "{text}");
}

#[test]
fn before_anything_happened_it_says_so() {
    assert_has(
        &at(&told_world(), Progress::Supposed),
        &["No recovery of it is under way: this is what would be", "It runs on `n1`: start it nowhere else"],
    );
    assert!(!written(&told_world()).contains("No recovery of it is under way"));
}

/// What the VM has is in use again: to follow the old commands would destroy it.
#[test]
fn what_is_in_use_again_is_not_touched() {
    for over in [false, true] {
        for progress in [
            Progress::UnderWay,
            Progress::Stuck,
            Progress::Elsewhere,
            Progress::NodeBack,
            Progress::Unaffected,
            Progress::Untouched,
        ] {
            if !over && progress == Progress::Untouched {
                continue;
            }
            let world = told_world();
            let standing = Standing { over, ..Standing::at(progress) };
            let text = runbook(&world.fleet, &world.decide("web"), &standing);
            for command in ["delete", "patch", "create", "attest", "rm -r", "cordon", "NEW_PATH"] {
                assert!(!text.contains(command), "{progress:?}: {command:?} is in:\n{text}");
            }
            assert_eq!(text.contains("It is over"), over, "{text}");
        }
    }
}

/// A node that died once may die again: how to leave it is said once it is back, and not before.
#[test]
fn a_node_that_came_back_can_be_left() {
    let world = told_world();
    let text = |progress| runbook(&world.fleet, &world.decide("web"), &Standing::at(progress));
    assert_has(&text(Progress::NodeBack), &["kubectl somersault evacuate n1 --dry-run\n"]);
    assert!(!text(Progress::Untouched).contains("somersault evacuate"));
}

/// It starts elsewhere by itself: the promise is about it too, and there is nothing to restore.
#[test]
fn a_vm_on_network_storage_is_among_those_that_an_attestation_starts() {
    let mut world = World::new();
    world.add_disk("web", "data", nfs(), None);
    let text = runbook(&world.fleet, &world.decide("web"), &Standing::at(Progress::Untouched));
    assert_has(&text, &["start elsewhere at once; this one is among them"]);
    assert!(!text.contains("Copies and backups"), "{text}");
}

/// A person has replaced the claim by hand, as told: of interest is what is left of the old one.
#[test]
fn names_the_old_volume_once_no_claim_has_it() {
    let mut world = told_world();
    let decision = world.decide("web");
    world.volume("pv-web-x").phase = "Released".to_owned();
    world.volume("pv-web-x").retained = true;
    world.claim("web-x").volume = Some("pv-web-x-restored".into());
    world.instance("web").node = Some("n2".into());
    let text = runbook(&world.fleet, &decision, &Standing::at(Progress::Elsewhere));
    assert_has(
        &text,
        &[
            "It runs again, on `n2`",
            "### `pv-web-x` of disk `x`",
            "losetup --find --show --read-only --partscan /data/vol/disk.img",
            "kubectl delete pv pv-web-x\nrm -r /data/vol      # on node n1",
        ],
    );
    assert!(!text.contains("pvc"), "{text}");
}

/// Somebody has put the data back into the very folder that an old volume names: to remove that would remove what runs.
#[test]
fn a_folder_that_another_volume_has_is_never_removed() {
    for (path, node, same) in [
        ("/data/vol", "n1", true),
        ("/data/vol/", "n1", true),
        ("/data/vol/inside", "n1", true),
        ("/data", "n1", true),
        ("/data/vol", "", true),
        ("/data/vol", "n2", false),
        ("/data/vol2", "n1", false),
    ] {
        let mut world = told_world();
        let decision = world.decide("web");
        world.volume("pv-web-x").phase = "Released".to_owned();
        world.volume("pv-web-x").retained = true;
        world.claim("web-x").volume = Some("pv-restored".into());
        let affinity = if node.is_empty() { None } else { on_host(&[node]) };
        let source = VolumeSource::Local { path: path.to_owned() };
        world.fleet.volumes.insert("pv-restored".into(), bound_volume("web-x", source, affinity));
        let text = runbook(&world.fleet, &decision, &Standing::at(Progress::Elsewhere));
        assert_has(&text, &["kubectl delete pv pv-web-x"]);
        assert_eq!(text.contains("rm -r"), !same, "{path} on {node:?}: {text}");
        assert_eq!(text.contains("# volume pv-restored has the same folder"), same, "{path} on {node:?}");
    }
}

/// Whoever pastes the step as it is makes no volume, and one of an earlier move is in nobody's way.
#[test]
fn the_new_volume_has_a_free_name_and_a_place_that_somebody_has_said() {
    let mut world = told_world();
    let text =
        |world: &World| runbook(&world.fleet, &world.decide("web"), &Standing::at(Progress::Untouched));
    assert_has(
        &text(&world),
        &["NEW_NODE=''\nNEW_PATH=''\nsed", "${NEW_NODE:?", "name: \"pv-web-x-restored\""],
    );
    let mut old = bound_volume("web-x", host_path(), on_host(&["n2"]));
    "Released".clone_into(&mut old.phase);
    world.fleet.volumes.insert("pv-web-x-restored".into(), old);
    assert_has(&text(&world), &["name: \"pv-web-x-restored-2\"", "volumeName: \"pv-web-x-restored-2\""]);
}

#[test]
fn whoever_cordons_a_node_hears_of_vms_that_nothing_ties_to_it() {
    let mut world = told_world();
    world.fleet.vms.insert(key("odd"), running_vm("odd", "n1"));
    world.add_disk("odd", "x", VolumeSource::HostPath { path: "/odd".to_owned() }, None);
    let text = runbook(&world.fleet, &world.decide("web"), &Standing::at(Progress::Untouched));
    assert_has(&text, &["1. **First tie the disks of `shop/odd` to this node"]);
    let own = runbook(&told_world().fleet, &told_world().decide("web"), &Standing::at(Progress::Untouched));
    assert!(!own.contains("First tie the disks"), "{own}");
}

/// The node is back and the claim is gone: the way back is told, for it alone.
#[test]
fn a_move_that_was_left_halfway_has_a_way_back() {
    let mut world = told_world();
    let decision = world.decide("web");
    world.volume("pv-web-x").phase = "Released".to_owned();
    world.volume("pv-web-x").retained = true;
    let mut text = |claim: Option<&str>| {
        match claim {
            Some(phase) => world.claim("web-x").phase = phase.to_owned(),
            None => _ = world.fleet.claims.remove(&key("web-x")),
        }
        runbook(&world.fleet, &decision, &Standing { over: true, ..Standing::at(Progress::ByHand) })
    };
    assert!(!text(Some("Bound")).contains("Back to the old volumes"));
    assert_has(
        &text(Some("Pending")),
        &["resourceVersion\":null}}}'\nkubectl delete pvc -n shop web-x\nkubectl create"],
    );
    let gone = text(None);
    assert_has(
        &gone,
        &["kubectl patch pv pv-web-x --type merge", r#""uid":null"#, "volumeName: \"pv-web-x\""],
    );
    assert!(!gone.contains("kubectl delete pvc"), "{gone}");
}

/// The second incident: what the first one left is named as well, but no volume of another VM or of none.
#[test]
fn names_the_old_volumes_of_earlier_incidents() {
    let mut world = told_world();
    let decision = world.decide("web");
    for (name, claim, node) in
        [("pv-first", "web-x", "n2"), ("pv-other", "db-x", "n2"), ("pv-open", "web-x", "")]
    {
        let mut volume =
            bound_volume(claim, host_path(), if node.is_empty() { None } else { on_host(&[node]) });
        "Released".clone_into(&mut volume.phase);
        world.fleet.volumes.insert(name.into(), volume);
    }
    let text = runbook(&world.fleet, &decision, &Standing::at(Progress::Elsewhere));
    assert_has(&text, &["### `pv-first` of disk `x`", "kubectl delete pv pv-first", "as root on node `n2`"]);
    assert!(!text.contains("pv-other") && !text.contains("pv-open"), "{text}");
    // What a claim has now is in use.
    assert!(!text.contains("pv-web-x"), "{text}");
    // After broken storage the old volume may be all that is left of the data.
    let text = storage_over(&world.fleet, &decision);
    assert_has(&text, &["It is over", "### `pv-first` of disk `x`", "losetup"]);
    assert!(!text.contains("kubectl delete pv") && !text.contains("rm -r"), "{text}");
}

#[test]
fn a_rebuild_is_left_to_the_coordinator() {
    let mut world = World::new();
    world.add_local_system_disk("web");
    world.vm("web").rebuild_allowed = true;
    let text = written(&world);
    assert_has(&text, &["It is rebuilt elsewhere", "Bring node `n1` back", "kubectl somersault attest n1"]);
    assert!(!text.contains("delete pvc"), "{text}");
}
