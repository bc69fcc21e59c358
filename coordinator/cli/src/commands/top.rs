//! `top`: what takes most now, and, by a second look, what grows; and how busy each node is.
//!
//! No object keeps what was before: growth is the difference of two looks, of which each sees the last report alone.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use somersault_coordinator_core::names::NodeName;

use super::storage::asked_node;
use super::storage::told;
use super::volumes::{self, Row};
use crate::args::{Global, TopArgs};
use crate::exit::{Exit, Failure};
use crate::output::{self, cell, mood_cell, render, table};
use crate::source::Source;
use crate::units;
use crate::world::{self, World};

mod growth;
mod nodes;

use growth::{Before, Growth};
use nodes::NodeRow;

/// Characters of a bar: each is a tenth.
const BAR_CELLS: usize = 10;

/// Everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Top {
    /// Whether a coordinator leads now; absent for a dump.
    coordinator_leads: Option<bool>,
    /// Between the two looks; absent where there was one.
    interval_seconds: Option<u64>,
    volumes: Vec<TopRow>,
    nodes: Vec<NodeRow>,
    /// Nodes of which nothing is known.
    unheard: Vec<String>,
    /// Nodes of which the second look has found nothing new.
    unchanged: Vec<String>,
    /// Manifests that could not be read.
    problems: Vec<String>,
}

/// A volume.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TopRow {
    #[serde(flatten)]
    volume: Row,
    /// Absent where nothing can be told.
    #[serde(flatten)]
    growth: Option<Growth>,
}

/// Runs the command.
pub fn run(global: &Global, args: &TopArgs) -> Result<Exit, Failure> {
    let namespace = global.namespace.as_deref();
    if args.interval.is_zero() {
        let world = World::read(global, &args.source)?;
        return show(&world, global, args, None);
    }
    let source = Source::open(global)?;
    let policy = args.source.policy.as_deref();
    let world = World::of_cluster(&source, policy)?;
    asked_node(&world, args.node.as_deref())?;
    let before = Before::of(&world, namespace);
    let begun = Instant::now();
    drop(world);
    output::note(&format!("the second look is in {} s", args.interval.as_secs()));
    thread::sleep(args.interval);
    let world = World::of_cluster(&source, policy)?;
    show(&world, global, args, Some((&before, begun.elapsed())))
}

fn show(
    world: &World,
    global: &Global,
    args: &TopArgs,
    before: Option<(&Before, Duration)>,
) -> Result<Exit, Failure> {
    let asked = asked_node(world, args.node.as_deref())?;
    let top = Top::of(world, global.namespace.as_deref(), asked.as_ref(), before, Timestamp::now());
    output::print(global.output, &top, || text(&top))?;
    Ok(world::end(world))
}

impl Top {
    fn of(
        world: &World,
        namespace: Option<&str>,
        asked: Option<&NodeName>,
        before: Option<(&Before, Duration)>,
        now: Timestamp,
    ) -> Self {
        let told = told::all(world, now);
        let unchanged = before.map(|(before, _)| before.unchanged(world)).unwrap_or_default();
        let rows = volumes::rows(world, &told, namespace, asked).into_iter().map(|volume| {
            let growth = before.and_then(|(before, elapsed)| before.growth(world, &volume, elapsed));
            TopRow { volume, growth }
        });
        let mut rows: Vec<TopRow> = rows.collect();
        // What nobody has measured comes last.
        rows.sort_by_key(|row| std::cmp::Reverse(row.volume.allocated_bytes));
        Self {
            coordinator_leads: world.led,
            interval_seconds: before.map(|(_, elapsed)| elapsed.as_secs()),
            volumes: rows,
            nodes: nodes::rows(world, &told, asked),
            unheard: told::unheard(world, &told, asked),
            unchanged: unchanged
                .into_iter()
                .filter(|node| asked.is_none_or(|asked| asked.as_str() == node))
                .collect(),
            problems: world.problems.iter().map(output::describe).collect(),
        }
    }
}

fn text(top: &Top) -> String {
    let mut text = world::heading(top.coordinator_leads).to_owned();
    if top.volumes.is_empty() {
        text.push_str("There is no local volume here.\n");
    } else {
        text.push_str(&volume_table(top));
    }
    if !top.nodes.is_empty() {
        let _ = write!(text, "\n{}", node_table(&top.nodes));
    }
    if let Some(seconds) = top.interval_seconds {
        let _ = writeln!(
            text,
            "\nGROWTH is what was seen between two looks {seconds} s apart, for a day; over which time, is behind it. Agents \
             count volumes once a minute at most, and large ones more rarely: none seen is not none."
        );
        if !top.unchanged.is_empty() {
            let names = output::clean(&top.unchanged.join(", ")).into_owned();
            let _ = writeln!(
                text,
                "Nothing new was reported in between from {names}. Figures are written once a minute: look for longer, by \
                 --interval 5m."
            );
        }
    }
    text.push_str(&told::unheard_words(&top.unheard));
    text
}

fn volume_table(top: &Top) -> String {
    let mut header = vec!["VOLUME", "CLAIM", "VM", "NODE", "TAKEN", "REQUESTED", "SHARE"];
    header.push(if top.interval_seconds.is_some() { "GROWTH" } else { "LAST WORD" });
    let mut table = table(&header).below(&["LAST WORD"]);
    for row in &top.volumes {
        let volume = &row.volume;
        let (share, mood) = volume.share_words();
        let last = match (top.interval_seconds, &row.growth) {
            (None, _) => mood_cell(&volume.told.words(), volume.told.mood()),
            (Some(_), None) => cell("unknown"),
            (Some(_), Some(growth)) => cell(&growth.words()),
        };
        table.add_row([
            cell(volume.volume.as_deref().unwrap_or_default()),
            cell(&volume.claim_words()),
            cell(&volume.vms.join(", ")),
            cell(&volume.node_words()),
            cell(&volume.allocated_bytes.map_or_else(|| "unknown".to_owned(), units::bytes)),
            cell(&units::bytes(volume.requested_bytes)),
            mood_cell(&format!("{}{share}", bar(volume)), mood),
            last,
        ]);
    }
    render(&table)
}

/// Its share as a bar; nothing where it is not known.
fn bar(row: &Row) -> String {
    let percent = row.allocated_bytes.and_then(|bytes| units::percent(bytes, row.requested_bytes));
    let Some(percent) = percent else { return String::new() };
    let full = usize::try_from(percent / 10).unwrap_or(BAR_CELLS).min(BAR_CELLS);
    format!("{}{} ", "█".repeat(full), "░".repeat(BAR_CELLS - full))
}

fn node_table(rows: &[NodeRow]) -> String {
    let mut table = table(&["NODE", "STATE", "CPU", "MEMORY", "LOAD", "IO PRESSURE", "LAST WORD"]);
    for row in rows {
        table.add_row([
            cell(&row.name),
            cell(&row.state),
            cell(&nodes::ratio_words(row.cpu_ratio)),
            cell(&row.memory_words()),
            cell(&row.load1.map_or_else(|| "unknown".to_owned(), |load| format!("{load:.2}"))),
            cell(&nodes::ratio_words(row.io_pressure_ratio)),
            mood_cell(&row.told.words(), row.told.mood()),
        ]);
    }
    render(&table)
}
