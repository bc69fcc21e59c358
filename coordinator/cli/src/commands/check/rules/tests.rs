//! Each thing that can be wrong is found, graded, and comes with what to do; a healthy cluster has no finding at all.

mod fencing;
mod places;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use somersault_coordinator_core::names::NodeName;
use somersault_crd::common::Proof;
use somersault_crd::node_health::{AgentInfo, NodeHealthStatus, NodeState};

use super::super::facts::{Cluster, FenceRunner, NodeSeen, PodSeen, PolicySeen, Server};
use super::super::finding::{Grade, conclusion, worst};
use super::*;

const VERSION: &str = "0.1.0";

fn at(hours: i64) -> Timestamp {
    Timestamp::from_second(1_000_000_000 + hours * 3_600).expect("in range")
}

fn pod(name: &str, node: &str) -> PodSeen {
    PodSeen {
        name: name.to_owned(),
        node: node.to_owned(),
        ready: true,
        version: Some(VERSION.to_owned()),
        ..PodSeen::default()
    }
}

fn policy(accepted: Option<Result<(), String>>) -> PolicySeen {
    PolicySeen { profile: "fast".to_owned(), accepted }
}

fn condition(status: &str, message: &str) -> Condition {
    Condition {
        type_: "FencingAnswers".to_owned(),
        status: status.to_owned(),
        message: message.to_owned(),
        reason: "Asked".to_owned(),
        last_transition_time: Time(at(0)),
        observed_generation: None,
    }
}

fn node(name: &str) -> NodeSeen {
    let agent = AgentInfo { version: VERSION.to_owned(), ..AgentInfo::default() };
    NodeSeen {
        name: NodeName::from(name),
        ready: true,
        out_of_service: false,
        health: Some(NodeHealthStatus {
            state: NodeState::Healthy,
            agent: Some(agent),
            proofs_possible: vec![Proof::PowerOffConfirmed, Proof::HumanAttested],
            conditions: vec![condition("True", "")],
            ..NodeHealthStatus::default()
        }),
        certificate_until: Some(at(20)),
    }
}

/// A fence runner of so many replicas, with its Secret.
fn runner(pods: &[PodSeen], wanted: i32) -> FenceRunner {
    let ready = i32::try_from(pods.iter().filter(|pod| pod.ready).count()).expect("a few");
    FenceRunner {
        workload: Workload { observed: true, wanted, ready, pods: pods.to_vec() },
        has_secret: Some(true),
        is_asked: true,
    }
}

/// A cluster in which everything is as it should be.
fn healthy() -> Facts {
    Facts {
        now: at(0),
        version: VERSION,
        server: Server {
            address: "https://10.0.0.1:6443".to_owned(),
            version: "v1.36.3".to_owned(),
            number: Some((1, 36)),
            user: Ok("admin".to_owned()),
        },
        definitions: Ok(vec![Definition { name: "nodehealths".to_owned(), state: DefinitionState::Same }]),
        namespace: Ok(true),
        coordinator_rights: Ok(vec![Verdict { right: "patch nodes".to_owned(), allowed: true }]),
        own_rights: Ok(vec![Verdict { right: "list nodes".to_owned(), allowed: true }]),
        claim_lock: Ok(true),
        record_guard: Ok(true),
        coordinator: Ok(Some(Workload {
            observed: true,
            wanted: 2,
            ready: 2,
            pods: vec![pod("c1", "n1"), pod("c2", "n2")],
        })),
        led: Ok(Some(true)),
        agents: Ok(Some(Workload {
            observed: true,
            wanted: 2,
            ready: 2,
            pods: vec![pod("a1", "n1"), pod("a2", "n2")],
        })),
        fence_runner: Ok(Some(runner(&[pod("f1", "n1"), pod("f2", "n2")], 2))),
        authority_until: Ok(Some(at(24 * 365))),
        cluster: Ok(Cluster { nodes: vec![node("n1"), node("n2")], ..Cluster::default() }),
        kubevirt: Ok(Some(KubeVirt { phase: "Deployed".to_owned(), version: "v1.9.0".to_owned() })),
    }
}

