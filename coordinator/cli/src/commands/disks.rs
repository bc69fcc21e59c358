//! `disks`: every physical disk, the worst first: how well it is and why, and what would be lost with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;
use somersault_coordinator_core::names::NodeName;
use somersault_crd::node_health::{DiskGrade, DiskInfo, NodeHealthStatus};

use super::storage::place::{self, Place};
use super::storage::told::{self, LastWord};
use super::storage::{asked_node, grade_mood};
use crate::args::{DisksArgs, Global};
use crate::exit::{Exit, Failure};
use crate::output::{self, cell, clean, mood_cell, render, table};
use crate::world::{self, World};

/// Everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// Whether a coordinator leads now; absent for a dump.
    coordinator_leads: Option<bool>,
    disks: Vec<Row>,
    /// `NODE:PATH` of each storage root whose physical disk nobody can tell; those that nodes share are on no disk of theirs.
    roots_without_disk: Vec<String>,
    /// Nodes of whose disks nothing is known.
    unheard: Vec<String>,
    /// Manifests that could not be read.
    problems: Vec<String>,
}

/// A disk.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    node: String,
    disk: String,
    grade: DiskGrade,
    reasons: Vec<String>,
    model: String,
    serial: String,
    /// Storage roots on it. Of several disks below one root agents name the one in the worst shape.
    roots: Vec<String>,
    /// Volumes below these roots.
    volumes: Vec<String>,
    /// VMs that have a disk there.
    vms: Vec<String>,
    #[serde(flatten)]
    told: LastWord,
}

/// What is on a disk.
#[derive(Default)]
struct Load {
    volumes: BTreeSet<String>,
    vms: BTreeSet<String>,
}

/// Runs the command.
pub fn run(global: &Global, args: &DisksArgs) -> Result<Exit, Failure> {
    let world = World::read(global, &args.source)?;
    let asked = asked_node(&world, args.node.as_deref())?;
    let disks = Answer::of(&world, asked.as_ref(), Timestamp::now());
    output::print(global.output, &disks, || text(&disks))?;
    Ok(world::end(&world))
}

impl Answer {
    fn of(world: &World, asked: Option<&NodeName>, now: Timestamp) -> Self {
        let told = told::all(world, now);
        let loads = loads(world);
        let (mut disks, mut roots_without_disk) = (Vec::new(), Vec::new());
        for (node, told) in told.iter().filter(|(node, _)| asked.is_none_or(|asked| asked == *node)) {
            let Some(status) = world.healths.get(node).and_then(|health| health.status.as_ref()) else {
                continue;
            };
            let row = |disk| Row::of(node, status, disk, loads.get(&(node.as_str(), &disk.name)), told);
            disks.extend(status.disks.iter().map(row));
            let nowhere = status.roots.iter().filter(|root| root.disk.is_none() && !root.shared);
            roots_without_disk.extend(nowhere.map(|root| format!("{node}:{}", root.path)));
        }
        // Of equals, what has most to lose first.
        disks.sort_by(|a, b| {
            (b.grade, b.vms.len(), b.volumes.len()).cmp(&(a.grade, a.vms.len(), a.volumes.len()))
        });
        Self {
            coordinator_leads: world.led,
            disks,
            roots_without_disk,
            unheard: told::unheard(world, &told, asked),
            problems: world.problems.iter().map(output::describe).collect(),
        }
    }
}

impl Row {
    fn of(
        node: &NodeName,
        status: &NodeHealthStatus,
        disk: &DiskInfo,
        load: Option<&Load>,
        told: &LastWord,
    ) -> Self {
        let here = status.roots.iter().filter(|root| root.disk.as_deref() == Some(&disk.name));
        let names = |of: fn(&Load) -> &BTreeSet<String>| {
            load.map(|load| of(load).iter().cloned().collect()).unwrap_or_default()
        };
        Self {
            node: node.to_string(),
            disk: disk.name.clone(),
            grade: disk.grade,
            reasons: disk.reasons.clone(),
            model: disk.model.clone(),
            serial: disk.serial.clone(),
            roots: here.map(|root| root.path.clone()).collect(),
            volumes: names(|load| &load.volumes),
            vms: names(|load| &load.vms),
            told: told.clone(),
        }
    }
}

/// What is on each disk, by node and name.
fn loads(world: &World) -> BTreeMap<(&str, &String), Load> {
    let mut loads: BTreeMap<_, Load> = BTreeMap::new();
    for place in place::all(world, None) {
        let Place { volume: Some(volume), seen: Some(seen), .. } = &place else { continue };
        let Some(disk) = seen.root.and_then(|root| root.disk.as_ref()) else { continue };
        let load = loads.entry((seen.node.as_str(), disk)).or_default();
        load.volumes.insert(volume.to_string());
        load.vms.extend(place.vms(world));
    }
    loads
}

fn text(disks: &Answer) -> String {
    let mut text = world::heading(disks.coordinator_leads).to_owned();
    if disks.disks.is_empty() {
        text.push_str("No agent has told of a physical disk.\n");
    } else {
        text.push_str(&rows(&disks.disks));
    }
    if !disks.roots_without_disk.is_empty() {
        let roots = disks.roots_without_disk.join(", ");
        let _ = writeln!(text, "\nNobody can tell which physical disk is below {}.", clean(&roots));
    }
    text.push_str(&told::unheard_words(&disks.unheard));
    text
}

fn rows(rows: &[Row]) -> String {
    let header =
        ["NODE", "DISK", "GRADE", "VOLUMES", "VMS", "LAST WORD", "REASONS", "MODEL", "SERIAL", "ROOTS"];
    let mut table = table(&header).below(&["REASONS", "MODEL", "SERIAL", "ROOTS"]);
    for row in rows {
        table.add_row([
            cell(&row.node),
            cell(&row.disk),
            mood_cell(&format!("{:?}", row.grade), grade_mood(row.grade)),
            cell(&row.volumes.len().to_string()),
            cell(&row.vms.len().to_string()),
            mood_cell(&row.told.words(), row.told.mood()),
            cell(&row.reasons.join(", ")),
            cell(&row.model),
            cell(&row.serial),
            cell(&row.roots.join(", ")),
        ]);
    }
    render(&table)
}
