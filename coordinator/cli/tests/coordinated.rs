//! A cluster on which a coordinator has written: what people see, and what they may say.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use anyhow::{Context, Result};
use common::{Cluster, program};
use serde_json::{Value, json};
use somersault_coordinator::cluster::manifest::ObjectId;
use somersault_coordinator_core::names::Key;

fn stored(cluster: &Cluster, id: &ObjectId) -> Result<Value> {
    cluster.store()?.get(id)?.with_context(|| format!("{id} is not there"))
}

fn migration(name: &str) -> ObjectId {
    ObjectId::namespaced("VolumeMigration", &Key::new("default", name))
}

#[test]
fn status_shows_states_proofs_usage_and_health() -> Result<()> {
    let ran = Cluster::coordinated()?.run(&["status"])?;
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{}", ran.out);
    assert!(ran.line("n1").contains("AwaitingProof"), "{}", ran.out);
    assert!(ran.line("n1").contains("possible: PowerOffConfirmed, HumanAttested"), "{}", ran.out);
    assert!(ran.line("n2").contains("nvme0n1 Failing (ReallocatedSectors)"), "{}", ran.out);
    assert!(ran.line("STORM HOLD").contains("n3"), "{}", ran.out);
    assert!(ran.line("default/db ").contains("in doubt (was Running)"), "{}", ran.out);
    assert!(ran.line("default/db ").contains("NeedsPerson"), "{}", ran.out);
    assert!(ran.line("default/db-data").contains("1.5 GiB"), "{}", ran.out);
    assert!(ran.line("default/batch-root").contains("Failing"), "{}", ran.out);
    assert!(ran.line("default/web-root").contains("700 MiB"), "a shared root: {}", ran.out);
    assert!(ran.line("default/batch-to-n3").contains("50 % of 1.0 GiB"), "{}", ran.out);
    assert!(ran.line("n2-nvme0n1").contains("WaitsForProceed"), "{}", ran.out);
    Ok(())
}

/// What is proven is in doubt no more, and needs no proof.
#[test]
fn a_vm_of_a_node_that_is_proven_dead_is_dead_with_it() -> Result<()> {
    let cluster = Cluster::coordinated()?;
    let needs = |cluster: &Cluster| {
        Ok::<_, anyhow::Error>(cluster.run(&["explain", "vm/db"])?.out.contains("needs proof"))
    };
    assert!(needs(&cluster)?);
    cluster.set_state("n1", "Fenced")?;
    let ran = cluster.run(&["status"])?;
    assert!(ran.line("default/db ").contains("no, its node is dead"), "{}", ran.out);
    assert!(!needs(&cluster)?);
    Ok(())
}

#[test]
fn status_says_when_nobody_keeps_it_up() -> Result<()> {
    let cluster = Cluster::coordinated()?;
    let told = |ran: &common::Ran| !ran.line("No coordinator leads").is_empty();
    assert!(told(&cluster.run(&["status"])?));
    // A leader holds this lock for as long as it lives.
    let leader = std::fs::File::create(cluster.path().join(".leader"))?;
    leader.lock()?;
    assert!(!told(&cluster.run(&["status"])?));
    Ok(())
}

#[test]
fn what_ended_long_ago_is_shown_on_demand() -> Result<()> {
    let cluster = Cluster::coordinated()?;
    let ended = |at: &str| {
        json!([{
            "type": "Complete", "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": at,
        }])
    };
    for (at, shown) in [("2020-01-02T03:04:05Z", false), (&jiff::Timestamp::now().to_string(), true)] {
        cluster.store()?.patch(&migration("old"), |object| {
            object["status"]["conditions"] = ended(at);
            Ok(())
        })?;
        let ran = cluster.run(&["status"])?;
        assert_eq!(!ran.line("default/old").is_empty(), shown, "{}", ran.out);
        assert_eq!(ran.line("Not shown: 1 migrations").is_empty(), shown, "{}", ran.out);
        assert!(!cluster.run(&["status", "--all"])?.line("default/old").is_empty());
    }
    let json = cluster.run(&["status", "-o", "json"])?.json()?;
    assert_eq!(json["endedLongAgo"], 0, "{json:#}");
    Ok(())
}

#[test]
fn status_for_machines_has_what_the_table_has() -> Result<()> {
    let status = Cluster::coordinated()?.run(&["status", "-o", "json"])?.json()?;
    assert_eq!(status["nodes"][0]["state"], "AwaitingProof");
    assert_eq!(status["nodes"][0]["proofsPossible"], json!(["PowerOffConfirmed", "HumanAttested"]));
    assert_eq!(status["migrations"][0]["doneBytes"], 536_870_912);
    assert_eq!(status["vms"][1]["disks"][1]["node"], "n1");
    assert_eq!(status["stormHold"], "n3");
    Ok(())
}

