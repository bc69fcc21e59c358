//! One test for each way in which a cluster can go wrong, on one real cluster, one after the other.
//!
//! The guests' disks are the judge: no VM active twice, no write lost, no blank boot; and no living node is ever
//! declared dead. Run one by its name: `cargo test -p somersault-test-e2e --test scenarios -- power_off`.

mod control_plane;
mod death;
mod life;
mod storage;
mod strategies;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use somersault_test_cluster::usable_or_skip;
use somersault_test_e2e::bed::Bed;

/// A scenario, and its name.
type Scenario = (&'static str, fn(&Bed) -> Result<()>);

/// In this order: the cheap and telling ones first.
const SCENARIOS: &[Scenario] = &[
    ("power_off_recreates_network_and_leaves_local_and_unknown_alone", death::power_off),
    ("network_cut_with_vms_running", death::network_cut),
    ("side_by_side_with_kubernetes", death::side_by_side),
    ("without_a_fence_agent_nothing_is_touched_until_a_person_attests", death::attested),
    ("every_strategy_as_the_decision_table_says", strategies::all),
    ("broken_storage_is_told_and_nothing_is_touched", storage::breaks),
    ("kubelet_killed_is_no_death", life::kubelet_killed),
    ("agent_silent_is_no_death", life::agent_stopped),
    ("one_way_cut_is_no_death", life::one_way_cut),
    ("node_frozen_for_5_s", life::frozen_shortly),
    ("node_frozen_for_60_s", life::frozen_for_a_minute),
    ("all_nodes_cut_at_once_is_a_storm", life::all_cut),
    ("the_leaders_own_node_dies", death::leaders_node),
    ("coordinator_upgraded_during_an_incident", control_plane::upgrade),
    ("apiserver_restarted", control_plane::restart),
    ("apiserver_away_for_two_minutes", control_plane::away),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share one cluster.
    arguments.test_threads = Some(1);
    let usable = arguments.list || usable_or_skip("scenarios");
    let bed: Arc<Mutex<Option<Bed>>> = Arc::default();
    let trial = |(name, scenario): &Scenario| {
        let (bed, scenario) = (Arc::clone(&bed), *scenario);
        Trial::test(*name, move || run(&bed, scenario)).with_ignored_flag(!usable)
    };
    let conclusion = libtest_mimic::run(&arguments, SCENARIOS.iter().map(trial).collect());
    // Taken down before the process ends: nothing is left behind.
    drop(bed.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

/// Runs a scenario on the bed, which is built for the first one; one that failed leaves a bed that nobody trusts.
fn run(bed: &Mutex<Option<Bed>>, scenario: fn(&Bed) -> Result<()>) -> Result<(), Failed> {
    let mut bed = bed.lock().unwrap_or_else(PoisonError::into_inner);
    let ready = match bed.take() {
        Some(ready) => ready,
        None => Bed::up("e2e", 3, true, &|what| eprintln!("== {what}")).map_err(told)?,
    };
    let outcome = scenario(&ready).and_then(|()| ready.calm().context("after the scenario"));
    if let Err(error) = outcome {
        return Err(format!("{error:#}\n{}", ready.situation()).into());
    }
    *bed = Some(ready);
    Ok(())
}

fn told(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}
