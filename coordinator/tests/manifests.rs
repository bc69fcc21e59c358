//! Manifests as `kubectl get -o yaml` prints them, read into the core's vocabulary; and manifests that are wrong.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use somersault_coordinator::cluster::Snapshot;
use somersault_coordinator::cluster::directory::{files, read_dump};
use somersault_coordinator_core::fleet::{
    self, ClaimUse, Disk, DiskSource, Owner, RunStrategy, SavedStart, VolumeMode, VolumeSource,
};
use somersault_coordinator_core::names::{Key, NodeName, Uid, VolumeName};
use tempfile::TempDir;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cluster")
}

fn read_text(text: &str) -> Snapshot {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("dump.yaml"), text).unwrap();
    read_dump(&folder.path().join("dump.yaml")).unwrap()
}

fn shop(name: &str) -> Key {
    Key::new("shop", name)
}

fn claim_disk(disk: &Disk) -> (&str, ClaimUse) {
    match &disk.source {
        DiskSource::Claim { name, use_ } => (name, *use_),
        other => panic!("{} is no claim but {other:?}", disk.name),
    }
}

#[test]
fn a_folder_of_manifests_is_read_without_a_problem() {
    let snapshot = read_dump(&fixtures()).unwrap();
    assert_eq!(snapshot.problems, vec![]);
    let fleet = &snapshot.fleet;
    assert_eq!((fleet.nodes.len(), fleet.volumes.len(), fleet.claims.len()), (3, 7, 7));
    assert_eq!((fleet.classes.len(), fleet.vms.len()), (6, 5));
    assert_eq!(snapshot.kubelet_renewals.keys().collect::<Vec<_>>(), [&NodeName::from("n1")]);
}

#[test]
fn nodes_keep_what_liveness_and_placement_need() {
    let fleet = read_dump(&fixtures()).unwrap().fleet;
    let n1 = &fleet.nodes[&"n1".into()];
    assert!(n1.ready && !n1.unschedulable && n1.taints.is_empty());
    assert_eq!(n1.zone(), "east");
    assert_eq!((n1.allocatable.cpu_millis, n1.allocatable.memory_bytes), (3_920, 16_302_164 * 1024));
    assert_eq!(n1.address.as_deref(), Some("10.9.0.1:10250"));
    let n2 = &fleet.nodes[&"n2".into()];
    assert!(!n2.ready && n2.has_taint("node.kubernetes.io/unreachable"));
    assert_eq!(fleet.nodes[&"n3".into()].address.as_deref(), Some("[fd00::3]:10250"));
}

#[test]
fn volumes_say_what_backs_them() {
    let fleet = read_dump(&fixtures()).unwrap().fleet;
    let volume = |name: &str| &fleet.volumes[&VolumeName::from(name)];
    assert_eq!(volume("pv-web").source, VolumeSource::HostPath { path: "/var/lib/volumes/pv-web".into() });
    assert_eq!(volume("pv-hot").source, VolumeSource::Local { path: "/var/lib/volumes/pv-hot".into() });
    assert_eq!(volume("pv-wk-data").source, VolumeSource::Network { field: "nfs".into() });
    assert_eq!(volume("pv-odd").source, VolumeSource::Unknown { field: "flexVolume".into() });
    let csi = VolumeSource::Csi { driver: "rbd.csi.ceph.com".into(), handle: "0001-rbd-db".into() };
    assert_eq!(volume("pv-db").source, csi);
    assert_eq!(volume("pv-db").capacity_bytes, 1_138_166_334);
    assert!(volume("pv-db").node_affinity.is_none() && !volume("pv-db").retained);
    let (name, node) = fleet.nodes.get_key_value(&"n2".into()).unwrap();
    assert!(volume("pv-web").node_affinity.as_ref().unwrap().matches(name, node));
    assert_eq!(volume("pv-web").provisioned_by.as_deref(), Some("rancher.io/local-path"));
    assert_eq!(volume("pv-odd").capacity_bytes, 1_000_000_000);
    assert_eq!(volume("pv-web").mode, VolumeMode::Filesystem);
}