#[test]
fn recoveries_and_their_runbooks() -> Result<()> {
    let cluster = Cluster::coordinated()?;
    let ran = cluster.run(&["recoveries"])?;
    assert!(ran.line("default/db").contains("ManualRecovery"), "{}", ran.out);
    assert!(ran.line("default/db").contains("kubectl somersault runbook db"), "{}", ran.out);
    let ran = cluster.run(&["runbook", "db"])?;
    assert!(ran.out.starts_with("# Runbook: VM `default/db`\n\nIts disk data is on node n1."), "{}", ran.out);
    assert_eq!(cluster.run(&["recoveries", "-n", "shop", "-o", "json"])?.json()?, json!([]));
    Ok(())
}

/// What became of `web`, whose node n2 died: this far.
fn recovery_of_web(cluster: &Cluster, progress: &str) -> Result<()> {
    cluster.store()?.create(json!({
        "apiVersion": somersault_crd::API_VERSION, "kind": "Recovery",
        "metadata": { "name": "web", "namespace": "default" },
        "spec": { "vm": "web" },
        "status": {
            "cause": "NodeDied", "node": "n2", "decision": "ManualRecovery", "reasons": ["DiskLocalityUnknown"],
            "progress": progress,
        },
    }))?;
    Ok(())
}

/// It runs on n1 and n2 is back: where nothing says which node has its disks, it has left them.
#[test]
fn recoveries_tell_a_vm_that_runs_away_from_its_disks() -> Result<()> {
    let cluster = Cluster::calm()?;
    recovery_of_web(&cluster, "NodeReturned")?;
    let stray = "NodeReturned, but it runs on n1, away from its disks";
    let ran = cluster.run(&["recoveries"])?;
    assert!(!ran.out.contains(stray), "its disks are on a network: {}", ran.out);
    cluster.store()?.patch(&ObjectId::cluster("PersistentVolume", "pv-web-root"), |object| {
        let spec = object["spec"].as_object_mut().expect("it has a spec");
        spec.remove("nfs");
        spec.insert("csi".to_owned(), json!({ "driver": "csi.example.org", "volumeHandle": "x" }));
        Ok(())
    })?;
    for command in ["recoveries", "status"] {
        let ran = cluster.run(&[command])?;
        assert!(ran.out.contains(stray), "{command}: {}", ran.out);
    }
    let rows = cluster.run(&["recoveries", "-o", "json"])?.json()?;
    assert_eq!(rows[1]["strayedTo"], "n1", "{rows:#}");
    Ok(())
}

/// Between two nodes it has no instance, and what would become of it on a dead node is nothing to tell.
#[test]
fn status_says_what_is_under_way() -> Result<()> {
    let cluster = Cluster::calm()?;
    recovery_of_web(&cluster, "Restarting")?;
    let of_web = |kind| ObjectId::namespaced(kind, &Key::new("default", "web"));
    cluster.store()?.delete(&of_web("VirtualMachineInstance"), None)?;
    let pod = ObjectId::namespaced("Pod", &Key::new("default", "virt-launcher-web-x7k2p"));
    cluster.store()?.delete(&pod, None)?;
    let ran = cluster.run(&["status"])?;
    let line = ran.line("default/web");
    assert!(
        line.contains("under way: it is being started elsewhere") && line.contains("Restarting"),
        "{}",
        ran.out
    );
    assert!(!line.contains("StorageSound"), "{}", ran.out);
    Ok(())
}

#[test]
fn migrate_asks_by_an_object() -> Result<()> {
    let cluster = Cluster::calm()?;
    let ran = cluster.run(&["migrate", "db", "--to-node", "n3", "--pre-copy-only", "-o", "json"])?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.json()?, json!({"kind": "VolumeMigration", "namespace": "default", "name": "db-to-n3"}));
    let object = stored(&cluster, &migration("db-to-n3"))?;
    assert_eq!(object["apiVersion"], "somersault.novasphere.dev/v1alpha1");
    assert_eq!(
        object["spec"],
        json!({
            "vm": "db", "destination": {"node": "n3"}, "disks": "Local", "preCopyOnly": true, "unreadable": "Fail", "cancelled": false,
            "removeOldVolumes": false
        })
    );
    assert!(object["status"].is_null());
    Ok(())
}

