//! Questions answered from a dump alone: no cluster, no coordinator.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;

use anyhow::{Context, Result};
use common::{fixture, program, run, run_with_input};
use serde_json::{Value, json};

/// Decision of each VM by `namespace/name`.
fn decisions(answer: &Value) -> Result<BTreeMap<String, String>> {
    let rows = answer.as_array().context("an array")?;
    let text = |row: &Value, field: &str| row[field].as_str().map(str::to_owned).context(field.to_owned());
    rows.iter()
        .map(|row| {
            Ok((format!("{}/{}", text(row, "namespace")?, text(row, "name")?), text(row, "decision")?))
        })
        .collect()
}

fn pairs(expected: &[(&str, &str)]) -> BTreeMap<String, String> {
    expected.iter().map(|(vm, decision)| ((*vm).to_owned(), (*decision).to_owned())).collect()
}

#[test]
fn explain_a_node_decides_for_each_vm_of_it() -> Result<()> {
    let ran = run(&["explain", "n1", "--from", &fixture("fleet.yaml"), "-o", "json"])?;
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let answer = ran.json()?;
    assert_eq!(decisions(&answer)?, pairs(&[("default/db", "ManualRecovery"), ("default/web", "Recreate")]));
    let db = &answer[0];
    assert_eq!(db["reasons"], json!(["LocalDisk"]));
    assert_eq!(db["disks"][1]["disk"], "data");
    assert_eq!((&db["disks"][1]["locality"], &db["disks"][1]["node"]), (&json!("Local"), &json!("n1")));
    assert_eq!(db["disks"][0]["locality"], "Network");
    Ok(())
}

#[test]
fn explain_names_the_disk_to_people() -> Result<()> {
    let ran = run(&["explain", "db", "--from", &fixture("fleet.yaml")])?;
    assert_eq!(ran.code, Some(0));
    assert!(ran.out.contains("VM default/db, if node n1 died: ManualRecovery"), "{}", ran.out);
    assert!(ran.out.contains("because: disk data is on node n1 only"), "{}", ran.out);
    assert!(ran.out.contains("pv-db-data"), "{}", ran.out);
    Ok(())
}

/// The fleet with a claim that is Lost, and what the coordinator said of it.
fn with_a_lost_claim(recovery: &str) -> Result<String> {
    let dump = fs::read_to_string(fixture("fleet.yaml"))?;
    let at = dump.find("kind: PersistentVolumeClaim\nmetadata:\n  name: db-data").context("the claim")?;
    let (before, after) = dump.split_at(at);
    Ok(format!("{before}{}{recovery}", after.replacen("phase: Bound", "phase: Lost", 1)))
}

const TOLD: &str = "---\napiVersion: somersault.novasphere.dev/v1alpha1\nkind: Recovery\nmetadata: {name: db, namespace: \
                    default}\nspec: {vm: db}\nstatus: {cause: StorageFailed, node: n1, decision: ManualRecovery, reasons: \
                    [ClaimLost], progress: NeedsPerson, runbook: '# As told'}\n";

#[test]
fn broken_storage_is_shown_as_what_is_broken_now() -> Result<()> {
    let dump = with_a_lost_claim("")?;
    let ask = |args: &[&str]| run_with_input(&[args, &["--from", "-"]].concat(), &dump);
    let ran = ask(&["explain", "db"])?;
    assert!(
        ran.out.contains("its storage is broken now, whether a node dies or not: ClaimLost"),
        "{}",
        ran.out
    );
    let ran = ask(&["report"])?;
    assert!(ran.out.contains("1 VMs have broken storage already"), "{}", ran.out);
    let ran = ask(&["runbook", "db"])?;
    assert!(ran.out.contains("Its storage is broken, and no node of it died"), "{}", ran.out);
    assert!(!ran.out.contains("attest"), "{}", ran.out);
    let json = ask(&["explain", "db", "-o", "json"])?.json()?;
    assert_eq!(json[0]["brokenStorage"], json!(["ClaimLost"]));
    Ok(())
}

