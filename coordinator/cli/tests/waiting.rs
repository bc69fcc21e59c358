//! `--wait`: the test plays the coordinator, and writes the status that the program waits for.

mod common;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use common::{Cluster, program, ran};
use serde_json::{Value, json};
use somersault_coordinator::cluster::ClusterError;
use somersault_coordinator::cluster::manifest::ObjectId;
use somersault_coordinator_core::names::Key;

/// A broken program must not hang the tests.
const PATIENCE: Duration = Duration::from_secs(20);

fn start(cluster: &Cluster, args: &[&str]) -> Result<Child> {
    let args = cluster.args(args);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Ok(program(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// Writes a status as soon as the object is there.
fn answer(cluster: &Cluster, id: &ObjectId, status: &Value) -> Result<()> {
    let begun = Instant::now();
    loop {
        let written = cluster.store()?.patch(id, |object| {
            object["status"] = status.clone();
            Ok(())
        });
        match written {
            Ok(_) => return Ok(()),
            Err(ClusterError::NotFound { .. }) if begun.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => bail!(error),
        }
    }
}

fn migration(name: &str) -> ObjectId {
    ObjectId::namespaced("VolumeMigration", &Key::new("default", name))
}

#[test]
fn waits_until_a_migration_has_succeeded() -> Result<()> {
    let cluster = Cluster::calm()?;
    let child = start(&cluster, &["migrate", "db", "--to-node", "n3", "--wait", "--timeout", "20s"])?;
    let progress = json!({"doneBytes": 1_073_741_824, "totalBytes": 1_073_741_824, "rateBytesPerSecond": 0});
    answer(
        &cluster,
        &migration("db-to-n3"),
        &json!({"phase": "Succeeded", "epoch": 4, "progress": progress, "downtimeMs": 2_340}),
    )?;
    let ran = ran(&child.wait_with_output()?)?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("VolumeMigration default/db-to-n3: Succeeded"), "{}", ran.out);
    assert!(ran.out.contains("stood still for 2.3 s"), "{}", ran.out);
    assert!(ran.err.contains("Succeeded 100 %"), "progress in lines: {}", ran.err);
    assert!(!ran.err.contains('\u{1b}'), "no bars without a terminal: {:?}", ran.err);
    Ok(())
}

#[test]
fn a_migration_that_was_put_back_is_a_failure() -> Result<()> {
    let cluster = Cluster::calm()?;
    let child = start(&cluster, &["migrate", "db", "--to-node", "n3", "--wait", "--timeout", "20s"])?;
    let checks = json!([{"name": "room", "passed": false, "message": "n3 has no room"}]);
    let status = json!({
        "phase": "Failed", "epoch": 4, "reason": "NoRoom", "message": "free some space", "checks": checks,
    });
    answer(&cluster, &migration("db-to-n3"), &status)?;
    let ran = ran(&child.wait_with_output()?)?;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.out.contains("NoRoom: free some space"), "{}", ran.out);
    assert!(ran.out.contains("check room failed: n3 has no room"), "{}", ran.out);
    Ok(())
}

#[test]
fn copied_ahead_is_an_end_of_its_own() -> Result<()> {
    let cluster = Cluster::calm()?;
    let args = ["migrate", "db", "--to-node", "n3", "--pre-copy-only", "--wait", "--timeout", "20s"];
    let child = start(&cluster, &args)?;
    let progress = json!({"doneBytes": 10, "totalBytes": 10, "rateBytesPerSecond": 0});
    let status = json!({"phase": "PreCopying", "epoch": 4, "progress": progress});
    answer(&cluster, &migration("db-to-n3"), &status)?;
    let ran = ran(&child.wait_with_output()?)?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("kubectl somersault proceed migration/db-to-n3"), "{}", ran.out);
    Ok(())
}

/// Without `--wait` too: whoever is refused hears it from the command that asked.
#[test]
fn a_refusal_is_told_by_the_command_that_asked() -> Result<()> {
    let cluster = Cluster::calm()?;
    // A leader holds this lock for as long as it lives.
    let leader = std::fs::File::create(cluster.path().join(".leader"))?;
    leader.lock()?;
    let child = start(&cluster, &["migrate", "db", "--to-node", "n3"])?;
    let status = json!({
        "phase": "Failed", "epoch": 4, "reason": "DestinationTooSmall", "message": "make room",
    });
    answer(&cluster, &migration("db-to-n3"), &status)?;
    let ran = ran(&child.wait_with_output()?)?;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.out.contains("DestinationTooSmall: make room"), "{}", ran.out);
    Ok(())
}

