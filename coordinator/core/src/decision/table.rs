//! The decision table, a row for each case: VM `web` on n1, which is dead, with disk `data` on NFS, changed by
//! the row.

use crate::decision::testkit::World;
use crate::decision::{DecisionKind, Reason};

mod disks;
mod placement;
mod state;
mod storage;

/// The case, what it changes, and what is decided.
type Row = (&'static str, fn(&mut World), DecisionKind, &'static [Reason]);

fn check(rows: &[Row]) {
    for (case, change, kind, reasons) in rows {
        let mut world = World::new();
        change(&mut world);
        let decision = world.decide("web");
        assert_eq!((decision.kind, decision.reasons.as_slice()), (*kind, *reasons), "{case}: {decision:#?}");
        assert!(!decision.details.is_empty(), "{case}: says why");
        assert!(!decision.remedy.is_empty(), "{case}: has a remedy");
    }
}
