//! Local disks that move from one living node to another: nothing written is lost, and the claim keeps its name.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use somersault_test_cluster::{TOOLBOX_IMAGE, until};
use somersault_test_e2e::api::Kind;
use somersault_test_e2e::bed::{Bed, VMS};
use somersault_test_e2e::stage::{self, DB, Stage, Storage, Vm, WEB};
use somersault_test_kubevirt::GUEST_PORT;

use super::made::bound_volume;
use super::wukong;

/// Copies of 16 MiB, a stop and a start: about ten seconds on an idle machine.
const MIGRATE_DEADLINE: Duration = Duration::from_mins(4);
const WRITE_DEADLINE: Duration = Duration::from_mins(1);

/// A VM whose one disk was imported by CDI.
const IMPORTED: Vm = Vm::always("imported", Storage::LocalFromImage);

/// The user's own look at a guest.
const CHECK: &str = "check-guest";

/// Another VM on a local disk.
const MAIL: Vm = Vm::always("mail", Storage::Local);
/// Phases in which nothing more happens.
pub const FINAL: [&str; 4] = ["Succeeded", "Failed", "RolledBack", "Cancelled"];

/// A VM with a claim of its own, and one whose claim belongs to a `DataVolume`, which would import its image again.
pub fn to_another_node(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let target = another(bed, &node)?;
    let mut stage = Stage::set(bed, &node, &[DB, IMPORTED])?;
    keep_check(bed)?;
    for vm in [DB, IMPORTED] {
        let claim = format!("{}-disk", vm.name);
        let before = bed.api().get(Kind::CLAIM, VMS, &claim)?;
        let start = bed.api().get(Kind::VM, VMS, vm.name)?["spec"]["runStrategy"].clone();
        let probe = if vm.name == DB.name { format!("job:{CHECK}") } else { format!("tcp:{GUEST_PORT}") };
        bed.plugin(&["migrate", vm.name, "-n", VMS, "--to-node", &target, "--probe", &probe])?;
        let migration = succeeded(bed, vm.name)?;
        let downtime = &migration["status"]["downtimeMs"];
        eprintln!("   {} moved from {node} to {target}, down for {downtime} ms", vm.name);
        let checks = migration["status"]["checks"].as_array().context("no checks")?;
        for name in
            ["BackupKnown", "CopyVerified", "VmRunning", "DisksAttached", "AddressReported", "ProbeAnswered"]
        {
            let held = checks.iter().any(|check| check["name"] == name && check["passed"] == true);
            ensure!(held, "{} was moved, and {name} did not hold: {checks:?}", vm.name);
        }

        let after = bed.api().get(Kind::CLAIM, VMS, &claim)?;
        ensure!(
            after["metadata"]["uid"] != before["metadata"]["uid"],
            "the claim of {} is the old one",
            vm.name
        );
        let old = before["spec"]["volumeName"].as_str().context("it was not bound")?;
        let policy = bed.api().get(Kind::VOLUME, "", old)?["spec"]["persistentVolumeReclaimPolicy"].clone();
        ensure!(policy == "Retain", "the old volume of {} is on {policy}", vm.name);
        let image = bed.cluster().path_on(&node, &stage::image_of(bed, old)?)?;
        let now = bed.api().get(Kind::VM, VMS, vm.name)?["spec"]["runStrategy"].clone();
        ensure!(now == start, "{} has run strategy {now}, and had {start}", vm.name);
        ensure!(stage.node_of(vm.name)?.as_deref() == Some(&target), "{} does not run on {target}", vm.name);
        // What its disk said before is what its new one must go on from.
        stage.moved(&vm, &target)?;
        stage.wait_writes(&vm, WRITE_DEADLINE)?;
        ensure!(stage.instances(&vm)? == 2, "{} instances have written", stage.instances(&vm)?);
        removed(bed, &migration, &image, old)?;
        stage.wait_writes(&vm, WRITE_DEADLINE)?;
    }
    stage.judge()
}

