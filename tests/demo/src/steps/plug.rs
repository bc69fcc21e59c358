//! Step 2: n1 loses its network while its VMs go on writing on their disks, also on those on network storage:
//! the case in which starting them elsewhere too early destroys data.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use somersault_crd::common::Proof;
use somersault_crd::node_health::{NodeHealthStatus, TimelineEntry};
use somersault_crd::recovery::{DecisionKind, Progress, RecoveryStatus};
use somersault_test_support::world::{network, power};

use super::stage::{PATIENCE, Stage};
use super::summary::{Summary, seconds};
use crate::guest::boot_time_ms;
use crate::table;
use crate::watch::until;

const NODE: &str = "n1";
/// Its VMs, and what becomes of each.
const VMS: [(&str, DecisionKind); 3] = [
    ("web", DecisionKind::Recreate),
    ("queue", DecisionKind::Recreate),
    ("ledger", DecisionKind::ManualRecovery),
];
/// Our own taint, as users meet it.
const TAINT: &str = "somersault.novasphere.dev/unreachable";
/// What Kubernetes and KubeVirt do by themselves. The last line is what KubeVirt was made to do: it takes a pod
/// that is Terminating for one that may still run.
const DEFAULTS: [(&str, &str); 3] = [
    ("kubelet's lease: node Ready=Unknown (node-monitor-grace-period)", "40 s, 50 s from 1.32 on"),
    ("launchers marked for deletion (tolerationSeconds 300)", "5 min 40 s"),
    ("network VMs run elsewhere (their launchers stay Terminating)", "when a person acts"),
];
/// What is shown of the runbook: what, where, and the ways out.
const RUNBOOK_LINES: usize = 24;
/// The fast profile's promise: 1 s of silence, and 200 ms for probes and scheduling.
const VERDICT_MAX: Duration = Duration::from_millis(1200);

/// Pulls the plug.
pub fn run(stage: &Stage, summary: &mut Summary) -> Result<()> {
    let before = instances(stage)?;
    let pulled_ms = boot_time_ms()?;
    network::pull_plug(NODE)?;
    println!(
        "\nThe plug is out. {} processes go on on {NODE}, among them its VMs.",
        power::census(NODE)?.len()
    );

    let decided = until("n1 is declared unreachable and each VM is decided", PATIENCE, || decided(stage))?;
    let health = stage.look()?.health(NODE)?.context("n1 has no NodeHealth")?;
    let verdict = between(&health, "LastBeat", "Declared").context("the timeline lacks the verdict")?;
    println!(
        "Declared unreachable {} after its last beat. What becomes of its VMs, before anything is done:",
        seconds(verdict)
    );
    print_decisions(&decided);
    for (vm, expected) in VMS {
        ensure!(decided[vm].decision == Some(expected), "{vm}: decided {:?}", decided[vm].decision);
    }

    let health = until("fencing is proven", PATIENCE, || {
        let health = stage.look()?.health(NODE)?;
        Ok(health.filter(|health| between(health, "Declared", "Proven").is_some()))
    })?;
    ensure!(health.proof == Some(Proof::PowerOffConfirmed), "the proof is {:?}", health.proof);
    let left = power::census(NODE)?.len();
    ensure!(left == 0, "the proof says off, but {left} processes are left on {NODE}");
    println!("\nFenced by the power switch, which counts what is left on {NODE}: {left} processes.");

    let mut back = Duration::ZERO;
    for vm in ["web", "queue"] {
        let node = stage.wait_for_restart(vm, &before[vm])?;
        stage.assert_history(vm, &[NODE, &node])?;
        let runs = stage.journals(vm)?.into_values().next().context("a VM without a disk")?;
        let [old, new] = runs.as_slice() else { anyhow::bail!("{vm} has run {} times", runs.len()) };
        ensure!(old.to_ms > pulled_ms, "{vm} did not go on writing after the plug was pulled");
        let from_pull = Duration::from_millis(new.from_ms - pulled_ms);
        back = back.max(from_pull);
        println!(
            "{vm} runs again, on {node}. Its disk: {} wrote entries {}-{}, then {} from {} on, none twice, none missing.",
            old.node, old.first, old.last, new.node, new.first
        );
    }
    let ledger =
        stage.look()?.object("VirtualMachineInstance", "ledger").map(|vmi| vmi["metadata"]["uid"].clone());
    ensure!(ledger.as_ref().and_then(|uid| uid.as_str()) == Some(&before["ledger"]), "ledger was touched");
    ensure!(stage.look()?.taints(NODE).contains(&TAINT), "n1 lacks our taint");
    let health = until("the incident is settled", PATIENCE, || {
        let recovered = VMS.iter().filter(|(_, kind)| *kind == DecisionKind::Recreate).map(|(vm, _)| {
            Ok(stage
                .look()?
                .recovery(vm)?
                .is_some_and(|recovery| recovery.progress == Some(Progress::Recovered)))
        });
        let all: Vec<bool> = recovered.collect::<Result<_>>()?;
        Ok(if all.iter().all(|recovered| *recovered) { stage.look()?.health(NODE)? } else { None })
    })?;
    print_timeline(&health, back);
    print_runbook(stage)?;
    ensure!(
        verdict <= VERDICT_MAX,
        "the verdict took {}, more than {}",
        seconds(verdict),
        seconds(VERDICT_MAX)
    );
    summary.time(
        "last beat → node declared unreachable",
        verdict,
        "fast profile; kubelet's lease: 40-50 s by default",
    );
    if let Some(fencing) = between(&health, "FencingStarted", "Proven") {
        summary.time(
            "fencing, until no process was left on the node",
            fencing,
            "proof: PowerOffConfirmed, read back",
        );
    }
    summary.time(
        "plug pulled → network VMs write again elsewhere",
        back,
        "Kubernetes by itself: when a person acts",
    );
    Ok(())
}