#[test]
fn what_a_migration_waits_for_is_told_while_it_is_waited_for() -> Result<()> {
    let cluster = Cluster::calm()?;
    let child = start(&cluster, &["migrate", "db", "--to-node", "n3", "--wait", "--timeout", "2s"])?;
    let why = json!([{
        "type": "Complete", "status": "False", "reason": "TargetNotUsable", "message": "node n3 is not healthy",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
    }]);
    answer(&cluster, &migration("db-to-n3"), &json!({ "phase": "Pending", "epoch": 4, "conditions": why }))?;
    let ran = ran(&child.wait_with_output()?)?;
    assert_eq!(ran.code, Some(6), "{ran:?}");
    let told = "VolumeMigration default/db-to-n3 waits. TargetNotUsable: node n3 is not healthy";
    assert_eq!(ran.err.matches(told).count(), 1, "once: {}", ran.err);
    let status = cluster.run(&["status"])?;
    assert!(
        status.line("default/db-to-n3").contains("TargetNotUsable: node n3 is not healthy"),
        "{}",
        status.out
    );
    Ok(())
}

#[test]
fn who_asks_while_nobody_leads_is_told_so() -> Result<()> {
    let cluster = Cluster::calm()?;
    let ran = cluster.run(&["migrate", "db", "--to-node", "n3"])?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.err.contains("db-to-n3 waits. No coordinator leads at the moment"), "{}", ran.err);
    assert!(
        ran.err.contains("TargetNotUsable: node n3 is not healthy"),
        "what it would wait for: {}",
        ran.err
    );
    Ok(())
}

#[test]
fn waiting_has_a_limit() -> Result<()> {
    let cluster = Cluster::calm()?;
    let ran = cluster.run(&["migrate", "db", "--to-node", "n3", "--wait", "--timeout", "300ms"])?;
    assert_eq!(ran.code, Some(6), "{ran:?}");
    assert!(ran.err.contains("was not taken up within 0.3 s, and still waits"), "{}", ran.err);
    assert!(ran.err.contains("No coordinator leads at the moment"), "{}", ran.err);
    assert!(cluster.store()?.get(&migration("db-to-n3"))?.is_some());
    Ok(())
}

#[test]
fn a_dry_run_shows_the_plan() -> Result<()> {
    let cluster = Cluster::calm()?;
    let child = start(&cluster, &["evacuate", "n1", "--dry-run", "--timeout", "20s"])?;
    let plan = json!([{
        "migration": {"namespace": "default", "name": "n1-db"},
        "subject": {"namespace": "default", "name": "db"},
        "isVm": true, "bytes": 1_610_612_736_u64, "state": "Waiting",
    }]);
    let status = json!({"epoch": 4, "complete": true, "message": "dry run: would move 1 VM", "plan": plan});
    answer(&cluster, &ObjectId::cluster("Evacuation", "n1-dry-run"), &status)?;
    let ran = ran(&child.wait_with_output()?)?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.line("default/db").contains("1.5 GiB"), "{}", ran.out);
    let asked = cluster.store()?.get(&ObjectId::cluster("Evacuation", "n1-dry-run"))?;
    assert!(asked.is_none(), "what was only asked lies around: {asked:?}");
    Ok(())
}

#[test]
fn who_waits_is_told_why_nobody_takes_it_up() -> Result<()> {
    let cluster = Cluster::calm()?;
    let ran = cluster.run(&["evacuate", "n1", "--dry-run", "--timeout", "4s"])?;
    assert_eq!(ran.code, Some(6), "{ran:?}");
    let told = ran.err.lines().next().unwrap_or_default();
    assert!(
        told.starts_with("Evacuation n1-dry-run waits. No coordinator leads at the moment"),
        "{}",
        ran.err
    );
    assert!(told.contains("kubectl somersault check"), "{}", ran.err);
    // A leader holds this lock for as long as it lives.
    let leader = std::fs::File::create(cluster.path().join(".leader"))?;
    leader.lock()?;
    let ran = cluster.run(&["evacuate", "n1", "--dry-run", "--timeout", "4s"])?;
    assert!(
        ran.err.starts_with("Evacuation n1-dry-run-2 waits. A coordinator leads, and has not"),
        "{}",
        ran.err
    );
    Ok(())
}

#[test]
fn an_evacuation_with_a_failed_migration_is_a_failure() -> Result<()> {
    let cluster = Cluster::calm()?;
    let child = start(&cluster, &["evacuate", "n1", "--now", "--wait", "--timeout", "20s"])?;
    let plan = json!([{
        "migration": {"namespace": "default", "name": "n1-db"},
        "subject": {"namespace": "default", "name": "db"},
        "isVm": true, "bytes": 1, "state": "Failed", "message": "NoRoom: free some space",
    }]);
    let status = json!({"epoch": 4, "complete": true, "message": "0 of 1 moved", "plan": plan});
    answer(&cluster, &ObjectId::cluster("Evacuation", "n1"), &status)?;
    let ran = ran(&child.wait_with_output()?)?;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.out.contains("NoRoom: free some space"), "{}", ran.out);
    Ok(())
}