/// A template of the user's own, whose Job connects to the guest that it is told of.
fn keep_check(bed: &Bed) -> Result<()> {
    let address = "metadata.annotations['somersault.novasphere.dev/address']";
    let container = json!({
        "name": "check", "image": TOOLBOX_IMAGE, "imagePullPolicy": "Never",
        "args": ["connect", format!("$(ADDRESS):{GUEST_PORT}")],
        "env": [{ "name": "ADDRESS", "valueFrom": { "fieldRef": { "fieldPath": address } } }],
    });
    let cron_job = json!({
        "apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {
            "name": CHECK, "namespace": VMS, "labels": { "somersault.novasphere.dev/probe": "true" },
        },
        "spec": {
            "schedule": "0 0 1 1 *", "suspend": true,
            "jobTemplate": { "spec": { "backoffLimit": 0, "template": { "spec": {
                "restartPolicy": "Never", "containers": [container],
            } } } },
        },
    });
    bed.cluster().apply(&cron_job.to_string()).map(drop)
}

/// A disk on network storage becomes a local one when somebody asks for that, and not before.
pub fn back_from_network(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let mut stage = Stage::set(bed, &node, &[WEB])?;
    let claim = format!("{}-disk", WEB.name);
    let (old, image) = (bound_volume(bed, &claim)?, stage.image(&WEB)?);
    let ask = ["migrate", WEB.name, "-n", VMS, "--to-class", "local-path"];
    let refused = bed.plugin(&ask).err().context("taken, though nothing is local")?.to_string();
    ensure!(refused.contains("--include-network-disks"), "{refused}");
    bed.plugin(&[&ask[..], &["--include-network-disks"]].concat())?;
    let migration = succeeded(bed, WEB.name)?;
    let target = migration["status"]["disks"][0]["targetNode"].as_str().context("no target")?;
    eprintln!("   {} is on {target}, down for {} ms", WEB.name, migration["status"]["downtimeMs"]);
    let volume = bed.api().get(Kind::VOLUME, "", &bound_volume(bed, &claim)?)?;
    ensure!(
        volume["spec"]["storageClassName"] == "local-path" && volume["spec"]["nodeAffinity"].is_object(),
        "{volume}"
    );
    ensure!(stage.node_of(WEB.name)?.as_deref() == Some(target), "it does not run on {target}");
    stage.moved(&WEB, target)?;
    stage.wait_writes(&WEB, WRITE_DEADLINE)?;
    stage.judge()?;
    removed(bed, &migration, &image, &old)?;
    stage.wait_writes(&WEB, WRITE_DEADLINE)?;
    stage.judge()
}

/// The old volume of a migration goes when a person says so, and not before a day is over unless they say that too.
fn removed(bed: &Bed, migration: &Value, image: &Path, old: &str) -> Result<()> {
    let name = migration["metadata"]["name"].as_str().context("a migration without a name")?;
    let folder = image.parent().context("an image without a folder")?;
    let ask = ["cleanup", name, "-n", VMS];
    let kept = bed.plugin(&[&ask[..], &["--yes"]].concat())?;
    ensure!(kept.contains("--older-than"), "it just moved, and would be removed:\n{kept}");
    let now = [&ask[..], &["--older-than", "0s"]].concat();
    // The coordinator tells of new folders once a minute.
    until("nothing speaks for keeping the old volume", MIGRATE_DEADLINE, &[], || {
        let shown = bed.plugin(&[&now[..], &["--dry-run"]].concat())?;
        ensure!(shown.contains("would be removed for good"), "{shown}");
        Ok(Some(()))
    })?;
    ensure!(image.exists(), "{} is gone before anybody asked", image.display());
    bed.plugin(&[&now[..], &["--yes", "--wait"]].concat())?;
    ensure!(!folder.exists(), "{} is still there", folder.display());
    ensure!(bed.api().find(Kind::VOLUME, "", old)?.is_none(), "the object of volume {old} is still there");
    Ok(())
}

/// A Wukong's VM with two disks.
pub fn of_a_wukong(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let target = another(bed, &node)?;
    wukong::start(bed, &node, &[wukong::FIRST])?;
    let start = || {
        Ok::<_, anyhow::Error>(
            bed.api().get(Kind::WUKONG, VMS, wukong::FIRST.name)?["spec"]["startStrategy"].clone(),
        )
    };
    let (before, start_before) = (wukong::disks(bed, wukong::FIRST, &node)?, start()?);
    bed.plugin(&["migrate", wukong::FIRST.vm, "-n", VMS, "--to-node", &target])?;
    succeeded(bed, wukong::FIRST.vm)?;
    ensure!(start()? == start_before, "its start strategy was not given back: {}", start()?);
    until("both disks are written on, on the other node", WRITE_DEADLINE, &[bed.standin_log()], || {
        let now = wukong::disks(bed, wukong::FIRST, &target)?;
        Ok((now.iter().all(|disk| disk.instances().len() == 2)).then_some(()))
    })?;
    for (disk, before) in wukong::disks(bed, wukong::FIRST, &target)?.iter().zip(&before) {
        let faults = disk.continues(before);
        ensure!(faults.is_empty(), "{faults:?}");
    }
    stage::clear(bed)
}