#[test]
fn a_vm_has_its_disks_and_what_it_asks() {
    let fleet = read_dump(&fixtures()).unwrap().fleet;
    let web = &fleet.vms[&shop("web")];
    assert_eq!((web.run, &web.owner), (RunStrategy::Always, &Owner::Itself));
    assert_eq!(web.start, SavedStart::RunStrategy("Always".into()));
    let names: Vec<_> = web.disks.iter().map(|disk| (disk.name.as_str(), disk.boot)).collect();
    assert_eq!(names, [("root", true), ("seed", false), ("scratch", false)]);
    assert_eq!(claim_disk(&web.disks[0]), ("web-root", ClaimUse::Disk));
    assert_eq!(web.disks[1].source, DiskSource::Rebuildable { field: "cloudInitNoCloud".into() });
    assert_eq!(web.disks[2].source, DiskSource::Empty);
    assert_eq!(web.node_selector["disk"], "ssd");
    assert!(web.node_affinity.is_some());
    assert_eq!(web.tolerations[0].key, "dedicated");
    // The launcher's own requests: the init container that ends asks for more CPU than all that runs later.
    assert_eq!((web.requests.cpu_millis, web.requests.memory_bytes), (900, (2_316 << 20) + 35_000_000));
    let instance = web.instance.as_ref().unwrap();
    assert!(instance.has_run && instance.migrating.is_none());
    assert_eq!(web.pods[0].uid, Uid::from("p-web"));
    assert_eq!(web.pods[0].instance, Some(Uid::from("i-web")));
}

#[test]
fn hotplugged_and_state_volumes_count() {
    let fleet = read_dump(&fixtures()).unwrap().fleet;
    let db = &fleet.vms[&shop("db")];
    let claims: Vec<_> = db
        .disks
        .iter()
        .filter(|disk| matches!(disk.source, DiskSource::Claim { .. }))
        .map(claim_disk)
        .collect();
    let state = ("persistent-state-for-db-x7k2p", ClaimUse::State);
    assert_eq!(claims, [("db-data", ClaimUse::Disk), ("hot-extra", ClaimUse::Hotplugged), state]);
    // The smaller boot order wins over the order of the list.
    assert_eq!(db.disks.iter().find(|disk| disk.boot).unwrap().name, "boot");
    let pods: Vec<_> = db.pods.iter().map(|pod| pod.name.as_str()).collect();
    assert_eq!(pods, ["hp-volume-x1", "virt-launcher-db-abcde"]);
    assert_eq!(db.instance.as_ref().unwrap().migrating, Some(Some("n3".into())));
}

#[test]
fn snapshots_say_of_which_claim_and_whether_they_are_ready() {
    let fleet = read_dump(&fixtures()).unwrap().fleet;
    let snapshot = |name: &str| fleet.snapshots[&shop(name)].clone();
    let nightly = fleet::Snapshot {
        claim: Some("db-data".into()),
        ready: true,
        taken: Some("2026-03-02T03:00:00Z".into()),
    };
    assert_eq!(snapshot("db-nightly"), nightly);
    let begun = fleet::Snapshot { ready: false, taken: None, ..nightly };
    assert_eq!(snapshot("db-now"), begun);
    assert_eq!(snapshot("imported"), fleet::Snapshot { ready: true, ..fleet::Snapshot::default() });
}

#[test]
fn a_folder_that_the_guest_shares_is_no_disk() {
    let vm = "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata: {name: web, namespace: shop}\nspec:\n  \
              running: true\n  template:\n    spec:\n      domain:\n        devices:\n          disks: [{name: root}]\n          \
              filesystems: [{name: files, virtiofs: {}}]\n      volumes:\n      - name: root\n        persistentVolumeClaim: \
              {claimName: a}\n      - name: files\n        persistentVolumeClaim: {claimName: b}\n";
    let fleet = read_text(vm).fleet;
    let disks: Vec<_> = fleet.vms[&shop("web")].disks.iter().map(claim_disk).collect();
    assert_eq!(disks, [("a", ClaimUse::Disk), ("b", ClaimUse::Folder)]);
}

