//! What agents call a disk's troubles, and what the coordinator makes of them.

use std::collections::BTreeSet;

use somersault_agent_core::health::{Grade, Reason};
use somersault_coordinator_core::evacuation::SOURCES;

/// A reason of an agent that makes a disk fail counts as a source of that, and no other does.
#[test]
fn every_reason_that_fails_a_disk_is_of_a_source() {
    let fails = Reason::ALL.iter().filter(|reason| reason.grade() >= Grade::Failing);
    let fails: BTreeSet<&str> = fails.map(|reason| reason.as_str()).collect();
    let known: Vec<&str> = SOURCES.iter().flat_map(|(_, reasons)| *reasons).copied().collect();
    assert_eq!(known.len(), fails.len(), "one is named twice");
    assert_eq!(BTreeSet::from_iter(known), fails);
}
