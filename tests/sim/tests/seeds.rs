//! As many worlds as a minute allows, and the test of the test.

use somersault_sim::{Broken, Mutant, Options, Summary, run};

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
    assert!(total.reimports > seeds / 8, "{total:?}");
}

#[test]
fn even_seeds_hold() {
    half(0);
}

#[test]
fn odd_seeds_hold() {
    half(1);
}

/// The first seed that a mutant breaks must break what the mutant is about: a world that merely never recovers, or
/// that stops at another rule, would find any mutant.
fn is_found(mutant: Mutant, by: fn(&Broken) -> bool) {
    let broken = (0..SEEDS)
        .find_map(|seed| run(Options { mutant: Some(mutant), ..Options::new(seed) }).err())
        .unwrap_or_else(|| panic!("{mutant:?} is not found within {SEEDS} seeds"));
    println!("{mutant:?} is found by seed {}: {}", broken.seed, broken.broken);
    assert!(by(&broken.broken), "{mutant:?} is found by something else: {broken}");
}

/// A guest that lives where the coordinator thinks it dead.
fn acted_on_the_living(broken: &Broken) -> bool {
    matches!(broken, Broken::ActedWithoutProof { .. } | Broken::ActiveTwice { .. })
}

#[test]
fn acting_without_the_proof_is_found() {
    is_found(Mutant::DropProof, acted_on_the_living);
}

#[test]
fn going_on_under_an_old_epoch_is_found() {
    is_found(
        Mutant::OldEpoch,
        |broken| matches!(broken, Broken::EpochWentBack { old, new, .. } if new < old),
    );
}

#[test]
fn a_shortened_lease_wait_is_found() {
    is_found(Mutant::ShortLease, acted_on_the_living);
}