/// A volume that is still being attached has no image yet.
#[test]
fn an_instance_runs_with_the_claims_that_are_attached_to_it() {
    let instance = "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata: {name: web, namespace: shop}\nspec:\n  \
                    running: true\n  template: {spec: {domain: {}}}\n---\napiVersion: kubevirt.io/v1\nkind: \
                    VirtualMachineInstance\nmetadata: {name: web, namespace: shop}\nspec:\n  domain: {}\n  volumes:\n  - name: \
                    root\n    persistentVolumeClaim: {claimName: a}\n  - name: plugged\n    persistentVolumeClaim: \
                    {claimName: b, hotpluggable: true}\n  - name: plugging\n    persistentVolumeClaim: {claimName: c, \
                    hotpluggable: true}\nstatus:\n  phase: Running\n  volumeStatus:\n  - {name: root, target: vda}\n  - {name: \
                    plugged, phase: Ready, hotplugVolume: {}, target: sda}\n  - {name: plugging, phase: AttachedToNode, \
                    hotplugVolume: {}, target: ''}\n";
    let fleet = read_text(instance).fleet;
    let instance = fleet.vms[&shop("web")].instance.clone().unwrap();
    assert_eq!(instance.claims.into_iter().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn a_wukong_owns_its_vm() {
    let fleet = read_dump(&fixtures()).unwrap().fleet;
    let vm = &fleet.vms[&shop("wk1-vm")];
    assert_eq!(vm.owner, Owner::Wukong { name: "wk1".into() });
    assert_eq!(vm.start, SavedStart::WukongStartStrategy(None));
    assert!(vm.rebuild_allowed);
    let system = vm.disks.iter().find(|disk| disk.boot).unwrap();
    assert_eq!(
        (system.name.as_str(), system.image.as_deref()),
        ("system", Some("http://images.invalid/ubuntu.img"))
    );
    assert!(vm.disks.iter().filter(|disk| !disk.boot).all(|disk| disk.image.is_none()));
    assert!(!vm.instance.as_ref().unwrap().has_run);
    assert_eq!(fleet.claims[&shop("wk1-system")].data_volume.as_deref(), Some("wk1-system"));
}

#[test]
fn unknown_owners_and_sources_stay_unknown() {
    let fleet = read_dump(&fixtures()).unwrap().fleet;
    let vm = &fleet.vms[&shop("managed")];
    let owner = Owner::Unknown { kind: "VirtualMachinePool".into(), name: "fleet".into() };
    assert_eq!(vm.owner, owner);
    assert_eq!(vm.disks[0].source, DiskSource::HostDisk { path: "/data/x.img".into() });
    assert_eq!(vm.disks[1].source, DiskSource::Unknown { field: "futureDisk".into() });
    // No launcher: four virtual CPUs at a tenth of a core, and KubeVirt's overhead beside the guest's memory.
    assert_eq!((vm.requests.cpu_millis, vm.requests.memory_bytes), (400, (2048 + 268) << 20));
    let imported = &fleet.vms[&shop("imported")];
    assert_eq!(imported.run, RunStrategy::Halted);
    assert!(imported.rebuild_allowed);
    assert_eq!(imported.disks[0].image.as_deref(), Some("docker://quay.io/example/disk:7"));
    assert_eq!(claim_disk(&imported.disks[0]).0, "imported-root");
}

#[test]
fn data_volumes_say_whether_they_would_import_again() {
    let volume = |name: &str, annotations: &str, spec: &str| {
        format!(
            "apiVersion: cdi.kubevirt.io/v1beta1\nkind: DataVolume\nmetadata: {{namespace: shop, name: {name}, \
             annotations: {annotations}}}\nspec: {spec}\nstatus: {{phase: Succeeded}}\n---\n"
        )
    };
    let text = [
        volume("http", "{}", "{source: {http: {url: 'https://images.example/a'}}}"),
        volume("blank", "{}", "{source: {blank: {}}}"),
        volume("cloned", "{}", "{source: {pvc: {namespace: golden, name: debian}}}"),
        volume("named", "{}", "{sourceRef: {kind: DataSource, name: debian}}"),
        volume("vddk", "{}", "{source: {vddk: {url: 'https://vcenter.example'}}}"),
        volume(
            "moved",
            "{cdi.kubevirt.io/storage.prePopulated: moved}",
            "{source: {registry: {url: 'docker://images.example/a'}}}",
        ),
    ];
    let snapshot = read_text(&text.concat());
    assert_eq!(snapshot.problems, vec![]);
    let images: Vec<_> = snapshot
        .fleet
        .data_volumes
        .iter()
        .map(|(key, found)| (key.name.as_str(), found.image.is_some(), found.pre_populated))
        .collect();
    assert_eq!(
        images,
        [
            ("blank", false, false),
            ("cloned", false, false),
            ("http", true, false),
            ("moved", true, true),
            ("named", false, false),
            ("vddk", false, false),
        ]
    );
    assert!(snapshot.fleet.data_volumes.values().all(|found| found.phase == "Succeeded"));
}

#[test]
fn a_node_whose_agent_was_heard_once_is_known_by_its_node_health() {
    let health = |name: &str, status: &str| {
        format!(
            "apiVersion: somersault.novasphere.dev/v1alpha1\nkind: NodeHealth\nmetadata: {{name: {name}}}\nspec: {{}}\n{status}---\n"
        )
    };
    let text = [
        health("n1", "status: {state: Healthy, message: '', bootID: boot-7, proofsPossible: []}\n"),
        health("n2", "status: {state: NoAgent, message: '', proofsPossible: []}\n"),
        health("n3", ""),
    ];
    let snapshot = read_text(&text.concat());
    assert_eq!(snapshot.problems, vec![]);
    let seen: Vec<_> =
        snapshot.fleet.agents_seen.iter().map(|(node, boot)| (node.as_str(), boot.0.as_str())).collect();
    assert_eq!(seen, [("n1", "boot-7")]);
}

#[test]
fn launchers_that_no_vm_owns_are_strays_and_topologies_bound_a_class() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: stray, labels: {kubevirt.io: virt-launcher}}\n\
                spec: {nodeName: n1, containers: []}\nstatus: {phase: Running}\n---\n\
                apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: ended, labels: {kubevirt.io: virt-launcher}}\n\
                spec: {nodeName: n2, containers: []}\nstatus: {phase: Succeeded}\n---\n\
                apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: other}\n\
                spec: {nodeName: n3, containers: []}\nstatus: {phase: Running}\n---\n\
                apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: east}\nprovisioner: p\n\
                allowedTopologies: [{matchLabelExpressions: [{key: zone, values: [east]}]}]\n";
    let snapshot = read_text(text);
    assert_eq!(snapshot.problems, vec![]);
    let strays: Vec<_> = snapshot.fleet.stray_launchers.iter().map(NodeName::as_str).collect();
    assert_eq!(strays, ["n1"]);
    let allowed = snapshot.fleet.classes["east"].allowed_topologies.as_ref().unwrap();
    assert_eq!((allowed.terms[0][0].key.as_str(), allowed.terms[0][0].operator.as_str()), ("zone", "In"));
}