#[test]
fn what_the_coordinator_told_of_storage_is_shown_with_its_cause() -> Result<()> {
    let dump = with_a_lost_claim(TOLD)?;
    let ask = |args: &[&str]| run_with_input(&[args, &["--from", "-"]].concat(), &dump);
    let ran = ask(&["recoveries"])?;
    assert!(ran.line("default/db").contains("StorageFailed"), "{}", ran.out);
    let ran = ask(&["status"])?;
    assert!(ran.out.contains("NeedsPerson (storage: ClaimLost)"), "{}", ran.out);
    assert_eq!(ask(&["recoveries", "-o", "json"])?.json()?[0]["cause"], "StorageFailed");
    assert_eq!(ask(&["runbook", "db"])?.out.trim_end(), "# As told");
    Ok(())
}

/// Agents list folders; no object that the plugin reads holds their listings.
#[test]
fn what_an_agent_found_broken_is_no_reason_to_move_the_vm() -> Result<()> {
    let told =
        TOLD.replace("ClaimLost", "VolumePathMissing").replace("status: {", "status: {remedy: restore it, ");
    let dump = format!("{}{told}", fs::read_to_string(fixture("fleet.yaml"))?);
    let ask = |args: &[&str]| run_with_input(&[args, &["--from", "-"]].concat(), &dump);
    let row = &ask(&["explain", "db", "-o", "json"])?.json()?[0];
    assert_eq!(row["brokenStorage"], json!(["VolumePathMissing"]));
    assert_eq!((&row["reasons"][0], &row["remedy"]), (&json!("VolumePathMissing"), &json!("restore it")));
    let ran = ask(&["report"])?;
    assert!(
        ran.out.contains("restore it") && ran.out.contains("the folder of a volume is gone"),
        "{}",
        ran.out
    );
    assert!(!ran.out.contains("migrate db"), "{}", ran.out);
    Ok(())
}

#[test]
fn a_stopped_vm_belongs_to_the_node_that_has_its_disk() -> Result<()> {
    let ran = run(&["explain", "n2", "--from", &fixture("fleet.yaml"), "-o", "json"])?;
    assert_eq!(
        decisions(&ran.json()?)?,
        pairs(&[("default/batch", "NothingToDo"), ("shop/web", "Recreate")])
    );
    let ran = run(&["explain", "n2", "--from", &fixture("fleet.yaml"), "-o", "json", "-n", "shop"])?;
    assert_eq!(decisions(&ran.json()?)?, pairs(&[("shop/web", "Recreate")]));
    Ok(())
}

#[test]
fn a_vm_of_two_namespaces_must_be_told_apart() -> Result<()> {
    let dump = fixture("fleet.yaml");
    let ran = run(&["explain", "web", "--from", &dump])?;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("default, shop"), "{}", ran.err);
    for names in [&["vm/web", "-n", "shop"][..], &["shop/web"], &["vm/shop/web"], &["shop/web", "-n", "shop"]]
    {
        let ran = run(&[&["explain", "--from", &dump, "-o", "json"], names].concat())?;
        assert_eq!(decisions(&ran.json()?)?, pairs(&[("shop/web", "Recreate")]), "{names:?}");
    }
    assert_eq!(run(&["runbook", "--from", &dump, "shop/web"])?.code, Some(0));
    Ok(())
}

#[test]
fn what_is_not_there_is_not_found() -> Result<()> {
    let dump = fixture("fleet.yaml");
    for (args, words) in [
        (vec!["explain", "n9"], "neither a Node n9 nor a VirtualMachine n9"),
        (vec!["explain", "node/db"], "no Node db"),
        (vec!["explain", "vm/db", "-n", "shop"], "no VirtualMachine db in namespace shop"),
        (vec!["explain", "shop/db"], "no VirtualMachine db in namespace shop"),
        (vec!["runbook", "nothing"], "no VirtualMachine nothing"),
    ] {
        let ran = run(&[args.as_slice(), &["--from", &dump]].concat())?;
        assert_eq!(ran.code, Some(3), "{ran:?}");
        assert!(ran.err.contains(words), "{}", ran.err);
    }
    let ran = run(&["report", "--from", "/no/such/file.yaml"])?;
    assert_eq!(ran.code, Some(3));
    assert!(ran.err.contains("/no/such/file.yaml does not exist"), "{}", ran.err);
    Ok(())
}

