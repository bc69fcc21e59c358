//! `volumes`: every local volume with what it takes of what it asks, folders that no volume names, and how far the requests
//! go beyond each storage root.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;
use somersault_coordinator_core::names::NodeName;

use super::storage::told;
use super::storage::{asked_node, place};
use crate::args::{Global, VolumesArgs};
use crate::exit::{Exit, Failure};
use crate::output::{self, Mood, cell, mood_cell, render, table};
use crate::units;
use crate::world::{self, World};

mod folders;
mod roots;
mod rows;

pub use rows::{Row, rows};

use folders::FolderRow;
use roots::RootRow;

/// Everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// Whether a coordinator leads now; absent for a dump.
    coordinator_leads: Option<bool>,
    volumes: Vec<Row>,
    /// Folders that no volume names.
    folders: Vec<FolderRow>,
    /// Storage roots, with the volumes of all namespaces: they share the room.
    roots: Vec<RootRow>,
    /// Sums over the volumes that are shown.
    totals: Totals,
    /// Nodes of whose folders nothing is known.
    unheard: Vec<String>,
    /// Manifests that could not be read.
    problems: Vec<String>,
}

/// Sums.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Totals {
    volumes: usize,
    requested_bytes: u64,
    /// Of those that are measured.
    allocated_bytes: u64,
    /// Volumes that take more than they ask.
    over_request: usize,
    /// Volumes that no agent has measured.
    unmeasured: usize,
    folders: usize,
    folders_allocated_bytes: u64,
}

/// Runs the command.
pub fn run(global: &Global, args: &VolumesArgs) -> Result<Exit, Failure> {
    let world = World::read(global, &args.source)?;
    let asked = asked_node(&world, args.node.as_deref())?;
    let volumes = Answer::of(&world, global.namespace.as_deref(), asked.as_ref(), Timestamp::now());
    output::print(global.output, &volumes, || text(&volumes))?;
    Ok(world::end(&world))
}

impl Answer {
    fn of(world: &World, namespace: Option<&str>, asked: Option<&NodeName>, now: Timestamp) -> Self {
        let told = told::all(world, now);
        let volumes = rows(world, &told, namespace, asked);
        let folders = folders::rows(world, &told, namespace, asked);
        Self {
            coordinator_leads: world.led,
            totals: Totals::of(&volumes, &folders),
            volumes,
            folders,
            roots: roots::rows(world, &told, &place::all(world, None), asked),
            unheard: told::unheard(world, &told, asked),
            problems: world.problems.iter().map(output::describe).collect(),
        }
    }
}

impl Totals {
    /// Each volume is one row, also where every node sees its folder.
    fn of(volumes: &[Row], folders: &[FolderRow]) -> Self {
        let mut totals = Self { volumes: volumes.len(), folders: folders.len(), ..Self::default() };
        for row in volumes {
            totals.requested_bytes = totals.requested_bytes.saturating_add(row.requested_bytes);
            totals.over_request += usize::from(row.over_request);
            match row.allocated_bytes {
                Some(bytes) => totals.allocated_bytes = totals.allocated_bytes.saturating_add(bytes),
                None => totals.unmeasured += 1,
            }
        }
        let sizes = folders.iter().map(|row| row.allocated_bytes);
        totals.folders_allocated_bytes = sizes.fold(0, u64::saturating_add);
        totals
    }
}

fn text(volumes: &Answer) -> String {
    let mut text = world::heading(volumes.coordinator_leads).to_owned();
    let totals = &volumes.totals;
    if volumes.volumes.is_empty() {
        text.push_str("There is no local volume here.\n");
    } else {
        text.push_str(&volume_table(&volumes.volumes));
        let _ = writeln!(
            text,
            "\n{} volumes take {} of the {} that they ask; {} take more than they ask, of {} nobody knows what they take.",
            totals.volumes,
            units::bytes(totals.allocated_bytes),
            units::bytes(totals.requested_bytes),
            totals.over_request,
            totals.unmeasured,
        );
    }
    if !volumes.roots.is_empty() {
        let _ = write!(text, "\n{}", root_table(&volumes.roots));
    }
    if !volumes.folders.is_empty() {
        let _ = write!(text, "\n{}", folder_table(&volumes.folders));
        let _ = writeln!(
            text,
            "\n{} folders that no volume names take {}. Whose they may be: kubectl somersault adopt",
            totals.folders,
            units::bytes(totals.folders_allocated_bytes),
        );
    }
    text.push_str(&told::unheard_words(&volumes.unheard));
    text
}

fn volume_table(rows: &[Row]) -> String {
    let header = [
        "VOLUME",
        "CLAIM",
        "VM",
        "NODE",
        "CLASS",
        "REQUESTED",
        "TAKEN",
        "SHARE",
        "APPARENT",
        "LAST WORD",
        "ROOT",
    ];
    let mut table = table(&header).below(&["LAST WORD", "ROOT"]);
    for row in rows {
        let (share, mood) = row.share_words();
        table.add_row([
            cell(row.volume.as_deref().unwrap_or_default()),
            cell(&row.claim_words()),
            cell(&row.vms.join(", ")),
            cell(&row.node_words()),
            cell(&row.class),
            cell(&units::bytes(row.requested_bytes)),
            cell(&row.allocated_bytes.map_or_else(|| "unknown".to_owned(), units::bytes)),
            mood_cell(&share, mood),
            cell(&row.apparent_bytes.map_or_else(|| "unknown".to_owned(), units::bytes)),
            mood_cell(&row.told.words(), row.told.mood()),
            cell(row.root.as_deref().unwrap_or_default()),
        ]);
    }
    render(&table)
}

fn root_table(rows: &[RootRow]) -> String {
    let header =
        ["ROOT", "NODE", "CLASS", "SIZE", "AVAILABLE", "VOLUMES", "REQUESTED", "OVER-COMMIT", "LAST WORD"];
    let mut table = table(&header).below(&["LAST WORD"]);
    for row in rows {
        let (available, room_mood) = row.room_words();
        let (over_commit, mood) = row.over_commit_words();
        table.add_row([
            cell(&row.path),
            cell(&row.node_words()),
            cell(&row.class),
            cell(&row.size_bytes.map_or_else(|| "unknown".to_owned(), units::bytes)),
            mood_cell(&available, room_mood),
            cell(&row.volumes.to_string()),
            cell(&units::bytes(row.requested_bytes)),
            mood_cell(&over_commit, mood),
            mood_cell(&row.told.words(), row.told.mood()),
        ]);
    }
    render(&table)
}

fn folder_table(rows: &[FolderRow]) -> String {
    let mut table =
        table(&["NODE", "TAKEN", "APPARENT", "CLASS", "CLAIM BY ITS NAME", "LAST WORD", "FOLDER"])
            .below(&["LAST WORD", "FOLDER"]);
    for row in rows {
        table.add_row([
            cell(&row.node),
            mood_cell(&units::bytes(row.allocated_bytes), Mood::Doubtful),
            cell(&units::bytes(row.apparent_bytes)),
            cell(&row.class),
            cell(row.claim.as_deref().unwrap_or_default()),
            mood_cell(&row.told.words(), row.told.mood()),
            cell(&row.path),
        ]);
    }
    render(&table)
}
