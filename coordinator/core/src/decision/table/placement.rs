//! By the nodes that are left.

use DecisionKind::{ManualRecovery, Recreate};

use crate::decision::placement::node_refusal;
use crate::decision::table::{Row, check};
use crate::decision::testkit::{World, csi, key, nfs, on_host, on_label, running_vm};
use crate::decision::{DecisionKind, Reason};
use crate::fleet::{FENCING_TAINT, Node, Requirement, Resources, Taint, Toleration, ZONE_LABEL};
use crate::names::NodeName;

const NO_ROOM: (DecisionKind, &[Reason]) = (ManualRecovery, &[Reason::NoFittingNode]);
const AGAIN: (DecisionKind, &[Reason]) = (ManualRecovery, &[Reason::ToleratesFencing]);
const ROOM: (DecisionKind, &[Reason]) = (Recreate, &[Reason::AllDisksOnNetwork]);

fn row(case: &'static str, change: fn(&mut World), outcome: (DecisionKind, &'static [Reason])) -> Row {
    (case, change, outcome.0, outcome.1)
}

fn taint(key: &str, effect: &str) -> Taint {
    Taint { key: key.to_owned(), value: String::new(), effect: effect.to_owned() }
}

fn tolerate(world: &mut World, operator: &str, key: &str, effect: &str) {
    world.vm("web").tolerations.push(Toleration {
        key: key.to_owned(),
        operator: operator.to_owned(),
        value: String::new(),
        effect: effect.to_owned(),
    });
}

fn other_nodes(world: &mut World, change: fn(&mut Node)) {
    for name in ["n2", "n3"] {
        change(world.node(name));
    }
}

#[test]
fn by_nodes_that_are_closed() {
    check(&[
        row("one node of two not ready", |w| w.node("n2").ready = false, ROOM),
        row("no node ready", |w| other_nodes(w, |node| node.ready = false), NO_ROOM),
        row("all cordoned", |w| other_nodes(w, |node| node.unschedulable = true), NO_ROOM),
        row("all tainted", |w| other_nodes(w, |node| node.taints.push(taint("gpu", "NoSchedule"))), NO_ROOM),
        row(
            "all tainted, tolerated",
            |w| {
                other_nodes(w, |node| node.taints.push(taint("gpu", "NoSchedule")));
                w.vm("web").tolerations.push(Toleration { key: "gpu".to_owned(), ..Toleration::default() });
            },
            ROOM,
        ),
        row(
            "all tainted, another effect tolerated",
            |w| {
                other_nodes(w, |node| node.taints.push(taint("gpu", "NoSchedule")));
                let effect = "NoExecute".to_owned();
                w.vm("web").tolerations.push(Toleration {
                    key: "gpu".to_owned(),
                    effect,
                    ..Toleration::default()
                });
            },
            NO_ROOM,
        ),
        row(
            "the others declared unreachable, though the VM tolerates that",
            |w| {
                other_nodes(w, |node| node.taints.push(taint(FENCING_TAINT, "NoSchedule")));
                tolerate(w, "Exists", "", "");
                // Else its own dead node would be the reason.
                w.vm("web").node_affinity = on_host(&["n2", "n3"]);
            },
            NO_ROOM,
        ),
        row(
            "every taint tolerated: the dead node could get it back",
            |w| tolerate(w, "Exists", "", ""),
            AGAIN,
        ),
        row("our taint tolerated by name", |w| tolerate(w, "Exists", FENCING_TAINT, "NoSchedule"), AGAIN),
        row(
            "our taint's key with another effect",
            |w| tolerate(w, "Exists", FENCING_TAINT, "NoExecute"),
            ROOM,
        ),
        row(
            "every taint tolerated, and the dead node not wanted",
            |w| {
                tolerate(w, "Exists", "", "");
                w.vm("web").node_affinity = on_label(ZONE_LABEL, &["b"]);
            },
            ROOM,
        ),
        row(
            "a taint that only dissuades",
            |w| other_nodes(w, |node| node.taints.push(taint("gpu", "PreferNoSchedule"))),
            ROOM,
        ),
        row(
            "no other node is usable",
            |w| w.question.unusable = ["n2", "n3"].map(NodeName::from).into(),
            NO_ROOM,
        ),
        row("every node dead", |w| w.question.dead.extend(["n2", "n3"].map(NodeName::from)), NO_ROOM),
    ]);
}

