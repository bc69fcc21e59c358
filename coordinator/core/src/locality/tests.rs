//! Localities, a row for each kind of volume: claim `web-data` in a cluster of n1, n2 (zone a) and n3 (zone b).

use crate::decision::testkit::{World, csi, host_path, key, nfs, node, on_host, on_label};
use crate::decision::{Locality, Reason};
use crate::fleet::{NodeSelector, Requirement, StorageClass, VolumeSource, ZONE_LABEL};
use crate::locality::{ClassOverride, Verdict, judge};
use crate::names::NodeName;

type Row = (&'static str, VolumeSource, Option<NodeSelector>, Locality);

fn local(name: &str) -> Locality {
    Locality::Local { node: NodeName::from(name) }
}

fn verdict(world: &World) -> Verdict {
    let vm = &world.fleet.vms[&key("web")];
    judge(&world.fleet, &world.overrides, "shop", &vm.disks[0])
}

fn world_with(source: VolumeSource, affinity: Option<NodeSelector>) -> World {
    let mut world = World::new();
    world.volume("pv-web-data").source = source;
    world.volume("pv-web-data").node_affinity = affinity;
    world
}

fn check(rows: Vec<Row>) {
    for (case, source, affinity, locality) in rows {
        let verdict = verdict(&world_with(source, affinity));
        assert_eq!(verdict.locality, locality, "{case}: {}", verdict.because);
        assert!(!verdict.because.is_empty(), "{case}: says how we know");
    }
}

fn network(field: &str) -> VolumeSource {
    VolumeSource::Network { field: field.to_owned() }
}

fn local_volume() -> VolumeSource {
    VolumeSource::Local { path: "/mnt/disks/a".to_owned() }
}

fn zone(names: &[&str]) -> Option<NodeSelector> {
    on_label(ZONE_LABEL, names)
}

#[test]
fn paths_on_a_node() {
    check(vec![
        ("local volume", local_volume(), on_host(&["n2"]), local("n2")),
        ("local-path's hostPath", host_path(), on_host(&["n1"]), local("n1")),
        ("hostPath without affinity", host_path(), None, Locality::Unknown),
        ("local volume without affinity", local_volume(), None, Locality::Unknown),
        ("hostPath on two nodes", host_path(), on_host(&["n1", "n2"]), Locality::Unknown),
        ("hostPath by an empty affinity", host_path(), Some(NodeSelector::default()), Locality::Unknown),
        ("hostPath of a node that is gone", host_path(), on_host(&["n9"]), local("n9")),
        ("hostPath in a zone of two", host_path(), zone(&["a"]), Locality::Unknown),
        ("hostPath in a zone of one", host_path(), zone(&["b"]), local("n3")),
    ]);
}

#[test]
fn known_network_storage() {
    let mut rows = vec![
        ("NFS pinned to a node by hand", nfs(), on_host(&["n2"]), local("n2")),
        ("NFS on two of three nodes", nfs(), on_host(&["n1", "n2"]), Locality::Network),
        ("EBS in a zone", csi("ebs.csi.aws.com"), zone(&["a"]), Locality::Network),
        ("EBS in a zone of one node", csi("ebs.csi.aws.com"), zone(&["b"]), Locality::Network),
        ("EBS in a zone that has no node", csi("ebs.csi.aws.com"), zone(&["z"]), Locality::Network),
        (
            "GCP by its own zone label",
            csi("pd.csi.storage.gke.io"),
            on_label("topology.gke.io/zone", &["a"]),
            Locality::Network,
        ),
        ("Longhorn pinned to a node", csi("driver.longhorn.io"), on_host(&["n1"]), local("n1")),
        ("flexVolume may be anything", network("flexVolume"), None, Locality::Unknown),
    ];
    for field in [
        "nfs",
        "rbd",
        "cephfs",
        "glusterfs",
        "iscsi",
        "fc",
        "awsElasticBlockStore",
        "azureDisk",
        "gcePersistentDisk",
    ] {
        rows.push((field, network(field), None, Locality::Network));
    }
    for driver in [
        "rbd.csi.ceph.com",
        "rook-ceph.rbd.csi.ceph.com",
        "openshift-storage.cephfs.csi.ceph.com",
        "nfs.csi.k8s.io",
        "disk.csi.azure.com",
        "driver.longhorn.io",
    ] {
        rows.push((driver, csi(driver), None, Locality::Network));
    }
    check(rows);
}

#[test]
fn node_local_drivers() {
    check(vec![
        ("TopoLVM", csi("topolvm.io"), on_label("topology.topolvm.io/node", &["n2"]), local("n2")),
        (
            "KubeVirt's hostpath driver, shared pool",
            csi("kubevirt.io.hostpath-provisioner"),
            None,
            Locality::Unknown,
        ),
        ("OpenEBS on two nodes", csi("local.csi.openebs.io"), on_host(&["n1", "n2"]), Locality::Unknown),
    ]);
}

#[test]
fn drivers_that_nobody_knows() {
    let unknown = || csi("csi.example.org");
    check(vec![
        ("no affinity", unknown(), None, Locality::Unknown),
        ("pinned to a node", unknown(), on_label("example.org/node", &["n3"]), local("n3")),
        ("a zone of two nodes", unknown(), zone(&["a"]), Locality::Network),
        ("a zone of one node", unknown(), zone(&["b"]), Locality::Unknown),
        ("two nodes by a label of its own", unknown(), on_host(&["n1", "n2"]), Locality::Unknown),
        ("looks like Ceph, but is not", csi("evilrbd.csi.ceph.com"), None, Locality::Unknown),
        ("a source of no kind", VolumeSource::Unknown { field: String::new() }, None, Locality::Unknown),
        ("the same, pinned", VolumeSource::Unknown { field: "x".to_owned() }, on_host(&["n1"]), local("n1")),
    ]);
}

/// The label is not the node's name, and two nodes may bear the same one.
#[test]
fn affinity_is_evaluated_by_label() {
    let mut world = world_with(host_path(), on_host(&["host-2.example.org"]));
    let label = |name: &str| ("kubernetes.io/hostname".to_owned(), name.to_owned());
    world.node("n2").labels.extend([label("host-2.example.org")]);
    assert_eq!(verdict(&world).locality, local("n2"));
    world.node("n3").labels.extend([label("host-2.example.org")]);
    assert_eq!(verdict(&world).locality, Locality::Unknown);
}

/// TopoLVM's own label is set by its driver on each node.
#[test]
fn a_drivers_own_label_is_evaluated_like_any_other() {
    let mut world = world_with(csi("topolvm.io"), on_label("topology.topolvm.io/node", &["lvm-2"]));
    world.node("n2").labels.insert("topology.topolvm.io/node".to_owned(), "lvm-2".to_owned());
    assert_eq!(verdict(&world).locality, local("n2"));
}

#[test]
fn a_cluster_of_one_node() {
    for (source, affinity, locality) in [
        (host_path(), None, local("n1")),
        (host_path(), on_host(&["n1"]), local("n1")),
        (csi("topolvm.io"), None, local("n1")),
        (nfs(), None, Locality::Network),
        (nfs(), on_host(&["n1"]), Locality::Network),
        (csi("csi.example.org"), None, Locality::Unknown),
    ] {
        let mut world = world_with(source.clone(), affinity);
        world.fleet.nodes = [(NodeName::from("n1"), node("n1", "a"))].into();
        assert_eq!(verdict(&world).locality, locality, "{source:?}");
    }
}

/// A dump without nodes: the affinity's own words are all there is.
#[test]
fn a_cluster_of_no_nodes() {
    let mut world = world_with(host_path(), on_host(&["n1"]));
    world.fleet.nodes.clear();
    let verdict = verdict(&world);
    assert_eq!((verdict.locality, verdict.fault), (local("n1"), Some(Reason::DiskNodeGone)));
}

/// A hand-written Node without the label that a kubelet sets.
#[test]
fn a_node_that_lacks_the_label_is_found_by_its_name() {
    let mut world = world_with(host_path(), on_host(&["n1"]));
    world.node("n1").labels.clear();
    let verdict = verdict(&world);
    assert_eq!((verdict.locality, verdict.fault), (local("n1"), None));
}

/// A limit that is no number matches nothing, as in Kubernetes.
#[test]
fn comparisons_with_no_number_match_nothing() {
    let world = world_with(nfs(), None);
    for (operator, values) in [("Gt", vec![]), ("Gt", vec!["many"]), ("Lt", vec![]), ("Lt", vec!["few"])] {
        let requirement = Requirement {
            key: "size".to_owned(),
            operator: operator.to_owned(),
            values: values.iter().map(|&value| value.to_owned()).collect(),
        };
        let mut node = world.fleet.nodes[&NodeName::from("n1")].clone();
        node.labels.insert("size".to_owned(), "5".to_owned());
        let selector = NodeSelector { terms: vec![vec![requirement]] };
        assert!(!selector.matches(&NodeName::from("n1"), &node), "{operator} {values:?}");
    }
}

#[test]
fn two_terms_that_name_different_nodes_name_none() {
    let term = |host: &str| {
        vec![Requirement {
            key: "kubernetes.io/hostname".to_owned(),
            operator: "In".to_owned(),
            values: vec![host.to_owned()],
        }]
    };
    let world = world_with(host_path(), Some(NodeSelector { terms: vec![term("n8"), term("n9")] }));
    assert_eq!(verdict(&world).locality, Locality::Unknown);
}

#[test]
fn single_replicas_of_network_storage_are_a_trap() {
    for (driver, parameter, value, locality) in [
        ("driver.longhorn.io", "dataLocality", "strict-local", Locality::Unknown),
        ("driver.longhorn.io", "numberOfReplicas", "1", Locality::Unknown),
        ("driver.longhorn.io", "numberOfReplicas", "3", Locality::Network),
        ("ebs.csi.aws.com", "numberOfReplicas", "1", Locality::Network),
    ] {
        let mut world = world_with(csi(driver), None);
        let class = StorageClass {
            provisioner: driver.to_owned(),
            parameters: [(parameter.to_owned(), value.to_owned())].into(),
            ..StorageClass::default()
        };
        world.fleet.classes.insert("gold".to_owned(), class);
        assert_eq!(verdict(&world).locality, locality, "{driver} {parameter}={value}");
    }
}

#[test]
fn votes_that_contradict_each_other_say_nothing() {
    for affinity in [None, zone(&["a"])] {
        let mut world = world_with(nfs(), affinity);
        world.volume("pv-web-data").provisioned_by = Some("rancher.io/local-path".to_owned());
        assert_eq!(verdict(&world).locality, Locality::Unknown);
    }
}

#[test]
fn a_persons_word_settles_what_is_open_and_no_more() {
    for (word, source, affinity, locality) in [
        (ClassOverride::Network, host_path(), None, Locality::Network),
        (ClassOverride::Network, csi("csi.example.org"), None, Locality::Network),
        // The scheduler obeys the affinity, whatever anybody says.
        (ClassOverride::Network, host_path(), on_host(&["n1"]), local("n1")),
        (ClassOverride::Network, host_path(), on_host(&["n9"]), local("n9")),
        (ClassOverride::Local, nfs(), None, Locality::Unknown),
        (ClassOverride::Local, nfs(), zone(&["b"]), local("n3")),
    ] {
        let mut world = world_with(source.clone(), affinity.clone());
        world.overrides.0.insert("gold".to_owned(), word);
        assert_eq!(verdict(&world).locality, locality, "{word:?} {source:?} {affinity:?}");
    }
}

/// The claim's class counts where the volume has none.
#[test]
fn a_static_volume_takes_its_claims_class() {
    let mut world = world_with(host_path(), None);
    world.volume("pv-web-data").class.clear();
    world.claim("web-data").class = "shared".to_owned();
    world.overrides.0.insert("shared".to_owned(), ClassOverride::Network);
    assert_eq!(verdict(&world).locality, Locality::Network);
}

/// Hand-written manifests have neither uids nor phases.
#[test]
fn sparse_manifests_are_read() {
    let mut world = World::new();
    world.claim("web-data").uid.0.clear();
    world.claim("web-data").phase.clear();
    world.volume("pv-web-data").phase.clear();
    assert_eq!(verdict(&world).locality, Locality::Network);
    world.volume("pv-web-data").claim = None;
    assert_eq!(verdict(&world).locality, Locality::Network);
}

#[test]
fn a_released_volume_is_not_bound() {
    let mut world = World::new();
    world.volume("pv-web-data").phase = "Released".to_owned();
    let verdict = verdict(&world);
    assert_eq!((verdict.locality, verdict.fault), (Locality::Unknown, Some(Reason::VolumeBoundElsewhere)));
}
