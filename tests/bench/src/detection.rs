//! Two questions about detection: how long until a silent node is declared, and does a loaded machine ever make
//! a living node look dead.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use somersault_crd::node_health::{NodeHealthStatus, NodeState};
use somersault_test_support::world::network;

use crate::fleet::{Fleet, NODES};
use crate::statistics::Sample;

/// The node whose plug is pulled. Always the same one: more than one node in a minute would be a storm.
const VICTIM: &str = NODES[0];
/// The fast profile's promise: 1 s of silence, and 200 ms for probes and scheduling.
const VERDICT_MAX: Duration = Duration::from_millis(1200);
/// A verdict, or a recovery from one, takes a second or two.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_PERIOD: Duration = Duration::from_millis(5);
/// Steps through the phases of a beat, so that the plug is pulled at any point between two beats.
const PHASE_STEP_MS: u64 = 37;
const BEAT_MS: u64 = 200;
/// Spinning threads for each core.
const HOGS_PER_CORE: usize = 2;

/// Measures, prints, and fails where a promise is broken.
pub fn run(repetitions: usize, hog: Duration) -> Result<()> {
    println!("Starting a coordinator and {} agents, each on a node of its own.", NODES.len());
    let mut fleet = Fleet::start()?;
    wait(&mut fleet, "all nodes are healthy", |fleet| {
        Ok(fleet.states()?.iter().all(|state| *state == NodeState::Healthy))
    })?;
    println!("Pulling the plug of {VICTIM} {repetitions} times.");
    let (mut verdicts, mut seen) = (Vec::new(), Vec::new());
    for (index, repetition) in (1..=repetitions).zip(0_u64..) {
        let (verdict, outside) = pull_once(&mut fleet, repetition * PHASE_STEP_MS % BEAT_MS)?;
        verdicts.push(verdict);
        seen.push(outside);
        if index % 10 == 0 {
            println!("  {index} of {repetitions}");
        }
    }
    println!(
        "Loading every core with {HOGS_PER_CORE} spinning threads for {} s; nobody pulls a plug.",
        hog.as_secs()
    );
    let (looks, suspicions) = hog_cpus(&mut fleet, hog)?;
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["fast profile", "min", "p50", "p99", "max"]);
    let declared = Sample::new(verdicts);
    for (what, sample) in [
        ("last beat → verdict, by the coordinator's clock", &declared),
        ("plug pulled → verdict in NodeHealth, seen from outside", &Sample::new(seen)),
    ] {
        if let Some(sample) = sample {
            let percentiles =
                [0, 50, 99, 100].map(|percent| format!("{} ms", sample.percentile(percent).as_millis()));
            table.add_row([what.to_owned()].into_iter().chain(percentiles));
        }
    }
    println!("{table}");
    println!(
        "false verdicts in {} s under load: 0; suspicions that a beat took back: {suspicions} (states read {looks} times)",
        hog.as_secs()
    );
    if let Some(sample) = declared {
        let p99 = sample.percentile(99);
        ensure!(
            p99 <= VERDICT_MAX,
            "p99 is {} ms, more than {} ms",
            p99.as_millis(),
            VERDICT_MAX.as_millis()
        );
    }
    Ok(())
}

/// Pulls the plug until the verdict, and puts it back until the node is well. Returns the time from the last
/// beat to the verdict, and from the pull until the verdict is seen.
fn pull_once(fleet: &mut Fleet, phase_ms: u64) -> Result<(Duration, Duration)> {
    std::thread::sleep(Duration::from_millis(phase_ms));
    let pulled = Instant::now();
    network::pull_plug(VICTIM)?;
    let mut verdict = None;
    wait(fleet, "n1 is declared unreachable", |fleet| {
        let health = fleet.health(VICTIM)?;
        verdict = (health.state == NodeState::AwaitingProof).then(|| silence(&health)).flatten();
        Ok(verdict.is_some())
    })?;
    let outside = pulled.elapsed();
    network::push_plug(VICTIM)?;
    wait(fleet, "n1 is healthy again", |fleet| Ok(fleet.health(VICTIM)?.state == NodeState::Healthy))?;
    let Some(verdict) = verdict else { bail!("a verdict without a time") };
    Ok((verdict, outside))
}

/// From the last beat to the last verdict.
fn silence(health: &NodeHealthStatus) -> Option<Duration> {
    let at = |name: &str| {
        health.timeline.iter().rev().find(|entry| entry.milestone == name).map(|entry| entry.at.0)
    };
    at("Declared")?.duration_since(at("LastBeat")?).try_into().ok()
}

/// Burns every core and watches. Returns how often it looked, and how many suspicions it saw; a verdict is an
/// error.
fn hog_cpus(fleet: &mut Fleet, duration: Duration) -> Result<(usize, usize)> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..cores * HOGS_PER_CORE {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let watched = watch(fleet, duration);
        stop.store(true, Ordering::Relaxed);
        watched
    })
}

fn watch(fleet: &mut Fleet, duration: Duration) -> Result<(usize, usize)> {
    let began = Instant::now();
    let (mut looks, mut suspicions) = (0, 0);
    let mut before = vec![NodeState::Healthy; NODES.len()];
    while began.elapsed() < duration {
        let states = fleet.states()?;
        for ((node, state), old) in NODES.iter().zip(&states).zip(&before) {
            match state {
                NodeState::Healthy => {}
                NodeState::Suspect if old == state => {}
                NodeState::Suspect => suspicions += 1,
                other => bail!("{node} lives and was taken for {other:?}, after {:?}", began.elapsed()),
            }
        }
        before = states;
        looks += 1;
        std::thread::sleep(LOOK_PERIOD);
    }
    Ok((looks, suspicions))
}

fn wait(fleet: &mut Fleet, what: &str, mut holds: impl FnMut(&mut Fleet) -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !holds(fleet)? {
        ensure!(
            began.elapsed() < PATIENCE,
            "waited {} s in vain until {what}; logs are in {}",
            PATIENCE.as_secs(),
            fleet.work.display()
        );
        std::thread::sleep(LOOK_PERIOD);
    }
    Ok(())
}
