//! As many worlds as a minute allows, and the test of the test.

use somersault_sim::{Mutant, Options, Summary, run};

/// About a minute on two slow cores, together with the mutants.
const SEEDS: u64 = 800;

fn half(odd: u64) {
    let mut total = Summary::default();
    for seed in (0..SEEDS).filter(|seed| seed % 2 == odd) {
        total += run(Options::new(seed)).unwrap_or_else(|failure| panic!("{failure}"));
    }
    // Worlds in which nothing is ever recovered would hold as well.
    let seeds = u32::try_from(SEEDS / 2).expect("few");
    assert!(total.deletions > seeds && total.closed > seeds && total.handovers > seeds / 4, "{total:?}");
}

#[test]
fn even_seeds_hold() {
    half(0);
}

#[test]
fn odd_seeds_hold() {
    half(1);
}

fn is_found(mutant: Mutant) {
    let found = (0..SEEDS).find(|seed| run(Options { mutant: Some(mutant), ..Options::new(*seed) }).is_err());
    println!("{mutant:?} is found by seed {found:?}");
    assert!(found.is_some(), "{mutant:?} is not found within {SEEDS} seeds");
}

#[test]
fn acting_without_the_proof_is_found() {
    is_found(Mutant::DropProof);
}

#[test]
fn going_on_under_an_old_epoch_is_found() {
    is_found(Mutant::OldEpoch);
}

#[test]
fn a_shortened_lease_wait_is_found() {
    is_found(Mutant::ShortLease);
}
