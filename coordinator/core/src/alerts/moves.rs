//! Alerts about migrations and evacuations: the view and what people ask for -> findings.
//!
//! What an evacuation has made is told of with the evacuation, not once more for each migration of it.

use super::{AlertName, AlertSubject, Findings, Known};
use crate::evacuation::{Disruption, EvacuationRecord, PlanState, Planned};
use crate::migration::Phase;
use crate::names::Key;
use crate::runbook::shell_word;
use crate::view::MigrationView;

/// Lines of an evacuation that are named: whoever reads of these looks at the rest himself.
const NAMED_MAX: usize = 3;

pub(super) fn look(known: &Known<'_>, found: &mut Findings) {
    for (key, migration) in &known.view.migrations {
        if !is_of_evacuation(known, key) {
            look_at_migration(key, migration, found);
        }
        if migration.record.phase == Phase::Succeeded && migration.record.reason.is_some() {
            let description = format!("{}. {}", migration.record.message, until_deleted(key));
            found.add(AlertName::GuestNotConfirmed, AlertSubject::Migration(key.clone()), description);
        }
    }
    for (name, record) in &known.view.evacuations {
        look_at_evacuation(known, name, record, found);
    }
}

fn is_of_evacuation(known: &Known<'_>, key: &Key) -> bool {
    let request = known.requests.migrations.get(key);
    let evacuation = request.and_then(|request| request.spec.evacuation.as_ref());
    evacuation.is_some_and(|name| known.view.evacuations.contains_key(name))
}

fn until_deleted(key: &Key) -> String {
    format!(
        "This alert ends when the object is deleted: kubectl delete volumemigration {} -n {}",
        shell_word(&key.name),
        shell_word(&key.namespace)
    )
}

fn look_at_migration(key: &Key, migration: &MigrationView, found: &mut Findings) {
    let record = &migration.record;
    let subject = AlertSubject::Migration(key.clone());
    match record.phase {
        Phase::Failed | Phase::RolledBack => {
            let reason = record.reason.as_deref().unwrap_or("Failed");
            let description = format!("{reason}: {}. {}", record.message, until_deleted(key));
            found.add(AlertName::MigrationFailed, subject, description);
        }
        Phase::PreCopying if migration.waits_for_word => {
            let description = format!(
                "its copy is kept fresh meanwhile. Let it stop the VM and finish: kubectl somersault proceed migration/{} -n {}",
                shell_word(&key.name),
                shell_word(&key.namespace)
            );
            found.add(AlertName::MigrationWaits, subject, description);
        }
        _ => {}
    }
}

fn look_at_evacuation(known: &Known<'_>, name: &str, record: &EvacuationRecord, found: &mut Findings) {
    let Some(spec) = known.requests.evacuations.get(name) else { return };
    if spec.dry_run {
        return;
    }
    let subject = || AlertSubject::Evacuation(name.to_owned());
    let word = shell_word(name);
    let of = |state| record.plan.iter().filter(move |line| line.state == state);
    if of(PlanState::Failed).next().is_some() {
        let description = format!(
            "{}. {}. Mend that and evacuate again; this alert ends when the object is deleted: kubectl delete evacuation {word}",
            record.message,
            named(of(PlanState::Failed))
        );
        found.add(AlertName::EvacuationFailed, subject(), description);
    }
    if record.complete || spec.cancelled {
        return;
    }
    // Its own count of them changes each time that a copy is made fresh.
    let waits = |line: &&Planned| {
        known.view.migrations.get(&line.migration).is_some_and(|migration| migration.waits_for_word)
    };
    let copied = record.plan.iter().filter(waits).count();
    if copied > 0 && spec.disruption == Disruption::PreCopyOnly {
        let description = format!(
            "{copied} of its migrations wait; their copies are kept fresh. Let it stop the VMs and finish: kubectl somersault \
             proceed evacuation/{word}"
        );
        found.add(AlertName::EvacuationWaits, subject(), description);
    }
    let waiting = of(PlanState::Waiting).filter(|line| !line.message.is_empty());
    if copied == 0 && of(PlanState::Running).next().is_none() && waiting.clone().next().is_some() {
        let description = format!(
            "{}. Make room, or cancel it: kubectl somersault cancel evacuation/{word}",
            named(waiting)
        );
        found.add(AlertName::EvacuationStuck, subject(), description);
    }
}

fn named<'a>(lines: impl Iterator<Item = &'a Planned> + Clone) -> String {
    let more = lines.clone().count().saturating_sub(NAMED_MAX);
    let first = lines.take(NAMED_MAX).map(|line| format!("{}: {}", line.subject, line.message));
    let more = (more > 0).then(|| format!("and {more} more"));
    first.chain(more).collect::<Vec<_>>().join("; ")
}