#[test]
fn pods_that_no_vm_owns_use_their_claims() {
    let fleet = read_dump(&fixtures()).unwrap().fleet;
    let used = fleet.claims_used_by_others.iter();
    let used: Vec<String> = used.map(|(claim, pods)| format!("{}: {pods:?}", claim.name)).collect();
    assert_eq!(used, [r#"lonely-root: {"virt-launcher-lonely-abcde"}"#, r#"report-cache: {"report-1"}"#]);
}

#[test]
fn a_vanished_wukong_makes_its_vm_nobodys_to_stop() {
    let vm = "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata: {name: a, uid: u, ownerReferences: [{apiVersion: vm.novasphere.dev/v1alpha1, kind: Wukong, name: gone, uid: x, controller: true}]}\nspec: {running: true, template: {spec: {}}}\n";
    let fleet = read_text(vm).fleet;
    let owner = Owner::Unknown { kind: "Wukong".into(), name: "gone".into() };
    assert_eq!(fleet.vms[&Key::new("default", "a")].owner, owner);
}

#[test]
fn a_bad_document_is_named_and_spoils_no_other() {
    let good = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n";
    let text = format!("# head\n---\n{good}---\nkind: [unclosed\n---\n{}", good.replace("n1", "n2"));
    let snapshot = read_text(&text);
    assert_eq!(snapshot.fleet.nodes.len(), 2);
    let problem = &snapshot.problems[0];
    assert_eq!((snapshot.problems.len(), problem.file.as_str(), problem.document), (1, "dump.yaml", 2));
    assert!(problem.message.starts_with("not valid YAML at line 7"), "{}", problem.message);
}

#[test]
fn a_wrong_field_is_named() {
    for (object, field) in [
        (
            "kind: PersistentVolume\nmetadata: {name: a}\nspec: {capacity: {storage: 10Gb}}",
            "spec.capacity.storage: \"10Gb\"",
        ),
        ("kind: PersistentVolume\nmetadata: {name: a}\nspec: {capacity: 3}", "spec.capacity: "),
        ("kind: Node\nmetadata: {name: a}\nspec: {taints: [{key: x, effect: 3}]}", "spec.taints[0].effect: "),
        (
            "kind: Node\nmetadata: {name: a}\nstatus: {allocatable: {memory: -1Gi}}",
            "status.allocatable.memory: \"-1Gi\"",
        ),
        (
            "kind: PersistentVolumeClaim\nmetadata: {name: a}\nspec: {}",
            "spec.resources.requests.storage: missing",
        ),
        ("kind: Node\nmetadata: {name: ../etc}", "metadata.name: not a valid name"),
        ("kind: Node", "metadata.name: missing"),
    ] {
        let snapshot = read_text(&format!("apiVersion: v1\n{object}\n"));
        assert_eq!(snapshot.problems.len(), 1, "{object}: {:?}", snapshot.problems);
        assert!(snapshot.problems[0].message.starts_with(field), "{object}: {:?}", snapshot.problems);
        assert_eq!(snapshot.problems[0].document, 1);
    }
    let both = "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata: {name: a}\nspec: {running: true, runStrategy: Always, template: {spec: {}}}\n";
    let problem = read_text(both).problems.remove(0);
    assert_eq!(problem.object, "VirtualMachine default/a");
    assert_eq!(problem.message, "spec: exactly one of running and runStrategy must be set");
}

#[test]
fn requests_that_contradict_themselves_are_refused() {
    let head = "apiVersion: somersault.novasphere.dev/v1alpha1\n";
    for (object, field) in [
        (
            "kind: VolumeMigration\nmetadata: {name: a}\nspec: {destination: {node: n1}}",
            "spec: exactly one of vm",
        ),
        (
            "kind: VolumeMigration\nmetadata: {name: a}\nspec: {vm: v, destination: {}}",
            "spec.destination: exactly",
        ),
        ("kind: VolumeMigration\nmetadata: {name: a}\nspec: {vm: 3, destination: {}}", "spec.vm: "),
        (
            "kind: NodeHealth\nmetadata: {name: a}\nspec: {attestation: {bootID: '', by: me}}",
            "spec.attestation.bootID",
        ),
        (
            "kind: NodeHealth\nmetadata: {name: a}\nspec: {attestation: {bootID: b}}",
            "spec.attestation: missing field `by`",
        ),
    ] {
        let snapshot = read_text(&format!("{head}{object}\n"));
        assert!(snapshot.problems[0].message.starts_with(field), "{object}: {:?}", snapshot.problems);
        assert!(snapshot.requests.migrations.is_empty() && snapshot.requests.attestations.is_empty());
    }
}

#[test]
fn a_volume_without_affinity_and_a_claim_that_is_not_there_are_facts_not_errors() {
    let snapshot = read_text(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: bare}\nspec: {capacity: {storage: 1Gi}, hostPath: {path: /x}}\n---\n\
         apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata: {name: a}\nspec: {running: true, template: {spec: {volumes: [{name: d, persistentVolumeClaim: {claimName: nowhere}}]}}}\n---\n\
         apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata: {name: b}\nspec: {running: true, template: {spec: {volumes: [{name: d, persistentVolumeClaim: {claimName: nowhere}}]}}}\n",
    );
    assert_eq!(snapshot.problems, vec![]);
    assert!(snapshot.fleet.volumes[&"bare".into()].node_affinity.is_none());
    for name in ["a", "b"] {
        let vm = &snapshot.fleet.vms[&Key::new("default", name)];
        assert_eq!(claim_disk(&vm.disks[0]), ("nowhere", ClaimUse::Disk));
    }
}

#[test]
fn an_object_twice_counts_once() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {which: first}}\n";
    let snapshot = read_text(&format!("{node}---\n{}", node.replace("first", "second")));
    assert_eq!(snapshot.fleet.nodes[&"n1".into()].labels["which"], "first");
    assert_eq!(snapshot.problems.len(), 1);
    assert_eq!((snapshot.problems[0].document, snapshot.problems[0].object.as_str()), (2, "Node n1"));
}

