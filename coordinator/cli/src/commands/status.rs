//! `status`: who is where. Nodes with their state and proof, VMs, volumes, and what is being moved.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;

use crate::args::{Format, Global, StatusArgs};
use crate::exit::{Exit, Failure};
use crate::output::{self, Mood, cell, clean_lines, mood_cell, render, table};
use crate::source::Source;
use crate::units;
use crate::world::{self, World};

mod rows;

pub use rows::volumes;

use rows::{Ended, NodeRow, Status, VmRow, VolumeRow};

/// Runs the command.
pub fn run(global: &Global, args: &StatusArgs) -> Result<Exit, Failure> {
    if args.watch {
        return watch(global, args);
    }
    let world = World::read(global, &args.source)?;
    let status = look(&world, global, args);
    output::print(global.output, &status, || text(&status))?;
    Ok(world::end(&world))
}

fn look(world: &World, global: &Global, args: &StatusArgs) -> Status {
    let ended = if args.all { Ended::All } else { Ended::LatelyAt(Timestamp::now()) };
    Status::of(world, global.namespace.as_deref(), ended)
}

/// Before a server that did not answer is asked again: one that is just starting has enough to do.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Draws until interrupted, or until nobody reads any more. A server that goes away is told, and waited for.
fn watch(global: &Global, args: &StatusArgs) -> Result<Exit, Failure> {
    let policy = args.source.policy.as_deref();
    let terminal = io::stdout().is_terminal() && global.output == Format::Table;
    let source = Source::open(global)?;
    let mut last: Option<String> = None;
    loop {
        let rest = match (World::of_cluster(&source, policy), &last) {
            (Ok(world), _) => {
                let status = look(&world, global, args);
                let drawn = text(&status);
                if terminal {
                    output::write_out(&screen(&drawn))?;
                } else {
                    output::print(global.output, &status, || drawn.clone())?;
                }
                last = Some(drawn);
                source.redraw_after(world.read_in)
            }
            (Err(Failure::Unreachable(why)), Some(drawn)) if terminal => {
                output::write_out(&screen(&format!("{drawn}\nOUT OF DATE: {}\n", clean_lines(&why))))?;
                ASK_AGAIN_AFTER
            }
            (Err(Failure::Unreachable(why)), Some(_)) => {
                output::complain(&why);
                ASK_AGAIN_AFTER
            }
            (Err(failure), _) => return Err(failure),
        };
        thread::sleep(rest);
    }
}

/// The text over what the last drawing left, without a flicker: each line clears its own rest, the end what is below.
fn screen(text: &str) -> String {
    let mut screen = String::from("\u{1b}[H");
    for line in text.lines() {
        let _ = writeln!(screen, "{line}\u{1b}[K");
    }
    screen.push_str("\u{1b}[J");
    screen
}

fn text(status: &Status) -> String {
    let mut text = String::new();
    if let Some(hold) = &status.storm_hold {
        let _ = writeln!(
            text,
            "STORM HOLD: too many nodes are silent at once ({hold}); nothing is done before they are back or somebody says: kubectl \
             somersault release-hold\n"
        );
    }
    text.push_str(world::heading(status.coordinator_leads));
    text.push_str(&nodes(&status.nodes));
    let _ = write!(text, "\n{}", vms(&status.vms));
    let _ = write!(text, "\n{}", volumes(&status.volumes));
    if !status.migrations.is_empty() {
        let _ = write!(text, "\n{}", migrations(status));
    }
    if !status.evacuations.is_empty() {
        let _ = write!(text, "\n{}", evacuations(status));
    }
    if status.ended_long_ago > 0 {
        let _ = writeln!(
            text,
            "\nNot shown: {} migrations and evacuations that ended more than a day ago (--all).",
            status.ended_long_ago
        );
    }
    if !status.problems.is_empty() {
        let _ = writeln!(
            text,
            "\n{} manifests could not be read; what is shown is made without them.",
            status.problems.len()
        );
    }
    text
}

fn nodes(rows: &[NodeRow]) -> String {
    let mut table = table(&["NODE", "STATE", "SINCE", "ZONE", "PROOF", "DISKS", "MESSAGE"])
        .below(&["PROOF", "DISKS", "MESSAGE"]);
    for row in rows {
        let (disks, mood) = row.disks_words();
        table.add_row([
            cell(&row.name),
            mood_cell(&row.state, row.state_mood()),
            cell(row.since_age.as_deref().unwrap_or_default()),
            cell(&row.zone),
            cell(&row.proof_words()),
            mood_cell(&disks, mood),
            cell(&row.message),
        ]);
    }
    render(&table)
}

fn vms(rows: &[VmRow]) -> String {
    if rows.is_empty() {
        return "There is no VirtualMachine here.\n".to_owned();
    }
    let mut table =
        table(&["VM", "NODE", "RUNNING", "IF ITS NODE DIES", "RECOVERY", "DISKS"]).below(&["DISKS"]);
    for row in rows {
        let disks: Vec<String> =
            row.verdict.disks.iter().map(|disk| format!("{}: {}", disk.disk, disk.place())).collect();
        table.add_row([
            cell(&format!("{}/{}", row.verdict.namespace, row.verdict.name)),
            cell(row.runs_on.as_deref().unwrap_or_default()),
            mood_cell(&row.running, row.running_mood()),
            mood_cell(&row.decision_words(), row.decision_mood()),
            cell(row.recovery.as_deref().unwrap_or_default()),
            cell(&disks.join(", ")),
        ]);
    }
    render(&table)
}

fn volumes(rows: &[VolumeRow]) -> String {
    if rows.is_empty() {
        return "There is no PersistentVolume here.\n".to_owned();
    }
    let mut table =
        table(&["CLAIM", "VOLUME", "CLASS", "WHERE", "USED", "REQUESTED", "HEALTH"]).below(&["VOLUME"]);
    for row in rows {
        table.add_row([
            cell(&row.claim_words()),
            cell(row.volume.as_deref().unwrap_or_default()),
            cell(&row.class),
            cell(&row.place()),
            cell(&row.used_bytes.map(units::bytes).unwrap_or_default()),
            cell(&units::bytes(row.requested_bytes)),
            mood_cell(&row.health, row.health_mood()),
        ]);
    }
    render(&table)
}

fn migrations(status: &Status) -> String {
    let mut table =
        table(&["MIGRATION", "MOVES", "TO", "PHASE", "PROGRESS", "MESSAGE"]).below(&["PROGRESS", "MESSAGE"]);
    for row in &status.migrations {
        let progress = units::percent(row.done_bytes, row.total_bytes).map_or_else(String::new, |percent| {
            format!(
                "{percent} % of {}, {}/s",
                units::bytes(row.total_bytes),
                units::bytes(row.rate_bytes_per_second)
            )
        });
        table.add_row([
            cell(&format!("{}/{}", row.namespace, row.name)),
            cell(&row.subject),
            cell(&row.destination),
            mood_cell(&row.phase, row.mood()),
            cell(&progress),
            cell(&row.message),
        ]);
    }
    render(&table)
}

fn evacuations(status: &Status) -> String {
    let mut table = table(&["EVACUATION", "EMPTIES", "DONE", "STATE", "MESSAGE"]).below(&["MESSAGE"]);
    for row in &status.evacuations {
        let mood = if row.failed > 0 { Mood::Bad } else { Mood::Plain };
        table.add_row([
            cell(&row.name),
            cell(&row.subject),
            mood_cell(&format!("{} of {}", row.succeeded, row.planned), mood),
            cell(row.state),
            cell(&row.message),
        ]);
    }
    render(&table)
}
