//! One test for each way in which a cluster can go wrong, on one real cluster, one after the other.
//!
//! The guests' disks are the judge: no VM active twice, no write lost, no blank boot; and no living node is ever
//! declared dead. Run one by its name: `cargo test --workspace --test scenarios -- power_off`, and the long ones too with
//! `--include-ignored`.

mod adopted;
mod control_plane;
mod death;
mod interrupted;
mod life;
mod made;
mod migration;
mod rebuild;
mod storage;
mod strategies;
mod wukong;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use somersault_test_cluster::{Hold, usable_or_skip};
use somersault_test_e2e::bed::Bed;
use somersault_test_e2e::programs::Images;

use interrupted::Failure;

/// How long a scenario takes.
#[derive(Clone, Copy, PartialEq)]
enum Length {
    /// A minute or so.
    Short,
    /// Minutes, of which most are waiting: with `--include-ignored` only.
    Long,
    /// Hours: where the environment says so, by [`SOAK`].
    Soak,
}
use Length::{Long, Short, Soak};

/// Environment variable without which the scenarios that take hours are not there.
const SOAK: &str = "SOMERSAULT_SOAK";

/// Environment variable with the cluster's name: two of them stand side by side.
const CLUSTER: &str = "SOMERSAULT_TEST_CLUSTER";

/// A scenario, its name and its length.
type Scenario = (&'static str, Length, fn(&Bed) -> Result<()>);

/// In this order: the cheap and telling ones first.
const SCENARIOS: &[Scenario] = &[
    ("power_off_recreates_network_and_leaves_local_and_unknown_alone", Short, death::power_off),
    ("network_cut_with_vms_running", Short, death::network_cut),
    ("a_fence_agent_that_hits_another_node_proves_nothing", Long, death::miswired),
    ("a_fence_agent_that_hits_the_leaders_node_proves_nothing", Long, death::miswired_to_the_leader),
    ("side_by_side_with_kubernetes", Long, death::side_by_side),
    ("without_a_fence_agent_nothing_is_touched_until_a_person_attests", Short, death::attested),
    ("a_node_that_is_back_is_neither_switched_off_nor_proven_dead", Short, death::short_cut),
    ("system_disk_is_rebuilt_from_its_image", Short, rebuild::from_image),
    ("local_disks_move_to_another_node", Short, migration::to_another_node),
    ("disks_of_a_wukong_move_to_another_node", Short, migration::of_a_wukong),
    ("a_disk_comes_back_from_network_storage", Short, migration::back_from_network),
    ("disks_move_to_volumes_that_provisioners_make", Short, made::by_provisioners),
    ("a_disk_comes_back_from_where_only_kubelets_mount_it", Short, made::back_from_where_kubelets_mount),
    ("a_disk_moves_though_the_pods_that_hold_it_are_killed", Short, made::holders_killed),
    ("a_block_device_moves_to_another_node", Short, made::of_a_device),
    ("a_volume_that_was_made_for_a_cancelled_migration_goes", Long, made::cancelled),
    ("a_node_is_emptied_while_the_leader_changes", Short, migration::of_a_node),
    ("a_node_is_emptied_before_it_is_drained", Long, migration::of_a_cordoned_node),
    ("a_node_is_emptied_by_a_word_and_in_a_window", Long, migration::copied_ahead),
    ("a_node_that_came_back_is_emptied", Long, migration::of_a_returned_node),
    ("twenty_vms_leave_a_node_while_the_apiserver_restarts", Long, migration::of_many),
    ("migrations_interrupted_where_it_tells_most", Short, interrupted::telling),
    ("volumes_that_somebody_deletes_during_the_last_copy", Long, interrupted::volumes_deleted),
    ("old_disks_that_somebody_destroys_leave_their_copies", Long, interrupted::volumes_and_folders_deleted),
    ("migration_whose_vm_is_started_while_swapping_and_nobody_refuses_it", Long, |bed| {
        interrupted::at(bed, "Swapping", Failure::StartedUnrefused)
    }),
    ("migration_interrupted_everywhere", Soak, interrupted::everywhere),
    ("every_strategy_as_the_decision_table_says", Short, strategies::all),
    ("broken_storage_is_told_and_nothing_is_touched", Short, storage::breaks),
    ("a_disk_in_another_machine_is_adopted", Long, adopted::in_another_machine),
    ("kubelet_killed_is_no_death", Short, life::kubelet_killed),
    ("agent_silent_is_no_death", Short, life::agent_stopped),
    ("agent_killed_is_no_death", Short, life::agent_killed),
    ("one_way_cut_is_no_death", Short, life::one_way_cut),
    ("node_frozen_for_5_s", Long, life::frozen_shortly),
    ("node_frozen_for_60_s", Long, life::frozen_for_a_minute),
    ("all_nodes_cut_at_once_is_a_storm", Long, life::all_cut),
    ("the_leaders_own_node_is_cut_off", Short, death::leaders_node),
    ("coordinator_upgraded_during_an_incident", Long, control_plane::upgrade),
    ("apiserver_restarted", Long, control_plane::restart),
    ("apiserver_away_for_two_minutes", Long, control_plane::away),
    ("uninstalled_and_installed_again", Short, control_plane::uninstalled),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share one cluster.
    arguments.test_threads = Some(1);
    let usable = arguments.list || usable_or_skip("scenarios");
    let bed: Arc<Mutex<Option<Bed>>> = Arc::default();
    let trial = |(name, length, scenario): &Scenario| {
        let (bed, scenario) = (Arc::clone(&bed), *scenario);
        Trial::test(*name, move || run(&bed, scenario)).with_ignored_flag(!usable || *length != Short)
    };
    let soaks = std::env::var_os(SOAK).is_some();
    let wanted = SCENARIOS.iter().filter(|(_, length, _)| soaks || *length != Soak);
    let conclusion = libtest_mimic::run(&arguments, wanted.map(trial).collect());
    // Taken down before the process ends: nothing is left behind.
    drop(bed.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

/// Runs a scenario on the bed, which is built for the first one; one that failed leaves a bed that nobody trusts.
fn run(bed: &Mutex<Option<Bed>>, scenario: fn(&Bed) -> Result<()>) -> Result<(), Failed> {
    let mut bed = bed.lock().unwrap_or_else(PoisonError::into_inner);
    let ready = if let Some(ready) = bed.take() {
        ready
    } else {
        let tell = |what: &str| eprintln!("== {what}");
        let name = std::env::var(CLUSTER).unwrap_or_else(|_| "e2e".to_owned());
        let up = Hold::take(&name).and_then(|hold| Bed::up(hold, 3, Images::Debug, true, &tell));
        up.map_err(|error| told(&error))?
    };
    let outcome = scenario(&ready)
        .and_then(|()| ready.calm().context("after the scenario"))
        // After each, since pods are replaced, and their logs with them.
        .and_then(|()| ready.nothing_was_forbidden());
    if let Err(error) = outcome {
        // At once: the summary comes after the last scenario.
        eprintln!("FAILED: {error:#}");
        return Err(format!("{error:#}\n{}", ready.situation()).into());
    }
    *bed = Some(ready);
    Ok(())
}

fn told(error: &anyhow::Error) -> Failed {
    format!("{error:#}").into()
}