/// A node is emptied while its leader is replaced in the middle: each VM ends on one node, whole.
pub fn of_a_node(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let target = another(bed, &node)?;
    let vms = [DB, MAIL, IMPORTED];
    let mut stage = Stage::set(bed, &node, &vms)?;
    bed.plugin(&["evacuate", &node, "--to-node", &target, "--now"])?;
    until("the first migration is under way", MIGRATE_DEADLINE, &[], || {
        let migrations = bed.api().list(Kind::MIGRATION, VMS, "")?;
        let begun =
            |migration: &Value| !matches!(migration["status"]["phase"].as_str(), None | Some("Pending"));
        Ok(migrations.iter().any(begun).then_some(()))
    })?;
    let leader = bed.leader()?;
    let name = leader["metadata"]["name"].as_str().context("a leader without a name")?;
    bed.kill_pod(name)?;
    for vm in &vms {
        succeeded(bed, vm.name)?;
        stage.moved(vm, &target)?;
        stage.wait_writes(vm, WRITE_DEADLINE)?;
        ensure!(stage.node_of(vm.name)?.as_deref() == Some(&target), "{} does not run on {target}", vm.name);
    }
    until("the evacuation is complete", MIGRATE_DEADLINE, &[], || {
        let said =
            bed.cluster().ask(&["get", "evacuations", "-o", "jsonpath={.items[*].status.complete}"])?;
        Ok((said.trim() == "true").then_some(()))
    })?;
    bed.cluster().ask(&["delete", "evacuations", "--all"])?;
    stage.judge()
}

/// Cordoned and marked, as the README tells those who drain nodes: it is emptied with nothing else asked for, and what is
/// left on it needs no draining.
pub fn of_a_cordoned_node(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let vms = [DB, MAIL];
    let mut stage = Stage::set(bed, &node, &vms)?;
    bed.cluster().ask(&["cordon", &node])?;
    bed.cluster().ask(&["annotate", "node", &node, "somersault.novasphere.dev/evacuate=Now"])?;
    complete(bed, &format!("drain-{node}"))?;
    for vm in &vms {
        succeeded(bed, vm.name)?;
        let target = stage.node_of(vm.name)?.with_context(|| format!("{} does not run", vm.name))?;
        ensure!(target != node, "{} runs on {node} still", vm.name);
        stage.moved(vm, &target)?;
        stage.wait_writes(vm, WRITE_DEADLINE)?;
    }
    let launchers = ["drain", &node, "--pod-selector=kubevirt.io=virt-launcher", "--dry-run=server"];
    let drained = bed.cluster().ask(&launchers)?;
    ensure!(!drained.contains("evicting pod"), "something is left to drain: {drained}");
    bed.cluster().ask(&["annotate", "node", &node, "somersault.novasphere.dev/evacuate-"])?;
    bed.cluster().ask(&["uncordon", &node])?;
    bed.cluster().ask(&["delete", "evacuations", "--all"])?;
    stage.judge()
}

/// A window that opens so long after it was asked for: its times are whole minutes, and no VM may move before.
const OPENS_AFTER: SignedDuration = SignedDuration::from_secs(100);
/// Long enough for everything here.
const OPEN_FOR: SignedDuration = SignedDuration::from_hours(2);

