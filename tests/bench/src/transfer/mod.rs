//! How fast a volume is copied: the agent's engine and what people use today, on the same bytes, in the same run.
//!
//! ```text
//!   namespace source                         namespace target
//!   a contender's server, reads tmpfs ─veth─ its client, writes to ext4, XFS or tmpfs
//! ```
//!
//! The clock runs from the start of the client until the target is durable: peers are synced by the bench within that
//! time, ours syncs by itself, and then reads back from the disk, which is told beside it. Contenders take turns, each run starts with an empty target and an
//! empty page cache, and each result is compared with the source by hash. Only a wrong result fails the bench: times
//! depend on who else uses the machine.
//!
//! Sources lie on tmpfs, so that every contender is fed faster than it can copy: on one machine, source and target
//! would share one disk.

mod agent;
mod bars;
mod caches;
mod check;
mod contender;
mod content;
mod figures;
mod measure;
mod picture;
mod places;
mod report;
mod resident;
mod rounds;
mod work;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::unistd::Uid;
use somersault_test_support::world::enter;

pub use self::agent::{SourceOptions, TargetOptions, pull, serve};
use self::contender::Tool;
use self::figures::Line;
use self::places::Places;
use self::rounds::Rounds;
use self::work::{Sizes, Work};
use self::world::World;

const ROUNDS: usize = 5;

/// What is measured.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Runs of each contender; 5, with --quick 1.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Only this; repeat it for more.
    #[arg(long, value_enum)]
    work: Vec<Work>,
    /// Only this; repeat it for more. Ratios need `somersault` as well.
    #[arg(long, value_enum)]
    tool: Vec<Tool>,
    /// How many small files.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    files: u32,
    /// Small volumes, one round: does the bench work at all? Its figures mean nothing.
    #[arg(long)]
    quick: bool,
}

/// Measures, prints, and writes the results into `target/bench`.
pub fn run(options: &Options) -> Result<ExitCode> {
    if !Uid::effective().is_root() {
        eprintln!(
            "SKIPPED the copying of volumes: it needs root, for network namespaces and loop devices: use sudo"
        );
        return Ok(ExitCode::SUCCESS);
    }
    let results = results_folder()?;
    let work = results.join("transfer");
    if let Some(status) = enter::enter_as_root()? {
        // Processes, mounts and interfaces went with the world, however it ended.
        places::clean_up(&work)?;
        return Ok(crate::exit_code(status));
    }
    places::clean_up(&work)?;
    let sizes = if options.quick { Sizes::QUICK } else { Sizes { files: options.files, ..Sizes::FULL } };
    let places = Places::make(&work, sizes.dense_bytes)?;
    let repetitions = options.rounds.map_or(if options.quick { 1 } else { ROUNDS }, usize::from);
    let name = if options.quick { "transfer-quick" } else { "transfer" };
    let bench = Rounds { world: &World::build()?, places: &places, sizes, repetitions, tools: &options.tool };

    let mut lines: Vec<Line> = Vec::new();
    for work in Work::chosen(&options.work) {
        lines.extend(bench.run(work).with_context(|| format!("measuring {work}"))?);
        // After each work, so that what was measured is kept if the rest is not waited for.
        report::write_json(&results.join(format!("{name}.json")), &lines)?;
    }
    report::write_markdown(&results.join(format!("{name}.md")), &lines)?;
    picture::draw(&results.join(format!("{name}.svg")), &lines)?;
    println!("{}", report::for_terminal(&lines));
    println!("written to {}", results.join(format!("{name}.{{json,md,svg}}")).display());
    if lines.iter().any(Line::is_wrong) {
        eprintln!("A copy was not equal to its source.");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// `target/bench`.
fn results_folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context("finding this program")?;
    let target = program.ancestors().nth(2).context("a program without a target folder")?;
    let results = target.join("bench");
    std::fs::create_dir_all(&results).with_context(|| format!("creating {}", results.display()))?;
    Ok(results)
}