#[test]
fn report_says_who_survives_and_what_to_do() -> Result<()> {
    let ran = run(&["report", "--from", &fixture("fleet.yaml")])?;
    assert_eq!(ran.code, Some(0));
    assert!(ran.line("default/db").contains("by hand"), "{}", ran.out);
    assert!(
        ran.line("default/db").contains("kubectl somersault migrate db -n default --to-class"),
        "{}",
        ran.out
    );
    assert!(ran.line("default/web").contains("after attest"), "{}", ran.out);
    assert!(ran.line("If its node died now").contains("0 of 3 VMs"), "{}", ran.out);
    Ok(())
}

/// With a fence agent for n1 its VMs need nobody, and the report says how long they take.
#[test]
fn report_counts_on_the_fence_agents_of_the_policy() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let policy = folder.path().join("policy.yaml");
    fs::write(&policy, "profile: Fast\nfencing:\n  nodes: [n1]\n")?;
    let policy = policy.to_string_lossy();
    let ran = run(&["report", "--from", &fixture("fleet.yaml"), "--policy", &policy, "-o", "json"])?;
    let answer = ran.json()?;
    let web = answer["vms"]
        .as_array()
        .context("an array")?
        .iter()
        .find(|row| row["name"] == "web")
        .context("web")?;
    assert_eq!(web["survives"], "Yes");
    assert_eq!(web["expectedMs"], 1_000 + 5_000 + 2_000, "fast verdict, power off, restart");
    fs::write(&*policy, "detection:\n  declareMs: 100\n")?;
    let ran = run(&["report", "--from", &fixture("fleet.yaml"), "--policy", &policy])?;
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("declare"), "both values are named: {}", ran.err);
    Ok(())
}

#[test]
fn a_dump_may_come_through_a_pipe_or_be_a_folder() -> Result<()> {
    let text = fs::read_to_string(fixture("fleet.yaml"))?;
    let piped = run_with_input(&["explain", "n1", "--from", "-", "-o", "json"], &text)?;
    let file = run(&["explain", "n1", "--from", &fixture("fleet.yaml"), "-o", "json"])?;
    assert_eq!((piped.code, piped.out), (Some(0), file.out.clone()));
    let folder = tempfile::tempdir()?;
    fs::create_dir(folder.path().join("deep"))?;
    fs::copy(fixture("fleet.yaml"), folder.path().join("deep/all.yml"))?;
    let path = folder.path().to_string_lossy().into_owned();
    assert_eq!(run(&["explain", "n1", "--from", &path, "-o", "json"])?.out, file.out);
    Ok(())
}

/// The environment names a cluster that is not there; a dump must not need it.
#[test]
fn a_dump_wins_over_the_environment() -> Result<()> {
    let dump = fixture("fleet.yaml");
    let output =
        program(&["report", "--from", &dump]).env("SOMERSAULT_CLUSTER", "dir:/no/such/folder").output()?;
    assert_eq!(output.status.code(), Some(0));
    Ok(())
}

#[test]
fn runbook_tells_what_to_do_before_anything_failed() -> Result<()> {
    let ran = run(&["runbook", "db", "--from", &fixture("fleet.yaml")])?;
    assert_eq!(ran.code, Some(0));
    assert!(ran.out.contains("db-data") && ran.out.contains("n1"), "{}", ran.out);
    let ran = run(&["runbook", "db", "--from", &fixture("fleet.yaml"), "-o", "json"])?;
    assert_eq!(ran.json()?["incident"], false);
    Ok(())
}