/// Emptied in two ways that leave the VMs alone until their time has come: by a word, and in a window.
pub fn copied_ahead(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let target = another(bed, &node)?;
    let vms = [DB, MAIL];
    let mut stage = Stage::set(bed, &node, &vms)?;
    bed.plugin(&["evacuate", &node, "--to-node", &target])?;
    waits_ahead(bed, &stage, &vms, &node)?;
    let evacuation = bed.cluster().ask(&["get", "evacuations", "-o", "name"])?;
    let name = evacuation.trim().rsplit('/').next().context("no evacuation")?.to_owned();
    bed.plugin(&["proceed", &format!("evacuation/{name}")])?;
    moved_all(bed, &mut stage, &vms, &target)?;
    complete(bed, &name)?;
    bed.cluster().ask(&["delete", "evacuations", "--all"])?;
    bed.cluster().ask(&["delete", "volumemigrations", "-n", VMS, "--all"])?;

    let asked = Timestamp::now();
    let at = |time: Timestamp| time.strftime("%H:%M").to_string();
    let window = format!("{}-{}", at(asked + OPENS_AFTER), at(asked + OPENS_AFTER + OPEN_FOR));
    let third = bed.nodes().into_iter().find(|other| *other != target && *other != node);
    let third = third.context("a cluster of two nodes")?;
    bed.plugin(&["evacuate", &target, "--to-node", &third, "--window", &window])?;
    waits_ahead(bed, &stage, &vms, &target)?;
    moved_all(bed, &mut stage, &vms, &third)?;
    let opened = (asked + OPENS_AFTER).strftime("%H:%M").to_string();
    let ended = bed.cluster().ask(&["get", "evacuations", "-o", "jsonpath={.items[*].status.message}"])?;
    ensure!(at(Timestamp::now()) >= opened, "moved before {opened}: {ended}");
    bed.cluster().ask(&["delete", "evacuations", "--all"])?;
    stage.judge()
}

/// Every VM is copied, and none was stopped.
fn waits_ahead(bed: &Bed, stage: &Stage<'_>, vms: &[Vm], node: &str) -> Result<()> {
    until("everything is copied ahead", MIGRATE_DEADLINE, &[bed.standin_log()], || {
        for vm in vms {
            let status = &of_vm(bed, vm.name)?["status"];
            let progress = &status["progress"];
            let copied = status["phase"] == "PreCopying" && progress["doneBytes"] == progress["totalBytes"];
            ensure!(copied && progress["totalBytes"] != 0, "{}: {} {progress}", vm.name, status["phase"]);
        }
        Ok(Some(()))
    })?;
    for vm in vms {
        ensure!(stage.node_of(vm.name)?.as_deref() == Some(node), "{} has moved without a word", vm.name);
        ensure!(stage.instances(vm)? <= 2, "{} was stopped without a word", vm.name);
    }
    Ok(())
}

fn moved_all(bed: &Bed, stage: &mut Stage<'_>, vms: &[Vm], target: &str) -> Result<()> {
    for vm in vms {
        succeeded(bed, vm.name)?;
        stage.moved(vm, target)?;
        stage.wait_writes(vm, WRITE_DEADLINE)?;
        ensure!(stage.node_of(vm.name)?.as_deref() == Some(target), "{} does not run on {target}", vm.name);
    }
    Ok(())
}

/// A node dies, comes back, and is not trusted to live: its VM, which nobody could bring back meanwhile, leaves it with all
/// that it has written.
pub fn of_a_returned_node(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let mut stage = Stage::set(bed, &node, &[DB])?;
    let policy = |evacuation: Value| {
        bed.api().merge(Kind::POLICY, "", "default", &json!({"spec": {"evacuation": evacuation}}))
    };
    policy(json!({"afterReturn": true, "dryRun": false, "disruption": "Now"}))?;
    bed.cluster().power_off(&node)?;
    bed.wait_decision(DB.name, "ManualRecovery", MIGRATE_DEADLINE)?;
    // Whoever switches it on before is undone by the fence agent.
    until(&format!("{node} is proven dead"), MIGRATE_DEADLINE, &[], || {
        let recovery = bed.api().get(Kind::RECOVERY, VMS, DB.name)?;
        Ok(recovery["status"]["proof"].is_string().then_some(()))
    })?;
    bed.cluster().power_on(&node)?;
    bed.cluster().wait_ready(&node)?;
    complete(bed, &format!("returned-{node}"))?;
    succeeded(bed, DB.name)?;
    let target = stage.node_of(DB.name)?.context("it does not run")?;
    ensure!(target != node, "{} runs on {node} still", DB.name);
    stage.moved(&DB, &target)?;
    stage.wait_writes(&DB, WRITE_DEADLINE)?;
    policy(Value::Null)?;
    bed.cluster().ask(&["delete", "evacuations", "--all"])?;
    stage.judge()
}

