//! Manifests that are broken, contradict each other, or want to harm the terminal.

mod common;

use std::fs;

use anyhow::{Context, Result};
use common::{Cluster, fixture, run, run_with_input};
use serde_json::json;

#[test]
fn broken_manifests_are_named_and_the_rest_goes_on() -> Result<()> {
    let ran = run(&["explain", "n1", "--from", &fixture("broken.yaml"), "-o", "json"])?;
    assert_eq!(ran.code, Some(5), "the answer may be wrong: {ran:?}");
    let answer = ran.json()?;
    assert_eq!((&answer[0]["name"], &answer[0]["decision"]), (&json!("web"), &json!("Recreate")));
    for words in [
        "broken.yaml, document 2: not valid YAML",
        "broken.yaml, document 3 (VirtualMachine default/crooked): spec.template.spec.volumes",
        "broken.yaml, document 4 (PersistentVolume ?): metadata.name: missing",
        "3 manifests could not be read",
    ] {
        assert!(ran.err.contains(words), "{words}: {}", ran.err);
    }
    Ok(())
}

/// What is asked for is in the very document that is broken: the reader must learn of it.
#[test]
fn a_vm_in_a_broken_manifest_is_not_just_missing() -> Result<()> {
    let ran = run(&["explain", "vm/crooked", "--from", &fixture("broken.yaml")])?;
    assert_eq!(ran.code, Some(3));
    assert!(ran.err.contains("VirtualMachine default/crooked"), "{}", ran.err);
    Ok(())
}

#[test]
fn what_nobody_can_tell_is_never_recreated() -> Result<()> {
    let ran = run(&["report", "--from", &fixture("hostile.yaml"), "-o", "json"])?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let answer = ran.json()?;
    let rows = answer["vms"].as_array().context("an array")?;
    assert_eq!(rows.len(), 5);
    for (vm, reason) in [
        ("adrift", "LocalityUnknown"),
        ("ghost", "ClaimMissing"),
        ("odd", "LocalityUnknown"),
        ("twin-a", "ClaimSharedWithVm"),
        ("twin-b", "ClaimSharedWithVm"),
    ] {
        let row = rows.iter().find(|row| row["name"] == vm).context(vm)?;
        assert_eq!(row["decision"], "ManualRecovery", "{vm}");
        assert_eq!(row["survives"], "ByHand", "{vm}");
        assert_eq!(row["reasons"][0], reason, "{vm}");
        assert!(row["remedy"].as_str().is_some_and(|text| !text.is_empty()), "{vm} has no remedy");
    }
    Ok(())
}

#[test]
fn escape_sequences_of_a_manifest_do_not_reach_the_terminal() -> Result<()> {
    let cluster = Cluster::coordinated()?;
    let file = cluster.path().join("somersault.yaml");
    let text = fs::read_to_string(&file)?;
    fs::write(&file, text.replace("message: copying", r#"message: "copying\e]0;owned\a\e[2J""#))?;
    let ran = cluster.run(&["status"])?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.line("default/batch-to-n3").contains("owned"), "{}", ran.out);
    assert!(!ran.out.contains('\u{1b}') && !ran.out.contains('\u{7}'), "{:?}", ran.out);
    Ok(())
}

#[test]
fn an_object_that_occurs_twice_is_told() -> Result<()> {
    let twice = format!("{0}\n---\n{0}", fs::read_to_string(fixture("fleet.yaml"))?);
    let ran = run_with_input(&["report", "--from", "-"], &twice)?;
    assert_eq!(ran.code, Some(5));
    assert!(ran.err.contains("is already in"), "{}", ran.err);
    assert_eq!(
        ran.err.lines().filter(|line| line.contains("is already in")).count(),
        20,
        "told, not flooded"
    );
    Ok(())
}

#[test]
fn garbage_is_an_answer_with_a_warning_and_not_a_crash() -> Result<()> {
    for garbage in ["", "\u{0}\u{1}\u{2}", "- 1\n- 2\n", "{\"kind\":", "a: &a [*a]\n", "%YAML 9.9\n---\n"] {
        let ran = run_with_input(&["report", "--from", "-"], garbage)?;
        assert!(matches!(ran.code, Some(0 | 5)), "{garbage:?}: {ran:?}");
        assert!(ran.out.contains("no VirtualMachine"), "{garbage:?}: {ran:?}");
        assert!(!ran.err.contains("panicked"), "{garbage:?}: {ran:?}");
    }
    Ok(())
}

/// A policy object that contradicts itself is a problem of its manifest; the defaults count.
#[test]
fn a_policy_that_contradicts_itself_is_named() -> Result<()> {
    let cluster = Cluster::with(&["fleet.yaml"])?;
    fs::write(
        cluster.path().join("policy.yaml"),
        "apiVersion: somersault.novasphere.dev/v1alpha1\nkind: RecoveryPolicy\nmetadata:\n  name: default\nspec:\n  \
         detection:\n    declareMs: 100\n  holdRelease: x\n",
    )?;
    let ran = cluster.run(&["report"])?;
    assert_eq!(ran.code, Some(5), "{ran:?}");
    assert!(ran.err.contains("policy.yaml") && ran.err.contains("RecoveryPolicy default"), "{}", ran.err);
    Ok(())
}
