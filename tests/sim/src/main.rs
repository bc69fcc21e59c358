//! `somersault-sim`: one seed with its log, or as many as you like.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::{Parser, ValueEnum};
use somersault_sim::{Mutant, Options, Summary, run};

/// Runs the coordinator's real decisions in a world where everything goes wrong, and checks that no VM is ever
/// active twice.
#[derive(Parser)]
struct Arguments {
    /// Run this one seed and print everything that happens.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run this many seeds, on every core.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// First of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Faults in each world.
    #[arg(long, default_value_t = 40)]
    steps: u32,
    /// Break the shell or the world on purpose.
    #[arg(long, value_enum, ignore_case = true)]
    mutant: Option<MutantName>,
}

#[derive(Clone, Copy, ValueEnum)]
enum MutantName {
    #[value(name = "DropProof")]
    DropProof,
    #[value(name = "OldEpoch")]
    OldEpoch,
    #[value(name = "ShortLease")]
    ShortLease,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mutant = arguments.mutant.map(|name| match name {
        MutantName::DropProof => Mutant::DropProof,
        MutantName::OldEpoch => Mutant::OldEpoch,
        MutantName::ShortLease => Mutant::ShortLease,
    });
    let options = |seed| Options { steps: arguments.steps, mutant, ..Options::new(seed) };
    if let Some(seed) = arguments.seed {
        return match run(Options { verbose: true, ..options(seed) }) {
            Ok(summary) => {
                println!("seed {seed} holds: {summary:?}");
                ExitCode::SUCCESS
            }
            Err(failure) => {
                // The log was printed as it happened.
                eprintln!("seed {seed}: {} at {:.3?}", failure.broken, failure.at);
                ExitCode::FAILURE
            }
        };
    }
    let (begun, next) = (Instant::now(), AtomicU64::new(arguments.from));
    let end = arguments.from.saturating_add(arguments.seeds);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let total = Mutex::new(Summary::default());
    let failed = std::thread::scope(|scope| {
        let work = || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    return None;
                }
                match run(options(seed)) {
                    Ok(summary) => *total.lock().expect("nobody panics with it") += summary,
                    Err(failure) => {
                        next.store(end, Ordering::Relaxed);
                        return Some(failure);
                    }
                }
            }
        };
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().find_map(|thread| thread.join().expect("a world does not panic"))
    });
    if let Some(failure) = failed {
        eprintln!("{failure}");
        return ExitCode::FAILURE;
    }
    let total = total.into_inner().expect("nobody panics with it");
    println!(
        "{} seeds hold in {:.1?}: {} events in {:.1} hours of the world, {} incidents closed, {} launchers deleted with \
         proof, {} changes of leader",
        arguments.seeds,
        begun.elapsed(),
        total.events,
        total.elapsed.as_secs_f64() / 3_600.0,
        total.closed,
        total.deletions,
        total.handovers,
    );
    ExitCode::SUCCESS
}