fn change_cluster(facts: &mut Facts, change: impl FnOnce(&mut Cluster)) {
    change(facts.cluster.as_mut().expect("it was seen"));
}

fn change_health(facts: &mut Facts, change: impl FnOnce(&mut NodeHealthStatus)) {
    change_cluster(facts, |cluster| change(cluster.nodes[0].health.as_mut().expect("it is known")));
}

/// The one finding that is not fine, after this change.
fn one_finding(change: impl FnOnce(&mut Facts)) -> (&'static str, Finding) {
    let mut facts = healthy();
    change(&mut facts);
    let found = sections(&facts).into_iter().flat_map(|section| {
        let name = section.name;
        section.findings.into_iter().map(move |finding| (name, finding))
    });
    let wrong: Vec<_> = found.filter(|(_, finding)| finding.grade != Grade::Ok).collect();
    assert_eq!(wrong.len(), 1, "{wrong:#?}");
    wrong.into_iter().next().expect("there is one")
}

#[test]
fn a_healthy_cluster_is_fine() {
    assert_eq!(worst(&sections(&healthy())), Grade::Ok, "{:#?}", sections(&healthy()));
}

#[test]
fn each_trouble_is_one_finding_with_what_to_do() {
    type Change = fn(&mut Facts);
    let cases: &[(Change, &str, Grade, &str)] = &[
        (|f| f.server.number = Some((1, 27)), "kubernetes", Grade::Failed, "1.28 is the oldest"),
        (|f| f.server.number = Some((1, 29)), "kubernetes", Grade::Warning, "ValidatingAdmissionPolicy"),
        (
            |f| f.claim_lock = Ok(false),
            "kubernetes",
            Grade::Warning,
            "somersault-claim-lock or its binding is missing",
        ),
        (
            |f| f.record_guard = Ok(false),
            "kubernetes",
            Grade::Warning,
            "somersault-records or its binding is missing, or was changed",
        ),
        (|f| f.server.number = None, "kubernetes", Grade::Warning, "no number"),
        (
            |f| f.definitions = Ok(vec![Definition { name: "x".into(), state: DefinitionState::Missing }]),
            "definitions",
            Grade::Failed,
            "x is missing",
        ),
        (
            |f| {
                f.definitions =
                    Ok(vec![Definition { name: "x".into(), state: DefinitionState::NotEstablished }]);
            },
            "definitions",
            Grade::Failed,
            "x is not Established",
        ),
        (
            |f| f.definitions = Ok(vec![Definition { name: "x".into(), state: DefinitionState::Differs }]),
            "definitions",
            Grade::Warning,
            "x has another schema",
        ),
        (|f| f.namespace = Ok(false), "rights", Grade::Failed, "does not"),
        (
            |f| f.coordinator_rights = Ok(vec![Verdict { right: "patch nodes".into(), allowed: false }]),
            "rights",
            Grade::Failed,
            "somersault-coordinator may not patch nodes",
        ),
        (
            |f| f.own_rights = Ok(vec![Verdict { right: "list nodes".into(), allowed: false }]),
            "rights",
            Grade::Warning,
            "you may not list nodes",
        ),
        (|f| f.coordinator_rights = Err("forbidden".into()), "rights", Grade::Unseen, "forbidden"),
        (|f| f.coordinator = Ok(None), "coordinator", Grade::Failed, "no Deployment"),
        (|f| f.led = Ok(Some(false)), "coordinator", Grade::Failed, "held by nobody"),
        (|f| f.agents = Ok(None), "agents", Grade::Failed, "no DaemonSet"),
        (|f| f.authority_until = Ok(Some(at(-1))), "certificates", Grade::Failed, "has expired"),
        (|f| f.authority_until = Ok(Some(at(24 * 9))), "certificates", Grade::Warning, "expires in 9d"),
        (|f| f.authority_until = Ok(None), "certificates", Grade::Failed, "has no certificate"),
        (|f| f.kubevirt = Ok(None), "kubevirt", Grade::Warning, "no KubeVirt"),
    ];
    for (change, section, grade, words) in cases {
        let (found_in, finding) = one_finding(change);
        assert_eq!((found_in, finding.grade), (*section, *grade), "{words}: {finding:?}");
        assert!(finding.why.join("\n").contains(words), "{words}: {finding:?}");
        assert!(finding.what_to_do.is_some_and(|text| !text.is_empty()), "{words}");
    }
}