#[test]
fn migrate_asks_for_a_probe_too() -> Result<()> {
    let cluster = Cluster::calm()?;
    let ran = cluster.run(&["migrate", "db", "--to-node", "n3", "--probe", "http:8080/healthz"])?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let object = stored(&cluster, &migration("db-to-n3"))?;
    assert_eq!(object["spec"]["probe"], json!({"http": {"port": 8080, "path": "/healthz"}}));
    Ok(())
}

#[test]
fn a_claim_that_no_vm_uses_may_move_alone() -> Result<()> {
    let cluster = Cluster::calm()?;
    let ran = cluster.run(&["migrate", "--claim", "default/spare", "--to-class", "nfs"])?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(stored(&cluster, &migration("spare-to-nfs"))?["spec"]["claim"], "spare");
    let ran = cluster.run(&["migrate", "--claim", "db-data", "--to-class", "nfs"])?;
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(ran.err.contains("kubectl somersault migrate db"), "{}", ran.err);
    Ok(())
}

#[test]
fn migrate_refuses_what_cannot_be() -> Result<()> {
    let cluster = Cluster::coordinated()?;
    for (args, code, words) in [
        (vec!["migrate", "nobody", "--to-node", "n3"], 3, "no VirtualMachine nobody"),
        (vec!["migrate", "db", "--to-node", "n9"], 3, "no Node n9"),
        (vec!["migrate", "db", "--to-class", "gold"], 3, "no StorageClass gold"),
        (vec!["migrate", "--claim", "nothing", "--to-node", "n3"], 3, "no PersistentVolumeClaim nothing"),
        (vec!["migrate", "batch", "--to-node", "n3"], 4, "batch-to-n3 already moves it"),
        (vec!["migrate", "db", "--to-node", "n1"], 4, "NothingToMove"),
        (vec!["migrate", "web", "--to-node", "n3"], 4, "NothingToMove"),
        (vec!["migrate", "db", "--to-node", "n3"], 4, "node n1 holds volume pv-db-data and is dead"),
        (vec!["evacuate", "n1"], 4, "node n1 is dead"),
        (vec!["migrate", "db", "--to-node", "n3", "-n", "shop"], 3, "no VirtualMachine db in namespace shop"),
    ] {
        let asked = || -> Result<_> {
            let store = cluster.store()?;
            Ok((store.list("VolumeMigration")?, store.list("Evacuation")?))
        };
        let before = asked()?;
        let ran = cluster.run(&args)?;
        assert_eq!(ran.code, Some(code), "{args:?}: {ran:?}");
        assert!(ran.err.contains(words), "{args:?}: {}", ran.err);
        assert_eq!(asked()?, before, "{args:?} wrote something");
    }
    Ok(())
}

/// A volume of which nobody can tell the node cannot be copied; asking for it leaves nothing behind.
#[test]
fn migrate_refuses_a_vm_whose_place_is_unknown() -> Result<()> {
    let cluster = Cluster::calm()?;
    cluster.store()?.patch(&ObjectId::cluster("PersistentVolume", "pv-db-data"), |object| {
        object["spec"]["nodeAffinity"] = Value::Null;
        Ok(())
    })?;
    let ran = cluster.run(&["migrate", "db", "--to-node", "n3"])?;
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(
        ran.err.contains("DiskLocalityUnknown: ") && ran.err.contains("kubectl somersault explain"),
        "{ran:?}"
    );
    assert!(cluster.store()?.get(&migration("db-to-n3"))?.is_none());
    Ok(())
}

#[test]
fn while_a_node_is_dead_nobody_is_advised_to_copy_from_it() -> Result<()> {
    let advice = |cluster: &Cluster| -> Result<String> {
        let texts = [
            cluster.run(&["explain", "db"])?.out,
            cluster.run(&["explain", "n1"])?.out,
            cluster.run(&["report"])?.line("default/db").to_owned(),
        ];
        Ok(texts.concat())
    };
    let cluster = Cluster::coordinated()?;
    let told = advice(&cluster)?;
    assert!(!told.contains("migrate"), "{told}");
    assert!(told.contains("now: bring node n1 back"), "{told}");
    assert!(told.contains("Node n1 is called dead (AwaitingProof); 2 VMs are concerned"), "{told}");
    cluster.set_state("n1", "Healthy")?;
    let told = advice(&cluster)?;
    assert!(told.contains("to fare better: move its local disks"), "{told}");
    Ok(())
}