#[test]
fn bombs_and_deep_nesting_are_refused() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..9 {
        let below = format!("*a{}, ", level - 1).repeat(10);
        writeln!(bomb, "a{level}: &a{level} [{}]", below.trim_end_matches(", ")).unwrap();
    }
    let deep = format!("a: {}{}\n", "[".repeat(10_000), "]".repeat(10_000));
    let deep_json = format!("{{\"a\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    for text in [bomb, deep, deep_json] {
        let snapshot = read_text(&text);
        assert_eq!(snapshot.problems.len(), 1);
        assert!(snapshot.problems[0].message.starts_with("not valid "), "{:?}", snapshot.problems);
    }
}

#[test]
fn a_huge_file_is_refused_unread() {
    let folder = TempDir::new().unwrap();
    let huge = fs::File::create(folder.path().join("huge.yaml")).unwrap();
    huge.set_len(files::FILE_BYTES_MAX + 1).unwrap();
    fs::write(folder.path().join("n.yaml"), "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n").unwrap();
    let snapshot = read_dump(folder.path()).unwrap();
    assert_eq!(snapshot.fleet.nodes.len(), 1);
    assert_eq!((snapshot.problems[0].file.as_str(), snapshot.problems[0].document), ("huge.yaml", 0));
    assert!(snapshot.problems[0].message.contains("larger than 64 MiB"), "{:?}", snapshot.problems);
    assert!(read_dump(&folder.path().join("huge.yaml")).is_err());
}