#[test]
fn a_coordinator_with_one_of_two_replicas_goes_on() {
    let (section, finding) = one_finding(|facts| {
        let sick = PodSeen { ready: false, trouble: "ImagePullBackOff".into(), ..pod("c2", "n2") };
        facts.coordinator =
            Ok(Some(Workload { observed: true, wanted: 2, ready: 1, pods: vec![pod("c1", "n1"), sick] }));
    });
    assert_eq!((section, finding.grade), ("coordinator", Grade::Warning));
    assert_eq!(finding.why, ["pod c2 is not ready: ImagePullBackOff"]);
    let (_, finding) = one_finding(|facts| {
        facts.coordinator = Ok(Some(Workload { observed: true, wanted: 2, ready: 0, pods: vec![] }));
    });
    assert_eq!(finding.grade, Grade::Failed);
}

#[test]
fn a_status_from_before_an_upgrade_is_waited_for() {
    let (section, finding) = one_finding(|facts| {
        if let Ok(Some(agents)) = &mut facts.agents {
            agents.observed = false;
        }
    });
    assert_eq!((section, finding.grade), ("agents", Grade::Failed));
    assert!(finding.what_to_do.is_some_and(|text| text.contains("--wait")));
}

#[test]
fn versions_that_differ_are_told_for_pods_and_agents() {
    let (section, finding) = one_finding(|facts| {
        let old = PodSeen { version: Some("0.0.9".into()), ..pod("c2", "n2") };
        facts.coordinator =
            Ok(Some(Workload { observed: true, wanted: 2, ready: 2, pods: vec![pod("c1", "n1"), old] }));
    });
    assert_eq!((section, finding.grade), ("coordinator", Grade::Warning));
    let (section, finding) = one_finding(|facts| {
        change_health(facts, |health| {
            health.agent = Some(AgentInfo { version: "0.0.9".to_owned(), ..AgentInfo::default() });
        });
    });
    assert_eq!((section, finding.grade), ("agents", Grade::Warning));
    assert!(finding.why[0].contains("node n1 says that it is 0.0.9"), "{finding:?}");
}

#[test]
fn a_node_whose_agent_does_not_beat_is_told_with_its_state() {
    let (section, finding) = one_finding(|facts| {
        change_health(facts, |health| {
            health.state = NodeState::AgentSilent;
            health.message = "its kernel answers".to_owned();
        });
    });
    assert_eq!((section, finding.grade), ("agents", Grade::Failed));
    assert_eq!(finding.why, ["node n1 (Ready): AgentSilent: its kernel answers"]);
    let (section, finding) =
        one_finding(|facts| change_cluster(facts, |cluster| cluster.nodes[1].health = None));
    assert_eq!((section, finding.grade), ("agents", Grade::Failed));
    assert!(finding.why[0].contains("has never heard of it"), "{finding:?}");
    let (section, finding) =
        one_finding(|facts| change_health(facts, |health| health.state = NodeState::Quarantine));
    assert_eq!((section, finding.grade), ("agents", Grade::Warning));
}

#[test]
fn a_node_without_a_pod_of_the_agent_is_told() {
    let (section, finding) = one_finding(|facts| {
        facts.agents =
            Ok(Some(Workload { observed: true, wanted: 1, ready: 1, pods: vec![pod("a1", "n1")] }));
    });
    assert_eq!((section, finding.grade), ("agents", Grade::Failed));
    assert_eq!(finding.why, ["node n2 has none"]);
}

#[test]
fn certificates_of_agents_end_in_order() {
    for (hours, grade) in [(-1, Grade::Failed), (0, Grade::Failed)] {
        let (section, finding) = one_finding(|facts| {
            change_cluster(facts, |cluster| cluster.nodes[0].certificate_until = Some(at(hours)));
        });
        assert_eq!((section, finding.grade), ("certificates", grade), "{hours}");
    }
    let soon = at(0) + jiff::SignedDuration::from_mins(30);
    for until in [Some(soon), None] {
        let (section, finding) =
            one_finding(|facts| change_cluster(facts, |cluster| cluster.nodes[0].certificate_until = until));
        assert_eq!((section, finding.grade), ("certificates", Grade::Warning), "{until:?}");
    }
}

