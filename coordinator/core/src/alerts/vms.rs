//! Alerts about VMs: the view's recoveries, and VMs that should run and do not -> findings.
//!
//! ```text
//!   a recovery of it is open ── a person is needed ──► ManualRecoveryNeeded | StorageFailure
//!            │ no             └ goes on by itself ──► nothing
//!            ▼
//!   should run ── running, or somebody is at work on it ──► nothing
//!            └─── else ──► VmNotRunning
//! ```

use std::collections::BTreeSet;

use super::{AlertName, AlertSubject, Findings, Known};
use crate::fleet::{ClaimUse, DiskSource, Fleet, RunStrategy, Vm};
use crate::locality::{self, ClassOverride, Likely};
use crate::names::Key;
use crate::runbook::shell_word;
use crate::view::{RecoveryCause, RecoveryProgress, RecoveryView};

/// Condition reason of KubeVirt where an instance was paused because its disk gave an error.
const PAUSED_BY_IO_ERROR: &str = "PausedIOError";

pub(super) fn look(known: &Known<'_>, found: &mut Findings) {
    for (key, recovery) in &known.view.recoveries {
        if let Some(name) = needs_person(recovery) {
            found.add(name, AlertSubject::Vm(key.clone()), recovery_words(key, recovery));
        }
    }
    let moving = Moving::of(known);
    let snapshots = if known.backups { Some(with_snapshot(known.fleet)) } else { None };
    for (key, vm) in &known.fleet.vms {
        if let Some(why) = not_running(known.fleet, key, vm)
            && !moving.has(key, vm)
            && !known.view.recoveries.get(key).is_some_and(is_looked_after)
        {
            let (name, namespace) = (shell_word(&key.name), shell_word(&key.namespace));
            let description = format!(
                "{why}, and nothing of Somersault is at work on it. Look: kubectl describe vm {name} -n {namespace}; kubectl get \
                 events -n {namespace} --field-selector involvedObject.name={name}"
            );
            found.add(AlertName::VmNotRunning, AlertSubject::Vm(key.clone()), description);
        }
        if let Some(snapshots) = &snapshots {
            no_backup(known, key, vm, snapshots, found);
        }
    }
}

fn needs_person(recovery: &RecoveryView) -> Option<AlertName> {
    if recovery.ended || recovery.progress != RecoveryProgress::NeedsPerson {
        return None;
    }
    Some(match recovery.cause {
        RecoveryCause::NodeDied => AlertName::ManualRecoveryNeeded,
        RecoveryCause::StorageFailed => AlertName::StorageFailure,
    })
}

fn recovery_words(key: &Key, recovery: &RecoveryView) -> String {
    format!(
        "{}. What helps: {}. Step by step: kubectl somersault runbook {} -n {}",
        recovery.decision.details.join("; "),
        recovery.remedy(),
        shell_word(&key.name),
        shell_word(&key.namespace)
    )
}

/// It goes on by itself, or has an alert of its own. One that was started elsewhere is left to itself: it should run soon.
fn is_looked_after(recovery: &RecoveryView) -> bool {
    use RecoveryProgress::{
        Acting, AwaitingProof, NeedsPerson, NodeReturned, Recovered, Restarting, Unaffected,
    };
    !recovery.ended
        && match recovery.progress {
            AwaitingProof | Acting | NeedsPerson => true,
            Restarting | Recovered | NodeReturned | Unaffected => false,
        }
}

/// Why a VM that should run does not; `None` also where nobody can tell whether it should.
fn not_running(fleet: &Fleet, key: &Key, vm: &Vm) -> Option<String> {
    let instance = vm.instance.as_ref();
    match vm.run {
        RunStrategy::Always => {}
        // Without an instance, or with one that has ended well, somebody in the guest or outside has stopped it.
        RunStrategy::RerunOnFailure if instance.is_some_and(|instance| instance.phase != "Succeeded") => {}
        RunStrategy::RerunOnFailure | RunStrategy::Manual | RunStrategy::Once | RunStrategy::Halted => {
            return None;
        }
    }
    if let Some(instance) = instance
        && instance.phase == "Running"
    {
        let paused = instance.paused.as_deref() == Some(PAUSED_BY_IO_ERROR);
        return paused.then(|| "KubeVirt has paused it, since a disk of it gave an error".to_owned());
    }
    if is_being_filled(fleet, key, vm) {
        return None;
    }
    Some(match instance {
        None => "it has no instance".to_owned(),
        Some(instance) if instance.phase.is_empty() => "its instance is not looked at by KubeVirt".to_owned(),
        Some(instance) => format!("its instance is {}", instance.phase),
    })
}