fn instances(stage: &Stage) -> Result<BTreeMap<&'static str, String>> {
    let look = stage.look()?;
    VMS.into_iter()
        .map(|(vm, _)| {
            let (node, uid) = look.running(vm).with_context(|| format!("{vm} does not run"))?;
            ensure!(node == NODE, "{vm} runs on {node}");
            Ok((vm, uid.to_owned()))
        })
        .collect()
}

fn decided(stage: &Stage) -> Result<Option<BTreeMap<&'static str, RecoveryStatus>>> {
    let look = stage.look()?;
    let mut decided = BTreeMap::new();
    for (vm, _) in VMS {
        match look.recovery(vm)?.filter(|recovery| recovery.decision.is_some()) {
            Some(recovery) => _ = decided.insert(vm, recovery),
            None => return Ok(None),
        }
    }
    Ok(Some(decided))
}

fn print_decisions(decided: &BTreeMap<&str, RecoveryStatus>) {
    let mut table = table::new(&["VM", "decision", "reasons", "disks"]);
    for (vm, recovery) in decided {
        let disks: Vec<_> = recovery
            .disks
            .iter()
            .map(|disk| format!("{} {:?}", disk.claim.as_deref().unwrap_or(&disk.disk), disk.locality))
            .collect();
        let decision = recovery.decision.map(|kind| format!("{kind:?}")).unwrap_or_default();
        table.add_row([(*vm).to_owned(), decision, recovery.reasons.join(", "), disks.join(", ")]);
    }
    println!("{table}");
}

fn print_timeline(health: &NodeHealthStatus, back: Duration) {
    println!("\nThe timeline, and what a cluster without Somersault does:");
    let mut table = table::new(&["", "after the last beat", ""]);
    for entry in &health.timeline {
        let at = between(health, "LastBeat", &entry.milestone).unwrap_or_default();
        table.add_row([entry.milestone.clone(), seconds(at), "measured".to_owned()]);
    }
    table.add_row([
        "network VMs write again, after the pull".to_owned(),
        seconds(back),
        "measured".to_owned(),
    ]);
    for (what, after) in DEFAULTS {
        table.add_row([what, after, "default of Kubernetes, not measured here"]);
    }
    println!("{table}");
}

fn print_runbook(stage: &Stage) -> Result<()> {
    let recovery = stage.look()?.recovery("ledger")?.context("ledger has no Recovery")?;
    let runbook = recovery.runbook.filter(|text| !text.trim().is_empty()).context("ledger has no runbook")?;
    println!(
        "\nledger is left as it is: its disk is on {NODE} and nowhere else. The runbook for a person:\n"
    );
    let lines: Vec<_> = runbook.lines().filter(|line| !line.is_empty()).collect();
    for line in lines.iter().take(RUNBOOK_LINES) {
        println!("  │ {line}");
    }
    println!(
        "  │ … {} more lines: kubectl somersault runbook ledger",
        lines.len().saturating_sub(RUNBOOK_LINES)
    );
    Ok(())
}

/// Time between the first occurrences of two milestones.
fn between(health: &NodeHealthStatus, from: &str, to: &str) -> Option<Duration> {
    let at = |name: &str| -> Option<&TimelineEntry> {
        health.timeline.iter().find(|entry| entry.milestone == name)
    };
    let (from, to) = (at(from)?, at(to)?);
    to.at.0.duration_since(from.at.0).try_into().ok()
}
