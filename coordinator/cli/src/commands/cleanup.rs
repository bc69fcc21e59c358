//! `cleanup`: asks for the removal of old volumes, of migrations that have succeeded.
//!
//! ```text
//!   succeeded long enough ago, and the coordinator would find nothing that speaks for keeping it ─► shown, asked for
//!      └── else: shown with what speaks for keeping it
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::json;
use somersault_coordinator::cluster::manifest::{display, records};
use somersault_coordinator_core::fleet::folder;
use somersault_coordinator_core::locality;
use somersault_coordinator_core::migration::{self, DiskMove, MigrationRecord, Moves, OldVolume, Phase};
use somersault_coordinator_core::names::Key;
use somersault_crd::VolumeMigration;

use super::incident::Told;
use super::migrate;
use crate::args::{CleanupArgs, Global};
use crate::exit::{Exit, Failure};
use crate::output::{self, cell, render, table};
use crate::source::Source;
use crate::world::{self, World};
use crate::{units, wait};

/// An old volume.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    #[serde(skip)]
    key: Key,
    migration: String,
    claim: String,
    volume: String,
    node: String,
    path: String,
    /// What its agent last told; absent where it has told nothing.
    allocated_bytes: Option<u64>,
    /// When the migration succeeded.
    succeeded: Option<Timestamp>,
    /// Why it is kept; absent where it goes.
    kept_because: Option<String>,
}

/// Runs the command.
pub fn run(global: &Global, args: &CleanupArgs) -> Result<Exit, Failure> {
    let only = match &args.migration {
        None => None,
        Some(named) => Some((named.namespace(global)?.map(str::to_owned), named.name.clone())),
    };
    let source = Source::open(global)?;
    let only = only.map(|(namespace, name)| Key::new(source.namespace(namespace.as_deref()), name));
    let world = World::of_cluster(&source, None)?;
    if let Some(key) = only.as_ref().filter(|key| !world.migrations.contains_key(key)) {
        return Err(Failure::NotFound(format!("there is no VolumeMigration {key}")));
    }
    let now = Timestamp::now();
    let rows = rows(&world, now, args, |key| match &only {
        Some(only) => key == only,
        None => global.namespace.as_ref().is_none_or(|want| key.namespace == *want),
    })?;
    let going: BTreeSet<&Key> =
        rows.iter().filter(|row| row.kept_because.is_none()).map(|row| &row.key).collect();
    if args.dry_run || going.is_empty() {
        output::print(global.output, &rows, || text(&rows, now))?;
        return Ok(world::end(&world));
    }
    if !args.yes {
        output::ask(&text(&rows, now))?;
    }
    for key in &going {
        source.set_spec(&migrate::id(key), |_| Ok(("removeOldVolumes", json!(true))))?;
    }
    if args.wait.wait {
        return wait::removals(global, &source, &going, args.wait.timeout);
    }
    output::print(global.output, &rows, || {
        let each =
            going.iter().map(|key| format!("  kubectl get vmig {} -n {} -o yaml\n", key.name, key.namespace));
        format!(
            "Asked for. Condition {} of each tells when it is done, or what is in the way:\n{}",
            display::OLD_VOLUMES_REMOVED,
            each.collect::<String>()
        )
    })?;
    Ok(world::end(&world))
}

/// Old volumes that are still there. All of a migration go, or none.
fn rows(
    world: &World,
    now: Timestamp,
    args: &CleanupArgs,
    which: impl Fn(&Key) -> bool,
) -> Result<Vec<Row>, Failure> {
    let told = Told::of(world);
    let read = |(key, object): (&Key, &VolumeMigration)| {
        records::migration_record(key, "", object.status.as_ref())
            .map_err(|error| Failure::Failed(format!("VolumeMigration {key}: {error}")))
    };
    let records: Vec<Option<MigrationRecord>> =
        world.migrations.iter().map(read).collect::<Result<_, _>>()?;
    let records: Vec<MigrationRecord> = records.into_iter().flatten().collect();
    let moves = Moves::of(records.iter());
    let mut all = Vec::new();
    for record in records.iter().filter(|record| which(&record.key) && record.phase == Phase::Succeeded) {
        let left: Vec<&DiskMove> =
            record.disks.iter().filter(|disk| disk.old_volume != OldVolume::Removed).collect();
        // All of a migration are asked for together, wherever they are.
        let wanted =
            |disk: &&DiskMove| args.node.as_ref().is_none_or(|node| disk.source_node.as_str() == node);
        if !left.iter().any(wanted) {
            continue;
        }
        let succeeded = succeeded(&world.migrations[&record.key]);
        let young = too_young(succeeded, now, args.older_than);
        let because = |disk: &DiskMove| {
            migration::kept_because(record, disk, &moves, &told.context()).map(|why| why.message)
        };
        let mut rows: Vec<Row> = left
            .iter()
            .map(|disk| Row {
                key: record.key.clone(),
                migration: record.key.to_string(),
                claim: disk.claim.name.clone(),
                volume: disk.old.to_string(),
                node: disk.source_node.to_string(),
                path: disk.source_path.clone(),
                allocated_bytes: allocated(world, disk),
                succeeded,
                kept_because: young.clone().or_else(|| because(disk)),
            })
            .collect();
        let kept = rows.iter().find(|row| row.kept_because.is_some()).map(|row| row.claim.clone());
        if let Some(claim) = kept {
            for row in rows.iter_mut().filter(|row| row.kept_because.is_none()) {
                row.kept_because =
                    Some(format!("that of claim {claim} is kept, and all of a migration go or none"));
            }
        }
        all.append(&mut rows);
    }
    all.extend(forgotten(world, &records, args).filter(|row| which(&row.key)));
    Ok(all)
}

