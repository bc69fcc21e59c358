//! What `check` says of fence agents and of who runs them.

use super::*;

#[test]
fn a_node_that_only_a_person_can_prove_dead_is_told() {
    let (section, finding) = one_finding(|facts| {
        change_health(facts, |health| {
            health.proofs_possible = vec![Proof::HumanAttested, Proof::NewBootId];
            health.conditions.clear();
        });
    });
    assert_eq!((section, finding.grade), ("fencing", Grade::Warning));
    assert!(finding.why[0].contains("until somebody attests"), "{finding:?}");
}

/// Who reads the last line only must not think that a machine without a fence agent is switched off.
#[test]
fn the_last_line_says_which_nodes_wait_for_a_person() {
    let last = |by_hand: &[&str]| {
        let mut facts = healthy();
        facts.fence_runner = Ok(None);
        change_cluster(&mut facts, |cluster| {
            cluster.nodes.push(node("n3"));
            for node in cluster.nodes.iter_mut().filter(|node| by_hand.contains(&node.name.as_str())) {
                let health = node.health.as_mut().expect("it is known");
                health.proofs_possible = vec![Proof::HumanAttested];
                health.conditions.clear();
            }
        });
        if let Ok(Some(agents)) = &mut facts.agents {
            agents.pods.push(pod("a3", "n3"));
        }
        assert_eq!(worst(&sections(&facts)), Grade::Warning, "a person may attest instead: it is no error");
        conclusion(&sections(&facts))
    };
    assert_eq!(
        last(&["n1", "n2", "n3"]),
        "Installed and awake, but no node can be proven dead without a person: when a node dies, its VMs wait for one. To \
         look at (!): 1."
    );
    assert!(last(&["n2"]).contains("but node n2 cannot be proven dead"), "{}", last(&["n2"]));
    assert!(last(&["n1", "n2"]).contains("but 2 of 3 nodes cannot be"), "{}", last(&["n1", "n2"]));
}

#[test]
fn a_fence_runner_that_does_not_run_is_told_apart_from_one_that_is_not_there() {
    let stuck = PodSeen { ready: false, trouble: "ContainerCreating".into(), ..pod("f1", "n1") };
    let cases = [
        (runner(&[], 0), "it is scaled to 0", "kubectl scale deployment"),
        (
            FenceRunner { has_secret: Some(false), ..runner(std::slice::from_ref(&stuck), 2) },
            "its pods wait for Secret somersault-fence",
            "kubectl create secret generic",
        ),
        (
            FenceRunner { is_asked: false, ..runner(std::slice::from_ref(&stuck), 2) },
            "installed without the component",
            "apply an overlay with that component",
        ),
        (
            runner(std::slice::from_ref(&stuck), 2),
            "pod f1 is not ready: ContainerCreating",
            "kubectl describe pods",
        ),
        (
            FenceRunner { has_secret: None, ..runner(&[stuck], 2) },
            "pod f1 is not ready: ContainerCreating",
            "kubectl describe pods",
        ),
    ];
    for (seen, why, what_to_do) in cases {
        let (section, finding) = one_finding(|facts| facts.fence_runner = Ok(Some(seen.clone())));
        assert_eq!((section, finding.grade), ("fencing", Grade::Failed), "{finding:?}");
        assert!(finding.why[0].contains(why), "{finding:?}");
        assert!(finding.what_to_do.is_some_and(|text| text.contains(what_to_do)), "{what_to_do}");
    }
    let by_hand = |runner: Option<FenceRunner>| {
        let mut facts = healthy();
        facts.fence_runner = Ok(runner);
        change_health(&mut facts, |health| {
            health.proofs_possible = vec![Proof::HumanAttested];
            health.conditions.clear();
        });
        let findings = sections(&facts).into_iter().flat_map(|section| section.findings);
        let finding = findings.into_iter().find(|finding| finding.what.starts_with("every node has a proof"));
        finding.and_then(|finding| finding.what_to_do).expect("it is told")
    };
    assert!(by_hand(None).contains("the component fence-runner in your overlay"));
    assert!(by_hand(Some(runner(&[], 0))).starts_with("let the fence runner run first"));
    let running = runner(&[pod("f1", "n1")], 1);
    let unread = FenceRunner { has_secret: None, ..running.clone() };
    assert!(by_hand(Some(unread)).starts_with("configure a fence agent for it"));
    // What was configured is not called missing while the coordinator has not heard of the runner yet.
    assert!(by_hand(Some(running)).starts_with("Secret somersault-fence in somersault-system is there"));
}

#[test]
fn a_fence_runner_that_was_not_reached_yet_is_no_wrong_configuration() {
    let mut facts = healthy();
    change_health(&mut facts, |health| {
        health.proofs_possible = vec![Proof::HumanAttested];
        health.conditions = vec![Condition {
            reason: "RunnerAway".to_owned(),
            ..condition("False", "no fence agent can be run: nobody answers")
        }];
    });
    let fencing = sections(&facts).into_iter().find(|section| section.name == "fencing").expect("there");
    let told: Vec<_> = fencing.findings.iter().filter_map(|finding| finding.what_to_do.as_deref()).collect();
    assert_eq!(told.len(), 2, "{fencing:?}");
    assert_eq!(told[0], "let its fence agent answer (below)");
    assert!(told[1].contains("just come back") && told[1].contains("--wait"), "{told:?}");
    assert!(!told.iter().any(|text| text.contains("Secret") || text.contains("mend")), "{told:?}");
}

#[test]
fn a_fence_agent_that_does_not_answer_is_a_failure() {
    let (section, finding) = one_finding(|facts| {
        change_health(facts, |health| health.conditions = vec![condition("False", "fence_redfish: 401")]);
    });
    assert_eq!((section, finding.grade), ("fencing", Grade::Failed));
    assert_eq!(finding.why, ["node n1: fence_redfish: 401"]);
}

#[test]
fn a_mistake_in_the_fence_configuration_is_named() {
    for (reason, status, message) in [
        (
            "NotConfigured",
            "False",
            "it has no fence agent: the fence configuration names m1, and no node is called so",
        ),
        ("ChangeRefused", "True", "it answers; a change of its configuration is not in use: line 3"),
    ] {
        let (section, finding) = one_finding(|facts| {
            let told = Condition { reason: reason.to_owned(), ..condition(status, message) };
            change_health(facts, |health| health.conditions = vec![told.clone()]);
        });
        assert_eq!((section, finding.grade), ("fencing", Grade::Failed));
        assert_eq!(finding.why, [format!("node n1: {message}")]);
        assert!(finding.what_to_do.is_some_and(|what| what.contains("fence.yaml")));
    }
}

#[test]
fn a_node_that_a_mistake_left_without_an_agent_is_sent_to_the_mistake() {
    let mut facts = healthy();
    change_health(&mut facts, |health| {
        health.proofs_possible = vec![Proof::HumanAttested];
        let reason = "NotConfigured".to_owned();
        health.conditions = vec![Condition { reason, ..condition("False", "it has no fence agent: line 3") }];
    });
    let fencing = sections(&facts).into_iter().find(|section| section.name == "fencing").expect("there");
    let told: Vec<_> = fencing.findings.iter().filter_map(|finding| finding.what_to_do.as_deref()).collect();
    assert_eq!(told[0], "mend the fence configuration (below)");
    assert!(told.len() == 2 && told[1].starts_with("mend key fence.yaml"), "{told:?}");
}