#[test]
fn too_many_documents_are_cut_and_said() {
    let one = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
    let contents = files::parse(&one.repeat(files::DOCUMENTS_MAX + 1), false);
    assert_eq!(contents.entries.len(), files::DOCUMENTS_MAX);
    assert!(contents.faults[0].message.contains("more than 10000 documents"));
}

#[test]
fn symlinks_hidden_and_foreign_files_are_not_read() {
    let folder = TempDir::new().unwrap();
    let node = |name: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("secret.yaml"), node("secret")).unwrap();
    std::os::unix::fs::symlink(outside.path(), folder.path().join("linked")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret.yaml"), folder.path().join("s.yaml")).unwrap();
    fs::write(folder.path().join(".half.yaml"), node("half")).unwrap();
    fs::write(folder.path().join("notes.txt"), node("text")).unwrap();
    fs::create_dir_all(folder.path().join("a/b")).unwrap();
    fs::write(folder.path().join("a/b/n.yml"), node("n1")).unwrap();
    fs::write(folder.path().join("j.json"), r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n2"}}"#)
        .unwrap();
    let snapshot = read_dump(folder.path()).unwrap();
    assert_eq!(snapshot.fleet.nodes.keys().map(NodeName::as_str).collect::<Vec<_>>(), ["n1", "n2"]);
    assert_eq!(snapshot.problems, vec![]);
}

#[test]
fn a_missing_dump_is_an_error_that_names_it() {
    let error = read_dump(Path::new("/nonexistent/dump.yaml")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/dump.yaml"), "{error}");
}