/// After `uninstall` the objects are still there, and say how things were.
#[test]
fn nothing_is_praised_that_a_coordinator_of_the_past_has_said() {
    let mut facts = healthy();
    (facts.coordinator, facts.agents, facts.fence_runner) = (Ok(None), Ok(None), Ok(None));
    (facts.led, facts.authority_until) = (Ok(Some(false)), Ok(None));
    change_cluster(&mut facts, |cluster| cluster.policy = Some(policy(Some(Ok(())))));
    let findings = sections(&facts).into_iter().flat_map(|section| section.findings);
    let praised: Vec<_> =
        findings.filter(|finding| finding.grade == Grade::Ok).map(|finding| finding.what).collect();
    for gone in ["proven dead", "fence agent", "beat", "agents say", "agents' certificates", "is accepted"] {
        assert!(!praised.iter().any(|what| what.contains(gone)), "{gone}: {praised:#?}");
    }
}

#[test]
fn volumes_that_no_agent_looks_at_are_named_by_their_folder() {
    let (section, finding) = one_finding(|facts| {
        change_cluster(facts, |cluster| {
            cluster.unlisted.insert(("local-path".to_owned(), "/opt/other".to_owned()), 3);
        });
    });
    assert_eq!((section, finding.grade), ("storage", Grade::Warning));
    assert!(finding.what_to_do.is_some_and(|what| what.contains("--root=local-path=/opt/other")));
}

#[test]
fn one_replica_on_a_cluster_of_several_nodes_is_one_too_few() {
    let (section, finding) = one_finding(|facts| {
        let Ok(Some(coordinator)) = &mut facts.coordinator else { panic!("it is there") };
        (coordinator.wanted, coordinator.ready) = (1, 1);
        coordinator.pods.truncate(1);
    });
    assert_eq!((section, finding.grade), ("coordinator", Grade::Warning));
    assert!(finding.what_to_do.is_some_and(|what| what.contains("--replicas=2")));
}

#[test]
fn two_replicas_on_a_cluster_of_one_node_are_one_too_many() {
    let (section, finding) = one_finding(|facts| {
        change_cluster(facts, |cluster| cluster.nodes.truncate(1));
        if let Ok(Some(agents)) = &mut facts.agents {
            agents.pods.truncate(1);
        }
        let Ok(Some(coordinator)) = &mut facts.coordinator else { panic!("it is there") };
        (coordinator.wanted, coordinator.ready) = (2, 1);
    });
    assert_eq!((section, finding.grade), ("coordinator", Grade::Warning));
    assert!(finding.what_to_do.is_some_and(|what| what.contains("k3s-one-node")));
}

#[test]
fn a_living_node_that_somebody_took_out_of_service_is_named() {
    let (section, finding) =
        one_finding(|facts| change_cluster(facts, |cluster| cluster.nodes[0].out_of_service = true));
    assert_eq!((section, finding.grade), ("agents", Grade::Warning));
    assert!(finding.what_to_do.is_some_and(|what| what.contains("kubectl taint nodes NODE")));
}

#[test]
fn vms_without_kubevirts_own_object_are_not_denied() {
    let without = |vms: usize| {
        let (section, finding) = one_finding(|facts| {
            facts.kubevirt = Ok(None);
            change_cluster(facts, |cluster| cluster.vms = vms);
        });
        assert_eq!((section, finding.grade), ("kubevirt", Grade::Warning));
        format!("{} {}", finding.why[0], finding.what_to_do.unwrap_or_default())
    };
    assert!(
        without(9).contains("there are 9 VirtualMachines") && !without(9).contains("no VMs"),
        "{}",
        without(9)
    );
    assert!(without(0).contains("there are no VMs to look after"), "{}", without(0));
    let mut facts = healthy();
    (facts.kubevirt, facts.cluster) = (Ok(None), Err("forbidden".to_owned()));
    let of_kubevirt = sections(&facts).pop().expect("the last one").findings;
    assert!(of_kubevirt[0].why[0].contains("could not be seen"), "{of_kubevirt:?}");
}