/// VMs of a node that is emptied by one command.
const MANY: [&str; 20] = [
    "vm01", "vm02", "vm03", "vm04", "vm05", "vm06", "vm07", "vm08", "vm09", "vm10", "vm11", "vm12", "vm13",
    "vm14", "vm15", "vm16", "vm17", "vm18", "vm19", "vm20",
];
/// Twenty of them, two at a time, on a machine of two cores.
const MANY_DEADLINE: Duration = Duration::from_mins(15);
/// How many may move at the same time.
const AT_ONCE: usize = 2;

/// Twenty VMs leave a node, two at a time, and the API server is restarted when half of them have gone.
pub fn of_many(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let target = another(bed, &node)?;
    let vms = MANY.map(|name| Vm::always(name, Storage::Local));
    let mut stage = Stage::set(bed, &node, &vms)?;
    let limit = |at_once| json!({"spec": {"evacuation": {"concurrentMax": at_once}}});
    bed.api().merge(Kind::POLICY, "", "default", &limit(AT_ONCE))?;
    bed.plugin(&["evacuate", &node, "--to-node", &target, "--now"])?;
    let mut restarted = false;
    until("every VM has moved", MANY_DEADLINE, &[bed.standin_log()], || {
        let migrations = bed.api().list(Kind::MIGRATION, VMS, "")?;
        let phases: Vec<&str> =
            migrations.iter().filter_map(|migration| migration["status"]["phase"].as_str()).collect();
        let ended = |phase: &&&str| FINAL.contains(*phase);
        let (over, succeeded) = (
            phases.iter().filter(ended).count(),
            phases.iter().filter(|phase| **phase == "Succeeded").count(),
        );
        ensure!(migrations.len() - over <= AT_ONCE, "{} move at once", migrations.len() - over);
        if over >= MANY.len() / 2 && !std::mem::replace(&mut restarted, true) {
            bed.restart_apiserver()?;
        }
        ensure!(over < MANY.len() || succeeded == MANY.len(), "they are {phases:?}");
        Ok((succeeded == MANY.len()).then_some(()))
    })?;
    ensure!(restarted, "the API server was never restarted");
    for vm in &vms {
        stage.moved(vm, &target)?;
        stage.wait_writes(vm, WRITE_DEADLINE)?;
        ensure!(stage.node_of(vm.name)?.as_deref() == Some(&target), "{} does not run on {target}", vm.name);
    }
    bed.cluster().ask(&["delete", "evacuations", "--all"])?;
    bed.api().merge(Kind::POLICY, "", "default", &limit(1))?;
    stage.judge()?;
    stage::clear(bed)
}

/// Waits until the evacuation of this name, which nobody has asked for by hand, is over.
fn complete(bed: &Bed, evacuation: &str) -> Result<()> {
    until(&format!("Evacuation {evacuation} is complete"), 2 * MIGRATE_DEADLINE, &[bed.standin_log()], || {
        let said =
            bed.cluster().ask(&["get", "evacuation", evacuation, "-o", "jsonpath={.status.complete}"])?;
        Ok((said.trim() == "true").then_some(()))
    })
}

/// A node that is not this one.
pub fn another(bed: &Bed, node: &str) -> Result<String> {
    bed.nodes().into_iter().find(|other| other != node).context("a cluster of one node")
}

/// The migration of this VM.
pub fn of_vm(bed: &Bed, vm: &str) -> Result<Value> {
    let migrations = bed.api().list(Kind::MIGRATION, VMS, "")?;
    let found = migrations.into_iter().find(|migration| migration["spec"]["vm"] == *vm);
    found.with_context(|| format!("no migration of {vm}"))
}

/// The migration of this VM, once it has succeeded.
pub fn succeeded(bed: &Bed, vm: &str) -> Result<Value> {
    until(&format!("the migration of {vm} succeeds"), MIGRATE_DEADLINE, &[bed.standin_log()], || {
        let found = of_vm(bed, vm)?;
        let status = &found["status"];
        ensure!(
            status["phase"] == "Succeeded",
            "{} {} {}",
            status["phase"],
            status["reason"],
            status["message"]
        );
        Ok(Some(found))
    })
}