/// Volumes that are Released and were put on Retain by us, and of which no migration tells any more.
fn forgotten<'a>(
    world: &'a World,
    records: &'a [MigrationRecord],
    args: &'a CleanupArgs,
) -> impl Iterator<Item = Row> + 'a {
    let is_known = |name: &str| {
        let mut disks = records.iter().flat_map(|record| &record.disks);
        disks.any(|disk| disk.old.as_str() == name || disk.new.name.as_str() == name)
    };
    world.retained.iter().filter(move |name| !is_known(name.as_str())).filter_map(|name| {
        let volume = world.fleet.volumes.get(name).filter(|volume| volume.phase == "Released")?;
        let claim = &volume.claim.as_ref()?.key;
        let node = locality::pinned_node(&world.fleet, volume);
        let path = volume.source.path().unwrap_or_default().to_owned();
        let is_wanted =
            args.node.as_ref().is_none_or(|wanted| node.as_ref().is_some_and(|node| node.as_str() == wanted));
        let usage = node.as_ref().and_then(|node| world.fleet.reports.get(node)?.usage.get(folder(&path)));
        is_wanted.then(|| Row {
            key: Key::new(claim.namespace.clone(), ""),
            migration: String::new(),
            claim: claim.name.clone(),
            volume: name.to_string(),
            node: node.map(|node| node.0).unwrap_or_default(),
            allocated_bytes: usage.map(|usage| usage.allocated_bytes),
            path,
            succeeded: None,
            kept_because: Some(format!(
                "no VolumeMigration tells of it any more: look at it, then kubectl delete pv {name}, and remove its folder"
            )),
        })
    })
}

fn too_young(succeeded: Option<Timestamp>, now: Timestamp, older_than: Duration) -> Option<String> {
    let limit = SignedDuration::try_from(older_than).unwrap_or(SignedDuration::MAX);
    match succeeded {
        // The condition comes a moment after the record.
        None => (!limit.is_zero()).then(|| {
            "nothing tells yet since when it has moved (--older-than 0s asks for no time)".to_owned()
        }),
        Some(at) => (now.duration_since(at) < limit)
            .then(|| format!("it moved within the last {} (--older-than)", units::age(now - limit, now))),
    }
}

fn succeeded(object: &VolumeMigration) -> Option<Timestamp> {
    let mut conditions = object.status.as_ref()?.conditions.iter();
    let found =
        conditions.find(|condition| condition.type_ == display::SUCCEEDED && condition.status == "True");
    Some(found?.last_transition_time.0)
}

fn allocated(world: &World, disk: &DiskMove) -> Option<u64> {
    let usage = &world.fleet.reports.get(&disk.source_node)?.usage;
    Some(usage.get(folder(&disk.source_path))?.allocated_bytes)
}

fn text(rows: &[Row], now: Timestamp) -> String {
    let (going, kept): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.kept_because.is_none());
    if rows.is_empty() {
        return "No migration that has succeeded has left an old volume.".to_owned();
    }
    let mut text = String::new();
    if !going.is_empty() {
        let bytes = units::bytes(going.iter().filter_map(|row| row.allocated_bytes).sum());
        let _ = writeln!(
            text,
            "{} old volumes, {bytes} in all, would be removed for good, with their folders:\n{}",
            going.len(),
            listed(&going, now)
        );
    }
    if !kept.is_empty() {
        let title = if going.is_empty() { "No old volume would be removed. Kept" } else { "Kept" };
        let _ = write!(text, "{title}:\n{}", listed(&kept, now));
    }
    text
}

fn listed(rows: &[&Row], now: Timestamp) -> String {
    let mut sheet = table(&["MIGRATION", "CLAIM", "VOLUME", "NODE", "SIZE", "MOVED", "FOLDER", "BECAUSE"])
        .below(&["FOLDER", "BECAUSE"]);
    for row in rows {
        sheet.add_row([
            cell(&row.migration),
            cell(&row.claim),
            cell(&row.volume),
            cell(&row.node),
            cell(&row.allocated_bytes.map(units::bytes).unwrap_or_default()),
            cell(&row.succeeded.map(|at| format!("{} ago", units::age(at, now))).unwrap_or_default()),
            cell(&row.path),
            cell(row.kept_because.as_deref().unwrap_or_default()),
        ]);
    }
    render(&sheet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moved_a_moment_ago_or_at_nobody_knows_what_time_is_kept() {
        let now = Timestamp::from_second(1_000_000).expect("in range");
        let (moment, day) = (now - SignedDuration::from_secs(1), Duration::from_hours(24));
        let kept = |at, older_than| too_young(at, now, older_than).is_some();
        assert!(kept(Some(moment), day) && kept(None, day));
        assert!(!kept(Some(now - SignedDuration::from_hours(25)), day));
        assert!(!kept(Some(moment), Duration::ZERO) && !kept(None, Duration::ZERO), "asked for by word");
    }
}