#[test]
fn by_what_the_vm_wants() {
    check(&[
        row(
            "a selector that no other node has",
            |w| {
                w.vm("web").node_selector.insert("kubernetes.io/hostname".to_owned(), "n1".to_owned());
            },
            NO_ROOM,
        ),
        row("an affinity that n3 has", |w| w.vm("web").node_affinity = on_label(ZONE_LABEL, &["b"]), ROOM),
        row("an affinity that only n1 has", |w| w.vm("web").node_affinity = on_host(&["n1"]), NO_ROOM),
        row(
            "volume of zone a, n2 is there",
            |w| {
                w.volume("pv-web-data").source = csi("ebs.csi.aws.com");
                w.volume("pv-web-data").node_affinity = on_label("topology.kubernetes.io/zone", &["a"]);
            },
            ROOM,
        ),
        row(
            "volume of zone a, n2 is not ready",
            |w| {
                w.volume("pv-web-data").source = csi("ebs.csi.aws.com");
                w.volume("pv-web-data").node_affinity = on_label("topology.kubernetes.io/zone", &["a"]);
                w.node("n2").ready = false;
            },
            NO_ROOM,
        ),
        row(
            "two volumes of different zones",
            |w| {
                w.add_disk("web", "x", nfs(), on_label(ZONE_LABEL, &["a"]));
                w.volume("pv-web-data").node_affinity = on_label(ZONE_LABEL, &["b"]);
            },
            NO_ROOM,
        ),
        row("too much memory", |w| w.vm("web").requests.memory_bytes = 1 << 40, NO_ROOM),
        row("too much CPU", |w| w.vm("web").requests.cpu_millis = 9_000, NO_ROOM),
        row(
            "room taken by others",
            |w| {
                for (name, node) in [("a", "n2"), ("b", "n3")] {
                    let mut other = running_vm(name, node);
                    other.requests.cpu_millis = 7_500;
                    w.fleet.vms.insert(key(name), other);
                }
            },
            NO_ROOM,
        ),
        row("room not told", |w| other_nodes(w, |node| node.allocatable = Resources::default()), ROOM),
        row(
            "only the dead node takes VMs",
            |w| {
                w.node("n1").labels.insert("kubevirt.io/schedulable".to_owned(), "true".to_owned());
            },
            NO_ROOM,
        ),
        row(
            "the volume's topology by exclusion",
            |w| {
                let mut affinity = on_host(&["n1"]).expect("an affinity");
                affinity.terms[0][0] = Requirement {
                    key: "kubernetes.io/hostname".to_owned(),
                    operator: "NotIn".to_owned(),
                    values: vec!["n2".to_owned(), "n3".to_owned()],
                };
                w.vm("web").node_affinity = Some(affinity);
            },
            NO_ROOM,
        ),
    ]);
}

/// A VM that moves its disks within its node needs no room besides its own.
#[test]
fn its_own_requests_are_no_burden() {
    let mut world = World::new();
    world.vm("web").requests.cpu_millis = 5_000;
    let refusal = |world: &World| node_refusal(&world.fleet, &NodeName::from("n1"), &key("web"));
    assert_eq!(refusal(&world), None);
    let mut other = running_vm("other", "n1");
    other.requests.cpu_millis = 5_000;
    world.fleet.vms.insert(key("other"), other);
    assert_eq!(refusal(&world).as_deref(), Some("has too little CPU left"));
}