/// A disk of it is imported, cloned or uploaded at this moment: it runs when that is done, however long it takes.
fn is_being_filled(fleet: &Fleet, key: &Key, vm: &Vm) -> bool {
    vm.claims(&key.namespace).any(|claim| {
        let owner = fleet.claims.get(&claim).and_then(|claim| claim.data_volume.as_ref());
        let owner = owner.map_or(claim.clone(), |name| Key::new(&claim.namespace, name));
        fleet.data_volumes.get(&owner).is_some_and(|filled| filled.phase.ends_with("InProgress"))
    })
}

/// What migrations have stopped, or are about to start.
struct Moving<'a> {
    vms: BTreeSet<Key>,
    claims: BTreeSet<&'a Key>,
}

impl<'a> Moving<'a> {
    fn of(known: &Known<'a>) -> Self {
        let mut moving = Self { vms: BTreeSet::new(), claims: BTreeSet::new() };
        for (key, migration) in &known.view.migrations {
            let record = &migration.record;
            if record.phase.is_before_stop() || record.phase.is_final() {
                continue;
            }
            moving.claims.extend(record.disks.iter().map(|disk| &disk.claim));
            let request = known.requests.migrations.get(key);
            let vm = request.and_then(|request| request.spec.vm.as_ref());
            moving.vms.extend(vm.map(|vm| Key::new(&key.namespace, vm)));
        }
        moving
    }

    fn has(&self, key: &Key, vm: &Vm) -> bool {
        let of_claim = || vm.claims(&key.namespace).any(|claim| self.claims.contains(&claim));
        self.vms.contains(key) || (!self.claims.is_empty() && of_claim())
    }
}

/// Claims of which a snapshot is known that can be restored from. How old it is, is not asked: nobody but its owner knows how
/// old is too old.
fn with_snapshot(fleet: &Fleet) -> BTreeSet<Key> {
    let ready = fleet.snapshots.iter().filter(|(_, snapshot)| snapshot.ready);
    ready.filter_map(|(key, snapshot)| Some(Key::new(&key.namespace, snapshot.claim.as_ref()?))).collect()
}

fn no_backup(known: &Known<'_>, key: &Key, vm: &Vm, snapshots: &BTreeSet<Key>, found: &mut Findings) {
    let bare = vm.disks.iter().filter_map(|disk| match &disk.source {
        DiskSource::Claim { name, use_: ClaimUse::Disk | ClaimUse::Hotplugged | ClaimUse::Folder } => {
            let claim = Key::new(&key.namespace, name);
            (is_local(known, &claim) && !snapshots.contains(&claim)).then_some(name.as_str())
        }
        _ => None,
    });
    let bare: Vec<&str> = bare.collect();
    if !bare.is_empty() {
        let description = format!(
            "no VolumeSnapshot that is ready is known of claim {}, which is on one node only: if its disk fails, what it holds is \
             lost, unless it is backed up by other means. Make one, or leave --alert-no-backup out",
            bare.join(", ")
        );
        found.add(AlertName::NoBackupKnown, AlertSubject::Vm(key.clone()), description);
    }
}

/// By one look at the node that the volume names: this is asked of every disk of the cluster.
fn is_local(known: &Known<'_>, claim: &Key) -> bool {
    let Ok((_, _, volume)) = locality::bound_volume(known.fleet, claim) else { return false };
    let said = known.overrides.0.get(&volume.class);
    said != Some(&ClassOverride::Network)
        && matches!(locality::likely_node(known.fleet, volume), Likely::Node(_))
}
