//! Volumes whose place nobody knows: told by class, with one command that loses nothing and declares nothing by itself.

use serde_json::{Map, Value, json};
use somersault_crd::RecoveryPolicySpec;

use super::{change_cluster, healthy, one_finding, policy};
use crate::commands::check::facts::Unplaced;
use crate::commands::check::finding::{Grade, worst};
use crate::commands::check::rules::sections;

fn unplaced(class: &str) -> Unplaced {
    Unplaced {
        class: class.to_owned(),
        claim: "shop/db".to_owned(),
        volume: "pv-1".to_owned(),
        because: "its driver is not known".to_owned(),
        declared: false,
    }
}

/// What to do about these claims, where there is a policy and where there is none.
fn what_to_do(unplaced: Vec<Unplaced>, has_policy: bool) -> String {
    let (section, finding) = one_finding(|facts| {
        change_cluster(facts, |cluster| {
            cluster.unplaced = unplaced;
            cluster.policy = has_policy.then(|| policy(Some(Ok(()))));
        });
    });
    assert_eq!((section, finding.grade), ("storage", Grade::Warning));
    finding.what_to_do.expect("there is a command")
}

/// The JSON that a command holds between quotes.
fn quoted_in(command: &str) -> Value {
    serde_json::from_str(command.split('\'').nth(1).expect("quoted")).expect("JSON")
}

#[test]
fn volumes_that_nobody_can_place_are_told_by_class() {
    let (section, finding) = one_finding(|facts| {
        change_cluster(facts, |cluster| {
            cluster.unplaced = vec![unplaced("gold"), unplaced("silver"), unplaced("gold")];
        });
    });
    assert_eq!((section, finding.grade), ("storage", Grade::Warning));
    assert_eq!(finding.what, "the place of volumes of classes gold, silver is known");
    assert!(finding.why[0].contains("shop/db (volume pv-1, class gold)"), "{finding:?}");
}

/// Whoever made the policy said other things in it, a profile first of all, and those stay.
#[test]
fn one_command_declares_all_classes_and_leaves_the_rest_of_the_policy() {
    let command = what_to_do(vec![unplaced("gold"), unplaced("silver"), unplaced("gold")], true);
    assert!(
        !command.contains("kubectl apply"),
        "applying takes over, and drops, what it does not name: {command}"
    );
    assert!(command.contains("kubectl patch recoverypolicy default --type merge -p '"), "{command}");
    let asked = json!({ "gold": "<Network|Local>", "silver": "<Network|Local>" });
    assert_eq!(quoted_in(&command), json!({ "spec": { "storageClasses": asked } }));
}

#[test]
fn where_there_is_no_policy_one_command_makes_it() {
    let command = what_to_do(vec![unplaced("gold"), unplaced("silver")], false);
    assert!(command.ends_with("' | kubectl create -f -"), "it fails where there is one: {command}");
    let object = quoted_in(&command);
    assert_eq!((&object["kind"], &object["metadata"]["name"]), (&"RecoveryPolicy".into(), &"default".into()));
    let classes = &object["spec"]["storageClasses"];
    assert_eq!(classes.as_object().map(Map::len), Some(2), "{command}");
}

/// A class that is declared network while it is local costs the data; so nobody may declare it by pasting.
#[test]
fn what_is_pasted_unchanged_declares_nothing() {
    for has_policy in [true, false] {
        let mut object = quoted_in(&what_to_do(vec![unplaced("gold")], has_policy));
        let read = |object: &Value| serde_json::from_value::<RecoveryPolicySpec>(object["spec"].clone());
        assert!(read(&object).is_err(), "{object}");
        object["spec"]["storageClasses"]["gold"] = "Local".into();
        assert!(read(&object).is_ok(), "{object}");
    }
}

#[test]
fn a_class_that_was_answered_is_not_asked_for_again() {
    let mut facts = healthy();
    change_cluster(&mut facts, |cluster| {
        cluster.unplaced = vec![Unplaced { declared: true, ..unplaced("gold") }];
    });
    assert_eq!(worst(&sections(&facts)), Grade::Ok, "{:#?}", sections(&facts));
}