/// The name of an ended migration is taken; a second one gets another.
#[test]
fn names_do_not_collide() -> Result<()> {
    let cluster = Cluster::calm()?;
    for name in ["db-to-n3", "db-to-n3-2"] {
        let ran = cluster.run(&["migrate", "db", "--to-node", "n3"])?;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        cluster.store()?.patch(&migration(name), |object| {
            object["status"] = json!({"phase": "Failed", "epoch": 1});
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn cancel_is_a_word_in_the_spec_while_it_can_help() -> Result<()> {
    let cluster = Cluster::coordinated()?;
    let ran = cluster.run(&["cancel", "migration/batch-to-n3"])?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(stored(&cluster, &migration("batch-to-n3"))?["spec"]["cancelled"], true);
    assert_eq!(cluster.run(&["cancel", "vmig/batch-to-n3"])?.code, Some(0), "twice is once");
    assert_eq!(cluster.run(&["cancel", "default/batch-to-n3"])?.code, Some(0), "as it is printed");
    assert_eq!(cluster.run(&["cancel", "shop/batch-to-n3"])?.code, Some(3));
    let ran = cluster.run(&["cancel", "migration/old"])?;
    assert_eq!(ran.code, Some(4));
    assert!(ran.err.contains("ended already: Succeeded"), "{}", ran.err);
    assert_eq!(cluster.run(&["cancel", "migration/none"])?.code, Some(3));
    cluster.store()?.patch(&migration("batch-to-n3"), |object| {
        object["status"]["phase"] = json!("Confirming");
        Ok(())
    })?;
    assert_eq!(cluster.run(&["cancel", "migration/batch-to-n3"])?.code, Some(4), "too late");
    Ok(())
}

#[test]
fn proceed_gives_the_word_that_an_evacuation_waits_for() -> Result<()> {
    let cluster = Cluster::coordinated()?;
    let id = ObjectId::cluster("Evacuation", "n2-nvme0n1");
    assert_eq!(cluster.run(&["proceed", "evacuation/n2-nvme0n1"])?.code, Some(0));
    assert_eq!(stored(&cluster, &id)?["spec"]["disruption"], "Now");
    assert_eq!(cluster.run(&["proceed", "evacuation/n2-nvme0n1"])?.code, Some(4), "it waits no more");
    assert_eq!(cluster.run(&["proceed", "migration/batch-to-n3"])?.code, Some(4), "it never did");
    Ok(())
}

#[test]
fn evacuate_asks_by_an_object() -> Result<()> {
    let cluster = Cluster::calm()?;
    let ran = cluster.run(&["evacuate", "n1", "--disk", "sda", "--to-class", "nfs", "--now"])?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let object = stored(&cluster, &ObjectId::cluster("Evacuation", "n1-sda"))?;
    assert_eq!(object["spec"]["destination"], json!({"storageClass": "nfs"}));
    assert_eq!((&object["spec"]["disruption"], &object["spec"]["dryRun"]), (&json!("Now"), &json!(false)));
    for (args, code, words) in [
        (vec!["evacuate", "n9"], 3, "no Node n9"),
        (vec!["evacuate", "n1", "--disk", "sdz"], 3, "no disk sdz (its agent reports: sda)"),
        (vec!["evacuate", "n1", "--to-node", "n1"], 2, "is to be emptied"),
        (vec!["evacuate", "n2"], 4, "n2-nvme0n1 already empties it"),
    ] {
        let ran = cluster.run(&args)?;
        assert_eq!(ran.code, Some(code), "{args:?}: {ran:?}");
        assert!(ran.err.contains(words), "{args:?}: {}", ran.err);
    }
    Ok(())
}

#[test]
fn attest_asks_and_binds_the_word_to_the_boot() -> Result<()> {
    let cluster = Cluster::coordinated()?;
    let id = ObjectId::cluster("NodeHealth", "n1");
    for answer in ["", "yes\n", "n2\n"] {
        let ran = cluster.run_with_input(&["attest", "n1"], answer)?;
        assert_eq!(ran.code, Some(4), "{answer:?}: {ran:?}");
        assert!(ran.err.contains("they run twice and destroy their disks"), "{}", ran.err);
        assert!(ran.err.contains("default/db, default/web"), "who is concerned: {}", ran.err);
        assert!(stored(&cluster, &id)?["spec"]["attestation"].is_null(), "{answer:?}");
    }
    let ran = cluster.run_with_input(&["attest", "n1"], "n1\n")?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let word = stored(&cluster, &id)?["spec"]["attestation"].clone();
    assert_eq!(
        (&word["bootID"], &word["by"]),
        (&json!("00000000-0000-4000-8000-000000000001"), &json!("tester"))
    );
    assert!(word["at"].is_string(), "said again, it must be another word: {word}");
    Ok(())
}

#[test]
fn attest_is_refused_where_it_would_be_wrong() -> Result<()> {
    let cluster = Cluster::coordinated()?;
    let id = ObjectId::cluster("NodeHealth", "n1");
    for (state, words) in [
        ("Healthy", "sends heartbeats"),
        ("AgentSilent", "may still run"),
        ("Partitioned", "may still run"),
        ("Suspect", "may still run"),
        ("Fenced", "needs no more proof"),
        ("NoAgent", "nothing would follow"),
    ] {
        cluster.store()?.patch(&id, |object| {
            object["status"]["state"] = json!(state);
            Ok(())
        })?;
        let ran = cluster.run(&["attest", "n1", "--yes"])?;
        assert_eq!(ran.code, Some(4), "{state}: {ran:?}");
        assert!(ran.err.contains(words), "{state}: {}", ran.err);
        assert!(stored(&cluster, &id)?["spec"]["attestation"].is_null(), "{state}");
    }
    assert_eq!(cluster.run(&["attest", "n9", "--yes"])?.code, Some(3));
    Ok(())
}

/// What the Event asks for must be possible, and about the boot that is in question: the record of an incident that is over
/// is about an earlier one.
#[test]
fn attest_is_the_way_out_of_a_contradiction_and_about_the_present_boot() -> Result<()> {
    for (state, stage, boot) in
        [("FenceContradicted", "Fenced", "b-fenced"), ("StormHold", "Closed", "b-now")]
    {
        let cluster = Cluster::coordinated()?;
        let id = ObjectId::cluster("NodeHealth", "n1");
        cluster.store()?.patch(&id, |object| {
            object["status"]["state"] = json!(state);
            object["status"]["bootID"] = json!("b-now");
            object["status"]["fence"] =
                json!({ "node": "n1", "bootID": "b-fenced", "epoch": 1, "stage": stage });
            Ok(())
        })?;
        let ran = cluster.run(&["attest", "n1", "--yes", "--by", "eve"])?;
        assert_eq!(ran.code, Some(0), "{state}: {ran:?}");
        assert_eq!(stored(&cluster, &id)?["spec"]["attestation"]["bootID"], boot, "{state}");
    }
    Ok(())
}

/// The node comes back while the person still reads what the word implies.
#[test]
fn attest_looks_again_after_the_answer() -> Result<()> {
    let cluster = Cluster::coordinated()?;
    let id = ObjectId::cluster("NodeHealth", "n1");
    let args = cluster.args(&["attest", "n1"]);
    let mut child = program(&args.iter().map(String::as_str).collect::<Vec<_>>())
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut prompt = Vec::new();
    let mut err = BufReader::new(child.stderr.take().context("no stderr")?);
    while !prompt.ends_with(b"to give it:") {
        anyhow::ensure!(
            err.read_until(b':', &mut prompt)? > 0,
            "no question: {}",
            String::from_utf8_lossy(&prompt)
        );
    }
    cluster.store()?.patch(&id, |object| {
        object["status"]["state"] = json!("Healthy");
        Ok(())
    })?;
    child.stdin.take().context("no stdin")?.write_all(b"n1\n")?;
    assert_eq!(child.wait()?.code(), Some(4));
    assert!(stored(&cluster, &id)?["spec"]["attestation"].is_null());
    Ok(())
}

#[test]
fn attest_for_scripts_says_whose_word_it_is() -> Result<()> {
    let cluster = Cluster::coordinated()?;
    let ran = cluster.run(&["attest", "n1", "--yes", "--by", "on-call"])?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let id = ObjectId::cluster("NodeHealth", "n1");
    assert_eq!(stored(&cluster, &id)?["spec"]["attestation"]["by"], "on-call");
    Ok(())
}

#[test]
fn a_storm_hold_is_released_once() -> Result<()> {
    let cluster = Cluster::coordinated()?;
    let id = ObjectId::cluster("RecoveryPolicy", "default");
    assert_eq!(cluster.run(&["release-hold"])?.code, Some(0));
    let first = stored(&cluster, &id)?["spec"]["holdRelease"].clone();
    assert!(first.as_str().is_some_and(|text| text.ends_with(" by tester")), "{first}");
    assert_eq!(cluster.run(&["release-hold"])?.code, Some(0));
    assert_ne!(stored(&cluster, &id)?["spec"]["holdRelease"], first, "each release is a change");
    let calm = Cluster::with(&["fleet.yaml"])?;
    assert_eq!(calm.run(&["release-hold"])?.code, Some(4), "there is no hold");
    Ok(())
}