#[test]
fn a_policy_that_contradicts_itself_is_a_failure() {
    let (section, finding) = one_finding(|facts| {
        change_cluster(facts, |cluster| {
            cluster.policy = Some(policy(Some(Err("spec: declareMs is too small".to_owned()))));
        });
    });
    assert_eq!((section, finding.grade), ("policy", Grade::Failed));
    let (section, finding) = one_finding(|facts| {
        change_cluster(facts, |cluster| cluster.policy = Some(policy(None)));
    });
    assert_eq!((section, finding.grade), ("policy", Grade::Failed), "nobody has looked at it yet");
    let mut facts = healthy();
    change_cluster(&mut facts, |cluster| cluster.policy = Some(policy(Some(Ok(())))));
    assert_eq!(worst(&sections(&facts)), Grade::Ok);
}

#[test]
fn an_old_or_broken_kubevirt_is_told() {
    for (phase, version) in [("Deployed", "v1.1.4"), ("Deploying", "v1.9.0"), ("Deployed", "devel")] {
        let seen = KubeVirt { phase: phase.to_owned(), version: version.to_owned() };
        let (section, finding) = one_finding(|facts| facts.kubevirt = Ok(Some(seen)));
        assert_eq!((section, finding.grade), ("kubevirt", Grade::Warning), "{phase} {version}");
    }
}

/// Who may see nothing gets no good news, and no false alarm either.
#[test]
fn what_could_not_be_looked_at_is_neither_good_nor_bad() {
    let unseen = || Err::<_, String>("forbidden".to_owned());
    let mut facts = healthy();
    facts.cluster = Err("forbidden".to_owned());
    facts.definitions = Err("forbidden".to_owned());
    facts.agents = Err("forbidden".to_owned());
    facts.coordinator = Err("forbidden".to_owned());
    facts.fence_runner = Err("forbidden".to_owned());
    facts.authority_until = Err("forbidden".to_owned());
    facts.kubevirt = Err("forbidden".to_owned());
    facts.led = unseen();
    assert_eq!(worst(&sections(&facts)), Grade::Unseen, "{:#?}", sections(&facts));
}

/// Before anything is installed there is nothing good to say about agents that nobody has heard of.
#[test]
fn nothing_is_praised_that_is_not_there() {
    let mut facts = healthy();
    facts.definitions = Ok(vec![Definition { name: "x".to_owned(), state: DefinitionState::Missing }]);
    facts.fence_runner = Ok(None);
    change_cluster(&mut facts, |cluster| {
        for node in &mut cluster.nodes {
            node.health = None;
        }
    });
    for section in sections(&facts) {
        let said: Vec<_> = section.findings.iter().map(|finding| finding.what.as_str()).collect();
        match section.name {
            "definitions" => assert_eq!(said, ["the definitions are installed"]),
            "fencing" => assert!(said.is_empty(), "{said:?}"),
            "certificates" => assert_eq!(said.len(), 1, "{said:?}"),
            "agents" => assert!(!said.iter().any(|what| what.contains("say that")), "{said:?}"),
            _ => {}
        }
    }
}

#[test]
fn who_may_do_nothing_is_told_so_once() {
    let nothing = |right: &str| Verdict { right: right.to_owned(), allowed: false };
    let (_, finding) = one_finding(|facts| {
        facts.coordinator_rights = Ok(vec![nothing("patch nodes"), nothing("list nodes")]);
    });
    assert_eq!(finding.why.len(), 1);
    assert!(finding.why[0].ends_with("may do none of it"), "{finding:?}");
}

#[test]
fn versions_are_numbers() {
    assert_eq!(number("v1.36.3"), Some((1, 36)));
    assert_eq!(number("v1.28.3+k3s1"), Some((1, 28)));
    assert_eq!(number("v1.9.0-rc.1"), Some((1, 9)));
    assert_eq!(number("devel"), None);
}