/// Of a VM that needs no person the coordinator writes no runbook: how far it is, is told all the same.
#[test]
fn runbook_knows_the_proof_and_the_progress_of_a_recovery() -> Result<()> {
    let fleet = fs::read_to_string(fixture("fleet.yaml"))?;
    let ask = |progress: &str, ended: &str| {
        let recovery = format!(
            "---\napiVersion: somersault.novasphere.dev/v1alpha1\nkind: Recovery\nmetadata: {{name: web, namespace: \
             default}}\nspec: {{vm: web}}\nstatus: {{cause: NodeDied, node: n1, decision: Recreate, progress: {progress}, proof: \
             PowerOffConfirmed, conditions: [{{type: Ended, status: '{ended}', reason: A, message: '', lastTransitionTime: \
             '2026-01-01T00:00:00Z'}}]}}\n"
        );
        run_with_input(&["runbook", "web", "-n", "default", "--from", "-"], &format!("{fleet}{recovery}"))
    };
    let proven = ask("AwaitingProof", "False")?;
    assert!(proven.out.contains("is proven dead (PowerOffConfirmed"), "{}", proven.out);
    assert!(!proven.out.contains("somersault attest"), "{}", proven.out);
    let acting = ask("Acting", "False")?;
    assert!(acting.out.contains("The coordinator brings it back"), "{}", acting.out);
    let over = ask("Recovered", "True")?;
    assert!(over.out.contains("No recovery of it is under way"), "{}", over.out);
    assert!(over.out.contains("Its last recovery, when node n1 died, is over (Recovered)"), "{}", over.out);
    Ok(())
}

#[test]
fn a_pipe_carries_no_colours_and_no_wrapping() -> Result<()> {
    for command in ["status", "report"] {
        let ran = run(&[command, "--from", &fixture("fleet.yaml")])?;
        assert_eq!(ran.code, Some(0));
        assert!(!ran.out.contains('\u{1b}'), "{}", ran.out);
        assert_eq!(ran.out.lines().filter(|line| line.starts_with("default/db ")).count(), 1, "{}", ran.out);
    }
    Ok(())
}

/// `… | head -1` closes the pipe while we still write.
#[test]
fn a_closed_pipe_is_no_failure() -> Result<()> {
    let mut child = program(&["report", "--from", &fixture("fleet.yaml"), "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(child.stdout.take());
    let output = child.wait_with_output()?;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn bad_usage_is_told_apart() -> Result<()> {
    for args in [
        vec!["report", "--no-such-flag"],
        vec!["explain", "node/a/b", "--from", "-"],
        vec!["explain", "shop/web", "-n", "lab", "--from", "-"],
        vec!["runbook", "shop/web", "-n", "lab", "--from", "-"],
        vec!["migrate", "shop/web", "-n", "lab", "--to-node", "n1"],
        vec!["cancel", "shop/web-to-n1", "-n", "lab"],
        vec!["status", "--cluster", "here"],
        vec!["status"],
        vec!["migrate", "--to-node", "n1"],
        vec!["migrate", "db"],
        vec!["migrate", "db", "--to-node", "n1", "--to-class", "nfs"],
        vec!["migrate", "db", "--claim", "spare", "--to-node", "n1"],
        vec!["cancel", "db"],
        vec![],
    ] {
        let ran = run(&args)?;
        assert_eq!(ran.code, Some(2), "{args:?}: {ran:?}");
        assert!(!ran.err.is_empty(), "{args:?}");
    }
    Ok(())
}

#[test]
fn help_documents_the_exit_codes() -> Result<()> {
    let ran = run(&["--help"])?;
    assert_eq!(ran.code, Some(0));
    assert!(ran.out.contains("Usage: kubectl somersault"), "{}", ran.out);
    for line in ["0  done", "3  not found", "4  refused", "5  answered", "6  waited"] {
        assert!(ran.out.contains(line), "{line}: {}", ran.out);
    }
    Ok(())
}

#[test]
fn a_dump_written_by_hand_needs_no_status_that_nobody_would_write() -> Result<()> {
    let ran = run(&["explain", "n1", "--from", &fixture("sparse.yaml"), "-o", "json"])?;
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let expected = pairs(&[("default/locvm", "ManualRecovery"), ("default/netvm", "Recreate")]);
    assert_eq!(decisions(&ran.json()?)?, expected);
    Ok(())
}
